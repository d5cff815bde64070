"""``tinyres eval``: accuracy and loss of the network in a file."""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres.cli.options import add_backend, add_data, add_data_dir, check_file, load_data, use, whole
from tinyres.cli.subjects import of_classes, weights_in
from tinyres.cli.tables import print_table
from tinyres.files import printable, write_atomically


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="test a network",
        allow_abbrev=False,
        description="Tests the network in a run's folder (its best.safetensors), in a checkpoint or in a file from "
        "import-weights, on the test set. The file says which network it holds and how images are normalised for it.",
    )
    parser.add_argument("file", metavar="RUN|FILE", help="a run's folder, or a file of weights")
    add_data(parser, "what the network was trained on, else cifar10")
    add_data_dir(parser)
    parser.add_argument("--limit-test", type=whole(1), metavar="N", help="test on the first N images")
    add_backend(parser)
    parser.add_argument("--classes", action="store_true", help="also show each class's accuracy and what it was taken for")
    parser.add_argument("--confusion", metavar="FILE", help="also draw the confusion matrix, to a .png or .svg file")
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from tinyres.train import evaluate, load_network, progress

    for name, endings in (("--confusion", (".png", ".svg")), ("--json", (".json",))):
        check_file(name, getattr(arguments, name[2:]), endings)
    use(arguments.backend)
    loaded = load_network(weights_in(arguments.file, "best", "last"))
    data = load_data(vars(arguments), loaded.data or "cifar10", loaded.source).limit(test=arguments.limit_test)
    data = of_classes(arguments.file, loaded, data)
    if loaded.data and loaded.data != data.name:
        print(f"note: the network was trained on {printable(loaded.data)}, and its images are normalised as there")
    for note in data.notes:
        print(f"note: {printable(note)}")
    counts = np.zeros((len(data.classes),) * 2, np.int64)
    began = time.perf_counter()
    with progress.for_terminal() as display:
        result = evaluate(
            loaded.model,
            data.test_images,
            data.test_labels,
            loaded.mean,
            loaded.scale,
            confusion=counts,
            on_batch=lambda done, total: display.step("testing", done, total, "", None),
        )
        seconds = time.perf_counter() - began - display.compiled()
    print(
        f"{loaded.network['name']} on {result.images:,} test images of {data.name}: "
        f"accuracy {100 - result.error:.2f} %, error {result.error:.2f} %, "
        f"loss {result.loss:.4f}  ({result.images / seconds:.0f} images/s)"
    )
    if arguments.classes:
        show_classes(counts, data.classes)
    if arguments.confusion:
        draw_confusion(arguments.confusion, counts, data.classes)
    if arguments.json:
        found = {"network": loaded.network, "data": data.name, "classes": data.classes, **result._asdict()}
        found["confusion"] = counts.tolist()
        write_atomically(arguments.json, json.dumps(found, indent=1).encode())
    for written in filter(None, (arguments.confusion, arguments.json)):
        print(f"written: {printable(written)}")


def show_classes(counts: np.ndarray, classes: Sequence[str]) -> None:
    """A row per class: its images, its accuracy, and for which other class it was taken most often."""
    rows = []
    for k, (name, row) in enumerate(zip(classes, counts.tolist(), strict=True)):
        others = [count if j != k else 0 for j, count in enumerate(row)]
        most = max(range(len(row)), key=others.__getitem__)
        accuracy = f"{100 * row[k] / sum(row):.1f} %" if sum(row) else ""
        rows.append(
            [
                printable(name),
                f"{sum(row):,}",
                accuracy,
                f"{printable(classes[most])} ({others[most]})" if others[most] else "",
            ]
        )
    print()
    print_table("By class, and what it was taken for most often:", ("class", "images", "accuracy", "taken for"), rows)


def draw_confusion(path: str, counts: np.ndarray, classes: Sequence[str]) -> None:
    """The confusion matrix as a picture: a row per class, its images by what they were taken for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.42 * min(len(classes), 40)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 40:
        names = [printable(name)[:20].replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= 20:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    j, i, str(count), ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 0.5 else "black"
                )
    axes.set(
        xlabel="taken for",
        ylabel="class",
        title=f"{counts.sum():,} images, accuracy {100 * np.trace(counts) / counts.sum():.1f} %",
    )
    figure.savefig(path, dpi=150)
