"""The convolution kernels of the contract, on the CPU: checks, layouts, and the choice among the algorithms.

Activations are handed on as contiguous (N, H, W, C) arrays, copied only if they do not lie so, weights as an address and
strides. `choose.algorithm` says which algorithm runs. What is left to the reference: float64, dilation, groups other
than 1 or one for each channel, and Numba without its compiler (NUMBA_DISABLE_JIT).
"""

from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, Pair, Shape, added, channels_first, output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers, choose, conv_depthwise, conv_direct, runtime, simd, winograd
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.elementwise import accumulate
from tinyres.kernels.cpu.layout import channels_last


def _check(a: Array, b: Array, w_shape: Shape, channels: int, dilation: Pair, groups: int) -> bool:
    """Raises `Unsupported`, or tells whether the convolution is depthwise."""
    if runtime.config.DISABLE_JIT:
        raise Unsupported("NUMBA_DISABLE_JIT is set")
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        raise Unsupported("arrays on a GPU")
    if a.dtype != np.float32 or b.dtype != np.float32:
        raise Unsupported(f"dtype {a.dtype}, not float32")
    if dilation != (1, 1):
        raise Unsupported("dilation")
    if min(*a.shape, *b.shape, *w_shape) < 1:
        raise Unsupported("an empty array")
    depthwise = groups > 1 and groups == channels == w_shape[0]
    if groups != 1 and not depthwise:
        raise Unsupported("groups other than 1 or one for each channel")
    return depthwise


def conv2d(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    """y, by Winograd, directly, or depthwise."""
    depthwise = _check(x, w, w.shape, x.shape[1], dilation, groups)
    lanes, x = simd.host_lanes(), channels_last(x)
    (n, height, width, c), f, kernel = x.shape, w.shape[0], w.shape[2:]
    size = (output_size(height, kernel[0], stride[0], padding[0]), output_size(width, kernel[1], stride[1], padding[1]))
    if min(size) < 1:
        raise Unsupported("an empty array")
    if depthwise:
        y = buffers.empty((n, *size, c), np.float32)
        conv_depthwise.correlate(x, w, stride, padding, y, lanes)
        return channels_first(y)
    step_f, step_c, step_row, step_column = w.strides
    taps = (step_c, step_f, step_row, step_column)
    m = choose.tile("forward", n, c, f, size, kernel, stride)
    if m:
        return channels_first(winograd.convolve(x, address(w), taps, f, size, padding, m, lanes))
    y = buffers.empty((n, *size, f), np.float32)
    steps = (4 * size[0] * size[1] * f, 4 * size[1] * f, 4 * f)
    whole = conv_direct.Class(kernel, padding, size, address(w), 0)
    conv_direct.correlate(x, [whole], taps, stride, f, y, steps, lanes)
    return channels_first(y)


def conv2d_backward_input(
    dy: Array, w: Array, x_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int, total: Array | None = None
) -> Any:
    """dx: at stride 1 a convolution with the filters turned around, at others one for each class of pixels.

    Winograd adds it to ``total`` where its results leave the registers, the others in a second pass.
    """
    (n, c, height, width), f, kernel = x_shape, w.shape[0], w.shape[2:]
    depthwise = _check(dy, w, w.shape, c, dilation, groups)
    if min(x_shape) < 1:
        raise Unsupported("an empty array")
    lanes, dy = simd.host_lanes(), channels_last(dy)
    if depthwise:
        dx = buffers.empty((n, height, width, c), np.float32)
        conv_depthwise.correlate_back(dy, w, stride, padding, dx, lanes)
        return added(channels_first(dx), total, accumulate)
    step_f, step_c, step_row, step_column = w.strides
    m = choose.tile("backward_input", n, f, c, (height, width), kernel, stride)
    if m and max(padding) <= 2:
        last = address(w) + 2 * step_row + 2 * step_column
        margin = (2 - padding[0], 2 - padding[1])
        taps = (step_f, step_c, -step_row, -step_column)
        target = None if total is None else total.transpose(0, 2, 3, 1)
        if target is not None and not (target.flags.c_contiguous and target.flags.writeable and total.dtype == dy.dtype):
            raise Unsupported("a cotangent to add to that is not channels-last, read-only, or of another dtype")
        dx = winograd.convolve(dy, last, taps, c, (height, width), margin, m, lanes, target)
        return channels_first(dx) if total is None else total
    dx = buffers.empty((n, height, width, c), np.float32)
    classes = []
    for row, rows, taps_down, last_down, top in conv_direct.input_classes(height, kernel[0], stride[0], padding[0]):
        for column, columns, taps_across, last_across, left in conv_direct.input_classes(
            width, kernel[1], stride[1], padding[1]
        ):
            reach = (taps_down, taps_across) if taps_down and taps_across else (0, 0)
            first = address(w) + last_down * step_row + last_across * step_column
            corner = 4 * (row * width + column) * c
            classes.append(conv_direct.Class(reach, (top, left), (rows, columns), first, corner))
    taps = (step_f, step_c, -stride[0] * step_row, -stride[1] * step_column)
    steps = (4 * height * width * c, 4 * stride[0] * width * c, 4 * stride[1] * c)
    conv_direct.correlate(dy, classes, taps, (1, 1), c, dx, steps, lanes)
    return added(channels_first(dx), total, accumulate)


def conv2d_backward_weight(
    dy: Array, x: Array, w_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """dw, in one contiguous (F, C / groups, KH, KW) array."""
    depthwise = _check(dy, x, w_shape, x.shape[1], dilation, groups)
    lanes, dy, x, kernel = simd.host_lanes(), channels_last(dy), channels_last(x), w_shape[2:]
    if depthwise:
        return conv_depthwise.weight_gradient(dy, x, kernel, stride, padding, lanes)
    m = choose.tile("backward_weight", len(x), x.shape[3], w_shape[0], dy.shape[1:3], kernel, stride)
    if m:
        return winograd.weight_gradient(dy, x, padding, m, lanes)
    return conv_direct.weight_gradient(dy, x, kernel, stride, padding, lanes)
