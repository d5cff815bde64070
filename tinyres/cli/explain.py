"""``tinyres explain``: how the gradient passes through a network's shortcuts, on the numbers of one step."""

import argparse
import json
import math
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import tinyres
from tinyres.cli.options import add_backend, add_data, add_data_dir, add_shortcut, check_file, use, whole
from tinyres.cli.subjects import Subject, at_the_start, named, subject
from tinyres.cli.tables import print_table, print_wrapped
from tinyres.errors import UsageError
from tinyres.kernels import dispatch

DESCRIPTION = """\
Shows the gradient of one training step at the input of every block, and how
much of it came through the shortcut and how much through the branch: of a
training run, of a file of weights, or of a network at the start.

  tinyres explain --compare plain20 --picture gradient.svg
  tinyres explain runs/shapes-resnet20 --paths
  tinyres explain --norms plain20,plain56,resnet20,resnet56 --seeds 3
  tinyres explain --gains 0.5,1,2             without batch norm
  tinyres explain --html gradient.html        a page to explore in a browser"""

WHAT = {"run_folder", "model", "shortcut", "checkpoint"}
STEP = {"data", "data_dir", "size", "split", "strict", "seed", "batch_size", "backend", "command", "run"}
TAKES = {  # what each kind of use takes
    "--html": {"html", "quick", "train_steps", "images"} | WHAT | STEP,
    "--norms": {"norms", "seeds", "json", "picture"} | STEP,
    "--gains": {"gains", "seeds", "json", "picture", "seed", "backend", "command", "run"},
    "": {"compare", "paths", "json", "picture"} | WHAT | STEP,
}
TRAIN_STEPS, QUICK_STEPS = 480, 200


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "explain", help="show how the gradient passes through the shortcuts", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("run_folder", nargs="?", metavar="RUN", help="the folder of a training run, for its last checkpoint")
    parser.add_argument("--model", metavar="NAME", help="a network at the start: resnet20, plain56, ... (default: resnet20)")
    add_shortcut(parser)
    parser.add_argument("--checkpoint", metavar="FILE", help="a file of weights, from training or from import-weights")
    parser.add_argument("--compare", metavar="NAME", help="a second network, such as plain20; or a run or a file of weights")
    add_data(parser, "what the network was trained on, or shapes")
    add_data_dir(parser)
    parser.add_argument("--seed", type=whole(0), metavar="N", help="for weights at the start (default: the run's, or 0)")
    parser.add_argument(
        "--batch-size",
        type=whole(2),
        metavar="N",
        help="take the first N training images (default: 64; of --norms 32, of --html 16)",
    )
    add_backend(parser)
    parser.add_argument("--paths", action="store_true", help="also show the gradient by the number of branches passed")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and nothing else")
    parser.add_argument("--picture", metavar="FILE", help="draw the gradient by depth into FILE, .svg or .png")
    parser.add_argument("--norms", type=names, metavar="A,B", help="show the norms by depth of these networks at the start")
    parser.add_argument(
        "--gains",
        type=numbers,
        metavar="A,B",
        help="show the norms by depth of fully connected nets without batch norm, their weights multiplied by each gain",
    )
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N", help="with --norms or --gains: for N seeds, from --seed on (default: 1)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page to explore in a browser; takes one or two minutes")
    parser.add_argument("--quick", action="store_true", help="with --html: fewer steps, settings and seeds; half a minute")
    parser.add_argument(
        "--train-steps",
        type=whole(1),
        metavar="N",
        help=f"with --html, without RUN: train for N steps of 32 images (default: {TRAIN_STEPS}, quick: {QUICK_STEPS})",
    )
    parser.add_argument("--images", type=whole(1), metavar="N", help="with --html: show N images (default: 4)")
    parser.set_defaults(run=run)


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[float]:
    try:
        found = [float(number) for number in names(text)]
    except ValueError:
        found = []
    if not found or not all(0 < number < 1e6 for number in found):
        raise argparse.ArgumentTypeError(f"must be numbers above 0, such as 0.5,1,2; got {text!r}")
    return found


def run(arguments: argparse.Namespace) -> None:
    kind = check(arguments)
    use(arguments.backend)
    if dispatch.current().device != "cpu":
        raise UsageError(f"explain works on the CPU, and {tinyres.get_backend()} does not; choose --backend numba or numpy")
    {"--html": write_html, "--norms": show_norms, "--gains": show_gains, "": show_ledger}[kind](arguments)


