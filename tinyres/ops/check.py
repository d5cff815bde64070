"""Checks of an operation's arguments, which name the operation and each argument with its shape and dtype."""

import operator
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from tinyres.errors import ShapeError, UsageError
from tinyres.kernels.arrays import Array, is_half

FLOAT32 = np.dtype(np.float32)
FLOATS = ({FLOAT32}, {np.dtype(np.float64)})


def fail(op: str, rule: str, **arrays: Array | None) -> NoReturn:
    """Raises `ShapeError`: ``rule`` says what must hold, ``arrays`` are shown with shape and dtype."""
    given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items() if a is not None)
    raise ShapeError(f"{op}: {rule} Got {given}.") from None


def floats(op: str, **arrays: Array | None) -> None:
    """All arrays are float32, or all are float64."""
    if {a.dtype for a in arrays.values() if a is not None} not in FLOATS:
        fail(op, "the arrays must all be float32, or all float64 (.to(dtype) converts).", **arrays)


def mixed(op: str, parameters: Mapping[str, Array | None], **images: Array | None) -> None:
    """The rule of mixed precision: images and parameters are all float32, or all float64; or the images are all float16,
    or all bfloat16, while the parameters (and statistics) are float32.
    """
    of_images = {a.dtype for a in images.values() if a is not None}
    of_parameters = {a.dtype for a in parameters.values() if a is not None}
    if of_images | of_parameters in FLOATS:
        return
    if len(of_images) != 1 or not is_half(*of_images) or not of_parameters <= {FLOAT32}:
        rule = "the arrays must all be float32, or all float64"
        names, rest = " and ".join(images), " and ".join(parameters)
        rule += f", or {names} float16 or bfloat16" + f" with {rest} in float32" * bool(rest)
        fail(op, f"{rule} (.to(dtype) converts).", **images, **parameters)


def refuse(op: str, instead: str, **argument: Any) -> NoReturn:
    """Raises `UsageError` for an argument of PyTorch's that has no counterpart here; ``instead`` says what to do."""
    ((name, value),) = argument.items()
    raise UsageError(f"{op}: {name}={value!r} is not supported: {instead}.")


def images(op: str, x: Array) -> None:
    """x is a batch of images."""
    if x.ndim != 4:
        fail(op, "x must be (N, C, H, W), with a batch axis.", x=x)


def pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """A whole number, also alone in a tuple, or two for height and width, none under ``least``."""
    try:
        two = tuple(value) if isinstance(value, tuple | list) else (value,)
        two = two * 2 if len(two) == 1 else two
        a, b = (operator.index(v) for v in two)
    except (TypeError, ValueError):
        hint = "; functional.pad makes margins of its own for each side" if name == "padding" else ""
        raise ShapeError(f"{op}: {name} must be an int or a pair of ints, got {value!r}{hint}.") from None
    if min(a, b) < least:
        raise ShapeError(f"{op}: {name} must be at least {least}, got {value!r}.")
    return a, b
