"""The update of all parameters in one launch, and the scaling of gradients in mixed precision: `src/update.cu`."""

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
    if any([a.shape for a in column] != [p.shape for p in params] for column in columns):
        raise ValueError("sgd: parameters, gradients and momentum buffers must have the same shapes, one by one.")
    if not params:
        return
    real = c_type(*(a for column in columns for a in column), allowed=EXACT)
    orders = [_order(p) for p in params]
    params = [_written(p, order) for p, order in zip(params, orders, strict=True)]
    grads = [_read(g, order) for g, order in zip(grads, orders, strict=True)]
    buffers = [_written(v, order) for v, order in zip(buffers, orders, strict=True)] if momentum else []
    on_device = hasattr(lr, "dtype") and not isinstance(lr, np.generic) and array_module(lr) is array_module(params[0])
    rates = (lr, 0.0) if on_device else (None, float(lr))
    for p, g, v, lines in _launches(params, grads, buffers):
        kernel("update", "sgd", REAL=real)(len(lines), BLOCK, p, g, v, lines, *rates, momentum, weight_decay, nesterov, skip)


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


# --- how arrays lie in memory: an elementwise kernel may go through them in any order, but through all in the same --------


def _order(a: Array) -> list[int]:
    """The axes of an array from the outermost in memory to the innermost."""
    if a.flags.c_contiguous:
        return list(range(a.ndim))
    return sorted(range(a.ndim), key=lambda axis: -a.strides[axis])


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


def _launches(params: list[Array], grads: list[Array], buffers: list[Array]) -> list[tuple[Any, Any, Any, Any]]:
    """The (p, grad, v, lines) that kernels are launched with: one list with addresses for all parameters.

    The emulation cannot guard arrays that it sees only as numbers. Where it checks, each parameter is launched by itself
    instead, with its arrays, and a list of the distances from their beginnings.
    """
    if emulator.checked() and isinstance(grads[0], np.ndarray):
        launches = []
        for i, g in enumerate(grads):
            p, v = params[i] if params else None, buffers[i] if buffers else None
            lines = _lines([(0, 0, 0, g.size)], g.itemsize, (p is not None, True, v is not None))
            if len(lines):
                launches.append((p, g, v, lines))
        return launches
    columns = (params, grads, buffers)
    work = tuple(
        (*(address(column[i]) if column else 0 for column in columns), g.size) for i, g in enumerate(grads) if g.size
    )
    if not work:
        return []
    itemsize, used = grads[0].itemsize, (bool(params), True, bool(buffers))
    if isinstance(grads[0], np.ndarray):
        return [(None, None, None, _lines(work, itemsize, used))]
    return [(None, None, None, _on_device(array_module(grads[0]), work, itemsize, used))]


def _lines(work: Any, itemsize: int, used: tuple[bool, bool, bool]) -> np.ndarray:
    """The list of `src/update.cu`, (pieces, 4), for arrays given by (addresses of p, grad and v, elements)."""
    parts = []
    for *starts, size in work:
        firsts = np.arange(0, size, PIECE)
        lines = np.zeros((len(firsts), 4), np.uint64)
        for column, start in enumerate(starts):
            if used[column]:
                lines[:, column] = start + firsts * itemsize
        lines[:, 3] = np.minimum(size - firsts, PIECE)
        parts.append(lines)
    return np.concatenate(parts)


_recent: dict[Any, Any] = {}  # lists by what they were made from, the oldest first
_captured: dict[Any, Any] = {}  # those that a graph reads: they must stay where they are


def _on_device(xp: Any, work: Any, itemsize: int, used: tuple[bool, bool, bool]) -> Any:
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