def check(arguments: argparse.Namespace) -> str:
    """Whether the options go together, and the files can be written. Returns the kind of use, a key of `TAKES`."""
    given = {name for name, value in vars(arguments).items() if value not in (None, False)}
    kind = next((kind for kind in ("--html", "--norms", "--gains") if kind[2:] in given), "")
    for name in vars(arguments):  # (in the order of --help)
        if name in given - TAKES[kind]:
            needed = next(k for k in TAKES if name in TAKES[k])
            raise UsageError(f"{option(name)} {f'does not go with {kind}' if kind else f'needs {needed}'}")
    sources = [option(name) for name in ("run_folder", "model", "checkpoint") if name in given]
    if len(sources) > 1:
        raise UsageError(f"{' and '.join(sources)} name two networks; give one of them")
    if "shortcut" in given and sources not in ([], ["--model"]):
        raise UsageError(f"{sources[0]} has its own shortcuts; --shortcut is for a network at the start")
    if "train_steps" in given and sources in (["RUN"], ["--checkpoint"]):
        raise UsageError(f"{sources[0]} is trained already; --train-steps is for a network at the start")
    check_file("--html", arguments.html, (".html", ".htm"))
    check_file("--picture", arguments.picture, (".svg", ".png"))
    return kind


def option(name: str) -> str:
    return "RUN" if name == "run_folder" else f"--{name.replace('_', '-')}"


# --- the ledger ----------------------------------------------------------------------------------------------------------


def show_ledger(arguments: argparse.Namespace) -> None:
    first, count = subject(arguments), arguments.batch_size or 64
    subjects = [first]
    if arguments.compare:
        subjects.append(named(arguments, arguments.compare, first.data))
    ledgers = [tinyres.gradient_ledger(s.model, s.batch(count)) for s in subjects]
    curves = [
        Curve(s.name, s.seed, has_shortcuts(ledger), [row.total for row in ledger])
        for s, ledger in zip(subjects, ledgers, strict=True)
    ]
    title = f"{first.name} {first.state}, {first.data.name}, batch {count}"
    if arguments.json:
        found = [describe(s) | {"ledger": ledger.json()} for s, ledger in zip(subjects, ledgers, strict=True)]
        print_json({**about(arguments, first, count), **found[0], **({"compare": found[1]} if found[1:] else {})})
    else:
        show_rows(f"{title}: loss {ledgers[0].loss:.3f}", ledgers[0])
        if arguments.paths and ledgers[0].paths:
            show_paths(ledgers[0].paths)
        if arguments.compare:
            show_curves("\ngradient norm at the input of the first and the last block", curves)
    draw(arguments, f"gradient by depth: {title}", curves)


def has_shortcuts(ledger: Any) -> bool:
    return any(row.shortcut != "none" for row in ledger)


def describe(s: Subject) -> dict[str, Any]:
    return {"model": s.name, "network": s.network, "state": s.state, "seed": s.seed}


def about(arguments: argparse.Namespace, s: Subject | None = None, batch: int | None = None) -> dict[str, Any]:
    """How the numbers came about."""
    from tinyres.benchmarks.machine import describe

    machine = describe()
    what = {"data": s.data.name, "batch": batch} if s else {}
    return {
        "command": command(arguments),
        **what,
        "backend": tinyres.get_backend(),
        **{key: machine[key] for key in ("processor", "threads", "versions")},
    }


def print_json(found: dict[str, Any]) -> None:
    """What is not finite (the ratio to nothing) is null: JSON has no infinity."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(v) for key, v in value.items()}
        if isinstance(value, list):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    print(json.dumps(finite(found), indent=1, allow_nan=False))


def short(cell: str) -> str:
    """A number without the zeros that an exponent begins with: 7.20e-2."""
    return re.sub(r"e([+-])0+(?=\d)", r"e\1", cell).replace("e+", "e")


def digits(value: float) -> str:
    """To three digits."""
    return short(f"{value:.3g}") if 1e-3 < abs(value) < 1e5 else short(f"{value:.2e}")


LEGEND = """\
Norms of one step's gradient: |dz| arrives at the block's output, |ds| passes
its ReLU and is lent to both sides. What comes back through the shortcut and
through the branch adds up to the gradient at the block's input, |dx|."""


def show_rows(title: str, ledger: Any) -> None:
    from tinyres.explain import words

    heads = [words.HEADS[0], "kind", *words.HEADS[2:]]
    print_table(title, heads, [[short(cell) for cell in words.cells(row)] for row in ledger], left=2)
    print(f"\n{LEGEND}\n")
    print_wrapped("\n".join(words.summary(ledger.rows, ledger.paths)))


def show_paths(paths: Any) -> None:
    columns = paths.share, paths.predicted, paths.binomial
    rows = [[str(k), *(f"{value:.4f}" for value in values)] for k, values in enumerate(zip(*columns, strict=True))]
    heads = ("branches passed", "share of the gradient", "by the ratios alone", "share of the paths")
    print_table("\nthe gradient at the first block, by path length", heads, rows)
    print_wrapped(f"\nThe parts add up to the gradient, but for {paths.relative_error:.0e} of its largest element.")


