"""Convolution in float32 and float64 without a column matrix: `src/conv_exact.cu`. Every geometry but groups."""

from typing import Any

from tinyres.kernels.arrays import Array, Pair, ceil_div, output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import address, as_seen, c_type, contiguous, empty, in_memory
from tinyres.kernels.cuda.im2col import add_parts
from tinyres.kernels.cuda.launch import kernel

ENOUGH = 2 * 132  # blocks that keep the largest card busy


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    real = _check(groups, x, w)
    x, taps, (f, _, kh, kw) = in_memory(x), contiguous(w.transpose(2, 3, 1, 0)), w.shape
    n, height, width, c = x.shape
    oh, ow = (output_size(x.shape[i + 1], w.shape[i + 2], stride[i], padding[i], dilation[i]) for i in (0, 1))
    y = empty(x, (n, oh, ow, f))
    if y.size:
        tile = _tile(n * oh * ow, f)
        _run(
            "forward",
            tile,
            real,
            (ceil_div(n * oh * ow, tile[0]), ceil_div(f, tile[1])),
            x,
            taps,
            y,
            n,
            height,
            width,
            c,
            oh,
            ow,
            f,
            kh,
            kw,
            *stride,
            *padding,
            *dilation,
            _packed(c, x),
            _packed(f, taps, y),
        )
    return as_seen(y)


def conv2d_backward_input(
    dy: Array, w: Array, x_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    real = _check(groups, dy, w)
    dy, taps, (f, _, kh, kw) = in_memory(dy), contiguous(w.transpose(2, 3, 0, 1)), w.shape
    (n, c, height, width), (oh, ow) = x_shape, dy.shape[1:3]
    dx = empty(dy, (n, height, width, c))
    if dx.size:
        phases, rows = stride[0] * stride[1], n * ceil_div(height, stride[0]) * ceil_div(width, stride[1])
        tile = _tile(rows, c, phases)
        _run(
            "backward_input",
            tile,
            real,
            (ceil_div(rows, tile[0]), ceil_div(c, tile[1]), phases),
            dy,
            taps,
            dx,
            n,
            height,
            width,
            c,
            oh,
            ow,
            f,
            kh,
            kw,
            *stride,
            *padding,
            *dilation,
            _packed(f, dy),
            _packed(c, taps, dx),
        )
    return as_seen(dx)


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    real = _check(groups, dy, x)
    dy, x, (f, c, kh, kw) = in_memory(dy), in_memory(x), w_shape
    rows, depth = dy.size // f, kh * kw * c
    tile = (64, 16, 4) if f <= 16 else (64, 32, 4) if f <= 32 else (64, 64, 8)
    tiles = (ceil_div(depth, tile[0]), ceil_div(f, tile[1]))
    per_part = max(128, ceil_div(rows * tiles[0] * tiles[1], 2 * ENOUGH))  # pixels of a part: from the shapes alone
    parts = empty(dy, (ceil_div(rows, per_part), depth, f))
    if parts.size:
        _run(
            "backward_weight",
            tile,
            real,
            (*tiles, len(parts)),
            dy,
            x,
            parts,
            per_part,
            *x.shape,
            *dy.shape[1:],
            kh,
            kw,
            *stride,
            *padding,
            *dilation,
            _packed(c, x),
            _packed(f, dy, parts),
        )
    dw = empty(dy, w_shape)
    add_parts(parts, dw)
    return dw


def _check(groups: int, *arrays: Array) -> str:
    if groups != 1:
        raise Unsupported("groups")
    return c_type(*arrays, allowed=("float32", "float64"))


def _tile(rows: int, filters: int, phases: int = 1) -> tuple[int, int, int]:
    """TILE_M, TILE_F and EACH: filters in as few tiles as possible, and small tiles rather than idle multiprocessors."""
    if filters <= 16:
        return 128, 16, 4
    if filters <= 32:
        return (128, 32, 8) if ceil_div(rows, 128) * phases >= ENOUGH else (64, 32, 4)
    return (64, 64, 8) if ceil_div(rows, 64) * ceil_div(filters, 64) * phases >= ENOUGH else (64, 32, 4)


def _packed(length: int, *arrays: Array) -> bool:
    """Whether every row can be read and written 16 bytes at a time."""
    return length % 4 == 0 and not any(address(a) % 16 for a in arrays)


def _run(name: str, tile: tuple[int, int, int], real: str, grid: tuple[int, ...], *args: Any) -> None:
    rows, filters, each = tile
    run = kernel("conv_exact", name, REAL=real, TILE_M=rows, TILE_F=filters, EACH=each)
    run(grid, rows * filters // (4 * each), *args)
