"""Convolution on the tensor cores: `src/conv_tensor_forward.cu` and `src/conv_tensor_weight.cu`.

Activations are float32, whose products are then those of TF32 numbers, or float16 or bfloat16; weights and their gradients
are float32, and so are all sums. Every kernel size, stride and padding; no groups, no dilation.
"""

from tinyres.kernels.arrays import Array, Pair, array_module, ceil_div, output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import address, as_seen, c_type, empty, in_memory
from tinyres.kernels.cuda.im2col import add_parts
from tinyres.kernels.cuda.launch import kernel

ENOUGH = 2 * 132  # blocks that keep the largest card busy
WARPS = 8  # of a block of `gather`: a warp's tile is 32 pixels


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    real = _check(dilation, groups, x, w)
    x, w = in_memory(x), array_module(w).ascontiguousarray(w)
    oh, ow = (output_size(x.shape[i + 1], w.shape[i + 2], stride[i], padding[i]) for i in (0, 1))
    y = empty(x, (len(x), oh, ow, w.shape[0]))
    _gather(real, x, w, y, stride, padding, 1)
    return as_seen(y)


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
    real = _check(dilation, groups, dy, w)
    dy, w = in_memory(dy), array_module(w).ascontiguousarray(w)
    n, c, height, width = x_shape
    if total is None:
        dx = empty(dy, (n, height, width, c))
    else:
        dx = total.transpose(0, 2, 3, 1)
        if not dx.flags.c_contiguous or dx.dtype != dy.dtype:
            raise Unsupported("a cotangent to add to that is not channels-last, or of another dtype")
    _gather(real, dy, w, dx, stride, padding, stride[0] * stride[1], backward=True, add=total is not None)
    return as_seen(dx) if total is None else total


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    real = _check(dilation, groups, dy, x)
    dy, x, (f, c, kh, kw) = in_memory(dy), in_memory(x), w_shape
    n, oh, ow = dy.shape[:3]
    tile = 32 if min(c, f) > 16 and _packed(c, 4, x) and _packed(f, 4, dy) else 16
    taps = 3 if kw == 3 and stride[1] == 1 and ow % 4 == 0 else 1
    grid = (ceil_div(f, tile) * ceil_div(c, tile), kh * kw // taps)
    sixteens = ceil_div(n * oh * ceil_div(ow, 4), 4)  # 16 pixels are a warp's step; a block has 4 warps, for 4 steps or more
    per_part = max(16, ceil_div(sixteens * grid[0] * grid[1], ENOUGH))
    parts = empty(dy, (ceil_div(sixteens, per_part), kh * kw * c, f), "float32")
    if parts.size:
        kernel("conv_tensor_weight", "backward_weight", REAL=real, TILE=tile, TAPS=taps)(
            (len(parts), *grid),
            128,
            dy,
            x,
            parts,
            per_part,
            *x.shape,
            oh,
            ow,
            f,
            kh,
            kw,
            *stride,
            *padding,
            _packed(c, tile // 8, x),
            _packed(f, tile // 8, dy),
        )
    dw = empty(dy, w_shape, "float32")
    add_parts(parts, dw)
    return dw


def _check(dilation: Pair, groups: int, activations: Array, other: Array) -> str:
    """The macro REAL. ``other`` are weights, or activations of the same dtype."""
    if groups != 1 or dilation != (1, 1):
        raise Unsupported("groups" if groups != 1 else "dilation")
    if other.dtype.name not in ("float32", activations.dtype.name):
        raise Unsupported(f"activations of dtype {activations.dtype} and weights of {other.dtype}")
    return c_type(activations, allowed=("float32", "float16", "bfloat16"))


def _gather(
    real: str,
    activations: Array,
    w: Array,
    result: Array,
    stride: Pair,
    padding: Pair,
    phases: int,
    backward: bool = False,
    add: bool = False,
) -> None:
    """Forward, or backward with ``activations`` and ``result`` for dy and dx. ``add``: to what is in ``result``."""
    if not result.size:
        return
    (n, height, width, c), (_, oh, ow, f), kernel_size = activations.shape, result.shape, w.shape[2:]
    pixels = n * ceil_div(oh, stride[0]) * ceil_div(ow, stride[1]) if backward else n * oh * ow  # of a phase
    tile, words = _tile(real, c, f)
    filters = ceil_div(f, tile)
    parts = _parts(pixels, filters * phases)
    kernel("conv_tensor_forward", "gather", REAL=real, TILE_F=tile, WORDS=words)(
        (ceil_div(pixels * parts, 32 * WARPS), filters, phases),
        32 * WARPS,
        activations,
        w,
        result,
        backward,
        add,
        parts,
        n,
        height,
        width,
        c,
        oh,
        ow,
        f,
        *kernel_size,
        *stride,
        *padding,
        _packed(c, words * 4 // activations.itemsize, activations),
        _packed(f, min(tile // 4, 16 // result.itemsize), result),
    )


def _tile(real: str, channels: int, filters: int) -> tuple[int, int]:
    """TILE_F and WORDS: as few chunks of the channels as there can be, with no more empty places than needed."""
    if real == "float":
        return (16 if filters <= 16 else 32), 4
    if filters <= 16:
        return 16, 2
    return 32, 2 if channels <= 16 else 4


def _parts(pixels: int, times: int) -> int:
    """How many warps share the terms of a sum: as few as keep the card busy."""
    for parts in (1, 2, 4):
        if ceil_div(pixels * parts, 32 * WARPS) * times >= ENOUGH:
            return parts
    return 4


def _packed(length: int, at_once: int, *arrays: Array) -> bool:
    """Whether rows of ``length`` elements can be moved so many at once."""
    return length % at_once == 0 and not any(address(a) % 16 for a in arrays)
