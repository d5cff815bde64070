"""One's own images: a folder with a folder for each class, or a NumPy file; and single images, for predictions.

    flowers/rose/1.jpg          or      flowers/train/rose/1.jpg
    flowers/tulip/7.png                 flowers/test/rose/2.jpg

Pillow reads the files (pip install pillow). An image becomes RGB as it is meant to be seen: turned as its EXIF data say,
alpha dropped, 16 bits reduced to 8; then its shorter side becomes ``size`` pixels long, and the middle is cut out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.data.dataset import Dataset
from tinyres.errors import DataError, UsageError
from tinyres.files import StrPath, open_file, printable
from tinyres.kernels.arrays import threads

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # of all that Pillow can read, what is found among photographs
MOST_PIXELS = 100_000_000  # of one image; a small file can claim any size
SIZES = range(4, 1025)
TRAIN, TEST = ("train", "training"), ("test", "val", "valid", "validation")
NAMED = 5  # of the files that cannot be read, how many a note names


class BadImage(Exception):
    """Why a file is no image that we can use."""


def load_folder(path: StrPath, size: int = 32, split: float = 0.2, seed: int = 0, strict: bool = False) -> Dataset:
    """The images in a folder of class folders, as ``size`` x ``size`` pixels.

    With folders ``train`` and ``test`` (or ``val``) in it, these are the two parts; else the share ``split`` of each class,
    drawn by ``seed``, is for testing. Classes and files are taken in the order of their names. Files that are no images are
    left out, and ``notes`` names them; with ``strict``, raises `DataError`. Raises `DataError` for a folder without images
    of two classes or more, `UsageError` for a size or a split that is not possible.
    """
    root = Path(path)
    check_size(size)
    if not 0 < split < 1:
        raise UsageError(f"split is {split!r}; expected a share between 0 and 1, such as 0.2")
    inside = {entry.name.lower(): entry for entry in _folders(root)}
    train, test = (next((inside[name] for name in names if name in inside), None) for names in (TRAIN, TEST))
    bad: list[str] = []
    if train and test:
        classes = [folder.name for folder in _folders(train)]
        extra = sorted({folder.name for folder in _folders(test)} - set(classes))
        if extra:
            raise DataError(f"{test} has classes that {train} has not: {', '.join(map(printable, extra[:NAMED]))}")
        parts = [_read_classes(folder, classes, size, bad) for folder in (train, test)]
    else:
        classes = [folder.name for folder in _folders(root)]
        images, labels = _read_classes(root, classes, size, bad)
        held = _drawn(labels, split, seed)
        parts = [(images[~held], labels[~held]), (images[held], labels[held])]
    if bad and strict:
        raise DataError(f"{root}: {_named(bad)}; without strict they are left out")
    present = sum((parts[0][1] == k).any() for k in range(len(classes)))
    if present < 2 or not len(parts[1][1]):
        raise DataError(
            f"{root} is no folder of images to train on: {present} classes have training images, and there are "
            f"{len(parts[1][1])} test images; expected {root}/CLASS/*.png (or .jpg) for two classes or more"
            f"{f' ({_named(bad)})' if bad else ''}"
        )
    empty = [name for k, name in enumerate(classes) if not (parts[0][1] == k).any()]
    notes = [f"{root}: left out {_named(bad)}"] if bad else []
    notes += [f"{root}: no training image in {', '.join(map(printable, empty[:NAMED]))}"] if empty else []
    source = {"path": str(root.resolve()), "size": size, "split": split, "seed": seed}
    return Dataset(root.resolve().name, *parts[0], *parts[1], tuple(classes), notes, source)


def load_npz(path: StrPath, split: float = 0.2, seed: int = 0) -> Dataset:
    """The images in a NumPy file: ``train_images``, ``train_labels``, ``test_images``, ``test_labels``, or ``x_train`` and
    so on, as Keras names them. Without a test part, ``split`` of each class is drawn by ``seed``. ``classes`` may hold
    names.

    Images are uint8, (N, 3, H, W), (N, H, W, 3) or grey (N, H, W); labels are integers (N,). Nothing in the file is
    executed. Raises `DataError` for a file that holds something else.
    """
    path = Path(path)
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and zlib have errors of their own
        raise DataError(f"{path} is no .npz file of arrays: {error}") from error

    def part(name: str) -> tuple[np.ndarray, np.ndarray] | None:
        for images, labels in ((f"{name}_images", f"{name}_labels"), (f"x_{name}", f"y_{name}")):
            if images in arrays and labels in arrays:
                return as_images(arrays[images], f"{path}: {images}"), as_labels(arrays[labels], f"{path}: {labels}")
        return None

    train, test = part("train"), part("test")
    if train is None:
        raise DataError(
            f"{path} holds {', '.join(sorted(map(printable, arrays))[:NAMED]) or 'nothing'}; expected train_images and "
            "train_labels (or x_train and y_train), and the same for test"
        )
    if test is None:
        held = _drawn(train[1], split, seed)
        train, test = tuple(a[~held] for a in train), tuple(a[held] for a in train)  # type: ignore[assignment]
    assert train and test
    for images, labels in (train, test):
        if len(images) != len(labels) or not len(labels):
            raise DataError(f"{path}: {len(images)} images and {len(labels)} labels in one part; expected as many, and some")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{path}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    count = 1 + int(max(train[1].max(), test[1].max()))
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else tuple(map(str, range(count)))
    if min(train[1].min(), test[1].min()) < 0 or count > len(classes) or len(set(classes)) < len(classes):
        raise DataError(f"{path}: the labels must be 0 to {len(classes) - 1}, the classes named differently")
    source = {"path": str(path.resolve()), "size": int(train[0].shape[2]), "split": split, "seed": seed}
    return Dataset(path.stem, *train, *test, classes, [], source)


def as_images(array: np.ndarray, where: str) -> np.ndarray:
    """uint8 (N, 3, H, W) of images in the layouts that `load_npz` takes."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise DataError(f"{where} is {array.dtype} {array.shape}; expected uint8 images (N, H, W, 3) or (N, 3, H, W)")
    if array.ndim == 3:
        array = np.repeat(array[:, None], 3, axis=1)
    elif array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] == 1:
        array = np.repeat(array, 3, axis=1)
    if array.shape[1] != 3:
        raise DataError(f"{where} has {array.shape[1]} channels; expected 3, or 1")
    return np.ascontiguousarray(array)


