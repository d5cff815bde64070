"""Depthwise convolution: one filter for each channel, so that there is no sum over channels to reuse data in.

Lanes are channels. Costs: 2 M C KH KW floating-point operations for M output pixels, 4 (input + output) bytes of memory;
at 3x3 that is 9 multiply-adds for 2 floats moved, so memory decides. Each job pads its input rows into the cache.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyres.kernels.arrays import Array, Pair, ceil_div, threads
from tinyres.kernels.cpu import buffers, simd
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.conv_blocks import pad_rows, unpad
from tinyres.kernels.cpu.conv_direct import input_classes
from tinyres.kernels.cpu.runtime import Kernel, numbers, pointer
from tinyres.kernels.cpu.simd import I64, constant, fma, load, offset, prefetch_read, prefetch_write, round_up, store, unpack

PIXELS = 8  # output pixels at a time: independent sums that hide the latency of a multiply-add
CACHE = 200_000  # bytes of padded input rows in a job
WEIGHT_CACHE = 64_000  # the same and the rows of dy for the weight gradient


@intrinsic(prefer_literal=True)
def tap_block(
    typing: Any,
    lanes: Any,
    pixels: Any,
    x: Any,
    x_row: Any,
    x_pixel: Any,
    x_tap: Any,
    w: Any,
    w_tap: Any,
    y: Any,
    y_pixel: Any,
    rows: Any,
    taps: Any,
) -> Any:
    """y[p] = sum over row < rows, t < taps of x[row, p, t] * w[row, t], for ``pixels`` p, all of them vectors.

    x[row, p, t] is at x + row * x_row + p * x_pixel + t * x_tap, w[row, t] at w + (row * taps + t) * w_tap.
    """
    width, count = lanes.literal_value, pixels.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_row, x_pixel, x_tap, w, w_tap, y, y_pixel, rows, taps = args[2:]
        zero = constant(width, 0.0)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(count)]
        for slot in sums:
            builder.store(zero, slot)
        with cgutils.for_range(builder, rows) as row:
            x_line = builder.add(x, builder.mul(row.index, x_row))
            w_line = builder.add(w, builder.mul(builder.mul(row.index, taps), w_tap))
            with cgutils.for_range(builder, taps) as tap:
                factor = load(builder, width, builder.add(w_line, builder.mul(tap.index, w_tap)))
                start = builder.add(x_line, builder.mul(tap.index, x_tap))
                for p in range(count):
                    value = load(builder, width, offset(builder, start, x_pixel, p))
                    builder.store(fma(builder, value, factor, builder.load(sums[p])), sums[p])
        for p in range(count):
            store(builder, builder.load(sums[p]), offset(builder, y, y_pixel, p))
        return context.get_dummy_value()

    return types.void(lanes, pixels, *[types.intp] * 10), emit


@intrinsic(prefer_literal=True)
def product_sum(
    typing: Any,
    lanes: Any,
    a: Any,
    a_line: Any,
    a_step: Any,
    b: Any,
    b_line: Any,
    b_step: Any,
    lines: Any,
    count: Any,
    out: Any,
) -> Any:
    """out += sum over l < lines, t < count of a[l, t] * b[l, t], all of them vectors, a[l, t] at a + l a_line + t a_step."""
    width = lanes.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, a, a_line, a_step, b, b_line, b_step, lines, count, out = args
        zero, one, two = constant(width, 0.0), ir.Constant(I64, 1), ir.Constant(I64, 2)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]  # hide the latency of a multiply-add
        for total in totals:
            builder.store(zero, total)

        def add(t: Any, total: Any) -> None:
            left = load(builder, width, builder.add(a_start, builder.mul(t, a_step)))
            right = load(builder, width, builder.add(b_start, builder.mul(t, b_step)))
            builder.store(fma(builder, left, right, builder.load(total)), total)

        fours = builder.lshr(count, two)
        with cgutils.for_range(builder, lines) as line:
            a_start = builder.add(a, builder.mul(line.index, a_line))
            b_start = builder.add(b, builder.mul(line.index, b_line))
            with cgutils.for_range(builder, fours) as four:
                for k, total in enumerate(totals):
                    add(builder.add(builder.shl(four.index, two), ir.Constant(I64, k)), total)
            with cgutils.for_range_slice(builder, builder.shl(fours, two), count, one, I64) as (t, _):
                add(t, totals[0])
        low, high = (builder.fadd(builder.load(totals[k]), builder.load(totals[k + 1])) for k in (0, 2))
        store(builder, builder.fadd(load(builder, width, out), builder.fadd(low, high)), out)
        return context.get_dummy_value()

    return types.void(lanes, *[types.intp] * 9), emit


@functools.cache
def _job(lanes: int) -> Any:
    """Job i: some output rows of an image."""

    def job(parameters: int, index: int, scratch: int) -> None:
        (
            x,
            w,
            y,
            n,
            h,
            width,
            c,
            cp,
            kh,
            kw,
            sh,
            sw,
            top,
            left,
            oh,
            ow,
            y_image,
            y_row,
            y_pixel,
            strip,
            strips,
            across,
            temporary,
        ) = unpack(parameters, 23)
        image, first = index // strips, index % strips * strip
        rows = min(strip, oh - first)
        image_start = x + 4 * image * h * width * c
        pad_rows(scratch, across, cp, image_start, h, width, c, first * sh - top, left, (rows - 1) * sh + kh)
        block, line, pixel = scratch + temporary, 4 * across * cp, 4 * cp
        ahead = image_start + 4 * ((first + rows) * sh - top) * width * c  # memory fetches the next job's inputs meanwhile
        size = min(4 * rows * sh * width * c, x + 4 * n * h * width * c - ahead)
        piece, pieces = 0, rows * (cp // lanes)
        for i in range(rows):
            row_start = y + image * y_image + (first + i) * y_row
            for k in range(0, cp, lanes):
                prefetch_read(ahead + size * piece // pieces, ahead + size * (piece + 1) // pieces)
                piece += 1
                if i + 1 < rows:
                    prefetch_write(row_start + y_row + y_row * k // cp, row_start + y_row + y_row * (k + lanes) // cp)
                for j in range(0, ow, PIXELS):
                    source = scratch + i * sh * line + j * sw * pixel + 4 * k
                    place = row_start + j * y_pixel + 4 * k
                    whole = j + PIXELS <= ow and k + lanes <= c
                    out, out_step = (place, y_pixel) if whole else (block, 4 * lanes)
                    tap_block(lanes, PIXELS, source, line, sw * pixel, pixel, w + 4 * k, pixel, out, out_step, kh, kw)
                    if not whole:
                        unpad(place, 0, y_pixel // 4, block, PIXELS, lanes, 1, min(PIXELS, ow - j), min(lanes, c - k))

    return simd.compiled_job(job)


@functools.cache
def _weight_job(lanes: int) -> Any:
    """Job i: dw as (KH, KW, C rounded up), summed over one part of the blocks of output rows."""

    def job(parameters: int, index: int, scratch: int) -> None:
        (x, dy, sums, n, h, width, c, cp, kh, kw, sh, sw, top, left, oh, ow, strip, strips, across, room, blocks, parts) = (
            unpack(parameters, 22)
        )
        sums += 4 * index * kh * kw * cp
        simd.clear(sums, 4 * kh * kw * cp)
        for block in range(index * blocks // parts, (index + 1) * blocks // parts):
            image, first = block // strips, block % strips * strip
            rows = min(strip, oh - first)
            image_start = x + 4 * image * h * width * c
            pad_rows(scratch, across, cp, image_start, h, width, c, first * sh - top, left, (rows - 1) * sh + kh)
            cotangents = dy + 4 * (image * oh + first) * ow * c
            if c != cp:
                pad_rows(scratch + room, ow, cp, dy + 4 * image * oh * ow * c, oh, ow, c, first, 0, rows)
                cotangents = scratch + room
            x_next = image_start + 4 * ((first + rows) * sh - top) * width * c
            x_bytes = min(4 * rows * sh * width * c, x + 4 * n * h * width * c - x_next)
            dy_next = dy + 4 * (image * oh + first + rows) * ow * c
            dy_bytes = min(4 * rows * ow * c, dy + 4 * n * oh * ow * c - dy_next)
            line, pixel, piece, pieces = 4 * across * cp, 4 * cp, 0, kh * kw * (cp // lanes)
            for k in range(0, 4 * cp, 4 * lanes):
                for tap in range(kh * kw):
                    prefetch_read(x_next + x_bytes * piece // pieces, x_next + x_bytes * (piece + 1) // pieces)
                    prefetch_read(dy_next + dy_bytes * piece // pieces, dy_next + dy_bytes * (piece + 1) // pieces)
                    piece += 1
                    a, b = scratch + tap // kw * line + tap % kw * pixel + k, cotangents + k
                    out = sums + tap * pixel + k
                    product_sum(lanes, a, sh * line, sw * pixel, b, ow * pixel, pixel, rows, ow, out)

    return simd.compiled_job(job)


def _strip(n: int, rows: int, row_bytes: int, cache: int) -> int:
    return max(1, min(rows, cache // row_bytes, ceil_div(n * rows, 2 * threads())))


def _run(
    x: Array, w: Array, stride: Pair, padding: Pair, size: Pair, y: int, y_steps: tuple[int, int, int], lanes: int
) -> None:
    """As `conv_direct.correlate` for one class; w (C, KH, KW)."""
    (n, h, width, c), (kh, kw), (oh, ow) = x.shape, w.shape[1:], size
    cp = round_up(c, lanes)
    packed = buffers.empty((kh, kw, cp), np.float32)
    if kh * kw:
        _pack(kh * kw, [packed], [address(w), *(step // 4 for step in w.strides), kw, c, cp])
    across = (round_up(ow, PIXELS) - 1) * stride[1] + max(kw, 1)
    strip = _strip(n, oh, 4 * stride[0] * across * cp, CACHE)
    strips = ceil_div(oh, strip)
    temporary = round_up(4 * ((strip - 1) * stride[0] + max(kh, 1)) * across * cp, 64)
    parameters = [
        address(x),
        address(packed),
        y,
        n,
        h,
        width,
        c,
        cp,
        kh,
        kw,
        *stride,
        *padding,
        oh,
        ow,
        *y_steps,
        strip,
        strips,
        across,
        temporary,
    ]
    simd.run(_job(lanes), parameters, n * strips, temporary + 4 * PIXELS * lanes)


def correlate(x: Array, w: Array, stride: Pair, padding: Pair, y: Array, lanes: int) -> None:
    """x (N, H, W, C), w (C, 1, KH, KW) -> y (N, OH, OW, C)."""
    _run(x, w[:, 0], stride, padding, y.shape[1:3], address(y), y.strides[:3], lanes)


def correlate_back(dy: Array, w: Array, stride: Pair, padding: Pair, dx: Array, lanes: int) -> None:
    """dy (N, OH, OW, C), w (C, 1, KH, KW) -> dx (N, H, W, C), one convolution for each class of pixels."""
    _, height, width, _ = dx.shape
    lattice = (dx.strides[0], stride[0] * dx.strides[1], stride[1] * dx.strides[2])
    for row, rows, down, last_down, top in input_classes(height, w.shape[2], stride[0], padding[0]):
        for column, columns, across, last_across, left in input_classes(width, w.shape[3], stride[1], padding[1]):
            taps = w[:, 0, last_down % stride[0] :: stride[0], last_across % stride[1] :: stride[1]]
            if not down or not across:
                taps = taps[:, :0, :0]
            start = address(dx) + row * dx.strides[1] + column * dx.strides[2]
            _run(dy, taps[:, ::-1, ::-1], (1, 1), (top, left), (rows, columns), start, lattice, lanes)


def weight_gradient(dy: Array, x: Array, kernel: Pair, stride: Pair, padding: Pair, lanes: int) -> Array:
    """dy (N, OH, OW, C), x (N, H, W, C) -> dw (C, 1, KH, KW)."""
    (n, h, width, c), (_, oh, ow, _), (kh, kw) = x.shape, dy.shape, kernel
    cp = round_up(c, lanes)
    across = (ow - 1) * stride[1] + kw
    strip = _strip(n, oh, 4 * (stride[0] * across + ow) * cp, WEIGHT_CACHE)
    strips = ceil_div(oh, strip)
    parts = min(n * strips, 2 * threads())
    room = round_up(4 * ((strip - 1) * stride[0] + kh) * across * cp, 64)
    sums = buffers.empty((parts, kh, kw, cp), np.float32)
    parameters = [
        address(x),
        address(dy),
        address(sums),
        n,
        h,
        width,
        c,
        cp,
        kh,
        kw,
        *stride,
        *padding,
        oh,
        ow,
        strip,
        strips,
        across,
        room,
        n * strips,
        parts,
    ]
    simd.run(_weight_job(lanes), parameters, parts, room + 4 * strip * ow * cp)
    dw = buffers.empty((c, 1, kh, kw), np.float32)
    _sum_parts(kh * kw, [dw, sums], [kh * kw, c, cp, parts])
    return dw


@Kernel
def _pack(a: Any, index: int, scratch: Any) -> None:
    """The filters' tap ``index``: of all channels side by side, which it is not in w (C, KH, KW)."""
    n = numbers(a)
    w, step, row, column, kw, c, cp = pointer(n[1], types.float32), n[2], n[3], n[4], n[5], n[6], n[7]
    for k in range(c):
        a[0][index * cp + k] = w[k * step + index // kw * row + index % kw * column]
    for k in range(c, cp):
        a[0][index * cp + k] = 0


@Kernel
def _sum_parts(a: Any, index: int, scratch: Any) -> None:
    """Tap ``index`` of dw (C, KH, KW): the parts summed in their order."""
    n = numbers(a)
    taps, c, cp, parts = n[2], n[3], n[4], n[5]
    for k in range(c):
        total = a[1][index * cp + k]
        for part in range(1, parts):
            total += a[1][(part * taps + index) * cp + k]
        a[0][k * taps + index] = total