class Curve(NamedTuple):
    """A network's gradient norms, from the first block to the last. ``seed`` is None for one that is trained."""

    name: str
    seed: int | None
    shortcuts: bool
    norms: list[float]

    @property
    def summary(self) -> dict[str, float]:
        """How the first block's norm compares with the last one's: in all, and per block (a geometric mean)."""
        from tinyres.explain.page.depth import factor

        return {"first_over_last": self.norms[0] / self.norms[-1], "per_block": factor(self.norms)}


def show_norms(arguments: argparse.Namespace) -> None:
    from tinyres.explain.page import depth

    if not arguments.norms:
        raise UsageError("--norms names no network")
    count, seeds = arguments.batch_size or 32, range(arguments.seed or 0, (arguments.seed or 0) + (arguments.seeds or 1))
    curves, data = [], None
    for name in arguments.norms:
        for seed in seeds:
            one = at_the_start(arguments, name, data=data, seed=seed)
            data = one.data
            curves.append(Curve(name, seed, name.startswith("resnet"), depth.norms(one.model, *one.batch(count))))
    title = f"{one.data.name}, batch {count}, at the start"
    if arguments.json:
        rows = [{"model": c.name, "seed": c.seed, **c.summary, "norms": c.norms} for c in curves]
        print_json({**about(arguments, one, count), "networks": rows})
    else:
        show_curves(f"gradient norm at the input of the first and the last block: {title}", curves)
    draw(arguments, f"gradient by depth: {title}", curves)


def show_gains(arguments: argparse.Namespace) -> None:
    from tinyres.explain.page import depth

    seeds = range(arguments.seed or 0, (arguments.seed or 0) + (arguments.seeds or 1))
    rows, curves = [], []
    for family in ("plain", "residual"):
        for gain in arguments.gains:
            for seed in seeds:
                curve = Curve(
                    f"{family}, gain {gain:g}",
                    seed,
                    family == "residual",
                    depth.gain_norms(family == "residual", gain, seed),
                )
                curves.append(curve)
                rows.append({"family": family, "gain": gain, "seed": seed, **curve.summary, "norms": curve.norms})
    title = "fully connected nets without batch norm, 30 blocks of 64 units, at the start"
    if arguments.json:
        print_json({**about(arguments), "networks": rows})
    else:
        show_curves(f"gradient norm at the input of the first and the last block: {title}", curves)
    draw(arguments, title, curves)


def show_curves(title: str, curves: list[Curve]) -> None:
    rows = []
    for c in curves:
        ratio, each = c.summary.values()
        seed = "" if c.seed is None else str(c.seed)
        rows.append([c.name, seed, str(len(c.norms)), *map(digits, (c.norms[0], c.norms[-1], ratio)), f"x {each:.2f}"])
    print_table(title, ("network", "seed", "blocks", "|dx| first", "|dx| last", "first / last", "per block"), rows)


def draw(arguments: argparse.Namespace, title: str, curves: list[Curve]) -> None:
    if arguments.picture:
        from tinyres.explain.page.curves import write_curves

        seeds = len(curves) != len({c.name for c in curves})
        named = [(f"{c.name}, seed {c.seed}" if seeds else c.name, c.shortcuts, c.norms) for c in curves]
        write_curves(Path(arguments.picture), title, named)
        # standard output is for what a program reads
        print(f"written: {arguments.picture}", file=sys.stderr if arguments.json else sys.stdout)


# --- the page ------------------------------------------------------------------------------------------------------------


def write_html(arguments: argparse.Namespace) -> None:
    from tinyres.explain.page import Job, collect, write_page
    from tinyres.train import progress

    began, one = time.monotonic(), subject(arguments)
    job = Job(
        command=command(arguments),
        network=one.network,
        data=one.data,
        mean=one.mean,
        scale=one.scale,
        trained=None if one.seed is not None else one.model,
        train_steps=arguments.train_steps or (QUICK_STEPS if arguments.quick else TRAIN_STEPS),
        images=arguments.images or 4,
        batch=arguments.batch_size or 16,
        seed=one.start_seed,
        quick=arguments.quick,
    )
    with progress.for_terminal() as display:
        data = collect(job, lambda what, done, steps, left: display.step(what, done, steps, "", left))
    size = write_page(arguments.html, data)
    if job.trained is None:
        print(f"{one.name} was trained for it: {job.train_steps} steps of 32 images of {one.data.name}")
    took = progress.duration(time.monotonic() - began)
    print(f"written: {arguments.html}, {size / 1e6:.2f} MB, in {took}; open it in a browser")


def command(arguments: argparse.Namespace) -> str:
    """The command line as it would be typed."""
    words = ["tinyres", "explain"]
    for name, value in vars(arguments).items():
        if name not in ("command", "run") and value not in (None, False):
            text = ",".join(v if isinstance(v, str) else f"{v:g}" for v in value) if isinstance(value, list) else str(value)
            words += [*([] if name == "run_folder" else [option(name)]), *([] if value is True else [text])]
    return shlex.join(words)