def as_labels(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.reshape(len(array), -1).shape[1:] not in ((1,), ()):
        raise DataError(f"{where} is {array.dtype} {array.shape}; expected integers (N,)")
    return array.reshape(-1).astype(np.int64)


def read_images(paths: Sequence[Path], size: int) -> list[np.ndarray | BadImage]:
    """Each file as uint8 (3, size, size), or what is wrong with it, in their order."""
    _pillow()

    def one(path: Path) -> np.ndarray | BadImage:
        try:
            return read_image(path, size)
        except BadImage as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(threads()) as pool:
        warnings.simplefilter("ignore")  # of odd metadata; and of many pixels, which are counted here
        return list(pool.map(one, paths))


def read_image(path: Path, size: int) -> np.ndarray:
    """A file as uint8 (3, size, size). Raises `BadImage` with the reason if that is not possible."""
    image_of, turned, errors = _pillow()
    try:
        with open_file(path) as file:
            if not file.read(1):
                raise BadImage("it is empty")
            file.seek(0)
            image = image_of(file, formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise BadImage(f"it has {image.width} x {image.height} pixels")
            if image.format == "JPEG":
                image.draft("RGB", (2 * size, 2 * size))  # decodes at a fraction of its size, where that is enough
            image = turned(image)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # more than 8 bits per pixel
                image = _reduced(image)
            return np.ascontiguousarray(np.asarray(_fitted(image.convert("RGB"), size)).transpose(2, 0, 1))
    except BadImage:
        raise
    except errors as error:
        words = "it is no image" if "cannot identify" in str(error) else str(error).strip() or type(error).__name__
        raise BadImage(words) from error


def _reduced(image: Any) -> Any:
    """An image of 16 bits, integers or floats as one of 8 bits; Pillow's own conversion would cut off what is above 255."""
    from PIL import Image

    values = np.nan_to_num(np.asarray(image, np.float64))
    most = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0 if values.max(initial=0) > 255 else 255.0
    return Image.fromarray(np.clip(values * (255 / most), 0, 255).astype(np.uint8))


def _fitted(image: Any, size: int) -> Any:
    """The shorter side becomes ``size`` pixels, and the middle is cut out."""
    from PIL import Image

    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def _pillow() -> tuple[Callable[..., Any], Callable[[Any], Any], tuple[type[BaseException], ...]]:
    """What opens an image, what turns it upright, and the errors that damaged files raise."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UsageError("reading images needs Pillow: pip install pillow") from None
    errors = (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, IndexError, TypeError, KeyError)
    return Image.open, ImageOps.exif_transpose, (*errors, Image.DecompressionBombError)


def check_size(size: int) -> None:
    if size not in SIZES:
        raise UsageError(f"the size of images is {size!r}; expected {SIZES[0]} to {SIZES[-1]} pixels")


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, hidden ones aside, in the order of their names."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root} is no folder")
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read_classes(root: Path, classes: Sequence[str], size: int, bad: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the class folders in ``root``; adds to ``bad`` what could not be read."""
    found = [(path, label) for label, name in enumerate(classes) for path in files_in(root / name)]
    images, labels = [], []
    for (path, label), image in zip(found, read_images([path for path, _ in found], size), strict=True):
        if isinstance(image, BadImage):
            bad.append(f"{printable(str(path.relative_to(root)))} ({printable(str(image))[:80]})")
        else:
            images.append(image)
            labels.append(label)
    stacked = np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)
    return stacked, np.array(labels, np.int64)


def _drawn(labels: np.ndarray, split: float, seed: int) -> np.ndarray:
    """Which images are for testing: of each class the share ``split``, at least one of two or more."""
    random, held = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (places,) = np.nonzero(labels == label)
        count = min(max(1, round(split * len(places))), len(places) - 1)
        held[random.permutation(places)[:count]] = True
    return held


def _named(bad: Iterable[str]) -> str:
    listed = list(bad)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return f"{len(listed)} file{'s' if len(listed) > 1 else ''}: {'; '.join(listed[:NAMED])}{more}"
