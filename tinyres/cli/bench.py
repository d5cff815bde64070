"""``tinyres bench``: how fast the kernels and whole steps are, beside PyTorch and other peers that are installed."""

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tinyres
from tinyres.cli.options import COMMAND_LINE, add_data_dir, check_file, whole
from tinyres.errors import UsageError

DESCRIPTION = """\
Measures in rounds, each row once per round, so that whatever disturbs the machine disturbs all rows. "quartiles" says how
far the middle half of the rounds spreads. "x best peer" is the median, over the rounds, of the time of the best peer's row
divided by the time of this row, with its 95 % interval (which needs 6 rounds). "first s" is the first call, which compiles;
the rates do not hold it. GFLOP/s are counted as direct convolution. Peers are measured if they are installed, with as many
threads as ours: PyTorch, whose "compile" rows need a C++ compiler; JAX; for inference also ONNX Runtime and OpenVINO.
With --out, the result is written after each row, so that Ctrl-C keeps what was measured. Close other programs first."""

COMPARE = """\
A row is called faster or slower if the 95 % interval of before / after, which needs 7 rounds in both results, does not hold
1. Lines at the end say what else is not the same: versions, machine, threads, environment. Exit status: 1 if a row is surely
slower than --fail-above allows, else 0."""

TABLE = """\
Prints results as Markdown: those of train and inference in one table, or one of ops or of profile. With --rewrite, makes
the tables of a page anew: each stands between <!-- tinyres bench table FILE... --> and <!-- end -->, with names of files
relative to the page."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="measure speed beside PyTorch and others", description=DESCRIPTION, allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    same: dict[str, Any] = {"description": DESCRIPTION, "allow_abbrev": False}
    train = kinds.add_parser("train", help="whole training steps, or inference", **same)
    train.add_argument("--models", type=names, default=["resnet20"], metavar="A,B", help="(default: resnet20)")
    train.add_argument("--batch-sizes", type=sizes, default=[128], metavar="N,M", help="(default: 128)")
    train.add_argument("--inference", action="store_true", help="forward in evaluation mode instead of training steps")
    train.add_argument(
        "--peers",
        type=names,
        metavar="A,B",
        help="torch, jax, onnxruntime, openvino, or none (default: all that are installed)",
    )
    train.set_defaults(run=run_train)
    ops = kinds.add_parser("ops", help="each kernel at the layers of the networks", **same)
    ops.add_argument("--batch-size", type=whole(1), default=128, metavar="N", help="(default: 128)")
    ops.set_defaults(run=run_ops)
    profile = kinds.add_parser("profile", help="the time of a step by kernel, and the machine's limits", allow_abbrev=False)
    profile.add_argument("--model", default="resnet20", help="(default: resnet20)")
    profile.add_argument("--batch-size", type=whole(1), default=128, metavar="N", help="(default: 128)")
    profile.add_argument("--backend", default=None, metavar="NAME", help="(default: the one that tinyres info marks)")
    profile.add_argument("--rounds", type=whole(1), default=10, metavar="N", help="steps to measure (default: 10)")
    profile.add_argument("--out", metavar="FILE", help="write the result there as JSON")
    profile.set_defaults(run=run_profile)
    for kind in (train, ops):
        kind.add_argument("--backends", type=names, metavar="A,B", help="(default: all CPU backends that run here)")
        kind.add_argument("--rounds", type=whole(1), default=10, metavar="N", help="(default: 10)")
        kind.add_argument(
            "--processes",
            type=whole(1),
            metavar="N",
            help="measure each case in N fresh processes, one after another; the median of a process is then one time, and "
            "spread and intervals are those of the processes (default: all in this process)",
        )
        kind.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
        kind.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
        kind.add_argument("--out", metavar="FILE", help="write the result there as JSON, and its pictures beside it")
    gpu = kinds.add_parser("gpu", help="all that only a GPU can show", description=GPU, allow_abbrev=False)
    gpu.add_argument("--out", metavar="DIR", required=True, help="the folder for the result, its pictures and the run")
    gpu.add_argument("--backend", default="cupy", metavar="NAME", help="cupy (default) or cuda-emulated")
    gpu.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs; always used with cuda-emulated")
    gpu.add_argument("--data", choices=("cifar10", "shapes"), help="for the training run (default: cifar10, if it is here)")
    add_data_dir(gpu)
    gpu.set_defaults(run=run_gpu)
    compare = kinds.add_parser("compare", help="what changed between two results", description=COMPARE, allow_abbrev=False)
    compare.add_argument("before", metavar="A.json")
    compare.add_argument("after", metavar="B.json")
    compare.add_argument(
        "--fail-above",
        type=slowdown,
        metavar="X",
        help="exit with status 1 if a row is surely slower than by X: 5%% or 1.05",
    )
    compare.set_defaults(run=run_compare)
    table = kinds.add_parser("table", help="results as Markdown", description=TABLE, allow_abbrev=False)
    table.add_argument("results", nargs="*", metavar="FILE.json")
    table.add_argument("--rewrite", metavar="PAGE.md", help="make the tables of this page anew instead")
    table.set_defaults(run=run_table)


GPU = """\
Compares every kernel and whole steps with the NumPy reference and PyTorch. Measures bandwidth and arithmetic beside those of
the card, and whole training steps beside PyTorch's configurations. Trains a network, runs a small step under
compute-sanitizer, and runs the GPU tests. Takes up to 8 minutes and leaves out what it has no time for; at the end, prints a
table and writes result.json and its pictures."""


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def sizes(text: str) -> list[int]:
    return [whole(1)(size.strip()) for size in text.split(",")]


def slowdown(text: str) -> float:
    """How many times as long: 1.05 for ``5%`` or ``1.05``."""
    try:
        times = 1 + float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        times = math.nan
    if not 1 <= times < math.inf:
        raise argparse.ArgumentTypeError(f"expected 5% or 1.05, got {text!r}")
    return times


def run_train(arguments: argparse.Namespace) -> None:
    about = begin(arguments)
    from tinyres.benchmarks import peers, steps

    rows = [row for name in backends(arguments) for row in ([name, f"{name} captured"] if name == "numba" else [name])]
    for model in arguments.models:
        tinyres.models.build(model)  # an unknown name is an error now, not in an hour
    theirs, left_out = chosen_peers(arguments)
    rows += theirs
    alone = [model for model in arguments.models if not peers.has(model)]
    if alone and theirs:
        raise UsageError(f"{', '.join(alone)}: the peers have no such network to compare with; measure it with --peers none")
    print(steps.HEADER)
    with kept(arguments.out) as keep:
        result = steps.run(
            arguments.models,
            arguments.batch_sizes,
            rows,
            arguments.rounds,
            not arguments.inference,
            arguments.processes,
            keep=keep,
            about={**about, "left_out": left_out},
        )
    finish(result, arguments.out)


def run_ops(arguments: argparse.Namespace) -> None:
    about = begin(arguments)
    from tinyres.benchmarks import layers

    rows, with_torch = backends(arguments), not arguments.no_torch and not note_missing(["torch"])
    print(layers.HEADER)
    with kept(arguments.out) as keep:
        compiled = not arguments.no_compile
        result = layers.run(
            arguments.batch_size, rows, arguments.rounds, with_torch, compiled, arguments.processes, keep=keep, about=about
        )
    finish(result, arguments.out)


def run_profile(arguments: argparse.Namespace) -> None:
    about = begin(arguments)
    from tinyres.benchmarks import floors

    tinyres.models.build(arguments.model)
    print(floors.HEADER)
    backend = arguments.backend or tinyres.get_backend()
    with kept(arguments.out) as keep:
        result = floors.run(arguments.model, arguments.batch_size, backend, arguments.rounds, about=about)
        keep(result)
    finish(result, arguments.out)


def run_compare(arguments: argparse.Namespace) -> int:
    from tinyres.benchmarks import compare, report

    before, after = report.load(arguments.before), report.load(arguments.after)
    found = compare.changes(before, after)
    print("\n".join([*compare.table(found), *compare.warnings(before, after)]))
    if arguments.fail_above is None:
        return 0
    if not any(one.interval for one in found):
        raise UsageError(
            "--fail-above: no row has rounds enough to say whether it is slower; measure with --rounds 7 or more"
        )
    slower = [one for one in found if one.slower_than(arguments.fail_above)]
    limit = f"{arguments.fail_above:.4g} times the time before"
    print(f"{len(slower)} rows surely take more than {limit}" if slower else f"no row surely takes more than {limit}")
    return 1 if slower else 0


def run_table(arguments: argparse.Namespace) -> None:
    from tinyres.benchmarks import report, tables
    from tinyres.files import write_atomically

    if bool(arguments.results) == bool(arguments.rewrite):
        raise UsageError("bench table takes either results, FILE.json..., or --rewrite PAGE.md")
    if arguments.results:
        print(tables.tables([report.load(path) for path in arguments.results]))
        return
    page = Path(arguments.rewrite)
    old = page.read_text("utf-8")
    new = tables.rewritten(old, page.parent)
    if new != old:
        write_atomically(page, new.encode())
    print(f"{page} {'is written anew' if new != old else 'is up to date'}")


def run_gpu(arguments: argparse.Namespace) -> None:
    from tinyres.benchmarks import machine

    about = machine.begin(list(COMMAND_LINE))  # the load before all else
    from tinyres.benchmarks import gpu, plots
    from tinyres.errors import DataError

    gpu.check_backend(arguments.backend)
    tiny = arguments.tiny or arguments.backend == "cuda-emulated"
    try:
        data = tinyres.data.load(arguments.data or ("shapes" if tiny else "cifar10"), arguments.data_dir)
    except DataError:
        if arguments.data:
            raise
        data = tinyres.data.load("shapes")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is an error now, not in eight minutes
    result = gpu.run(arguments.backend, out, data.limit(16, 8) if tiny else data, tiny, about=about)
    print("\n" + "\n".join(gpu.table(result)), flush=True)
    print(f"written: {', '.join(map(str, [out / 'result.json', *plots.draw(result, out)]))}")


def begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a result says of its run. The load is read first, and what would fail at the end fails now: nothing is loaded or
    measured yet.
    """
    from tinyres.benchmarks import machine

    about = machine.begin(list(COMMAND_LINE))
    load = about["machine"]["load"]
    if load and load > 0.5:
        print(f"note: the machine is busy (load {load:.1f}), so the figures will say little")
    check_file("--out", arguments.out, (".json",), make=True)
    if arguments.out:
        folder = Path(arguments.out).with_suffix("")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out: the pictures go into the folder {folder}, but a file has that name")
        with tempfile.TemporaryFile(dir=Path(arguments.out).resolve().parent):  # some folders only seem writable
            pass
    return about


