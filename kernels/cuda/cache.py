"""What compilers make is kept for later processes, under ``~/.cache/tinyres`` or ``$XDG_CACHE_HOME/tinyres``: each file is
named by a digest of all that it depends on.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
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
    own = tempfile.TemporaryDirectory(prefix="tinyres-")
    _removed_at_exit.append(own)
    return Path(own.name)


def path(kind: str, suffix: str, *inputs: str) -> Path:
    """The file that holds what is made of ``inputs``, if it has been made."""
    return folder(kind) / (hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:24] + suffix)
