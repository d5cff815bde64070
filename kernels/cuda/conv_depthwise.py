"""Depthwise convolution, one or more filters for each channel: `src/conv_depthwise.cu`. Every geometry and type."""

from tinyres.kernels.arrays import Array, Pair, ceil_div, output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import BLOCK, address, as_seen, blocks, c_type, contiguous, empty, in_memory
from tinyres.kernels.cuda.im2col import add_parts, check_types, sum_dtype
from tinyres.kernels.cuda.launch import kernel

RUN, TAPS = 4, 9  # of the source
ENOUGH = 4 * 132  # blocks that keep the largest card busy


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    many = _filters_each(x.shape[1], w.shape, groups)
    real, param = check_types(x, w)
    x, taps, (f, _, *size) = in_memory(x), _taps(w), w.shape
    oh, ow = (output_size(x.shape[i + 1], size[i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    y = empty(x, (len(x), oh, ow, f))
    if y.size:
        runs, packed = len(x) * oh * ceil_div(ow, RUN), _packed(many, f, x, taps, y)
        kernel("conv_depthwise", "depthwise", REAL=real, PARAM=param)(
            blocks(runs * f // _lot(x, packed), BLOCK),
            BLOCK,
            x,
            taps,
            y,
            runs,
            packed,
            *x.shape[1:3],
            many,
            f,
            *size,
            oh,
            ow,
            *stride,
            *padding,
            *dilation,
        )
    return as_seen(y)


def conv2d_backward_input(
    dy: Array, w: Array, x_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    many = _filters_each(x_shape[1], w.shape, groups)
    real, param = check_types(dy, w)
    dy, taps, (n, c, *size) = in_memory(dy), _taps(w), x_shape
    dx = empty(dy, (n, *size, c))
    if dx.size:
        packed = _packed(many, c, dy, taps, dx)
        kernel("conv_depthwise", "depthwise_backward_input", REAL=real, PARAM=param)(
            blocks(dx.size // _lot(dx, packed), BLOCK),
            BLOCK,
            dy,
            taps,
            dx,
            dx.size // c,
            packed,
            *size,
            many,
            c * many,
            *w.shape[2:],
            *dy.shape[1:3],
            *stride,
            *padding,
            *dilation,
        )
    return as_seen(dx)


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    many = _filters_each(x.shape[1], w_shape, groups)
    real = c_type(dy, x)
    dy, x, (f, _, kh, kw) = in_memory(dy), in_memory(x), w_shape
    dw = empty(dy, w_shape, sum_dtype(dy))
    pixels, tiles, passes = dy.size // f, ceil_div(f, 32), ceil_div(kh * kw, TAPS)
    per_part = max(64, ceil_div(pixels * tiles * passes, ENOUGH))  # pixels of a part: from the shapes alone
    parts = empty(dw, (ceil_div(pixels, per_part), kh * kw, f))
    if parts.size:
        kernel("conv_depthwise", "depthwise_backward_weight", REAL=real, PARAM=c_type(dw))(
            (tiles, len(parts), passes),
            (32, 8),
            dy,
            x,
            parts,
            pixels,
            per_part,
            *x.shape[1:3],
            many,
            f,
            kh,
            kw,
            *dy.shape[1:3],
            *stride,
            *padding,
            *dilation,
        )
    add_parts(parts, dw)
    return dw


def _filters_each(channels: int, w_shape: tuple[int, ...], groups: int) -> int:
    if groups != channels or w_shape[1] != 1:
        raise Unsupported("groups of several channels")
    return w_shape[0] // channels


def _taps(w: Array) -> Array:
    """w (F, 1, KH, KW) as (KH, KW, F): filters side by side, as the channels of activations are."""
    return contiguous(w[:, 0].transpose(1, 2, 0))


def _lot(x: Array, packed: bool) -> int:
    """How many channels a thread takes."""
    return 16 // x.itemsize if packed else 1


def _packed(many: int, channels: int, *arrays: Array) -> bool:
    """Whether threads can take channels 16 bytes at a time."""
    return many == 1 and channels % (16 // arrays[0].itemsize) == 0 and not any(address(a) % 16 for a in arrays)
