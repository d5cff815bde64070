"""Direct convolution of any kernel, stride and padding, and its weight gradient: what Winograd does not do.

No column matrix: a job copies the input rows that it needs, padded, into its core's cache, where the window of an output
pixel is KH runs of KW * C contiguous floats, and walks them with the register blocks of `conv_blocks`. Lanes are filters.

Costs: 2 M F C KH KW floating-point operations for M output pixels, 4 (input + output) bytes of memory. For the stride-2
layer from 16 to 32 channels of ResNet-20 at batch 128: 302 MFLOP (0.6 ms at 490 GFLOP/s) and 12.6 MB.

An input gradient is a few such convolutions: `input_classes`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from tinyres.kernels.arrays import Array, Pair, ceil_div, threads
from tinyres.kernels.cpu import buffers, simd
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.conv_blocks import PIXELS, ROWS, add_up, dot_block, outer_block, pad_rows, unpad
from tinyres.kernels.cpu.jobs import Local, by_image, constant, touched, whole
from tinyres.kernels.cpu.simd import copy, get_float, prefetch_read, prefetch_write, round_up, set_float, unpack

CACHE = 64_000  # bytes of padded input rows in a job
WEIGHT_CACHE = 32_000  # the same and the rows of dy for the weight gradient
Taps = tuple[int, int, int, int]  # byte strides of weights along what is summed over, what comes out, rows, columns


@functools.cache
def _pack_job(lanes: int) -> Any:
    """Job i: the weights of input channel i, as (blocks of filters, KH, KW, C, filters of a block)."""

    def job(parameters: int, index: int, scratch: int) -> None:
        w, packed, kh, kw, c, f, fp, step_c, step_f, step_row, step_column = unpack(parameters, 11)
        for block in range(0, fp, 2 * lanes):
            wide = min(2 * lanes, fp - block)
            start = packed + 4 * (block * kh * kw * c + index * wide)
            for g in range(wide):
                for row in range(kh):
                    for column in range(kw):
                        value = np.float32(0)
                        if block + g < f:
                            place = w + index * step_c + row * step_row + column * step_column + (block + g) * step_f
                            value = get_float(place)
                        set_float(start + 4 * ((row * kw + column) * c * wide + g), value)

    return simd.compiled_job(job)


@functools.cache
def _job(lanes: int) -> Any:
    """Job i: some rows of every class of output pixels of an image."""
    pixels, twice = PIXELS[lanes], 2 * PIXELS[lanes]

    def job(parameters: int, index: int, scratch: int) -> None:
        (x, weights, y, n, h, w, c, sh, sw, f, fp, y_image, y_row, y_pixel, strip, strips, width, temporary, classes) = (
            unpack(parameters, 19)
        )
        image, first = index // strips, index % strips * strip
        source = x + 4 * image * h * w * c
        line, step = 4 * width * c, 4 * sw * c
        for number in range(classes):
            kh, kw, top, left, oh, ow, packed, corner = unpack(parameters + 8 * (19 + 8 * number), 8)
            rows = min(strip, oh - first)
            if rows <= 0:
                continue
            pad_rows(scratch, width, c, source, h, w, c, first * sh - top, left, (rows - 1) * sh + kh)
            for g in range(0, fp, 2 * lanes):
                filters = weights + packed + 4 * g * kh * kw * c
                wide = min(2 * lanes, fp - g)
                block = pixels if wide > lanes else twice
                for i in range(rows):
                    row_start = y + corner + image * y_image + (first + i) * y_row
                    for j in range(0, ow, block):
                        if g == 0:  # memory fetches the next job's inputs and the next row's outputs meanwhile
                            ahead = source + 4 * ((first + rows) * sh - top + i * sh) * w * c
                            part = 4 * sh * w * c
                            if ahead + part <= x + 4 * n * h * w * c:
                                prefetch_read(ahead + part * j // ow, ahead + part * min(j + block, ow) // ow)
                            if i + 1 < rows:
                                place = row_start + y_row
                                prefetch_write(place + y_row * j // ow, place + y_row * min(j + block, ow) // ow)
                        place = row_start + j * y_pixel + 4 * g
                        whole = j + block <= ow and g + wide <= f
                        out = place if whole else scratch + temporary
                        out_step = y_pixel if whole else 4 * wide
                        window = scratch + i * sh * line + j * step
                        if wide > lanes:
                            dot_block(lanes, pixels, 2, window, line, step, filters, out, out_step, kh, kw * c)
                        else:
                            dot_block(lanes, twice, 1, window, line, step, filters, out, out_step, kh, kw * c)
                        if not whole:
                            unpad(place, 0, y_pixel // 4, out, block, wide, 1, min(block, ow - j), min(wide, f - g))

    return simd.compiled_job(job)


@functools.cache
def _weight_job(lanes: int, narrow: int) -> Any:
    """Job i: dw (KH, KW * C, F), each extent rounded up, summed over one part of the blocks of output rows.

    ``narrow`` is 1 for 3x3 kernels over 3 channels, a network's first layer, where blocks of 16 would be half empty.
    """
    high, twice = ROWS[lanes], 2 * ROWS[lanes]

    def job(parameters: int, index: int, scratch: int) -> None:
        (x, dy, sums, n, h, w, c, kh, kp, sh, sw, top, left, oh, ow, f, fp, strip, strips, width, room, blocks, parts) = (
            unpack(parameters, 23)
        )
        sums += 4 * index * kh * kp * fp
        simd.clear(sums, 4 * kh * kp * fp)
        line, step = 4 * width * c, 4 * sw * c
        for block in range(index * blocks // parts, (index + 1) * blocks // parts):
            image, first = block // strips, block % strips * strip
            rows = min(strip, oh - first)
            pad_rows(scratch, width, c, x + 4 * image * h * w * c, h, w, c, first * sh - top, left, (rows - 1) * sh + kh)
            cotangents = dy + 4 * (image * oh + first) * ow * f
            if f != fp:
                pad_rows(scratch + room, ow, fp, dy + 4 * image * oh * ow * f, oh, ow, f, first, 0, rows)
                cotangents = scratch + room
            x_next = x + 4 * (image * h + (first + rows) * sh - top) * w * c  # fetched in as many pieces as there are loops
            x_bytes = min(4 * rows * sh * w * c, x + 4 * n * h * w * c - x_next)
            dy_next = dy + 4 * (image * oh + first + rows) * ow * f
            dy_bytes = min(4 * rows * ow * f, dy + 4 * n * oh * ow * f - dy_next)
            piece, pieces = 0, kh * ceil_div(fp, 2 * lanes) * (kp // high)
            b_line, b_step = 4 * ow * fp, 4 * fp
            if narrow:  # the three rows of taps at once: 27 sums
                for i in range(rows):
                    prefetch_read(x_next + x_bytes * i // rows, x_next + x_bytes * (i + 1) // rows)
                    prefetch_read(dy_next + dy_bytes * i // rows, dy_next + dy_bytes * (i + 1) // rows)
                    for g in range(0, fp, lanes):
                        a, b, target = scratch + i * sh * line, cotangents + i * b_line + 4 * g, sums + 4 * g
                        outer_block(lanes, 3, 9, 1, a, line, 0, step, b, 0, b_step, 1, ow, target, 4 * kp * fp, 4 * fp)
                continue
            for row in range(kh):
                for g in range(0, fp, 2 * lanes):
                    b = cotangents + 4 * g
                    out = sums + 4 * (row * kp * fp + g)
                    if fp - g >= 2 * lanes:
                        for k in range(0, kp, high):
                            prefetch_read(x_next + x_bytes * piece // pieces, x_next + x_bytes * (piece + 1) // pieces)
                            prefetch_read(dy_next + dy_bytes * piece // pieces, dy_next + dy_bytes * (piece + 1) // pieces)
                            piece += 1
                            a, target = scratch + row * line + 4 * k, out + 4 * k * fp
                            outer_block(
                                lanes, 1, high, 2, a, 0, sh * line, step, b, b_line, b_step, rows, ow, target, 0, 4 * fp
                            )
                    else:
                        for k in range(0, kp, twice):
                            prefetch_read(x_next + x_bytes * piece // pieces, x_next + x_bytes * (piece + 2) // pieces)
                            prefetch_read(dy_next + dy_bytes * piece // pieces, dy_next + dy_bytes * (piece + 2) // pieces)
                            piece += 2
                            a, target = scratch + row * line + 4 * k, out + 4 * k * fp
                            outer_block(
                                lanes, 1, twice, 1, a, 0, sh * line, step, b, b_line, b_step, rows, ow, target, 0, 4 * fp
                            )

    return simd.compiled_job(job)


@functools.cache
def _weight_end_job(lanes: int) -> Any:
    """Job i: tap i of the weight gradient: the parts summed in their order."""

    def job(parameters: int, index: int, scratch: int) -> None:
        sums, dw, c, kh, kw, f, kp, fp, parts = unpack(parameters, 9)
        for k in range(c):
            place = sums + 4 * (index // kw * kp + index % kw * c + k) * fp
            for g in range(0, fp, lanes):
                add_up(lanes, scratch, place + 4 * g, 4 * kh * kp * fp, parts)
                for lane in range(min(lanes, f - g)):
                    copy(dw + 4 * (((g + lane) * c + k) * kh * kw + index), scratch + 4 * lane, 4)

    return simd.compiled_job(job)


def _strip(n: int, rows: int, row_bytes: int, cache: int) -> int:
    """Output rows in a job: what fits the cache, and fewer where few images would leave threads idle."""
    enough = ceil_div(n * rows, 2 * threads())
    return max(1, min(rows, cache // row_bytes, enough))


class Class(NamedTuple):
    """A set of output pixels that read their inputs through the same taps: (i, j) of ``size`` gets the sum over taps and
    channels of w * x[i * stride - padding + tap]. ``padding`` may be negative; with no taps the results are zeros.
    """

    kernel: Pair
    padding: Pair
    size: Pair
    w: int  # the address of the first tap
    corner: int  # bytes from y to its pixel (0, 0)


def correlate(
    x: Array,
    classes: list[Class],
    taps: Taps,
    stride: Pair,
    filters: int,
    y: Array,
    y_steps: tuple[int, int, int],
    lanes: int,
) -> None:
    """x (N, H, W, C) contiguous -> all pixels of ``classes`` of y (N, OH, OW, F), contiguous. Images, rows and pixels
    of a class are ``y_steps`` bytes apart, ``taps`` are the strides of the weights.
    """
    n, h, width, c = x.shape
    fp = round_up(filters, lanes)
    size = sum(4 * k.kernel[0] * k.kernel[1] * c * fp for k in classes)
    own = constant((size,)) if size else None
    memory = simd.workspace(size) if own is None else own
    table, offset = [], 0
    for k in classes:
        kh, kw = k.kernel
        numbers = [k.w, address(memory) + offset, kh, kw, c, filters, fp, *taps]
        uses = functools.partial(_pack_uses, k, taps, c, filters, memory, own is not None)
        simd.run(_pack_job(lanes), numbers, c, 0, uses)
        table += [kh, kw, *k.padding, *k.size, offset, k.corner]
        offset += 4 * kh * kw * c * fp
    oh, ow = (max(k.size[axis] for k in classes) for axis in (0, 1))
    kh, kw = (max(max(k.kernel[axis] for k in classes), 1) for axis in (0, 1))
    across = (round_up(ow, 2 * PIXELS[lanes]) - 1) * stride[1] + kw
    strip = _strip(n, oh, 4 * stride[0] * across * c, CACHE)
    temporary = round_up(4 * ((strip - 1) * stride[0] + kh) * across * c, 64)
    parameters = [
        address(x),
        address(memory),
        address(y),
        n,
        h,
        width,
        c,
        *stride,
        filters,
        fp,
        *y_steps,
        strip,
        ceil_div(oh, strip),
        across,
        temporary,
        len(classes),
    ]

    strips = ceil_div(oh, strip)
    uses = lambda: Local([by_image(x), whole(memory), by_image(y, True)], n, 1, strips)  # noqa: E731
    simd.run(_job(lanes), parameters + table, n * strips, temporary + 4 * 2 * PIXELS[lanes] * lanes, uses)


def _pack_uses(k: Class, taps: Taps, c: int, filters: int, memory: Array, constant: bool) -> Local:
    """What the packing of a class' weights reads and writes."""
    reads = [touched(k.w, taps, (c, filters, *k.kernel))] if min(k.kernel) else []
    return Local([*reads, whole(memory, True)], constant=constant)


