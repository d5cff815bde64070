"""Timing on a machine that is not quiet: repetitions of all rows interleaved, medians, and ratios within a round.

Whatever slows the machine for a while slows all rows of the same rounds. So the ratio of two rows is taken in each round,
and the median of these ratios is reported, not the ratio of two times measured at different moments.
"""

import time
from collections.abc import Callable
from statistics import median

PAUSE = 0.02  # seconds between rows: the waiting threads of one library go to sleep before the next one starts


def interleaved(rows: dict[str, Callable[[], object]], rounds: int, shortest: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each row in each round. Each row runs once before, for compilation and caches. A row that takes less than
    ``shortest`` seconds is repeated within a round to fill them, and the mean is taken. Such a row also runs for
    ``shortest`` seconds untimed after the pause: within a training step no kernel starts on sleeping threads.
    """
    repeats = {}
    for name, run in rows.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(shortest / max(time.perf_counter() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            time.sleep(PAUSE)
            for _ in range(repeats[name] if repeats[name] > 1 else 0):
                run()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def ratio(peer: list[float], ours: list[float]) -> float:
    """How many times faster ours is: the median, over the rounds, of the peer's time divided by ours."""
    return median(p / o for p, o in zip(peer, ours, strict=True))


def best(seconds: dict[str, list[float]], names: list[str]) -> str:
    """The one of ``names`` with the lowest median."""
    return min(names, key=lambda name: median(seconds[name]))
