"""Timing on a machine that is not quiet: repetitions of all rows interleaved, medians, and ratios within a round.

Whatever slows the machine for a while slows all rows of the same rounds. So the ratio of two rows is taken in each round,
and the median of these ratios is reported, not the ratio of two times measured at different moments.
"""

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

from tinyres.benchmarks import spread

PAUSE = 0.02  # seconds between rows: the waiting threads of one library go to sleep before the next one starts


class Timed(NamedTuple):
    """What was measured of each row: seconds of each round, and of each first call, which compiles.

    With ``--processes`` a round is a process: its time is the median of its own rounds, which ``within`` keeps.
    """

    seconds: dict[str, list[float]]
    first: dict[str, list[float]]
    within: dict[str, list[list[float]]]

    @classmethod
    def nothing(cls) -> "Timed":
        return cls({}, {}, {})

    def complete(self) -> "Timed":
        """Without the round that was interrupted."""
        rounds = min(map(len, self.seconds.values()), default=0)
        return self._replace(seconds={row: times[:rounds] for row, times in self.seconds.items()} if rounds else {})


def interleaved(
    rows: dict[str, Callable[[], object]], rounds: int, shortest: float = 0.0, into: Timed | None = None
) -> Timed:
    """Measures each row once per round, in an order that changes from round to round. Each row runs twice before.

    A row that takes less than ``shortest`` seconds is repeated within a round to fill them, and the mean is taken. Such a
    row also runs for ``shortest`` seconds untimed after the pause: within a training step no kernel starts on sleeping
    threads.
    """
    repeats, timed = {}, into or Timed.nothing()
    for name, run in rows.items():
        timed.first[name] = [_seconds(run)]
        repeats[name] = max(1, round(shortest / max(_seconds(run), 1e-7)))
        timed.seconds[name] = []
    order, shuffle = list(rows), random.Random(0).shuffle
    for _ in range(rounds):
        for name in order:
            time.sleep(PAUSE)
            if repeats[name] > 1:
                _seconds(rows[name], repeats[name])
            timed.seconds[name].append(_seconds(rows[name], repeats[name]) / repeats[name])
        shuffle(order)  # what runs before a row leaves it the caches
    return timed


def _seconds(run: Callable[[], object], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return time.perf_counter() - start


def in_processes(count: int, measure: Callable[[], Timed], into: Timed) -> None:
    """Adds the medians of ``count`` calls of ``measure``, which starts a process each time."""
    for _ in range(count):
        one = measure()
        for row, times in one.seconds.items():
            into.first.setdefault(row, []).extend(one.first[row])
            into.within.setdefault(row, []).append(times)
            into.seconds.setdefault(row, []).append(median(times))


def summary(timed: Timed, row: str, best: str | None) -> dict[str, Any]:
    """What a result says of every row; ``best`` is the peer to which it is compared."""
    times = timed.seconds[row]
    compared = (timed.seconds[best], times) if best else None
    return {
        "row": row,
        "median_seconds": median(times),
        "quartile_seconds": spread.quartiles(times),
        "seconds": times,
        "first_seconds": median(timed.first[row]),
        "seconds_within": timed.within.get(row),
        "times_best_peer": ratio(*compared) if compared else None,
        "times_best_peer_interval": spread.of_paired_ratio(*compared) if compared else None,
    }


def ratio_text(row: dict[str, Any]) -> str:
    """The columns "x best peer" and "95 % interval"."""
    times, interval = row["times_best_peer"], row["times_best_peer_interval"]
    ends = f"{interval[0]:.2f} - {interval[1]:.2f}" if interval else "too few" if times else "-"
    return f"{f'{times:.2f}' if times else '-':>11} {ends:>13}"


def ratio(peer: list[float], ours: list[float]) -> float:
    """How many times faster ours is: the median, over the rounds, of the peer's time divided by ours."""
    return median(p / o for p, o in zip(peer, ours, strict=True))


def best(seconds: dict[str, list[float]], names: list[str]) -> str | None:
    """The one of ``names`` with the lowest median."""
    return min(names, key=lambda name: median(seconds[name]), default=None)
