"""Writing files so that a crash never leaves half of one behind."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from typing import BinaryIO

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
