"""Networks, by function (``resnet20(shortcut="B")``) and by name (``build("resnet20", shortcut="B")``)."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from tinyres.errors import UsageError
from tinyres.models.cifar import (
    BasicBlock,
    Bottleneck,
    CifarResNet,
    PlainBlock,
    plain,
    plain20,
    plain32,
    plain44,
    plain56,
    plain110,
    plain1202,
    resnet,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
    resnet164,
    resnet1202,
)
from tinyres.models.mlp import ResidualLinearBlock, ResidualMLP
from tinyres.nn import Module

_BUILDERS: dict[str, Callable[..., Module]] = {
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet164": resnet164,
    "resnet1202": resnet1202,
    "plain20": plain20,
    "plain32": plain32,
    "plain44": plain44,
    "plain56": plain56,
    "plain110": plain110,
    "plain1202": plain1202,
}
NAMES = tuple(_BUILDERS)


def build(name: str, **options: Any) -> Module:
    """The network called ``name``, built with the options of its function: one of `NAMES`, or ``resnetD`` or ``plainD`` for
    any depth D = 6n + 2.

    Raises `UsageError` for a name or a depth that does not exist, with the closest names, and for an option that the net
    does not have.
    """
    builder = _BUILDERS.get(name)
    depth = re.fullmatch(r"(resnet|plain)([1-9]\d{0,5})", name) if isinstance(name, str) else None
    if builder is None and depth is not None:
        builder = functools.partial(resnet if depth[1] == "resnet" else plain, int(depth[2]))
    if builder is None:
        close = difflib.get_close_matches(str(name), NAMES, n=3)
        hint = f"closest: {', '.join(close)}" if close else f"there are: {', '.join(NAMES)}"
        raise UsageError(f"no network is called {name!r}; {hint}, and resnetD and plainD for any depth D = 6n + 2")
    takes = list(inspect.signature(builder).parameters)
    unknown = [option for option in options if option not in takes]
    if unknown:
        raise UsageError(f"{name} takes no option {', '.join(unknown)}; it takes {', '.join(takes)}")
    return builder(**options)


__all__ = [
    "NAMES",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "PlainBlock",
    "ResidualLinearBlock",
    "ResidualMLP",
    "build",
    "plain",
    "plain20",
    "plain32",
    "plain44",
    "plain56",
    "plain110",
    "plain1202",
    "resnet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet164",
    "resnet1202",
]
