"""A forward pass as the list of operations that it applies, with the length of the batch left open.

The network runs in evaluation mode on two batches, of 2 and of 3 random images. What is the same in both belongs to the
network; a length that differs is the batch's. So nothing need be known of the network's classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinyres import guards
from tinyres.autograd import Function
from tinyres.errors import UsageError
from tinyres.kernels.arrays import Array, array_module
from tinyres.nn import Module
from tinyres.nn.module import evaluating
from tinyres.tensor import Tensor

BATCHES = 2, 3
Shape = tuple[int | None, ...]  # None where the length is the batch's, or a multiple of it


@dataclass(frozen=True)
class Call:
    """One applied operation: the arrays that it was given (of the batch of 2) and the one that it made, their shapes,
    and whether the attributes were the same for both batches.
    """

    op: type[Function]
    inputs: tuple[Array, ...]
    attributes: dict[str, Any]
    output: Array
    shapes: tuple[Shape, ...]
    shape: Shape
    steady: bool


@dataclass(frozen=True)
class Trace:
    """The calls of a forward pass, in order, from ``input`` to ``output``."""

    input: Array
    calls: list[Call]
    output: Array
    shape: Shape


class _Applied(NamedTuple):
    op: type[Function]
    inputs: tuple[Array, ...]
    attributes: dict[str, Any]
    output: Array


def trace(model: Module, input_shape: Sequence[int]) -> Trace:
    """The operations by which ``model`` makes its output of images (N, *input_shape).

    The model is left as it was. Raises `UsageError` if it returns anything but one tensor, or computes past the operations,
    on arrays.
    """
    runs = [_run(model, batch, input_shape) for batch in BATCHES]
    (x, calls, y), (other_x, other_calls, other_y) = runs
    if [call.op for call in calls] != [call.op for call in other_calls]:
        raise UsageError("export: the network applies other operations to 3 images than to 2, so it is no one graph")
    pairs, merged = {id(x): other_x}, []
    for call, other in zip(calls, other_calls, strict=True):
        for one, two in zip(call.inputs, other.inputs, strict=True):
            if pairs.get(id(one)) is not two and (id(one) in pairs or not _same(one, two)):
                raise UsageError(
                    f"export: {call.op.__name__} is given numbers that depend on the images and come from no operation of "
                    "tinyres (from .data, say, or NumPy): compute them with operations on tensors"
                )
        shapes = tuple(_open(one, two) for one, two in zip(call.inputs, other.inputs, strict=True))
        steady = all(_same(value, other.attributes[key]) for key, value in call.attributes.items())
        merged.append(Call(*call, shapes, _open(call.output, other.output), steady))
        pairs[id(call.output)] = other.output
    if pairs.get(id(y)) is not other_y:
        raise UsageError("export: the network's output is not the result of an operation on its input")
    return Trace(x, merged, y, _open(y, other_y))


def _run(model: Module, batch: int, input_shape: Sequence[int]) -> tuple[Array, list[_Applied], Array]:
    like = next(model.parameters(), Tensor(np.zeros(0, np.float32)))
    images = np.random.default_rng(batch).standard_normal((batch, *input_shape)).astype(like.dtype)
    # As a result that requires a gradient, it makes `x += 1` an operation, which is seen; on plain data it is none.
    leaf = Tensor(array_module(like.data).asarray(images), requires_grad=True)
    with guards.enable_grad(), evaluating(model):
        x = leaf.reshape(leaf.shape)
        before, guards.flags.calls = guards.flags.calls, []
        try:
            y = model(x)
            calls = [_Applied(*call) for call in guards.flags.calls]
        finally:
            guards.flags.calls = before
    if not isinstance(y, Tensor):
        raise UsageError(f"export: {type(model).__name__} returns a {type(y).__name__}; expected one tensor")
    return x.data, calls, y.data


def _open(one: Array, two: Array) -> Shape:
    return tuple(n if n == m else None for n, m in zip(one.shape, two.shape, strict=True))


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, tuple | list) and type(one) is type(two):
        return len(one) == len(two) and all(map(_same, one, two))
    if hasattr(one, "shape") and hasattr(two, "shape"):
        return one is two or (one.shape == two.shape and bool((one == two).all()))
    return bool(one == two)
