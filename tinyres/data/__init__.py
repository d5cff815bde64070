"""Images: the data sets by name, and the loader that makes batches of them."""

from pathlib import Path
from typing import NamedTuple

from tinyres.data.cifar import ARCHIVES, data_root, find_folder, load_cifar
from tinyres.data.dataset import Dataset
from tinyres.data.download import get
from tinyres.data.loader import Loader, first_batch, normalisation
from tinyres.data.shapes import shapes
from tinyres.errors import DataError, UsageError
from tinyres.files import shown

__all__ = ["NAMES", "Dataset", "Entry", "Loader", "available", "first_batch", "get", "load", "normalisation", "shapes"]

_DESCRIPTIONS = {
    "cifar10": "60,000 photographs in 10 classes, 32x32 (Krizhevsky 2009)",
    "cifar100": "60,000 photographs in 100 classes, 32x32 (Krizhevsky 2009)",
    "shapes": "6,000 generated figures in 10 classes, 32x32; needs no download",
}
NAMES = tuple(_DESCRIPTIONS)


class Entry(NamedTuple):
    """A data set as ``tinyres data list`` shows it; ``where`` says where it is, or how to get it."""

    name: str
    where: str
    present: bool
    description: str


def load(name: str, root: str | Path | None = None) -> Dataset:
    """The data set of this name, one of `NAMES`; ``root`` is where to look for its files (see `data.cifar.load_cifar`).

    Raises `UsageError` for any other name, `DataError` for data that is missing or damaged.
    """
    if name not in NAMES:
        raise UsageError(f"no data set {shown(name)!r}; there are {', '.join(NAMES)}")
    return shapes() if name == "shapes" else load_cifar(name, root)


def available(root: str | Path | None = None) -> list[Entry]:
    """All data sets, and whether each can be loaded without a download."""
    entries = []
    for name, description in _DESCRIPTIONS.items():
        where, present = "generated", True
        if name in ARCHIVES:
            try:
                data_root(root)
            except DataError as error:
                entries.append(Entry(name, str(error), False, description))
                continue
            folder, archive = find_folder(ARCHIVES[name], data_root(root)), data_root(root) / ARCHIVES[name].filename
            present = folder is not None or archive.is_file()
            where = str(folder or archive) if present else f"tinyres data get {name}"
        entries.append(Entry(name, where, present, description))
    return entries
