"""Networks that know what they are: which function made them, with which options. A file of weights says it with that."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tinyres.nn import Module

P = ParamSpec("P")
M = TypeVar("M", bound=Module)

OPTIONS = {  # that a file may ask for; `in_channels` and the like cannot make a network larger than the file
    *("name", "shortcut", "block", "num_classes", "in_channels", "linear", "survival", "zero_init_residual", "dropout")
}


def described(build: Callable[P, M]) -> Callable[P, M]:
    """The function, whose networks have a ``description``: its name, with the depth if that is an option, and the options
    that it was given.
    """
    signature = inspect.signature(build)
    name = getattr(build, "__name__")  # noqa: B009

    @functools.wraps(build)
    def run(*args: P.args, **options: P.kwargs) -> M:
        model = build(*args, **options)
        given = dict(signature.bind(*args, **options).arguments)
        model.description = {"name": f"{name}{given.pop('depth', '')}", **given}
        return model

    return run
