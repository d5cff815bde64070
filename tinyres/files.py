"""Files: written so that a crash never leaves half of one behind, and read without trust."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable
from typing import Any, BinaryIO

StrPath = str | os.PathLike[str]
EXPANSION, SMALL = 16, 1 << 20
MAX_JSON = 1 << 20  # bytes of a file; in memory it can become thirty times as many


def atomic_write(path: StrPath, writer: Callable[[BinaryIO], object]) -> None:
    """Calls ``writer(file)`` and puts what it wrote at ``path`` in one step.

    Whoever opens ``path``, even after a kill or a power cut, finds either the old file or the new one, complete: the bytes
    go to a temporary file beside it, reach the disk, and then take its name. If anything fails, the temporary file is
    removed and the error is raised; a kill can leave it behind, named ``.NAME.*.tmp``. A symbolic link still points to its
    file.

    Raises OSError (no such folder, no space, no permission, a folder, a pipe or a device in place of the file), and whatever
    ``writer`` raises.
    """
    target = os.path.realpath(path)
    if os.path.exists(target):
        _check_regular(os.stat(target), path)  # a pipe or a device would be replaced
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
    _check_regular(os.stat(path), path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor), path)  # another may lie there by now
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(found: os.stat_result, path: StrPath) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", os.fspath(path))


def most_unpacked(size: int) -> int:
    """How many bytes a packed file of ``size`` bytes may unpack to: 16 times as many, and 1 MiB for small files. Weights and
    images stay far below that, a bomb does not.
    """
    return EXPANSION * size + SMALL


def read_json(path: StrPath, most: int = MAX_JSON) -> Any:
    """What a JSON file of at most ``most`` bytes holds, by default 1 MiB. Raises OSError, and ValueError for a file that is
    larger, is not JSON or is nested too deep.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return parse_json(content)


def parse_json(content: bytes | str) -> Any:
    """As `json.loads`. Raises ValueError for all that it cannot read, lists nested a thousand deep included."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def as_cell(value: Any) -> str:
    """A value for a CSV file. What a spreadsheet would take for a formula is quoted by an apostrophe."""
    text = str(value)
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def printable(text: str) -> str:
    """Text for a terminal, parts of which may come from a file. What no font shows is escaped: control characters could move
    the cursor, others turn the direction of writing. Lines stay lines.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def shown(text: object) -> str:
    """A name or a value from a file, as part of a message or a table: on one line, `printable`, cut to 200 characters."""
    line = str(text)
    line = line if len(line) <= 200 else f"{line[:197]}..."
    return printable(line).replace("\n", "\\n").replace("\t", "\\t")
