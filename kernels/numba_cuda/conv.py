"""Convolution as a matrix product of gathered windows ("im2col", Chellapilla et al. 2006), and its two gradients.

Letters: N images, C input channels, F filters, G groups, (H, W) an input map, (OH, OW) an output map, (KH, KW) a filter's
taps; M = N * OH * OW windows of L = KH * KW * C / G numbers. Activations are (N, H, W, C) in memory, weights
(F, KH, KW, C/G).

    columns (G, M, L)  = the windows, one per row             im2col
    y  (G, M, F/G)     = columns @ w^T                      w (G, F/G, L)
    dw (G, F/G, L)     = dy^T @ columns
    dcolumns (G, M, L) = dy @ w,  and each window's cotangent goes back to the pixels it covers   col2im

Every number of x is in KH * KW windows, so that the columns are that much larger than x: the price of a plain product.
"""

from tinyres.kernels.arrays import Array, Pair, added, channels_first, channels_last, output_size
from tinyres.kernels.numba_cuda.elementwise import accumulate
from tinyres.kernels.numba_cuda.matmul import long_product, product
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, Kernel, blocks, check, cuda, empty


@Kernel
def im2col_kernel(x, columns, size, kernel, stride, padding, dilation):
    """columns[g, (n, i, j), (a, b, c)] = x[n, i s - p + a d, j s - p + b d, g C/G + c], and 0 beside the map.

    A thread writes one number of the columns at a time. Neighbours write side by side and, since channels lie last, also
    read side by side.  4 M L G bytes written, and as many read, of which most come from the cache.
    """
    height, width = x.shape[1], x.shape[2]
    groups, rows, length = columns.shape
    channels = x.shape[3] // groups
    for e in range(cuda.grid(1), groups * rows * length, cuda.gridsize(1)):
        place, window, g = e % length, e // length % rows, e // (length * rows)
        tap, c = place // channels, place % channels
        n, i, j = window // (size[0] * size[1]), window // size[1] % size[0], window % size[1]
        h = i * stride[0] - padding[0] + tap // kernel[1] * dilation[0]
        w = j * stride[1] - padding[1] + tap % kernel[1] * dilation[1]
        if h >= 0 and h < height and w >= 0 and w < width:
            columns[g, window, place] = x[n, h, w, g * channels + c]
        else:
            columns[g, window, place] = 0


@Kernel
def col2im_kernel(dcolumns, dx, size, kernel, stride, padding, dilation):
    """dx[n, h, w, c] = the sum of dcolumns over all places of windows that read the pixel.

    A thread owns a pixel's channel and gathers: for each tap (a, b) it asks which window had the pixel there, i s - p + a d
    = h, and adds if there is one. If a thread owned a window and scattered, two threads would add to one pixel at once,
    and atomic additions come in any order. Pixels that no window reached get 0.  4 M L G bytes read, 4 N H W C written.
    """
    height, width, channels = dx.shape[1], dx.shape[2], dx.shape[3]
    per_group = channels // dcolumns.shape[0]
    for e in range(cuda.grid(1), dx.shape[0] * height * width * channels, cuda.gridsize(1)):
        c, w, h = e % channels, e // channels % width, e // (channels * width) % height
        n = e // (channels * width * height)
        total = REAL(0)
        for a in range(kernel[0]):
            top = h + padding[0] - a * dilation[0]  # = i s, if a window has the pixel in its row a
            if top >= 0 and top % stride[0] == 0 and top // stride[0] < size[0]:
                for b in range(kernel[1]):
                    left = w + padding[1] - b * dilation[1]
                    if left >= 0 and left % stride[1] == 0 and left // stride[1] < size[1]:
                        window = (n * size[0] + top // stride[0]) * size[1] + left // stride[1]
                        place = (a * kernel[1] + b) * per_group + c % per_group
                        total += dcolumns[c // per_group, window, place]
        dx[n, h, w, c] = total


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    check(x, w)
    f, kernel = w.shape[0], w.shape[2:]
    h, v = (output_size(x.shape[k + 2], kernel[k], stride[k], padding[k], dilation[k]) for k in (0, 1))
    y = empty(x, x.shape[0], h, v, f)
    columns = _columns(channels_last(x), (h, v), kernel, stride, padding, dilation, groups)
    product(columns, _weights(w, groups).transpose(0, 2, 1), _by_group(y, groups))
    return channels_first(y)


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    check(dy, x)
    dy, (f, channels, *kernel) = channels_last(dy), w_shape
    columns = _columns(channels_last(x), dy.shape[1:3], (kernel[0], kernel[1]), stride, padding, dilation, groups)
    dw = long_product(_by_group(dy, groups).transpose(0, 2, 1), columns)
    return channels_first(dw.reshape(f, *kernel, channels))


def conv2d_backward_input(
    dy: Array,
    w: Array,
    x_shape: tuple[int, ...],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    total: Array | None = None,
) -> Array:
    check(dy, w)
    dy, weights = channels_last(dy), _weights(w, groups)
    (n, c, height, width), size, kernel = x_shape, dy.shape[1:3], w.shape[2:]
    dcolumns = empty(dy, groups, n * size[0] * size[1], weights.shape[2])
    product(_by_group(dy, groups), weights, dcolumns)
    dx = empty(dy, n, height, width, c)
    col2im_kernel[blocks(dx.size), BLOCK](dcolumns, dx, size, kernel, stride, padding, dilation)
    return added(channels_first(dx), total, accumulate)


def _columns(x: Array, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    """x (N, H, W, C) -> (G, M, L). The windows of a plain 1x1 convolution are the pixels themselves."""
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
        return _by_group(x, groups)
    columns = empty(x, groups, x.shape[0] * size[0] * size[1], kernel[0] * kernel[1] * x.shape[3] // groups)
    im2col_kernel[blocks(columns.size), BLOCK](x, columns, size, kernel, stride, padding, dilation)
    return columns


def _weights(w: Array, groups: int) -> Array:
    """w (F, C/G, KH, KW) -> (G, F/G, L)"""
    f, *window = w.shape
    return channels_last(w).reshape(groups, f // groups, window[0] * window[1] * window[2])


def _by_group(pixels: Array, groups: int) -> Array:
    """(N, H, W, channels) -> (G, N * H * W, channels / G), a view"""
    n, h, w, channels = pixels.shape
    return pixels.reshape(n * h * w, groups, channels // groups).transpose(1, 0, 2)
