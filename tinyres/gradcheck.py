"""`gradcheck` compares a backward pass with central differences of the forward pass."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
    An input that disagrees is gone through element by element, so that the error names the worst one. (A cotangent of
    ones would not do: it passes a batch norm whose backward lacks a term.)

    Raises `GraphError` on a mismatch, or returns False if ``raise_exception`` is False.
    """
    rng = np.random.default_rng(seed)
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
    output.backward(tensor(cotangent, device=output.device))

    def value(which: int, moved: np.ndarray) -> float:
        changed = [tensor(moved if i == which else a, device=devices[i]) for i, a in enumerate(arrays)]
        return float(np.sum(function(*changed).numpy() * cotangent))

    def slope(which: int, v: np.ndarray) -> float:
        a = arrays[which]
        return (value(which, a + eps * v) - value(which, a - eps * v)) / (2 * eps)

    for i, leaf in enumerate(leaves):
        if not leaf.requires_grad:
            continue
        grad = np.zeros(leaf.shape) if leaf.grad is None else Tensor(leaf.grad).numpy()
        for _ in range(directions):
            v = rng.standard_normal(leaf.shape)
            by_difference, by_backward = slope(i, v), float(np.sum(grad * v))
            scale = float(np.linalg.norm(grad) * np.linalg.norm(v))
            if not abs(by_difference - by_backward) <= atol + rtol * scale:
                if raise_exception:
                    raise GraphError(_worst_element(i, grad, functools.partial(slope, i)))
                return False
    return True


def _worst_element(which: int, grad: np.ndarray, slope: Callable[[np.ndarray], float]) -> str:
    numeric = np.empty_like(grad)
    for index in np.ndindex(grad.shape):
        v = np.zeros_like(grad)
        v[index] = 1
        numeric[index] = slope(v)
    difference = np.abs(numeric - grad)
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), grad.shape)
    at = ", ".join(str(int(k)) for k in worst)
    return (
        f"gradcheck: the gradient of input {which} (shape {grad.shape}) is wrong, worst at [{at}]: backward gives "
        f"{grad[worst]:.8g}, the central difference {numeric[worst]:.8g}."
    )