@contextlib.contextmanager
def kept(out: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes the result so far; if the block is interrupted, the message says that it is there."""
    from tinyres.benchmarks import report

    rows = 0

    def keep(result: dict[str, Any]) -> None:
        nonlocal rows
        rows = len(result.get("rows", ())) or sum(len(case["rows"]) for case in result.get("cases", ()))
        if out and rows:
            report.save(result, out)

    try:
        yield keep
    except KeyboardInterrupt:
        if out and rows:
            raise KeyboardInterrupt(
                f"interrupted; {out} has the {rows} rows measured so far, marked as incomplete"
            ) from None
        raise


def backends(arguments: argparse.Namespace) -> list[str]:
    """The backends asked for, or all that run here."""
    usable = [name for name in ("numpy", "numba") if not tinyres.available_backends()[name]]
    for name in arguments.backends or ():
        tinyres.use_backend(name)  # raises for one that cannot run here
    return arguments.backends or usable


def chosen_peers(arguments: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The rows of the peers to measure, and why those that were not left out on purpose are not among them."""
    from tinyres.benchmarks import peers

    given = arguments.peers
    if unknown := [name for name in given or () if name not in (*peers.ROWS, "none")]:
        raise UsageError(f"--peers: {unknown[0]} is none of {', '.join(peers.ROWS)}")
    fitting = [name for name in peers.ROWS if arguments.inference or name in peers.FOR_TRAINING]
    if given and (wrong := [name for name in given if name in peers.ROWS and name not in fitting]):
        raise UsageError(f"--peers: {wrong[0]} is for inference alone; add --inference")
    wanted = [name for name in fitting if given is None or name in given]
    wanted = [name for name in wanted if name != "torch" or not arguments.no_torch]
    left_out = note_missing(wanted)
    if given and left_out:
        raise UsageError(f"--peers: {next(iter(left_out.values()))}")
    rows = [row for name in wanted if name not in left_out for row in peers.ROWS[name]]
    return [row for row in rows if "compile" not in row or not arguments.no_compile], left_out


def note_missing(libraries: list[str]) -> dict[str, str]:
    """Why some of the libraries cannot be measured; a note says so."""
    from tinyres.benchmarks import peers

    left_out = {name: why for name in libraries if (why := peers.missing(name))}
    for why in left_out.values():
        print(f"note: not measured: {why}")
    return left_out


def finish(result: dict[str, Any], out: str | None) -> None:
    from tinyres.benchmarks import plots

    limits = {
        "matmul_gflops": "matrix product 2048^3 {:.0f} GFLOP/s",
        "copy_gb_per_s": "copy {:.1f} GB/s",
        "fma_peak_gflops": "multiply-add peak {:.0f} GFLOP/s",
    }
    print("this machine: " + ", ".join(limits[key].format(value) for key, value in result["limits"].items()))
    if out:
        pictures = plots.draw(result, Path(out).with_suffix(""))
        print(f"written: {', '.join(map(str, [out, *pictures]))}")
