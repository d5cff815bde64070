"""``tinyres predict``: what a network takes images for."""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.cli.options import add_backend, check_file, use, whole
from tinyres.cli.subjects import weights_in
from tinyres.errors import UsageError
from tinyres.files import as_cell, printable, write_atomically


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="say what images show",
        allow_abbrev=False,
        description="Says for each image which class the network takes it for, and how sure it is. The file of weights "
        "knows the classes, and how images are prepared for the network. A file that is no image is named and left out; "
        "then the exit status is 1.",
    )
    parser.add_argument("images", metavar="FILE|DIR", nargs="+", help="images (PNG, JPEG, ...), or folders of images")
    parser.add_argument("--weights", required=True, metavar="RUN|FILE", help="a run's folder, or a file of weights")
    parser.add_argument("--top", type=whole(1), default=1, metavar="K", help="show the K most likely classes (default: 1)")
    parser.add_argument("--size", type=whole(4), metavar="N", help="of the images, in pixels (default: as in training)")
    parser.add_argument("--json", metavar="OUT", help="also write the predictions as JSON")
    parser.add_argument("--csv", metavar="OUT", help="also write the predictions as CSV")
    add_backend(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tinyres.data.images import BadImage, check_size, read_images
    from tinyres.train import load_network, predict

    for name in ("json", "csv"):
        check_file(f"--{name}", getattr(arguments, name), (f".{name}",))
    use(arguments.backend)
    loaded = load_network(weights_in(arguments.weights, "best", "last"))
    size = arguments.size or image_size(loaded)
    check_size(size)
    if loaded.mean.ndim == 3 and loaded.mean.shape[1] not in (1, size):
        raise UsageError(f"--size {size}: the network's images are {loaded.mean.shape[1]} pixels wide, as its mean is")
    paths = list(found_in(arguments.images))
    read = read_images(paths, size)
    good = [(path, image) for path, image in zip(paths, read, strict=True) if not isinstance(image, BadImage)]
    bad = [(path, error) for path, error in zip(paths, read, strict=True) if isinstance(error, BadImage)]
    for path, error in bad:
        print(f"{printable(str(path))}: left out: {printable(str(error))}")
    if not good:
        raise UsageError("none of the files is an image")
    shares = predict(loaded.model, np.stack([image for _, image in good]), loaded.mean, loaded.scale)
    names = class_names(loaded, shares.shape[1])
    top = min(arguments.top, shares.shape[1])
    found: list[dict[str, Any]] = []
    for (path, _), row in zip(good, shares, strict=True):
        likely = [{"class": names[k], "probability": float(row[k])} for k in row.argsort()[::-1][:top]]
        found.append({"file": str(path), "classes": likely})
    for one in found:
        said = "  ".join(f"{printable(each['class'])} {100 * each['probability']:.1f} %" for each in one["classes"])
        print(f"{printable(one['file'])}: {said}")
    if arguments.json:
        left_out = [{"file": str(path), "why": str(error)} for path, error in bad]
        write_atomically(arguments.json, json.dumps({"predictions": found, "left out": left_out}, indent=1).encode())
    if arguments.csv:
        write_atomically(arguments.csv, as_csv(found).encode())
    for written in filter(None, (arguments.json, arguments.csv)):
        print(f"written: {printable(written)}")
    return 1 if bad else 0


def image_size(loaded: Any) -> int:
    """The size of the images that the network was trained on."""
    from tinyres import models

    if loaded.mean.ndim == 3 and loaded.mean.shape[1] > 1:
        return int(loaded.mean.shape[1])
    size = loaded.source.get("size")
    if isinstance(size, int):
        return size
    return 224 if loaded.network["name"] in models.IMAGENET and not loaded.data else 32


def class_names(loaded: Any, count: int) -> tuple[str, ...]:
    """From the file; those of older files from the data set that it names; else numbers."""
    import tinyres

    if loaded.classes:
        return tuple(loaded.classes)
    if loaded.data == "shapes":
        return tinyres.data.shapes(n_train=1, n_test=1).classes
    return tuple(f"class {k}" for k in range(count))


def found_in(places: list[str]) -> Any:
    """Files as they are, and all files in folders."""
    from tinyres.data.images import files_in

    for place in map(Path, places):
        if not place.exists():
            raise UsageError(f"{place} does not exist")
        yield from files_in(place) if place.is_dir() else [place]


def as_csv(found: list[dict[str, Any]]) -> str:
    """A row per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    top = len(found[0]["classes"])
    numbers = [""] if top == 1 else [f" {k}" for k in range(1, top + 1)]
    writer.writerow(["file", *(f"{what}{number}" for number in numbers for what in ("class", "probability"))])
    for one in found:
        cells = [one["file"], *(value for each in one["classes"] for value in (each["class"], f"{each['probability']:.6f}"))]
        writer.writerow(map(as_cell, cells))
    return text.getvalue()
