"""``tinyres bench``: how fast the kernels and whole steps are, beside PyTorch if it is installed."""

import argparse
import os
from pathlib import Path
from typing import Any

import tinyres
from tinyres.cli.options import add_data_dir, check_file, whole
from tinyres.errors import UsageError

DESCRIPTION = """\
Measures in rounds, each row once per round, so that whatever disturbs the machine disturbs all rows. The column
"x best peer" is the median, over the rounds, of the time of the best PyTorch row divided by the time of this row. PyTorch
is measured if it is installed; its "compile" rows need a C++ compiler. Close other programs first."""


def add(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure speed beside PyTorch", description=DESCRIPTION, allow_abbrev=False)
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    same: dict[str, Any] = {"description": DESCRIPTION, "allow_abbrev": False}
    train = kinds.add_parser("train", help="whole training steps, or inference", **same)
    train.add_argument("--models", type=names, default=["resnet20"], metavar="A,B", help="(default: resnet20)")
    train.add_argument("--batch-sizes", type=sizes, default=[128], metavar="N,M", help="(default: 128)")
    train.add_argument("--inference", action="store_true", help="forward in evaluation mode instead of training steps")
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
    compare = kinds.add_parser("compare", help="what changed between two results", allow_abbrev=False)
    compare.add_argument("before", metavar="A.json")
    compare.add_argument("after", metavar="B.json")
    compare.set_defaults(run=run_compare)


GPU = """\
Compares every kernel and whole steps with the NumPy reference and PyTorch. Measures bandwidth and arithmetic beside those of
the card, and whole training steps beside PyTorch's configurations. Trains a network, runs a small step under
compute-sanitizer, and runs the GPU tests. Takes up to 8 minutes and leaves out what it has no time for; at the end, prints a
table and writes result.json and its pictures."""


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def sizes(text: str) -> list[int]:
    return [whole(1)(size.strip()) for size in text.split(",")]


def run_train(arguments: argparse.Namespace) -> None:
    from tinyres.benchmarks import peers, steps

    check_file("--out", arguments.out, (".json",), make=True)
    rows = backends(arguments)
    for model in arguments.models:
        tinyres.models.build(model)  # an unknown name is an error now, not in an hour
    if with_torch(arguments):
        if alone := [model for model in arguments.models if not peers.has(model)]:
            raise UsageError(
                f"{', '.join(alone)}: there is no such network of PyTorch's here to compare with; measure it with --no-torch"
            )
        rows += [row for row in peers.CONFIGURATIONS if "compile" not in row or not arguments.no_compile]
    print(steps.HEADER)
    result = steps.run(arguments.models, arguments.batch_sizes, rows, arguments.rounds, not arguments.inference)
    finish(result, arguments.out)


def run_ops(arguments: argparse.Namespace) -> None:
    from tinyres.benchmarks import layers

    check_file("--out", arguments.out, (".json",), make=True)
    print(layers.HEADER)
    finish(
        layers.run(
            arguments.batch_size, backends(arguments), arguments.rounds, with_torch(arguments), not arguments.no_compile
        ),
        arguments.out,
    )


def run_profile(arguments: argparse.Namespace) -> None:
    from tinyres.benchmarks import floors

    check_file("--out", arguments.out, (".json",), make=True)
    tinyres.models.build(arguments.model)
    print(floors.HEADER)
    backend = arguments.backend or tinyres.get_backend()
    finish(floors.run(arguments.model, arguments.batch_size, backend, arguments.rounds), arguments.out)


def run_compare(arguments: argparse.Namespace) -> None:
    from tinyres.benchmarks import report

    print("\n".join(report.compare(report.load(arguments.before), report.load(arguments.after))))


def run_gpu(arguments: argparse.Namespace) -> None:
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
    result = gpu.run(arguments.backend, out, data.limit(16, 8) if tiny else data, tiny)
    print("\n" + "\n".join(gpu.table(result)), flush=True)
    print(f"written: {', '.join(map(str, [out / 'result.json', *plots.draw(result, out)]))}")


def backends(arguments: argparse.Namespace) -> list[str]:
    """The backends asked for, or all that run here. Prints a note if the machine is busy."""
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"note: the machine is busy (load {os.getloadavg()[0]:.1f}), so the figures will say little")
    usable = [name for name in ("numpy", "numba") if not tinyres.available_backends()[name]]
    for name in arguments.backends or ():
        tinyres.use_backend(name)  # raises for one that cannot run here
    return arguments.backends or usable


def with_torch(arguments: argparse.Namespace) -> bool:
    from tinyres.benchmarks import peers

    if arguments.no_torch or not peers.installed():
        if not arguments.no_torch:
            print("note: PyTorch is not installed (pip install torch), so there is nothing to compare with")
        return False
    return True


def finish(result: dict[str, Any], out: str | None) -> None:
    from tinyres.benchmarks import plots, report

    limits = {
        "matmul_gflops": "matrix product 2048^3 {:.0f} GFLOP/s",
        "copy_gb_per_s": "copy {:.1f} GB/s",
        "fma_peak_gflops": "multiply-add peak {:.0f} GFLOP/s",
    }
    print("this machine: " + ", ".join(limits[key].format(value) for key, value in result["limits"].items()))
    if out:
        path = report.save(result, out)
        pictures = plots.draw(result, path.with_suffix(""))
        print(f"written: {', '.join(map(str, [path, *pictures]))}")
