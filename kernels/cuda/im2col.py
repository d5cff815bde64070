"""Convolution through a matrix of columns, for every geometry and type: `src/im2col.cu`, where it is derived.

The columns of some of the batch at a time, and of one group of channels: `COLUMNS` bounds their bytes.
"""

from collections.abc import Iterator
from typing import Any

from tinyres.kernels.arrays import Array, Pair, ceil_div, output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import BLOCK, MAX_BLOCKS, address, as_seen, blocks, c_type, empty, in_memory
from tinyres.kernels.cuda.launch import kernel

COLUMNS = 1 << 28  # bytes of columns at a time
TILE = 16  # T of the source
SPLIT = 4096  # terms of a sum, at least, that are one part of it


def sum_dtype(x: Array) -> Any:
    """The dtype of a gradient of weights: that of sums over these activations."""
    return "float64" if x.dtype.name == "float64" else "float32"


def check_types(x: Array, w: Array) -> tuple[str, str]:
    """The macros REAL and of the weights. Raises Unsupported unless weights are of the activations' dtype, or float32 beside
    float16 and bfloat16.
    """
    real, weights = c_type(x), c_type(w)
    if weights != real and (weights != "float" or real == "double"):
        raise Unsupported(f"activations of dtype {x.dtype} and weights of {w.dtype}")
    return real, weights


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    real, weights = check_types(x, w)
    macros = {"REAL": real, "LEFT": real, "RIGHT": weights, "RESULT": real}
    x, rows, f = in_memory(x), in_memory(w), w.shape[0]
    oh, ow = (output_size(x.shape[i + 1], w.shape[i + 2], stride[i], padding[i], dilation[i]) for i in (0, 1))
    y = empty(x, (len(x), oh, ow, f))
    geometry = (*x.shape[1:], *w.shape[2:], oh, ow, *stride, *padding, *dilation)
    depth, per_group = rows[0].size, f // groups
    for block in _blocks(len(x), oh * ow * depth * x.itemsize):
        columns = empty(x, (y[block].size // f, depth))
        for group in range(groups):
            _im2col(x[block], columns, group, w.shape[1], geometry, macros)
            matmul(
                columns,
                rows,
                y[block],
                (len(columns), per_group, depth),
                (depth, 1),
                (1, depth),
                f,
                (0, group * per_group * depth, group * per_group),
                macros,
            )
    return as_seen(y)


def conv2d_backward_input(
    dy: Array, w: Array, x_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    real, weights = check_types(dy, w)
    macros = {"REAL": real, "LEFT": real, "RIGHT": weights, "RESULT": c_type(empty(dy, (0,), sum_dtype(dy)))}
    dy, rows, (n, c, height, width), f = in_memory(dy), in_memory(w), x_shape, w.shape[0]
    dx = empty(dy, (n, height, width, c))
    geometry = (height, width, c, *w.shape[2:], *dy.shape[1:3], *stride, *padding, *dilation)
    depth, per_group = rows[0].size, f // groups
    for block in _blocks(n, dy[:1].size // f * depth * 8):
        columns = empty(dy, (dy[block].size // f, depth), sum_dtype(dy))
        for group in range(groups):
            matmul(
                dy[block],
                rows,
                columns,
                (len(columns), depth, per_group),
                (f, 1),
                (depth, 1),
                depth,
                (group * per_group, group * per_group * depth, 0),
                macros,
            )
            elements = dx[block].size // groups
            kernel("im2col", "col2im", **macros)(
                blocks(elements, BLOCK), BLOCK, columns, dx[block], elements, group * w.shape[1], w.shape[1], *geometry
            )
    return as_seen(dx)


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    real = c_type(dy, x)
    dy, x, f = in_memory(dy), in_memory(x), w_shape[0]
    dw = empty(dy, w_shape, sum_dtype(dy))
    macros = {"REAL": real, "LEFT": real, "RIGHT": real, "RESULT": c_type(dw)}
    geometry = (*x.shape[1:], *w_shape[2:], *dy.shape[1:3], *stride, *padding, *dilation)
    depth, per_group, pixels = w_shape[1] * w_shape[2] * w_shape[3], f // groups, dy[:1].size // f
    parts_of_batch = list(_blocks(len(x), pixels * depth * x.itemsize))
    splits = [ceil_div(pixels * len(dy[block]), SPLIT) for block in parts_of_batch]
    for group in range(groups):
        parts, done = empty(dw, (sum(splits), depth, per_group)), 0
        for block, split in zip(parts_of_batch, splits, strict=True):
            columns = empty(x, (dy[block].size // f, depth))
            _im2col(x[block], columns, group, w_shape[1], geometry, macros)
            matmul(
                columns,
                dy[block],
                parts[done : done + split],
                (depth, per_group, len(columns)),
                (1, depth),
                (f, 1),
                per_group,
                (0, group * per_group, 0),
                macros,
                split,
            )
            done += split
        add_parts(parts, dw[group * per_group : (group + 1) * per_group])
    return dw


def matmul(
    a: Array,
    b: Array,
    c: Array,
    size: tuple[int, int, int],
    a_strides: Pair,
    b_strides: Pair,
    c_stride: int,
    first: tuple[int, int, int],
    macros: dict[str, str],
    parts: int = 1,
    name: str = "matmul_tiled",
) -> None:
    """C = A B for ``size`` (m, n, depth): A and B with two strides each, C with that of its rows, each from its element
    ``first`` on. With several ``parts``, C is as many matrices, whose sum is the product.
    """
    m, n, depth = size
    per_part = ceil_div(depth, parts)
    grid = (ceil_div(m, TILE), ceil_div(n, TILE), parts)
    kernel("im2col", name, **macros)(
        grid, (TILE, TILE), a, b, c, m, n, depth, per_part, *a_strides, *b_strides, c_stride, *first
    )


def add_parts(parts: Array, dw: Array) -> None:
    """dw (F, C, KH, KW) = the sum of parts (count, KH * KW * C, F) over ``count``, in an order that only it determines."""
    f, c, kh, kw = dw.shape
    real = c_type(parts, dw)
    run = kernel("im2col", "add_parts", REAL=real, LEFT=real, RIGHT=real, RESULT=real)
    if dw.size:
        run(ceil_div(dw.size, 32), (32, 8), parts, dw, len(parts), kh * kw, c, f)


def _im2col(x: Array, columns: Array, group: int, channels: int, geometry: tuple[int, ...], macros: dict[str, str]) -> None:
    """The columns (pixels, KH * KW * channels) of a group: in packs of 16 bytes where they fit, else one by one."""
    pack = 16 // x.itemsize
    if channels % pack or x.shape[3] % pack or address(x) % 16 or address(columns) % 16:
        kernel("im2col", "im2col", **macros)(
            blocks(columns.size, BLOCK), BLOCK, x, columns, columns.size, group * channels, channels, *geometry
        )
        return
    pixels, packs = len(columns), columns.shape[1] // pack
    across = ceil_div(packs, BLOCK)  # blocks side by side
    wide = ceil_div(packs, across)
    share = max(4 * (BLOCK // wide), ceil_div(pixels, MAX_BLOCKS))
    if pixels:
        kernel("im2col", "im2col_packed", **macros)(
            (ceil_div(pixels, share), across),
            (wide, BLOCK // wide),
            x,
            columns,
            pixels,
            share,
            group * channels,
            channels,
            *geometry,
        )


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of the batch: as many at a time as have `COLUMNS` bytes of columns, at ``size`` each."""
    step = max(1, COLUMNS // max(size, 1))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))
