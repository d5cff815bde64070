"""Images: the data sets by name, and the loader that makes batches of them."""

from pathlib import Path
from typing import NamedTuple

from tinyres.data.cifar import ARCHIVES, data_root, find_folder, load_cifar
from tinyres.data.dataset import Dataset
from tinyres.data.download import get
from tinyres.data.images import load_folder, load_npz
from tinyres.data.loader import Loader, first_batch, normalisation
from tinyres.data.shapes import shapes
from tinyres.errors import DataError, UsageError
from tinyres.files import shown

__all__ = [
    "NAMES",
    "Dataset",
    "Entry",
    "Loader",
    "available",
    "first_batch",
    "get",
    "load",
    "load_folder",
    "load_npz",
    "normalisation",
    "shapes",
]

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


def load(
    name: str, root: str | Path | None = None, *, size: int = 32, split: float = 0.2, seed: int = 0, strict: bool = False
) -> Dataset:
    """The data set of this name, one of `NAMES`, or the images in a folder or an .npz file of your own.

    ``root`` is where to look for the files of CIFAR (see `data.cifar.load_cifar`). The other options are for a folder or a
    file: see `load_folder` and `load_npz`. Raises `UsageError` for a name that is none of these, `DataError` for data that
    is missing or damaged.
    """
    if name == "shapes":
        return shapes()
    if name in NAMES:
        return load_cifar(name, root)
    if Path(name).is_dir():
        return load_folder(name, size, split, seed, strict)
    if Path(name).suffix == ".npz" and Path(name).exists():
        return load_npz(name, split, seed)
    raise UsageError(
        f"no data set {shown(name)!r}: there are {', '.join(NAMES)}; or name a folder with a folder of images per class, or "
        "an .npz file"
    )


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


def __dir__() -> list[str]:
    return __all__
