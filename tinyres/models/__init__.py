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
    StochasticBlock,
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
from tinyres.models.description import OPTIONS
from tinyres.models.fixup import FixupBlock, FixupResNet, fixup_resnet, fixup_resnet20, fixup_resnet56, fixup_resnet110
from tinyres.models.imagenet import ImageNetResNet, plain18, plain34, resnet18, resnet34, resnet50, resnet101, resnet152
from tinyres.models.mlp import ResidualLinearBlock, ResidualMLP
from tinyres.models.mobilenet import InvertedResidual, MobileNetV2, mobilenet_v2, mobilenet_v2_cifar
from tinyres.models.preact import (
    PreactBlock,
    PreactBottleneck,
    PreactResNet,
    WideBlock,
    preresnet,
    preresnet20,
    preresnet56,
    preresnet110,
    preresnet164,
    preresnet1001,
    wide_resnet,
    wrn16_8,
    wrn28_10,
    wrn40_2,
    wrn40_4,
)
from tinyres.nn import Linear, Module
from tinyres.random import default_generator

_BUILDERS: dict[str, Callable[..., Module]] = {
    getattr(build, "__name__"): build  # noqa: B009
    for build in (
        *(resnet20, resnet32, resnet44, resnet56, resnet110, resnet164, resnet1202),
        *(plain20, plain32, plain44, plain56, plain110, plain1202),
        *(preresnet20, preresnet56, preresnet110, preresnet164, preresnet1001),
        *(fixup_resnet20, fixup_resnet56, fixup_resnet110),
        *(wrn16_8, wrn28_10, wrn40_2, wrn40_4),
        mobilenet_v2_cifar,
        *(resnet18, resnet34, resnet50, resnet101, resnet152, plain18, plain34, mobilenet_v2),
    )
}
IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain18", "plain34", "mobilenet_v2")
# the weights without the classifier of nets of one size: a file that names one of them must have as many
SIZES = {
    **{"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160},
    **{"resnet152": 58_143_808, "plain18": 11_002_688, "plain34": 21_110_848},
    **{"mobilenet_v2": 2_223_872, "mobilenet_v2_cifar": 2_223_872},
    **{"wrn16_8": 10_956_240, "wrn28_10": 36_472_784, "wrn40_2": 2_242_256, "wrn40_4": 8_946_640},
}
_OF_ANY_DEPTH: dict[str, Callable[..., Module]] = {
    getattr(build, "__name__"): build  # noqa: B009
    for build in (resnet, plain, preresnet, fixup_resnet)
}
NAMES = tuple(_BUILDERS)


def build(name: str, **options: Any) -> Module:
    """The network called ``name``, built with the options of its function: one of `NAMES`, or ``resnetD``, ``plainD``,
    ``preresnetD`` or ``fixup_resnetD`` for any other depth D = 6n + 2. (``resnet50`` and ``resnet152`` are ImageNet's.)

    Raises `UsageError` for a name or a depth that does not exist, with the closest names, and for an option that the net
    does not have.
    """
    builder = _BUILDERS.get(name)
    depth = re.fullmatch(rf"({'|'.join(_OF_ANY_DEPTH)})([1-9]\d{{0,5}})", name) if isinstance(name, str) else None
    if builder is None and depth is not None:
        builder = functools.partial(_OF_ANY_DEPTH[depth[1]], int(depth[2]))
    if builder is None:
        close = difflib.get_close_matches(str(name), NAMES, n=3)
        hint = f"closest: {', '.join(close)}" if close else f"there are: {', '.join(NAMES)}"
        families = ", ".join(f"{family}D" for family in _OF_ANY_DEPTH)
        raise UsageError(f"no network is called {name!r}; {hint}, and {families} for any other depth D = 6n + 2")
    takes = list(inspect.signature(builder).parameters)
    unknown = [option for option in options if option not in takes]
    if unknown:
        raise UsageError(f"{name} takes no option {', '.join(unknown)}; it takes {', '.join(takes)}")
    model = builder(**options)
    model.description = {"name": name, **options}
    return model


def with_classes(model: Module, num_classes: int) -> Module:
    """The network with a new classifier, for so many classes: a linear layer with fresh weights in place of its last one."""
    for name in ("fc", "classifier.1"):
        *path, last = name.split(".")
        owner = getattr(model, path[0], None) if path else model
        head = getattr(owner, last, None)
        if isinstance(head, Linear):
            setattr(owner, last, Linear(head.in_features, num_classes))
            return model
    raise UsageError(f"{type(model).__name__} has no classifier called fc or classifier.1 to be replaced")


def describe(model: Module, num_classes: int) -> dict[str, Any] | None:
    """What `build` needs to make a network like ``model`` again; None for one that no function of ours has made, or that was
    changed since. The classifier may be another one.
    """
    if model.description is None:
        return None
    described = {**model.description, "num_classes": num_classes}
    if not set(described) <= OPTIONS:
        return None
    generator = default_generator().bit_generator
    before = generator.state
    try:
        like = build(**described)
    except UsageError:
        return None
    finally:
        generator.state = before
    shapes = [{name: array.shape for name, array in one.state_dict().items()} for one in (model, like)]
    return described if type(like) is type(model) and shapes[0] == shapes[1] else None


__all__ = [
    "IMAGENET",
    "NAMES",
    "SIZES",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "FixupBlock",
    "FixupResNet",
    "ImageNetResNet",
    "InvertedResidual",
    "MobileNetV2",
    "PlainBlock",
    "PreactBlock",
    "PreactBottleneck",
    "PreactResNet",
    "ResidualLinearBlock",
    "ResidualMLP",
    "StochasticBlock",
    "WideBlock",
    "build",
    "fixup_resnet",
    "fixup_resnet20",
    "fixup_resnet56",
    "fixup_resnet110",
    "mobilenet_v2",
    "mobilenet_v2_cifar",
    "plain",
    "plain18",
    "plain20",
    "plain32",
    "plain34",
    "plain44",
    "plain56",
    "plain110",
    "plain1202",
    "preresnet",
    "preresnet20",
    "preresnet56",
    "preresnet110",
    "preresnet164",
    "preresnet1001",
    "resnet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnet1202",
    "wide_resnet",
    "wrn16_8",
    "wrn28_10",
    "wrn40_2",
    "wrn40_4",
]


def __dir__() -> list[str]:
    return __all__
