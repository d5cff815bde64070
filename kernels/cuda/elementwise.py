"""ReLU, ReLU6, their gradients, and the sum of cotangents: `src/elementwise.cu`."""

from typing import Any

from tinyres.kernels.arrays import Array
from tinyres.kernels.cuda.common import BLOCK, address, as_seen, blocks, c_type, copy, empty, in_memory
from tinyres.kernels.cuda.launch import kernel


def _map(name: str, *operands: Array) -> Array:
    """Runs a kernel over the operands' elements; returns the last one, which is the result."""
    real, n = c_type(*operands), operands[0].size
    if n:
        size = operands[0].itemsize
        packs = 0 if any(address(a) % 16 for a in operands) else n * size // 16
        kernel("elementwise", name, REAL=real)(blocks(n * size, 16 * BLOCK), BLOCK, *operands, n, packs)
    return operands[-1]


def map_new(name: str, *arrays: Array) -> Array:
    """What the kernel makes of arrays of one shape."""
    c_type(*arrays)
    operands = [in_memory(a) for a in arrays]
    return as_seen(_map(name, *operands, empty(operands[0], operands[0].shape)))


def relu(x: Array) -> Array:
    return map_new("relu", x)


def relu_backward(dy: Array, y: Array) -> Array:
    return map_new("relu_backward", dy, y)


def relu6(x: Array) -> Array:
    return map_new("relu6", x)


def relu6_backward(dy: Array, y: Array) -> Array:
    return map_new("relu6_backward", dy, y)


def accumulate(total: Array, x: Array) -> None:
    c_type(total, x)
    inside = in_memory(total)
    _map("accumulate", in_memory(x), inside)
    if address(inside) != address(total):  # total lies otherwise in memory
        copy(total, as_seen(inside))


def cast(x: Array, dtype: Any) -> Array:
    c_type(x)
    y = empty(x, in_memory(x).shape, dtype)
    copy(as_seen(y), x)
    return as_seen(y)
