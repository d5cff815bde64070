"""The linear layer y = x w^T + b and its gradients: the tiled product of `matmul`, on transposed views."""

from tinyres.kernels.arrays import Array
from tinyres.kernels.numba_cuda.matmul import long_product, product, sum_rows
from tinyres.kernels.numba_cuda.runtime import BLOCK, Kernel, blocks, check, cuda, empty, in_memory


@Kernel
def add_bias_kernel(y, b):
    """y[n, o] += b[o]. One thread per element, 8 N O bytes."""
    for e in range(cuda.grid(1), y.shape[0] * y.shape[1], cuda.gridsize(1)):
        y[e // y.shape[1], e % y.shape[1]] += b[e % y.shape[1]]


def linear(x: Array, w: Array, b: Array | None) -> Array:
    check(x, w, b)
    y = empty(x, x.shape[0], w.shape[0])
    product(x[None], w.T[None], y[None])
    if b is not None:
        add_bias_kernel[blocks(y.size), BLOCK](y, b)
    return y


def linear_backward_input(dy: Array, w: Array) -> Array:
    check(dy, w)
    dx = empty(dy, dy.shape[0], w.shape[1])
    product(dy[None], w[None], dx[None])
    return dx


def linear_backward_weight(dy: Array, x: Array) -> Array:
    check(dy, x)
    return long_product(dy.T[None], x[None])[0]


def linear_backward_bias(dy: Array) -> Array:
    check(dy)
    return sum_rows(in_memory(dy), len(dy))[0]
