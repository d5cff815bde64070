"""``tinyres train --seeds N``: the same run with several seeds, since one run says little about a method."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyres.cli.config import Declare, parse_words, words_of
from tinyres.cli.tables import print_table
from tinyres.errors import UsageError
from tinyres.files import read_json, write_atomically

FILE = "seeds.json"


def train_all(given: dict[str, Any], out: Path, train: Callable[[dict[str, Any], Path], Any]) -> None:
    """Trains into a folder per seed, and writes the errors with their mean and deviation to ``seeds.json``.

    ``train(given, folder)`` trains one, or continues it, and returns its Trainer.
    """
    first, count = given.get("seed", 0), given["seeds"]
    if not given.get("resume"):
        if there := [name for name in (FILE, "last.safetensors") if (out / name).exists()]:
            raise UsageError(
                f"{out} already holds a run ({there[0]}), and nothing was changed; continue it with --resume, or choose "
                "another folder with --out"
            )
        out.mkdir(parents=True, exist_ok=True)
    words = [*words_of(given), "--seeds", str(count)]
    results: list[dict[str, Any]] = []
    write(out, words, results)
    for seed in range(first, first + count):
        folder = out / f"seed-{seed}"
        print(f"seed {seed}, {seed - first + 1} of {count}", flush=True)
        resume = bool(given.get("resume")) and folder.is_dir()
        trainer = train({**given, "seed": seed, "resume": resume}, folder)
        last, best, key = trainer.state.lines[-1], trainer.best(), f"{trainer.held_out}_error"
        results.append({"seed": seed, "last": last[key], "best": best[key], "epoch": best["epoch"]})
        write(out, words, results)
    rows = [[str(one["seed"]), f"{one['last']:.2f}", f"{one['best']:.2f}", str(one["epoch"])] for one in results]
    rows.append(["mean and deviation", *(_both(spread(results, name)) for name in ("last", "best")), ""])
    print()
    print_table(
        f"{trainer.held_out} error in per cent: after the last epoch, and the lowest, which is chosen by it",
        ("seed", "last", "best", "epoch"),
        rows,
    )
    print(f"written: {out / FILE}")


def remembered(out: Path, declare: Declare) -> dict[str, Any]:
    """The options of the runs in this folder; none if they are not there. Raises `UsageError` for a damaged file."""
    if not (out / FILE).exists():
        return {}
    try:
        return parse_words(read_json(out / FILE)["options"], declare)
    except (UsageError, OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out / FILE} does not tell the options of its runs: {error}") from error


def write(out: Path, words: list[str], results: list[dict[str, Any]]) -> None:
    about: dict[str, Any] = {"options": words, "results": results}
    if len(results) > 1:
        about["mean"], about["deviation"] = ({name: spread(results, name)[i] for name in ("last", "best")} for i in range(2))
    write_atomically(out / FILE, (json.dumps(about, indent=2) + "\n").encode())


def spread(results: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """The mean, and the standard deviation of a sample (divided by n - 1; 0 for one)."""
    values = [one[name] for one in results]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _both(numbers: tuple[float, float]) -> str:
    return "{:.2f} ± {:.2f}".format(*numbers)
