"""`gradcheck` compares a backward pass with central differences of the forward pass."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyres.autograd import Function, Node
from tinyres.errors import GraphError
from tinyres.tensor import Tensor, tensor


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-5,
    directions: int = 3,
    seed: int = 0,
    raise_exception: bool = True,
) -> bool:
    """Whether the gradients of ``function`` at ``inputs`` are the slopes of its values.

    ``inputs`` are float64 arrays or tensors (float32 is too coarse for differences, and refused); integer inputs are
    passed on and not varied. With a random cotangent ``c`` of the output, the gradient ``g`` of ``sum(c * f(x))`` is
    compared with ``(f(x + eps v) - f(x - eps v)) / (2 eps)`` along ``directions`` random directions ``v`` for each input.
    (A cotangent of ones would not do: it passes a batch norm whose backward lacks a term.)

    An input that disagrees is gone through element by element, and the error names the worst one; it says so where the
    function has a kink there (a ReLU at 0), and where all of the gradient is off by one factor. A function that gives
    another value at its second call (dropout) is refused, and so is a backward pass that writes into the cotangent that it
    was lent.

    Raises `GraphError` on a mismatch, or returns False if ``raise_exception`` is False.
    """
    try:
        _check(function, inputs, eps, atol, rtol, directions, np.random.default_rng(seed))
    except _Mismatch as mismatch:
        if raise_exception:
            raise GraphError(f"gradcheck: {mismatch}") from mismatch.__cause__
        return False
    return True


class _Mismatch(Exception):
    """What is wrong with a gradient."""


def _check(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    eps: float,
    atol: float,
    rtol: float,
    directions: int,
    rng: np.random.Generator,
) -> None:
    tensors = [x if isinstance(x, Tensor) else tensor(x) for x in inputs]
    arrays = [t.numpy().copy() for t in tensors]
    devices = [t.device for t in tensors]
    for i, array in enumerate(arrays):
        if array.dtype.kind == "f" and array.dtype != np.float64:
            raise GraphError(f"gradcheck: input {i} is {array.dtype}; differences need float64.")
    leaves = [tensor(a, requires_grad=a.dtype.kind == "f", device=d) for a, d in zip(arrays, devices, strict=True)]
    output = function(*leaves)
    cotangent = rng.standard_normal(output.shape)
    if not output.requires_grad:
        raise GraphError("gradcheck: the output does not depend on any input that requires a gradient.")

    def values(which: int, moved: np.ndarray) -> np.ndarray:
        changed = [tensor(moved if i == which else a, device=devices[i]) for i, a in enumerate(arrays)]
        return function(*changed).numpy()

    first = output.numpy().copy()
    if not np.array_equal(values(0, arrays[0]), first, equal_nan=True):
        raise _Mismatch(
            "the function gives another result at its second call with the same inputs, so it has no slope to compare with. "
            "Draw its random numbers from a generator that starts anew at each call, or call eval()."
        )
    output_node = output.node
    if output_node:
        _lend_read_only(output_node)
    output.backward(tensor(cotangent, device=output.device))

    def change(which: int, v: np.ndarray, forward: float, back: float) -> float:
        """The slope between x + forward eps v and x - back eps v."""
        a = arrays[which]
        upper, lower = (float(np.sum(values(which, a + step * eps * v) * cotangent)) for step in (forward, -back))
        return (upper - lower) / ((forward + back) * eps)

    for i, leaf in enumerate(leaves):
        if not leaf.requires_grad:
            continue
        grad = np.zeros(leaf.shape) if leaf.grad is None else Tensor(leaf.grad).numpy()
        for _ in range(directions):
            v = rng.standard_normal(leaf.shape)
            by_difference, by_backward = change(i, v, 1, 1), float(np.sum(grad * v))
            scale = float(np.linalg.norm(grad) * np.linalg.norm(v))
            if not abs(by_difference - by_backward) <= atol + rtol * scale:
                raise _Mismatch(_worst_element(i, grad, functools.partial(change, i)))


def _lend_read_only(last: Node) -> None:
    """From here on, every node of the graph that ends in ``last`` gets its cotangent read-only."""

    def lending(op: type[Function]) -> type[Function]:
        def backward(ctx: Node, dy: Any) -> Any:
            if isinstance(dy, np.ndarray):
                dy = dy.view()
                dy.flags.writeable = False
            try:
                return op.backward(ctx, dy)
            except ValueError as error:
                if "read-only" not in str(error):
                    raise
                raise _Mismatch(
                    f"{op.__name__}.backward writes into the cotangent that it was given. That array may be lent to other "
                    "operations as well: make a new one."
                ) from error

        return type(op.__name__, (op,), {"backward": staticmethod(backward)})

    nodes, seen = [last], {last}
    while nodes:
        node = nodes.pop()
        node.function = lending(node.function)
        new = {edge for edge in node.edges or () if isinstance(edge, Node)} - seen
        seen |= new
        nodes += new


def _worst_element(which: int, grad: np.ndarray, change: Callable[[np.ndarray, float, float], float]) -> str:
    numeric = np.empty_like(grad)
    for index in np.ndindex(grad.shape):
        numeric[index] = change(_unit(grad, index), 1, 1)
    difference = np.abs(numeric - grad)
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), grad.shape)
    place = ", ".join(str(int(k)) for k in worst)
    where = f"the gradient of input {which} (shape {grad.shape})"
    left, right = change(_unit(grad, worst), 0, 1), change(_unit(grad, worst), 1, 0)
    if abs(right - left) > 1e-3 * (abs(left) + abs(right)) and abs(numeric[worst] - (left + right) / 2) < 1e-3 * abs(
        right - left
    ):
        return (
            f"{where} cannot be compared at [{place}]: the function has a kink there, with slope {left:.8g} to the left and "
            f"{right:.8g} to the right; backward gives {grad[worst]:.8g}. Move the input away from the kink."
        )
    text = f"{where} is wrong, worst at [{place}]: "
    text += f"backward gives {grad[worst]:.8g}, the central difference {numeric[worst]:.8g}."
    norm = float(np.sum(grad * grad))
    factor = float(np.sum(numeric * grad)) / norm if np.isfinite(norm) and norm else 0.0
    if grad.size > 1 and factor and np.allclose(numeric, factor * grad, rtol=1e-4, atol=1e-4 * np.abs(numeric).max()):
        text += f" All of it is off by one factor: the difference is {factor:.6g} times what backward gives."
    return text


def _unit(like: np.ndarray, index: tuple[Any, ...]) -> np.ndarray:
    v = np.zeros_like(like)
    v[index] = 1
    return v
