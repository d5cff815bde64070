"""``tinyres eval``: accuracy and loss of the network in a file."""

import argparse
import time
from typing import Any

import tinyres
from tinyres.cli.options import add_backend, add_data_dir, use, whole
from tinyres.cli.subjects import check_classes, weights_in
from tinyres.files import printable


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="test a network",
        allow_abbrev=False,
        description="Tests the network in a run's folder (its best.safetensors), in a checkpoint or in a file from "
        "import-weights, on the test set. The file says which network it holds and how images are normalised for it.",
    )
    parser.add_argument("file", metavar="RUN|FILE", help="a run's folder, or a file of weights")
    parser.add_argument(
        "--data",
        choices=("cifar10", "cifar100", "shapes"),
        help="what to test on (default: what the network was trained on, else cifar10)",
    )
    add_data_dir(parser)
    parser.add_argument("--limit-test", type=whole(1), metavar="N", help="test on the first N images")
    add_backend(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres.train import evaluate, load_network, progress

    use(arguments.backend)
    loaded = load_network(weights_in(arguments.file, "best", "last"))
    data = tinyres.data.load(arguments.data or loaded.data or "cifar10", arguments.data_dir)
    data = data.limit(test=arguments.limit_test)
    check_classes(arguments.file, loaded.network, data)
    if loaded.data and loaded.data != data.name:
        print(f"note: the network was trained on {printable(loaded.data)}, and its images are normalised as there")
    for note in data.notes:
        print(f"note: {printable(note)}")
    began = time.perf_counter()
    with progress.for_terminal() as display:
        result = evaluate(
            loaded.model,
            data.test_images,
            data.test_labels,
            loaded.mean,
            loaded.scale,
            on_batch=lambda done, total: display.step("testing", done, total, "", None),
        )
        seconds = time.perf_counter() - began - display.compiled()
    print(
        f"{loaded.network['name']} on {result.images:,} test images of {data.name}: "
        f"accuracy {100 - result.error:.2f} %, error {result.error:.2f} %, "
        f"loss {result.loss:.4f}  ({result.images / seconds:.0f} images/s)"
    )