def weight_gradient(dy: Array, x: Array, kernel: Pair, stride: Pair, padding: Pair, lanes: int) -> Array:
    """dy (N, OH, OW, F), x (N, H, W, C), both contiguous -> dw (F, C, KH, KW)."""
    (n, h, width, c), (_, oh, ow, f), (kh, kw) = x.shape, dy.shape, kernel
    fp, kp = round_up(f, lanes), round_up(kw * c, 2 * ROWS[lanes])
    padded_width = (ow - 1) * stride[1] + kw
    strip = _strip(n, oh, 4 * (stride[0] * padded_width * c + ow * fp), WEIGHT_CACHE)
    strips = ceil_div(oh, strip)
    parts = min(n * strips, 2 * threads())
    room = round_up(4 * (((strip - 1) * stride[0] + kh) * padded_width * c + kp), 64)  # of x; kp may be read too far
    memory, dw = simd.workspace(4 * parts * kh * kp * fp), buffers.empty((f, c, kh, kw), np.float32)
    sums = address(memory)
    parameters = [
        address(x),
        address(dy),
        sums,
        n,
        h,
        width,
        c,
        kh,
        kp,
        *stride,
        *padding,
        oh,
        ow,
        f,
        fp,
        strip,
        strips,
        padded_width,
        room,
        n * strips,
        parts,
    ]
    simd.run(
        _weight_job(lanes, int((kh, kw, c) == (3, 3, 3) and lanes == 16)), parameters, parts, room + 4 * strip * ow * fp
    )
    simd.run(_weight_end_job(lanes), [sums, address(dw), c, kh, kw, f, kp, fp, parts], kh * kw, 4 * lanes)
    return dw


def input_classes(size: int, kernel: int, stride: int, padding: int) -> list[tuple[int, int, int, int, int]]:
    """The input gradient along one axis: for each remainder r of i by the stride, (r, count, taps, last tap, padding).

    dx[i] = sum over taps a with (i + p - a) divisible by s of dy[(i + p - a) / s] w[a]. The taps that pixels i = s q + r
    get are a = a0 + s t with a0 = (r + p) mod s, the same for all of them, and what each reads is dy[q + e - t] with
    e = (r + p - a0) / s: a stride-1 convolution with the taps in reverse order, padded by (taps - 1) - e. Every pixel is
    written by one class, so nothing is added up in memory and nothing needs clearing.
    """
    classes = []
    for r in range(min(stride, size)):
        a0 = (r + padding) % stride
        taps = len(range(a0, kernel, stride))
        count, e = ceil_div(size - r, stride), (r + padding - a0) // stride
        classes.append((r, count, taps, a0 + stride * (taps - 1), taps - 1 - e))
    return classes
