"""Depthwise convolution: one filter for each channel, so that there is no sum over channels to reuse data in.

Lanes are channels.  Costs: 2 M C KH KW floating-point operations for M output pixels, 4 (input + output) bytes of memory;
at 3x3 that is 9 multiply-adds for 2 floats moved, so memory decides.  Each job pads its input rows into the cache.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyres.kernels.arrays import Pair, threads
from tinyres.kernels.cpu import buffers, simd
from tinyres.kernels.cpu.conv_blocks import pad_rows, unpad
from tinyres.kernels.cpu.conv_direct import input_classes
from tinyres.kernels.cpu.simd import I64, constant, fma, get_float, load, offset, set_float, store, unpack

PIXELS = 4  # output pixels at a time: independent sums that hide the latency of a multiply-add
CACHE = 32_000  # bytes of padded input rows in a job


@intrinsic(prefer_literal=True)
def tap_block(
    typing: Any, lanes: Any, pixels: Any, x: Any, x_row: Any, x_pixel: Any, x_tap: Any, w: Any, w_tap: Any, y: Any,
    y_pixel: Any, rows: Any, taps: Any,
) -> Any:  # fmt: skip
    """y[p] = sum over row < rows, t < taps of x[row, p, t] * w[row, t], for ``pixels`` p, all of them vectors.

    x[row, p, t] is at x + row * x_row + p * x_pixel + t * x_tap, w[row, t] at w + (row * taps + t) * w_tap."""
    width, count = lanes.literal_value, pixels.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_row, x_pixel, x_tap, w, w_tap, y, y_pixel, rows, taps = args[2:]
        zero = constant(width, 0.0)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
        for slot in sums:
            builder.store(zero, slot)
        with cgutils.for_range(builder, rows) as row:
            x_on = builder.add(x, builder.mul(row.index, x_row))
            w_on = builder.add(w, builder.mul(builder.mul(row.index, taps), w_tap))
            with cgutils.for_range(builder, taps) as tap:
                factor = load(builder, width, builder.add(w_on, builder.mul(tap.index, w_tap)))
                at = builder.add(x_on, builder.mul(tap.index, x_tap))
                for p in range(count):
                    value = load(builder, width, offset(builder, at, x_pixel, p))
                    builder.store(fma(builder, value, factor, builder.load(sums[p])), sums[p])
        for p in range(count):
            store(builder, builder.load(sums[p]), offset(builder, y, y_pixel, p))
        return context.get_dummy_value()

    return types.void(lanes, pixels, *[types.intp] * 10), emit


@intrinsic(prefer_literal=True)
def product_sum(typing: Any, lanes: Any, a: Any, a_step: Any, b: Any, b_step: Any, count: Any, out: Any) -> Any:
    """out += sum over t < count of a[t] * b[t], all of them vectors, a[t] at a + t * a_step."""
    width = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, a, a_step, b, b_step, count, out = args
        totals = [cgutils.alloca_once_value(builder, constant(width, 0.0)) for _ in range(4)]
        builder.store(load(builder, width, out), totals[0])
        for total in totals[1:]:
            builder.store(constant(width, 0.0), total)

        def add(t: Any, total: Any) -> None:
            left = load(builder, width, builder.add(a, builder.mul(t, a_step)))
            right = load(builder, width, builder.add(b, builder.mul(t, b_step)))
            builder.store(fma(builder, left, right, builder.load(total)), total)

        fours = builder.lshr(count, ir.Constant(I64, 2))
        with cgutils.for_range(builder, fours) as four:
            for k, total in enumerate(totals):
                add(builder.add(builder.shl(four.index, ir.Constant(I64, 2)), ir.Constant(I64, k)), total)
        done, one = builder.shl(fours, ir.Constant(I64, 2)), ir.Constant(I64, 1)
        with cgutils.for_range_slice(builder, done, count, one, I64) as (t, _):
            add(t, totals[0])
        low, high = (builder.fadd(builder.load(totals[k]), builder.load(totals[k + 1])) for k in (0, 2))
        store(builder, builder.fadd(low, high), out)
        return context.get_dummy_value()

    return types.void(lanes, *[types.intp] * 6), emit


@functools.cache
def _job(lanes: int) -> Any:
    """Job i: some output rows of an image."""

    def job(parameters: int, index: int, scratch: int) -> None:
        (
            x, w, y, h, width, c, cp, kh, kw, sh, sw, top, left, oh, ow, y_image, y_row, y_pixel, strip, strips, across,
            temporary, step_c, step_row, step_column,
        ) = unpack(parameters, 25)  # fmt: skip
        image, first = index // strips, index % strips * strip
        rows = min(strip, oh - first)
        of = x + 4 * image * h * width * c
        pad_rows(scratch, across, cp, of, h, width, c, first * sh - top, left, (rows - 1) * sh + kh)
        block, packed = scratch + temporary, scratch + temporary + 4 * PIXELS * lanes
        line, pixel = 4 * across * cp, 4 * cp
        for k in range(0, cp, lanes):
            for tap in range(kh * kw):
                for lane in range(lanes):
                    value = np.float32(0)
                    if k + lane < c:
                        value = get_float(w + (k + lane) * step_c + tap // kw * step_row + tap % kw * step_column)
                    set_float(packed + 4 * (tap * lanes + lane), value)
            for i in range(rows):
                for j in range(0, ow, PIXELS):
                    source = scratch + i * sh * line + j * sw * pixel + 4 * k
                    at = y + image * y_image + (first + i) * y_row + j * y_pixel + 4 * k
                    whole = j + PIXELS <= ow and k + lanes <= c
                    to, to_step = (at, y_pixel) if whole else (block, 4 * lanes)
                    tap_block(lanes, PIXELS, source, line, sw * pixel, pixel, packed, 4 * lanes, to, to_step, kh, kw)
                    if not whole:
                        unpad(at, 0, y_pixel // 4, block, PIXELS, lanes, 1, min(PIXELS, ow - j), min(lanes, c - k))

    return simd.compiled_job(job)


@functools.cache
def _weight_job(lanes: int) -> Any:
    """Job i: dw as (KH, KW, C rounded up), summed over one part of the blocks of output rows."""

    def job(parameters: int, index: int, scratch: int) -> None:
        (
            x, dy, sums, h, width, c, cp, kh, kw, sh, sw, top, left, oh, ow, strip, strips, across, dy_at, blocks, parts,
        ) = unpack(parameters, 21)  # fmt: skip
        sums += 4 * index * kh * kw * cp
        simd.clear(sums, 4 * kh * kw * cp)
        for block in range(index * blocks // parts, (index + 1) * blocks // parts):
            image, first = block // strips, block % strips * strip
            rows = min(strip, oh - first)
            of = x + 4 * image * h * width * c
            pad_rows(scratch, across, cp, of, h, width, c, first * sh - top, left, (rows - 1) * sh + kh)
            pad_rows(scratch + dy_at, ow, cp, dy + 4 * image * oh * ow * c, oh, ow, c, first, 0, rows)
            for tap in range(kh * kw):
                for k in range(0, 4 * cp, 4 * lanes):
                    for i in range(rows):
                        a = scratch + 4 * ((i * sh + tap // kw) * across + tap % kw) * cp + k
                        b = scratch + dy_at + 4 * i * ow * cp + k
                        product_sum(lanes, a, 4 * sw * cp, b, 4 * cp, ow, sums + 4 * tap * cp + k)

    return simd.compiled_job(job)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _strip(n: int, rows: int, bytes_a_row: int) -> int:
    return max(1, min(rows, CACHE // bytes_a_row, -(-n * rows // (2 * threads()))))


def _run(
    x: Any, w: int, steps: tuple[int, int, int], kernel: Pair, stride: Pair, padding: Pair, size: Pair, y: int,
    y_steps: tuple[int, int, int], lanes: int,
) -> None:  # fmt: skip
    """As `conv_direct.correlate`; ``steps`` are the byte strides of the weights: channels, rows, columns."""
    (n, h, width, c), (kh, kw), (oh, ow) = x.shape, kernel, size
    cp = _up(c, lanes)
    across = (_up(ow, PIXELS) - 1) * stride[1] + max(kw, 1)
    strip = _strip(n, oh, 4 * stride[0] * across * cp)
    strips = -(-oh // strip)
    temporary = _up(4 * ((strip - 1) * stride[0] + max(kh, 1)) * across * cp, 64)
    parameters = [
        x.ctypes.data, w, y, h, width, c, cp, kh, kw, *stride, *padding, oh, ow, *y_steps, strip, strips, across, temporary,
        *steps,
    ]  # fmt: skip
    simd.run(_job(lanes), parameters, n * strips, temporary + 4 * (PIXELS + kh * kw) * lanes)


def correlate(x: Any, w: Any, kernel: Pair, stride: Pair, padding: Pair, y: Any, lanes: int) -> None:
    """x (N, H, W, C), w (C, 1, KH, KW) -> y (N, OH, OW, C)."""
    steps = (w.strides[0], w.strides[2], w.strides[3])
    _run(x, w.ctypes.data, steps, kernel, stride, padding, y.shape[1:3], y.ctypes.data, y.strides[:3], lanes)


def correlate_back(dy: Any, w: Any, kernel: Pair, stride: Pair, padding: Pair, dx: Any, lanes: int) -> None:
    """dy (N, OH, OW, C), w (C, 1, KH, KW) -> dx (N, H, W, C), one convolution for each class of pixels."""
    (_, height, width, _), (step_c, _, step_row, step_column) = dx.shape, w.strides
    for row, rows, taps_down, last_down, top in input_classes(height, kernel[0], stride[0], padding[0]):
        for column, columns, taps_across, last_across, left in input_classes(width, kernel[1], stride[1], padding[1]):
            taps = (taps_down, taps_across) if taps_down and taps_across else (0, 0)
            first = w.ctypes.data + last_down * step_row + last_across * step_column
            steps = (step_c, -stride[0] * step_row, -stride[1] * step_column)
            lattice = (dx.strides[0], stride[0] * dx.strides[1], stride[1] * dx.strides[2])
            to = dx.ctypes.data + row * dx.strides[1] + column * dx.strides[2]
            _run(dy, first, steps, taps, (1, 1), (top, left), (rows, columns), to, lattice, lanes)


def weight_gradient(dy: Any, x: Any, kernel: Pair, stride: Pair, padding: Pair, lanes: int) -> Any:
    """dy (N, OH, OW, C), x (N, H, W, C) -> dw (C, 1, KH, KW)."""
    (n, h, width, c), (_, oh, ow, _), (kh, kw) = x.shape, dy.shape, kernel
    cp = _up(c, lanes)
    across = (ow - 1) * stride[1] + kw
    strip = _strip(n, oh, 4 * (stride[0] * across + ow) * cp)
    strips = -(-oh // strip)
    parts = min(n * strips, 2 * threads())
    dy_at = _up(4 * ((strip - 1) * stride[0] + kh) * across * cp, 64)
    sums = buffers.empty((parts, kh, kw, cp), np.float32)
    parameters = [
        x.ctypes.data, dy.ctypes.data, sums.ctypes.data, h, width, c, cp, kh, kw, *stride, *padding, oh, ow, strip, strips,
        across, dy_at, n * strips, parts,
    ]  # fmt: skip
    simd.run(_weight_job(lanes), parameters, parts, dy_at + 4 * strip * ow * cp)
    dw = buffers.empty((c, 1, kh, kw), np.float32)
    np.sum(sums[..., :c], axis=0, out=dw[:, 0].transpose(1, 2, 0))
    return dw
