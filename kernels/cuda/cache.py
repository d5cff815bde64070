"""What compilers make is kept for later processes, under ``~/.cache/tinyres`` or ``$XDG_CACHE_HOME/tinyres``: each file is
named by a digest of all that it depends on, and ends with one of its content. It is written whole or not at all; a damaged
one is removed. (The loader takes a library with something behind its end, but dies of one that is cut short.)
"""

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import warnings
from pathlib import Path

_removed_at_exit: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def folder(kind: str) -> Path:
    """Where things of a kind are kept; where nothing can be, a folder of this process alone."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "tinyres" / kind
    with contextlib.suppress(OSError):
        if not root.is_absolute():  # (without a home folder, "~" stays as it is)
            raise OSError
        root.mkdir(parents=True, exist_ok=True)
        if os.access(root, os.W_OK | os.X_OK):
            return root
    return _own_folder()


@functools.cache
def _own_folder() -> Path:
    own = tempfile.TemporaryDirectory(prefix="tinyres-")
    _removed_at_exit.append(own)
    return Path(own.name)


def path(kind: str, suffix: str, *inputs: str) -> Path:
    """The file that holds what is made of ``inputs``, if it has been made."""
    return folder(kind) / (hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:24] + suffix)


def read(path: Path) -> bytes | None:
    """What was written there; None if nothing was or it is damaged, and then nothing is there any more."""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        content, digest = data[:-32], data[-32:]
        if digest == hashlib.sha256(content).digest():
            return content
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return None


def write(path: Path, content: bytes) -> Path:
    """Where it lies now: at ``path``, or in a folder of this process where that cannot be written, which is said."""
    try:
        return _write(path, content)
    except OSError as error:
        warnings.warn(f"what was compiled cannot be kept, so every process compiles it anew: {error}", stacklevel=2)
        return _write(_own_folder() / path.name, content)


def _write(path: Path, content: bytes) -> Path:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:  # another process may be at it: the last one's stays
        made = Path(work) / path.name
        made.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(made, path)
    return path
