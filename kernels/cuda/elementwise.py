"""ReLU, ReLU6, their gradients, and the sum of cotangents: `src/elementwise.cu`."""

from typing import Any

from tinyres.kernels.arrays import Array
from tinyres.kernels.cuda.common import BLOCK, address, as_seen, blocks, c_type, copy, empty, in_memory
from tinyres.kernels.cuda.launch import Kernel, kernel


def run_over(run: Kernel, *operands: Array) -> Array:
    """Runs a kernel over the operands' elements; returns the last one, which is the result."""
    n, size = operands[0].size, operands[0].itemsize
    if n:
        packs = 0 if any(address(a) % 16 for a in operands) else n * size // 16
        run(blocks(n * size, 16 * BLOCK), BLOCK, *operands, n, packs)
    return operands[-1]


def run_new(run: Kernel, *arrays: Array) -> Array:
    """The same for arrays of one shape, laid out as they like; the result is a new one."""
    operands = [in_memory(a) for a in arrays]
    return as_seen(run_over(run, *operands, empty(operands[0], operands[0].shape)))


def _new(name: str, *arrays: Array) -> Array:
    return run_new(kernel("elementwise", name, REAL=c_type(*arrays)), *arrays)


def relu(x: Array) -> Array:
    return _new("relu", x)


def relu_backward(dy: Array, y: Array) -> Array:
    return _new("relu_backward", dy, y)


def relu6(x: Array) -> Array:
    return _new("relu6", x)


def relu6_backward(dy: Array, y: Array) -> Array:
    return _new("relu6_backward", dy, y)


def add(x: Array, y: Array) -> Array:
    return _new("add", x, y)


def accumulate(total: Array, x: Array) -> None:
    run = kernel("elementwise", "accumulate", REAL=c_type(total, x))
    inside = in_memory(total)
    run_over(run, in_memory(x), inside)
    if address(inside) != address(total):  # total lies otherwise in memory
        copy(total, as_seen(inside))


def cast(x: Array, dtype: Any) -> Array:
    c_type(x)
    y = empty(x, in_memory(x).shape, dtype)
    copy(as_seen(y), x)
    return as_seen(y)
