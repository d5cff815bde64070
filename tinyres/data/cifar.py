"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the archives on their home page, packed or unpacked."""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.data.dataset import Dataset
from tinyres.data.unpickle import MAX_BYTES, load_batch
from tinyres.errors import DataError
from tinyres.files import EXPANSION, most_unpacked, open_file, shown, write_atomically
from tinyres.kernels.arrays import ceil_div

MAX_HEADER = 2**16  # bytes of what extends a member's header; a path of 4,096 bytes is the longest that systems take
_EXTENDS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class Archive:
    """A published archive: where it comes from, what is in it, and how to recognise it."""

    name: str
    filename: str
    md5: str
    size: int  # bytes
    folder: str  # what it unpacks to
    train: Mapping[str, str]  # file: its published md5
    test: Mapping[str, str]
    train_rows: int  # images per file
    test_rows: int
    meta: str  # the file with the names of the classes
    labels_key: str
    names_key: str
    classes: int
    home: str = "https://www.cs.toronto.edu/~kriz/"

    @property
    def files(self) -> list[str]:
        return [*self.train, *self.test, self.meta]


ARCHIVES = {
    "cifar10": Archive(
        name="cifar10",
        filename="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        size=170_498_071,
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        train_rows=10_000,
        test_rows=10_000,
        meta="batches.meta",
        labels_key="labels",
        names_key="label_names",
        classes=10,
    ),
    "cifar100": Archive(
        name="cifar100",
        filename="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        size=169_001_437,
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        train_rows=50_000,
        test_rows=10_000,
        meta="meta",
        labels_key="fine_labels",
        names_key="fine_label_names",
        classes=100,
    ),
}


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets are kept: ``root``, or what TINYRES_DATA names, or ~/.cache/tinyres."""
    chosen = root or os.environ.get("TINYRES_DATA") or Path("~/.cache/tinyres")
    try:
        return Path(chosen).expanduser()
    except RuntimeError:
        raise DataError(
            f"{chosen} lies in a home folder, and this user has none; set TINYRES_DATA to the folder of the data sets"
        ) from None


def load_cifar(name: str, root: str | Path | None = None) -> Dataset:
    """CIFAR-10 ("cifar10") or CIFAR-100 with its fine labels ("cifar100"), checked and in memory.

    ``root`` is the unpacked folder, or a folder that holds it or the archive, which is then unpacked there. A file whose
    md5 is not the published one is still read, and ``notes`` of the `Dataset` says so. Raises `DataError` when the data
    is missing, damaged, or not of the published structure.
    """
    return load_archive(ARCHIVES[name], data_root(root))


def load_archive(spec: Archive, root: Path) -> Dataset:
    """As `load_cifar`, for the data set that ``spec`` describes."""
    folder = find_folder(spec, root)
    if folder is None and (root / spec.filename).exists():
        folder = unpack(spec, root / spec.filename, root)
    if folder is None:
        lacks = [file for file in spec.files if not (root / spec.folder / file).is_file()]
        partly = f" ({spec.folder} is there, without {', '.join(lacks)})" if (root / spec.folder).is_dir() else ""
        raise DataError(
            f"{spec.name} not found: no folder {spec.folder} and no {spec.filename} in {root}{partly}; download it with "
            f"`tinyres data get {spec.name}`, or name the folder that holds it with --data-dir or TINYRES_DATA"
        )
    others: list[str] = []
    train_images, train_labels = _read_split(spec, folder, spec.train, spec.train_rows, others)
    test_images, test_labels = _read_split(spec, folder, spec.test, spec.test_rows, others)
    classes = _plain_list(load_batch(folder / spec.meta, 0), spec.names_key, str, spec.classes, folder / spec.meta)
    notes = []
    if others:
        notes.append(
            f"{spec.name}: the md5 of {', '.join(others)} in {folder} is not the published one: this is another copy of "
            "the data set, and accuracies compare only with runs on the same copy"
        )
    return Dataset(spec.name, train_images, train_labels, test_images, test_labels, tuple(classes), notes)


def find_folder(spec: Archive, root: Path) -> Path | None:
    """The folder with all files of the data set, ``root`` itself or in it; None where there is none."""
    for folder in (root / spec.folder, root):
        if all((folder / file).is_file() for file in spec.files):
            return folder
    return None


def unpack(spec: Archive, archive: Path, root: Path) -> Path:
    """Unpack the data set's files, and nothing else, from the archive into ``root``; returns their folder.

    Only plain files with the expected names are read, and they are written under names of our own, so no link and no
    path in the archive leads anywhere. Raises `DataError` for a damaged or incomplete archive, and for a folder that
    cannot be written.
    """
    folder = root / spec.folder
    names = {f"{spec.folder}/{file}": file for file in spec.files}
    found: dict[str, bytes] = {}
    again = f"remove it and run `tinyres data get {spec.name}`"
    try:
        with open_file(archive) as packed, gzip.GzipFile(fileobj=packed) as unpacked:
            stream = _Bounded(unpacked, most_unpacked(os.fstat(packed.fileno()).st_size))
            while member := _next_member(stream):
                file = names.get(member.name.removeprefix("./"))
                if file is None:
                    stream.skip(_padded(member.size))
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > MAX_BYTES:
                    raise DataError(f"{archive}: {shown(member.name)} is not a plain file of under 256 MiB; {again}")
                found[file] = stream.exactly(_padded(member.size))[: member.size]
            while stream.read(1 << 20):  # to the end, where gzip has its checksum
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is cut short or damaged ({error}); {again}") from error
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror or error}") from error
    if len(found) < len(names):
        raise DataError(f"{archive} lacks {', '.join(file for file in spec.files if file not in found)}; {again}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in found.items():
            write_atomically(folder / file, data)
    except OSError as error:
        raise DataError(f"cannot unpack {archive} into {folder}: {error}") from error
    return folder


class _Bounded:
    """A stream that gives no more than ``left`` bytes: a small archive could unpack to anything."""

    def __init__(self, stream: gzip.GzipFile, left: int) -> None:
        self.stream, self.left = stream, left

    def read(self, count: int) -> bytes:
        data = self.stream.read(min(count, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {EXPANSION} times its own size")
        return data

    def exactly(self, count: int) -> bytes:
        if count > self.left:
            raise tarfile.ReadError(f"it says that it unpacks to more than {EXPANSION} times its own size")
        data = self.read(count)
        if len(data) < count:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def skip(self, count: int) -> None:
        for start in range(0, count, 1 << 20):
            self.exactly(min(count - start, 1 << 20))


def _next_member(stream: _Bounded) -> tarfile.TarInfo | None:
    """The next header; None at the end. Headers that only extend the next one (long names, dates) are left out: the files
    wanted here have short names. ``tarfile`` itself would read such a header whole, and unpack sparse files.
    """
    while True:
        member = _header(stream)
        if member is None or member.type not in _EXTENDS:
            break
        if member.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes for a long name or for attributes")
        if b"GNU.sparse." in stream.exactly(_padded(member.size)):
            raise tarfile.ReadError("a sparse file, which unpacks to more than it holds")
    if member and member.type == tarfile.GNUTYPE_SPARSE:
        raise tarfile.ReadError(f"{shown(member.name)} is a sparse file, which unpacks to more than it holds")
    return member


def _header(stream: _Bounded) -> tarfile.TarInfo | None:
    header = stream.read(tarfile.BLOCKSIZE)
    if header == bytes(tarfile.BLOCKSIZE):
        return None
    if len(header) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")
    member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    if member.size < 0:
        raise tarfile.ReadError("a member of negative size")
    return member


def _padded(size: int) -> int:
    return ceil_div(size, tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_split(
    spec: Archive, folder: Path, files: Mapping[str, str], rows: int, others: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of some files. Those whose md5 is not the published one go to ``others``."""
    images, labels = [], []
    for file, md5 in files.items():
        path = folder / file
        batch = load_batch(path, rows)
        if md5_of(path) != md5:
            others.append(file)
        data = batch.get("data")
        if not isinstance(data, np.ndarray) or data.shape != (rows, 3072):
            got = f"shape {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
            raise DataError(f"{path}: 'data' has {got}, expected uint8 of shape ({rows}, 3072)")
        numbers = _plain_list(batch, spec.labels_key, int, rows, path)
        if not 0 <= min(numbers) <= max(numbers) < spec.classes:
            raise DataError(f"{path}: labels go from {min(numbers)} to {max(numbers)}, expected 0 to {spec.classes - 1}")
        images.append(data.reshape(rows, 3, 32, 32))
        labels.append(np.array(numbers, np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _plain_list(batch: dict[str, Any], key: str, kind: type, count: int, path: Path) -> list[Any]:
    """The list of ``count`` items of one kind that a file holds under a key."""
    items = batch.get(key)
    if type(items) is not list or len(items) != count or not all(type(item) is kind for item in items):
        raise DataError(f"{path}: expected under {key!r} a list of {count} {kind.__name__}")
    return items


def md5_of(path: Path) -> str:
    """The md5 of a file, in hex: it tells copies apart, but is no protection against forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
