"""The update of all parameters in one launch, and the scaling of gradients in mixed precision: `src/update.cu`."""

import math
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, array_module
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.common import BLOCK, address, c_type, contiguous, empty
from tinyres.kernels.cuda.launch import kernel

EXACT = ("float32", "float64")
PIECE = 1024  # elements of a block: 16 bytes per thread
KEPT = 64  # lists on the device that no graph has been seen to use


def sgd(
    params: list[Array],
    grads: list[Array],
    buffers: list[Array],
    lr: float | Array,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    skip: Array | None = None,
) -> None:
    columns = [params, grads, buffers] if momentum else [params, grads]
    _check("sgd", columns)
    if not params:
        return
    real = c_type(*(a for column in columns for a in column), allowed=EXACT)
    params, grads, buffers = _ordered(params, grads, buffers if momentum else [])
    on_device = hasattr(lr, "dtype") and not isinstance(lr, np.generic) and array_module(lr) is array_module(params[0])
    rates = (lr, 0.0) if on_device else (None, float(lr))
    for p, g, v, lines in _launches(params, grads, buffers):
        kernel("update", "sgd", REAL=real)(len(lines), BLOCK, p, g, v, lines, *rates, momentum, weight_decay, nesterov, skip)


def adamw(
    params: list[Array],
    grads: list[Array],
    means: list[Array],
    squares: list[Array],
    steps: list[int],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    columns = [params, grads, means, squares]
    _check("adamw", columns)
    if not params:
        return
    real = c_type(*(a for column in columns for a in column), allowed=EXACT)
    columns = _ordered(*columns)
    beta1, beta2 = betas
    for t in sorted(set(steps)):  # nearly always one: a launch per count of steps
        those = [[a for a, step in zip(column, steps, strict=True) if step == t] for column in columns]
        rate, root = lr / (1 - beta1**t), math.sqrt(1 - beta2**t)
        for p, g, m, v, lines in _launches(*those):
            options = rate, root, 1 - lr * weight_decay, beta1, beta2, eps
            kernel("update", "adamw", REAL=real)(len(lines), BLOCK, p, g, m, v, lines, *options)


def unscale(grads: list[Array], scale: Array) -> Array:
    found = empty(scale, (), np.int32)
    kernel("update", "clear", REAL="float")(1, 32, found)
    if grads:
        real = c_type(*grads, allowed=EXACT)
        grads = [_written(g, _order(g)) for g in grads]
        for _, g, _, lines in _launches([], grads, []):
            kernel("update", "unscale", REAL=real)(len(lines), BLOCK, g, lines, scale, found)
    return found


def update_scale(scale: Array, good_steps: Array, found: Array, growth: float, backoff: float, interval: int) -> None:
    kernel("update", "update_scale", REAL="float")(1, 32, scale, good_steps, found, growth, backoff, interval)


def _check(name: str, columns: list[list[Array]]) -> None:
    if any([a.shape for a in column] != [p.shape for p in columns[0]] for column in columns):
        raise ValueError(f"{name}: parameters, gradients and what goes with them must have the same shapes, one by one.")


# --- how arrays lie in memory: an elementwise kernel may go through them in any order, but through all in the same --------


def _order(a: Array) -> list[int]:
    """The axes of an array from the outermost in memory to the innermost."""
    if a.flags.c_contiguous:
        return list(range(a.ndim))
    return sorted(range(a.ndim), key=lambda axis: -a.strides[axis])


def _ordered(params: list[Array], grads: list[Array], *buffers: list[Array]) -> list[list[Array]]:
    """The columns with each parameter's arrays contiguous, their axes in the parameter's order; only gradients are copied
    where they lie otherwise.
    """
    orders = [_order(p) for p in params]
    columns = [[_written(a, order) for a, order in zip(c, orders, strict=True)] if c else [] for c in (params, *buffers)]
    return [columns[0], [_read(g, order) for g, order in zip(grads, orders, strict=True)], *columns[1:]]


def _written(a: Array, order: list[int]) -> Array:
    """``a`` as a contiguous array, its axes in this order: a view."""
    inside = a.transpose(order)
    if not inside.flags.c_contiguous:
        raise Unsupported("arrays with gaps in memory, or in another order than their parameter")
    if isinstance(a, np.ndarray) and not a.flags.writeable:
        raise Unsupported("arrays that are read-only")
    return inside


def _read(a: Array, order: list[int]) -> Array:
    """The same for what is not written: a copy where it lies otherwise."""
    return contiguous(a.transpose(order))


# --- the list of the work ----------------------------------------------------------------------------------------------


def _launches(params: list[Array], grads: list[Array], *buffers: list[Array]) -> list[tuple[Any, ...]]:
    """The arguments that kernels are launched with, (p, grad, each buffer, lines): one list with addresses for all
    parameters. An empty column is not used.

    The emulation cannot guard arrays that it sees only as numbers. Where it checks, each parameter is launched by itself
    instead, with its arrays, and a list of the distances from their beginnings.
    """
    columns = (params, grads, *buffers)
    used, none = tuple(map(bool, columns)), (None,) * len(columns)
    if emulator.checked() and isinstance(grads[0], np.ndarray):
        launches: list[tuple[Any, ...]] = []
        for i, g in enumerate(grads):
            lines = _lines([(*(0 for _ in columns), g.size)], g.itemsize, used)
            if len(lines):
                launches.append((*(column[i] if column else None for column in columns), lines))
        return launches
    work = tuple(
        (*(address(column[i]) if column else 0 for column in columns), g.size) for i, g in enumerate(grads) if g.size
    )
    if not work:
        return []
    itemsize = grads[0].itemsize
    if isinstance(grads[0], np.ndarray):
        return [(*none, _lines(work, itemsize, used))]
    return [(*none, _on_device(array_module(grads[0]), work, itemsize, used))]


def _lines(work: Any, itemsize: int, used: tuple[bool, ...]) -> np.ndarray:
    """The list of `src/update.cu`, (pieces, columns + 1), for arrays given by (address in each column, elements)."""
    parts = []
    for *starts, size in work:
        firsts = np.arange(0, size, PIECE)
        lines = np.zeros((len(firsts), len(starts) + 1), np.uint64)
        for column, start in enumerate(starts):
            if used[column]:
                lines[:, column] = start + firsts * itemsize
        lines[:, -1] = np.minimum(size - firsts, PIECE)
        parts.append(lines)
    return np.concatenate(parts)


_recent: dict[Any, Any] = {}  # lists by what they were made from, the oldest first
_captured: dict[Any, Any] = {}  # those that a graph reads: they must stay where they are


def _on_device(xp: Any, work: Any, itemsize: int, used: tuple[bool, ...]) -> Any:
    """The list on the device: one that is there already, or a new one.

    While a graph is captured, what the current stream is given is recorded and not done. So a new list is sent on another
    stream, at once: the graph finds it there, and a replay sends nothing.
    """
    key = (xp.cuda.Device().id, work, itemsize, used)
    lines = _captured.get(key)
    if lines is not None:
        return lines
    lines = _recent.pop(key, None)
    if lines is None:
        with xp.cuda.Stream(non_blocking=True) as stream:
            lines = xp.asarray(_lines(work, itemsize, used))
            stream.synchronize()
    if xp.cuda.get_current_stream().is_capturing():
        _captured[key] = lines
        return lines
    _recent[key] = lines
    if len(_recent) > KEPT:
        del _recent[next(iter(_recent))]
    return lines
