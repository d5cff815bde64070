"""Files: written so that a crash never leaves half of one behind, and read without trust."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from typing import Any, BinaryIO

StrPath = str | os.PathLike[str]


def atomic_write(path: StrPath, writer: Callable[[BinaryIO], object]) -> None:
    """Calls ``writer(file)`` and puts what it wrote at ``path`` in one step.

    Whoever opens ``path``, even after a kill or a power cut, finds either the old file or the new one, complete: the bytes
    go to a temporary file beside it, reach the disk, and then take its name. If anything fails, the temporary file is
    removed and the error is raised; a kill can leave it behind, named ``.NAME.*.tmp``. A symbolic link still points to its
    file.

    Raises OSError (no such folder, no space, no permission), and whatever ``writer`` raises.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    # Not ``tempfile``: its files are private to their owner, and the new file would inherit that.
    file = open(temporary, "xb")  # noqa: SIM115 - what fails inside the ``with`` must find it in place
    try:
        with file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def write_atomically(path: StrPath, data: bytes) -> None:
    """Puts ``data`` at ``path`` in one step: see `atomic_write`."""
    atomic_write(path, lambda file: file.write(data))


def _sync_folder(folder: str) -> None:
    """Makes the new name itself survive a power cut. Windows cannot open folders, and needs no such step."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_file(path: StrPath) -> BinaryIO:
    """A regular file, open for reading. Raises OSError for what is none: opening a FIFO or a device could wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            what = os.strerror(code) if stat.S_ISDIR(mode) else "a pipe, a socket or a device, not a file"
            raise OSError(code, what, os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: StrPath) -> bytes:
    """All of a regular file. Raises OSError as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def read_json(path: StrPath) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError for content that is not JSON or is nested too deep."""
    return parse_json(read_file(path))


def parse_json(content: bytes | str) -> Any:
    """As `json.loads`. Raises ValueError for all that it cannot read, lists nested a thousand deep included."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def printable(text: str) -> str:
    """Text that may come from a file, for a terminal: control characters, which could move its cursor, are shown escaped."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
