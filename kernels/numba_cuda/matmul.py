"""The matrix product with tiles in shared memory, and the sum over rows: what convolution, linear layers, batch norm and
losses are made of.

Views do the transposing: ``a.transpose(...)`` changes an array's strides and copies nothing, and Numba reads any strides.
"""

from tinyres.kernels.arrays import Array, ceil_div
from tinyres.kernels.numba_cuda.runtime import REAL, SIMULATED, Kernel, cuda, empty

TILE = 4 if SIMULATED else 16  # a block computes TILE x TILE elements of the product
BUSY = 3 if SIMULATED else 256  # blocks that keep a GPU busy
ROWS, COLUMNS = (4, 2) if SIMULATED else (8, 32)  # a block's threads in a sum over rows; ROWS is a power of two


@Kernel
def product_kernel(a, b, c, parts):
    """c[g * parts + p] = a[g] @ b[g] over the p-th part of the inner length.  a (G, M, K), b (G, K, N), c (G * parts, M, N).

    A thread computes one element of c: a row of a times a column of b, each of them K numbers long. If every thread read
    its own, the block's TILE * TILE threads would fetch each number TILE times. So the block walks along K, a tile at a
    time: each thread fetches one number of each tile into shared memory, all wait until the tiles are there, each adds TILE
    products, and all wait again before the tiles are overwritten.

    2 M N K operations a matrix; of memory, 4 (M K N / TILE + K N M / TILE + M N) bytes: TILE times fewer than without.
    """
    a_tile = cuda.shared.array((TILE, TILE), REAL)
    b_tile = cuda.shared.array((TILE, TILE), REAL)
    rows, columns, inner = a.shape[1], b.shape[2], a.shape[2]
    x, y, z = cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockIdx.z
    i, j, g = cuda.blockIdx.x * TILE + y, cuda.blockIdx.y * TILE + x, z // parts
    length = (inner + parts - 1) // parts
    first = z % parts * length
    last = first + length if first + length < inner else inner  # (Numba 0.68 cannot compile min for a GPU)
    total = REAL(0)
    for k in range(first, last, TILE):
        # Beyond an edge stands 0, which adds nothing. In a tile's row the threads lie side by side along the last axis.
        if i < rows and k + x < last:
            a_tile[y, x] = a[g, i, k + x]
        else:
            a_tile[y, x] = 0
        if j < columns and k + y < last:
            b_tile[y, x] = b[g, k + y, j]
        else:
            b_tile[y, x] = 0
        cuda.syncthreads()
        for t in range(TILE):
            total += a_tile[y, t] * b_tile[t, x]
        cuda.syncthreads()
    if i < rows and j < columns:
        c[z, i, j] = total


@Kernel
def sum_rows_kernel(x, length, divisor, sums):
    """sums[b] = the sum of rows b * length ... (b + 1) * length - 1 of x (M, C), divided by ``divisor``.

    A block sums COLUMNS columns of one such piece. Thread (x, y) adds up rows y, y + ROWS, ... of its column; then the
    ROWS sums of a column are added in pairs, half as many at each step (a tree). The order of additions depends on
    nothing but the sizes, so that the same input gives the same bits; atomic additions would not.  4 M C bytes.
    """
    partial = cuda.shared.array((ROWS, COLUMNS), REAL)
    rows, columns = x.shape
    y, b = cuda.threadIdx.y, cuda.blockIdx.x
    column = cuda.blockIdx.y * COLUMNS + cuda.threadIdx.x
    total = REAL(0)
    if column < columns:
        last = (b + 1) * length if (b + 1) * length < rows else rows
        for row in range(b * length + y, last, ROWS):
            total += x[row, column]
    partial[y, cuda.threadIdx.x] = total
    half = ROWS // 2
    while half > 0:
        cuda.syncthreads()
        if y < half:
            partial[y, cuda.threadIdx.x] += partial[y + half, cuda.threadIdx.x]
        half //= 2
    if y == 0 and column < columns:
        sums[b, column] = partial[0, cuda.threadIdx.x] / REAL(divisor)


def product(a: Array, b: Array, c: Array, parts: int = 1) -> None:
    """c = a @ b for each of a batch of matrices: a (G, M, K), b (G, K, N), c (G * parts, M, N)."""
    grid = (ceil_div(c.shape[1], TILE), ceil_div(c.shape[2], TILE), c.shape[0])
    product_kernel[grid, (TILE, TILE)](a, b, c, parts)


def long_product(a: Array, b: Array) -> Array:
    """a @ b (G, M, N) where the inner length is large, and M and N are not.

    The product alone has too few blocks to keep a GPU busy. So the inner length is cut into parts, each part gets blocks
    of its own, and the parts' matrices are summed.
    """
    (groups, m, k), n = a.shape, b.shape[2]
    tiles = max(1, groups * ceil_div(m, TILE) * ceil_div(n, TILE))
    parts = max(1, min(ceil_div(BUSY, tiles), k // (4 * TILE)))
    c = empty(a, groups * parts, m, n)
    product(a, b, c, parts)
    return c if parts == 1 else sum_rows(c.reshape(groups * parts, m * n), parts).reshape(groups, m, n)


def sum_grid(pieces: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block of a kernel that sums columns, piece by piece."""
    return (pieces, ceil_div(columns, COLUMNS)), (COLUMNS, ROWS)


def sum_rows(x: Array, length: int, divisor: int = 1) -> Array:
    """x (B * length, C) -> (B, C): sums of ``length`` rows each (the last may be of fewer), divided by ``divisor``."""
    pieces = max(1, ceil_div(x.shape[0], max(1, length)))
    sums = empty(x, pieces, x.shape[1])
    sum_rows_kernel[sum_grid(*sums.shape)](x, length, divisor, sums)
    return sums
