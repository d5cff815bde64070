"""The claims of papers as experiments: `tinyres lab NAME`, or ``study(name, out)`` from Python."""

from __future__ import annotations

import difflib
import importlib

from tinyres.errors import UsageError
from tinyres.lab.experiment import Lab

__all__ = ["NAMES", "Lab", "find"]

# in the order in which to read them; each is the class of this name in the module of this name
NAMES = (
    *("which-way", "degradation", "shortcuts", "identity", "shattered", "relu-collapse"),
    *("responses", "lesion", "landscape", "depth"),
)


def find(name: str) -> Lab:
    """The lab of this name, one of `NAMES`. Raises `UsageError` for any other."""
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        raise UsageError(
            f"no lab is called {name!r}; " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(NAMES)}")
        )
    module = importlib.import_module(f"tinyres.lab.{name.replace('-', '_')}")
    return getattr(module, "".join(part.capitalize() for part in name.split("-")))()


def __dir__() -> list[str]:
    return __all__
