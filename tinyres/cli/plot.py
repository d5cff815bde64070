"""``tinyres plot``: the curves of several runs in one picture."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from tinyres.cli.options import check_file
from tinyres.cli.tables import print_table
from tinyres.errors import UsageError
from tinyres.files import open_file

MOST_BYTES = 1 << 24

DESCRIPTION = """\
Draws loss and error by epoch of one or more runs, and lists their errors. A RUN is the folder of one, the folder of several
seeds (which have one colour), or a metrics.jsonl."""


def add(commands: Any) -> None:
    parser = commands.add_parser("plot", help="draw the curves of runs", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", metavar="FILE", default="plot.png", help="a .png or .svg file (default: plot.png)")
    parser.add_argument("--log", action="store_true", help="loss and error on a logarithmic scale")
    parser.add_argument("--title", help="(default: the data and the networks, as far as they are the same)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres.train.curves import Curve, draw_run, draw_runs, write_figure

    check_file("--out", arguments.out, (".png", ".svg"))
    given = [(label, found(run)) for label, run in zip(labels(arguments.runs), arguments.runs, strict=True)]
    files = [(label, file) for label, files in given for file in files]
    names = [label if len(files) == 1 else f"{label}/{file.parent.name}" for label, files in given for file in files]
    curves = [Curve(label, *read(file)) for label, file in files]
    title = arguments.title or "training runs"
    alone = len(curves) == 1 and not arguments.log
    figure = draw_run(arguments.title or curves[0].label, curves[0]) if alone else draw_runs(title, curves, arguments.log)
    write_figure(Path(arguments.out), figure)
    rows = []
    for name, curve in zip(names, curves, strict=True):
        key = f"{curve.held_out}_error"
        best = min(curve.lines, key=lambda line: line[key])
        numbers = f"{curve.lines[-1][key]:.2f}", f"{best[key]:.2f}", str(best["epoch"])
        rows.append([name, curve.held_out, str(len(curve.lines)), *numbers])
    print_table("error in per cent", ("run", "images", "epochs", "last", "best", "in epoch"), rows, left=2)
    print(f"written: {arguments.out}")


def labels(runs: list[str]) -> list[str]:
    """Short names: the folders', or as much of a path as no other one ends with."""
    paths = [path.parent if (path := Path(run).resolve()).is_file() else path for run in runs]
    names = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        parts = next(i for i in range(1, len(path.parts) + 1) if all(o[-i:] != path.parts[-i:] for o in others))
        names.append("/".join(path.parts[-parts:]))
    return names


def found(run: str) -> list[Path]:
    """The metrics of a run, or of its seeds."""
    path = Path(run)
    if path.is_dir():
        here = [path / "metrics.jsonl"] if (path / "metrics.jsonl").exists() else sorted(path.glob("seed-*/metrics.jsonl"))
        if not here:
            raise UsageError(f"{run} is not the folder of a run: it has no metrics.jsonl")
        return here
    if not path.exists():
        raise UsageError(f"there is no run {run}")
    return [path]


def read(file: Path) -> tuple[list[dict[str, Any]], str]:
    """The lines of a ``metrics.jsonl``, and which images were held out. Raises `UsageError` for a file that is none."""
    with open_file(file) as stream:
        data = stream.read(MOST_BYTES + 1)
    lines: list[dict[str, Any]] = []
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES:,} bytes")
        texts = data.decode("utf-8").splitlines()
        lines = [json.loads(text) for text in texts if text.strip()]
        held_out = next(name for name in ("test", "validation") if f"{name}_error" in lines[0])
        keys = ("train_loss", "train_error", f"{held_out}_loss", f"{held_out}_error")
        if not all(math.isfinite(line[key]) for line in lines for key in (*keys, "epoch")):
            raise ValueError("a number that is not finite")
    except IndexError:
        raise UsageError(f"{file} has no epoch to draw yet") from None
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError, OverflowError) as error:
        raise UsageError(f"{file} does not have the metrics of a run ({type(error).__name__}: {error})") from error
    return lines, held_out
