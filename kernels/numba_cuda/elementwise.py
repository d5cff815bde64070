"""ReLU, ReLU6, their gradients, and the sum of cotangents.

One thread per element: thread i takes elements i, i + t, i + 2t ... where t is the number of all threads. Neighbours read
neighbouring memory, which a GPU fetches in one piece. There is one operation or two to an element, so the bytes moved
are all that counts: 4 (float32) for each element of each array.

Written as ``0 if x <= 0 else x``, NaN stays NaN: it is not <= 0. ``x if x > 0 else 0`` would hide it.
"""

from tinyres.kernels.arrays import Array, convert
from tinyres.kernels.numba_cuda.runtime import BLOCK, Kernel, as_seen, blocks, check, cuda, empty, flat, in_memory


@Kernel
def relu_kernel(x, y):
    """y = max(x, 0).  8 bytes per element."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y[i] = x[i]
        if x[i] <= 0:
            y[i] = 0


@Kernel
def relu6_kernel(x, y):
    """y = min(max(x, 0), 6).  8 bytes per element."""
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y[i] = x[i]
        if x[i] <= 0:
            y[i] = 0
        elif x[i] >= 6:
            y[i] = 6


@Kernel
def relu_backward_kernel(dy, y, dx):
    """dx = dy, but 0 where y <= 0, with y the ReLU's output.  12 bytes per element.

    A choice, no product: where y is 0, an infinity in dy must not become NaN.
    """
    for i in range(cuda.grid(1), dx.size, cuda.gridsize(1)):
        dx[i] = dy[i]
        if y[i] <= 0:
            dx[i] = 0


@Kernel
def relu6_backward_kernel(dy, y, dx):
    """dx = dy, but 0 where y <= 0 or y >= 6.  12 bytes per element."""
    for i in range(cuda.grid(1), dx.size, cuda.gridsize(1)):
        dx[i] = dy[i]
        if y[i] <= 0 or y[i] >= 6:
            dx[i] = 0


@Kernel
def add_kernel(x, y, z):
    """z = x + y.  12 bytes per element."""
    for i in range(cuda.grid(1), z.size, cuda.gridsize(1)):
        z[i] = x[i] + y[i]


@Kernel
def accumulate_kernel(x, total):
    """total += x: where the cotangents of a block's two branches meet.  12 bytes per element."""
    for i in range(cuda.grid(1), total.size, cuda.gridsize(1)):
        total[i] += x[i]


def map_elements(kernel: Kernel, *arrays: Array) -> Array:
    """The kernel's result on arrays of one shape, whose elements it meets in the order of memory."""
    check(*arrays)
    inputs = [in_memory(a) for a in arrays]
    out = empty(inputs[0], *inputs[0].shape)
    kernel[blocks(out.size), BLOCK](*(a.reshape(-1) for a in inputs), out.reshape(-1))
    return as_seen(out)


def relu(x: Array) -> Array:
    return map_elements(relu_kernel, x)


def relu_backward(dy: Array, y: Array) -> Array:
    return map_elements(relu_backward_kernel, dy, y)


def relu6(x: Array) -> Array:
    return map_elements(relu6_kernel, x)


def relu6_backward(dy: Array, y: Array) -> Array:
    return map_elements(relu6_backward_kernel, dy, y)


def add(x: Array, y: Array) -> Array:
    return map_elements(add_kernel, x, y)


cast = convert  # the reference's own: kernels here take arrays of one dtype


def accumulate(total: Array, x: Array) -> None:
    check(total, x)
    if total.ndim == 4:  # as maps lie in memory, so that nothing need be copied
        total, x = total.transpose(0, 2, 3, 1), x.transpose(0, 2, 3, 1)
    with flat(total) as (inside,):
        accumulate_kernel[blocks(x.size), BLOCK](in_memory(x.reshape(-1)), inside)
