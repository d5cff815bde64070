"""Hooks: functions of the user's that are called where something passes, forward or backward, and may replace it.

Those of a module's forward pass are in `tinyres.nn.Module`; here is what all of them share, and how a hook sees a gradient.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from tinyres.errors import ShapeError
from tinyres.kernels import recording
from tinyres.kernels.arrays import Array, array_module, convert

Hooks = dict[Any, Callable[..., Any]]  # by their handles, in the order in which they are called


class HookHandle:
    """What the register functions return: ``remove()``, or the end of a ``with`` block, removes ``hook`` from ``hooks``.
    With ``prepend`` it is the first to be called, with ``with_kwargs`` it is given keyword arguments, too.
    """

    def __init__(self, hooks: Hooks, hook: Callable[..., Any], prepend: bool = False, with_kwargs: bool = False) -> None:
        self._hooks, self.with_kwargs = hooks, with_kwargs
        later = dict(hooks) if prepend else {}
        if prepend:
            hooks.clear()
        hooks.update({self: hook, **later})

    def remove(self) -> None:
        self._hooks.pop(self, None)

    def __enter__(self) -> "HookHandle":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def read_only(gradient: Array) -> Array:
    """What a hook is shown: a view that it cannot write to, since the array may be lent to other operations as well."""
    if not isinstance(gradient, np.ndarray):
        return gradient  # (CuPy has no such protection)
    view = gradient.view()
    view.flags.writeable = False
    return view


def replacement(given: Any, gradient: Array, what: str) -> Array:
    """The gradient that a hook has ``given`` in the place of ``gradient``, which stays where that is None."""
    if given is None:
        return gradient
    given = array_module(gradient).asarray(given.data if hasattr(given, "requires_grad") else given)
    if given.shape != gradient.shape:
        raise ShapeError(
            f"{what} returned an array of shape {given.shape} in the place of a gradient of shape {gradient.shape}; "
            "return one of that shape, or None to leave the gradient as it is."
        )
    return given if given.dtype == gradient.dtype else convert(given, gradient.dtype)


def passed_on(hooks: Hooks | None, gradient: Array) -> Array:
    """What ``hooks``, one after the other, make of a tensor's gradient."""
    if hooks:
        recording.refuse("a tensor has hooks")
    for hook in tuple((hooks or {}).values()):
        gradient = replacement(hook(read_only(gradient)), gradient, "a hook of a tensor")
    return gradient
