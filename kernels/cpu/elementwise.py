"""ReLU, ReLU6, their gradients and the sum of cotangents: one pass over memory, by any number of threads.

Comparisons are written so that a NaN, for which all of them are false, comes out as itself, and lets its
cotangent through. What is cut off is chosen, not multiplied by 0: an infinite cotangent there is 0, not NaN.
"""

from typing import Any

from tinyres.kernels.arrays import Array, convert
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.layout import channels_last, contiguous
from tinyres.kernels.cpu.runtime import CHUNK, Kernel, check, chunks, numbers


def relu(x: Array) -> Array:
    return map_elements(_relu, x)


def relu_backward(dy: Array, y: Array) -> Array:
    return map_elements(_relu_backward, dy, y)


def relu6(x: Array) -> Array:
    return map_elements(_relu6, x)


def relu6_backward(dy: Array, y: Array) -> Array:
    return map_elements(_relu6_backward, dy, y)


def add(x: Array, y: Array) -> Array:
    return map_elements(_add, x, y)


cast = convert  # the reference's own: NumPy is no slower


def accumulate(total: Array, x: Array) -> None:
    check(total, x)
    if total.shape != x.shape or not total.flags.writeable:
        raise Unsupported("arrays of different shapes, or a total that is read-only")
    if total.flags.c_contiguous:
        x = contiguous(x)
    elif total.ndim == 4 and total.transpose(0, 2, 3, 1).flags.c_contiguous:
        x = channels_last(x)
    else:
        raise Unsupported("a total with gaps in memory")
    _accumulate(chunks(total.size), [total, x], [total.size])


def map_elements(kernel: Kernel, *inputs: Array) -> Array:
    """What ``kernel`` makes of arrays of one shape."""
    check(*inputs)
    if any(a.shape != inputs[0].shape for a in inputs):
        raise Unsupported("arrays of different shapes")
    shape, dtype = inputs[0].shape, inputs[0].dtype
    if len(shape) == 4:
        out = buffers.empty_activations(shape, dtype)
        flat = [channels_last(a) for a in inputs]
    else:
        out = buffers.empty(shape, dtype)
        flat = [contiguous(a) for a in inputs]
    kernel(chunks(out.size), [out, *flat], [out.size])
    return out


@Kernel
def _relu(a: Any, index: int, scratch: Any) -> None:
    y, x, size = a[0], a[1], numbers(a)[2]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        y[i] = 0 if x[i] <= 0 else x[i]


@Kernel
def _relu_backward(a: Any, index: int, scratch: Any) -> None:
    dx, dy, y, size = a[0], a[1], a[2], numbers(a)[3]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        dx[i] = 0 if y[i] <= 0 else dy[i]


@Kernel
def _relu6(a: Any, index: int, scratch: Any) -> None:
    y, x, size = a[0], a[1], numbers(a)[2]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        y[i] = 0 if x[i] <= 0 else 6 if x[i] >= 6 else x[i]


@Kernel
def _relu6_backward(a: Any, index: int, scratch: Any) -> None:
    dx, dy, y, size = a[0], a[1], a[2], numbers(a)[3]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        dx[i] = 0 if (y[i] <= 0) | (y[i] >= 6) else dy[i]


@Kernel
def _add(a: Any, index: int, scratch: Any) -> None:
    z, x, y, size = a[0], a[1], a[2], numbers(a)[3]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        z[i] = x[i] + y[i]


@Kernel
def _accumulate(a: Any, index: int, scratch: Any) -> None:
    total, x, size = a[0], a[1], numbers(a)[2]
    for i in range(index * CHUNK, min((index + 1) * CHUNK, size)):
        total[i] += x[i]
