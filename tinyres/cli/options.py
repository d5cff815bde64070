"""Options that several commands share, and the types that check their values."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyres.errors import UsageError
from tinyres.kernels import dispatch

if TYPE_CHECKING:
    from tinyres.data import Dataset

COMMAND_LINE: list[str] = []  # what `main` was given, for results that say how they were made


def whole(least: int) -> Callable[[str], int]:
    """The type of an integer of at least ``least``."""

    def convert(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or len(text) > 18 or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
        return int(text)

    return convert


def number(least: float, excluded: bool = False) -> Callable[[str], float]:
    """The type of a finite number of at least ``least``, or above it if that is ``excluded``."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value < math.inf) or (excluded and value == least):
            bound = f"{'above' if excluded else 'of at least'} {least:g}"
            raise argparse.ArgumentTypeError(f"expected a number {bound}, got {text!r}")
        return value

    return convert


def three_numbers(text: str) -> tuple[float, ...]:
    """Red, green and blue, separated by commas."""
    convert = number(-math.inf, excluded=True)
    values = tuple(convert(part.strip()) for part in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers such as 0.5,0.5,0.5, got {text!r}")
    return values


def add_data(parser: Any, default: str) -> None:
    """``--data`` and what goes with images of one's own."""
    parser.add_argument(
        "--data",
        metavar="NAME|DIR|FILE",
        help=f"cifar10, cifar100, shapes, a folder with a folder of images per class, or an .npz file (default: {default})",
    )
    parser.add_argument("--size", type=whole(4), metavar="N", help="of the images of a folder, in pixels (default: 32)")
    parser.add_argument(
        "--split",
        type=number(0, excluded=True),
        metavar="X",
        help="the share of the images that is for testing, where no folder `test` is (default: 0.2)",
    )
    parser.add_argument("--strict", action="store_true", default=None, help="refuse a folder with files that are no images")


def load_data(given: dict[str, Any], default: str, source: dict[str, Any] | None = None) -> "Dataset":
    """The data set that these options name; by default that of ``source``, which a file of weights may have, or ``default``.

    Its notes are not printed yet.
    """
    from tinyres import data

    name, known = given.get("data"), source or {}
    if name is None and known.get("path"):
        name = known["path"]
        if not os.path.exists(name):
            raise UsageError(f"the network was trained on {name}, which is not here; name the images with --data")
    chosen = {key: given.get(key) or known.get(key) for key in ("size", "split", "strict")} | {"seed": known.get("seed")}
    how: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    return data.load(name or default, given.get("data_dir"), **how)


def add_data_dir(parser: Any) -> None:
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where CIFAR is, packed or unpacked (default: $TINYRES_DATA, or ~/.cache/tinyres)"
    )


def add_backend(parser: Any) -> None:
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="the kernels that run: see tinyres info (default: $TINYRES_BACKEND, or the one that tinyres info marks)",
    )


def add_shortcut(parser: Any) -> None:
    parser.add_argument(
        "--shortcut",
        choices=("A", "B", "C"),
        help="where a residual block's shapes change: A pads with zeros, B projects; C projects everywhere (default: A)",
    )


def network(name: str, shortcut: str | None) -> dict[str, Any]:
    """The description of a network that `tinyres.train` builds and saves; shortcut A is written out if it is the default."""
    if shortcut is None and name.startswith("resnet"):
        from tinyres import models

        shortcut = "B" if name in models.IMAGENET else "A"
    return {"name": name} | ({"shortcut": shortcut} if shortcut else {})


def use(backend: str | None) -> None:
    """Makes ``backend`` the current one, unless it is None."""
    if backend:
        dispatch.use_backend(backend)


def check_file(name: str, path: str | None, endings: tuple[str, ...], make: bool = False) -> None:
    """Whether the option ``name`` names a file that can be written: a mistake is an error now, not after the work. Without
    ``endings`` it may end in anything. With ``make``, folders that are missing are made.
    """
    if path is None:
        return
    target = Path(os.path.realpath(path))
    if endings and not path.lower().endswith(endings):
        raise UsageError(f"{name} must name a file that ends in {' or '.join(endings)}, got {path!r}")
    try:
        if make:
            target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name}: the folder of {path} cannot be made ({error.strerror})") from None
    if not target.parent.is_dir():
        raise UsageError(f"{name}: the folder {target.parent} does not exist")
    if target.exists() and not target.is_file():
        raise UsageError(f"{name}: {path} cannot be written: it is {'a folder' if target.is_dir() else 'no regular file'}")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"{name}: {path} cannot be written: its folder is read-only")
