"""3x3 stride-1 convolution and its weight gradient by Winograd's F(m x m, 3 x 3), m = 2 or 4 (`winograd_math`).

A job takes some rows of tiles of an image, or a few small images, in three stages that stay in its core's cache:

1. the input rows, padded, in the first-level cache; each tile to (m + 2)^2 vectors of channels: V[point][tile][C];
2. for each of the (m + 2)^2 points a matrix product V[point] (tiles, C) @ U[point] (C, F) -> M[point] (tiles, F);
3. the tiles of M transformed back, to the output.

U is the transformed weights, made once per call. Lanes are channels in 1 and 3, filters in 2. Costs for one output pixel:
2 (m + 2)^2 / m^2 C F floating-point operations in stage 2 (direct: 18 C F), about 9 C + 6 F in the others at m = 4, and
4 C + 4 F bytes of memory, which is asked for ahead of its use, spread over stage 2. Measured on a Zen 5 core at 16 / 32 /
64 channels, m = 4, cycles per tile: padding 65 / 125 / 320, stage 1 115 / 190 / 420, stage 2 400 / 1210 / 4760 (at the peak
288 / 1152 / 4608), stage 3 90 / 150 / 490: 400 to 730 GFLOP/s per core, counted as direct convolution, of a peak of 238.

The weight gradient adds, over tiles, the outer products of V and of dM = A dy A^T for each point, and transforms the sums.
The input gradient is a convolution of dy with the filters turned by 180 degrees and F and C exchanged.

Rounding: with normal inputs the largest error that tests/test_cpu_conv_values.py sees, in units of 2^-24 times the root
mean square of the exact result, is about 60 for direct sums, 45 at m = 2 and 180 at m = 4.
"""

import functools
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, Pair, ceil_div, threads
from tinyres.kernels.cpu import buffers, simd
from tinyres.kernels.cpu.buffers import address
from tinyres.kernels.cpu.conv_blocks import PIXELS, ROWS, add_pixels, add_up, dot_block, outer_block, pad_rows, unpad
from tinyres.kernels.cpu.jobs import Local, by_image, constant, touched, whole
from tinyres.kernels.cpu.simd import get_float, prefetch_read, prefetch_write, round_up, set_float, unpack
from tinyres.kernels.cpu.winograd_math import transform

CACHE = 150_000  # bytes of V and M in a job, beside U in a second-level cache of 1 MB
WEIGHT_CACHE = 150_000  # the same for the weight gradient, whose sums are read and written once for each job
SUMS = 700_000  # bytes of sums in a job of the weight gradient: for more channels, the filters are split among jobs
Taps = tuple[int, int, int, int]  # byte strides of weights along what is summed over, what comes out, rows, columns


@functools.cache
def _filter_job(lanes: int, m: int) -> Any:
    """Job i: the transformed weights of input channel i, (points, blocks of filters, C, filters of a block)."""

    def job(parameters: int, index: int, scratch: int) -> None:
        w, u, u_step, c, f, fp, step_c, step_f, step_row, step_column = unpack(parameters, 10)
        for g in range(0, fp, lanes):
            if g + lanes > f:
                simd.clear(scratch, 9 * 4 * lanes)
            for lane in range(min(lanes, f - g)):
                for row in range(3):
                    for column in range(3):
                        tap = w + index * step_c + row * step_row + column * step_column + (g + lane) * step_f
                        set_float(scratch + 4 * ((3 * row + column) * lanes + lane), get_float(tap))
            block = g // (2 * lanes) * (2 * lanes)
            wide = min(2 * lanes, fp - block)
            target = u + 4 * (block * c + index * wide + g - block)
            transform(lanes, m, "filter", scratch, 12 * lanes, 4 * lanes, target, (m + 2) * u_step, u_step)

    return simd.compiled_job(job)


@functools.cache
def _forward_job(lanes: int, m: int, add: bool) -> Any:
    """``add``: the results are added to what y holds."""
    points, side = (m + 2) * (m + 2), m + 2
    output = "output, added" if add else "output"  # (functions among a job's constants would keep it out of the cache)
    pixels, twice = PIXELS[lanes], 2 * PIXELS[lanes]

    def job(parameters: int, index: int, scratch: int) -> None:
        (
            x,
            u,
            y,
            n,
            h,
            w,
            c,
            oh,
            ow,
            f,
            top,
            left,
            th,
            tw,
            images,
            strip,
            strips,
            cp,
            fp,
            v_step,
            m_step,
            v_offset,
            m_offset,
            blocks,
            u_step,
        ) = unpack(parameters, 25)
        width = m * tw + 2
        v, products = scratch + v_offset, scratch + m_offset
        for block in range(index * blocks, min(index * blocks + blocks, ceil_div(n, images) * strips)):
            first_row = block % strips * strip
            rows = min(strip, th - first_row)
            first, last = block // strips * images, min(n, block // strips * images + images)
            target = v
            for image in range(first, last):
                pad_rows(scratch, width, cp, x + 4 * image * h * w * c, h, w, c, m * first_row - top, left, m * rows + 2)
                for i in range(rows):
                    for j in range(tw):
                        tile = scratch + 4 * m * (i * width + j) * cp
                        for k in range(0, 4 * cp, 4 * lanes):
                            transform(lanes, m, "input", tile + k, 4 * width * cp, 4 * cp, target + k, side * v_step, v_step)
                        target += 4 * cp
            tiles = (last - first) * rows * tw
            # while the products keep the core busy, memory fetches the next block's inputs and this block's outputs
            x_next = x + 4 * ((last - 1) * h + m * (first_row + rows)) * w * c
            x_bytes = min(4 * (last - first) * m * rows * w * c, x + 4 * n * h * w * c - x_next)
            y_here = y + 4 * (first * oh + m * first_row) * ow * f
            y_bytes = min(4 * (last - first) * m * rows * ow * f, y + 4 * n * oh * ow * f - y_here)
            for point in range(points):
                prefetch_read(x_next + x_bytes * point // points, x_next + x_bytes * (point + 1) // points)
                prefetch_write(y_here + y_bytes * point // points, y_here + y_bytes * (point + 1) // points)
                for g in range(0, fp, 2 * lanes):
                    a, b, out = v + point * v_step, u + point * u_step + 4 * g * c, products + point * m_step + 4 * g
                    if fp - g >= 2 * lanes:
                        for t in range(0, tiles, pixels):
                            dot_block(lanes, pixels, 2, a + 4 * t * cp, 0, 4 * cp, b, out + 4 * t * fp, 4 * fp, 1, c)
                    else:
                        for t in range(0, tiles, twice):
                            dot_block(lanes, twice, 1, a + 4 * t * cp, 0, 4 * cp, b, out + 4 * t * fp, 4 * fp, 1, c)
            source = products
            for image in range(first, last):
                for i in range(first_row, first_row + rows):
                    for j in range(tw):
                        place = y + 4 * ((image * oh + m * i) * ow + m * j) * f
                        high, wide = min(m, oh - m * i), min(m, ow - m * j)
                        for g in range(0, fp, lanes):
                            start = source + 4 * g
                            if high == m and wide == m and g + lanes <= f:
                                transform(lanes, m, output, start, side * m_step, m_step, place + 4 * g, 4 * ow * f, 4 * f)
                            else:
                                transform(
                                    lanes, m, "output", start, side * m_step, m_step, scratch, 4 * m * lanes, 4 * lanes
                                )
                                if add:
                                    add_pixels(
                                        place + 4 * g, 4 * ow * f, f, scratch, m, lanes, high, wide, min(lanes, f - g)
                                    )
                                else:
                                    unpad(place + 4 * g, 4 * ow * f, f, scratch, m, lanes, high, wide, min(lanes, f - g))
                        source += 4 * fp

    return simd.compiled_job(job)


@functools.cache
def _weight_job(lanes: int, m: int) -> Any:
    """Job i: the sums of V * dM over one part of the tiles, for some of the filters."""
    points, side = (m + 2) * (m + 2), m + 2
    high, twice = ROWS[lanes], 2 * ROWS[lanes]

    def job(parameters: int, index: int, scratch: int) -> None:
        (
            x,
            dy,
            du,
            n,
            h,
            w,
            c,
            oh,
            ow,
            f,
            top,
            left,
            th,
            tw,
            images,
            strip,
            strips,
            cp,
            fp,
            v_step,
            m_step,
            v_offset,
            m_offset,
            splits,
            parts,
            blocks,
        ) = unpack(parameters, 26)
        fs = fp // splits  # filters of this job: from f0 on
        f0, part = index % splits * fs, index // splits
        sums = du + 4 * index * points * cp * fs
        simd.clear(sums, 4 * points * cp * fs)
        width = m * tw + 2
        v, cotangents = scratch + v_offset, scratch + m_offset
        whole = m * th == oh and m * tw == ow and f0 + fs <= f  # then dy needs no padding
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            first_row = block % strips * strip
            rows = min(strip, th - first_row)
            first, last = block // strips * images, min(n, block // strips * images + images)
            v_tile, m_tile = v, cotangents
            for image in range(first, last):
                pad_rows(scratch, width, cp, x + 4 * image * h * w * c, h, w, c, m * first_row - top, left, m * rows + 2)
                for i in range(rows):
                    for j in range(tw):
                        tile = scratch + 4 * m * (i * width + j) * cp
                        for k in range(0, 4 * cp, 4 * lanes):
                            transform(lanes, m, "input", tile + k, 4 * width * cp, 4 * cp, v_tile + k, side * v_step, v_step)
                        v_tile += 4 * cp
                start, row, pixel = dy + 4 * ((image * oh + m * first_row) * ow * f + f0), 4 * ow * f, 4 * f
                if not whole:
                    pad_rows(scratch, m * tw, fp, dy + 4 * image * oh * ow * f, oh, ow, f, m * first_row, 0, m * rows)
                    start, row, pixel = scratch + 4 * f0, 4 * m * tw * fp, 4 * fp
                for i in range(rows):
                    for j in range(tw):
                        tile = start + m * (i * row + j * pixel)
                        for k in range(0, 4 * fs, 4 * lanes):
                            transform(lanes, m, "output_cotangent", tile + k, row, pixel, m_tile + k, side * m_step, m_step)
                        m_tile += 4 * fs
            tiles = (last - first) * rows * tw
            x_next = x + 4 * ((last - 1) * h + m * (first_row + rows)) * w * c
            x_bytes = min(4 * (last - first) * m * rows * w * c, x + 4 * n * h * w * c - x_next)
            dy_next = dy + 4 * ((last - 1) * oh + m * (first_row + rows)) * ow * f
            dy_bytes = min(4 * (last - first) * m * rows * ow * f, dy + 4 * n * oh * ow * f - dy_next)
            for point in range(points):
                prefetch_read(x_next + x_bytes * point // points, x_next + x_bytes * (point + 1) // points)
                prefetch_read(dy_next + dy_bytes * point // points, dy_next + dy_bytes * (point + 1) // points)
                a, b, out = v + point * v_step, cotangents + point * m_step, sums + 4 * point * cp * fs
                row = 4 * fs  # bytes
                for g in range(0, fs, 2 * lanes):
                    if fs - g >= 2 * lanes:
                        for k in range(0, cp, high):
                            target = out + 4 * (k * fs + g)
                            outer_block(
                                lanes, 1, high, 2, a + 4 * k, 0, 0, 4 * cp, b + 4 * g, 0, row, 1, tiles, target, 0, row
                            )
                    else:
                        for k in range(0, cp, twice):
                            target = out + 4 * (k * fs + g)
                            outer_block(
                                lanes, 1, twice, 1, a + 4 * k, 0, 0, 4 * cp, b + 4 * g, 0, row, 1, tiles, target, 0, row
                            )

    return simd.compiled_job(job)


@functools.cache
def _weight_end_job(lanes: int, m: int) -> Any:
    """Job i: input channel i of the weight gradient: the parts summed in their order, and G^T (sum) G."""
    points = (m + 2) * (m + 2)

    def job(parameters: int, index: int, scratch: int) -> None:
        du, dw, c, f, cp, fp, splits, parts = unpack(parameters, 8)
        fs = fp // splits
        total, result = scratch, scratch + 4 * points * lanes
        for g in range(0, fp, lanes):
            first = du + 4 * ((g // fs * points * cp + index) * fs + g % fs)
            for point in range(points):
                start = first + 4 * point * cp * fs
                add_up(lanes, total + 4 * point * lanes, start, 4 * splits * points * cp * fs, parts)
            transform(lanes, m, "filter_cotangent", total, 4 * (m + 2) * lanes, 4 * lanes, result, 12 * lanes, 4 * lanes)
            for lane in range(min(lanes, f - g)):
                for tap in range(9):
                    set_float(dw + 4 * (((g + lane) * c + index) * 9 + tap), get_float(result + 4 * (tap * lanes + lane)))

    return simd.compiled_job(job)


class _Blocks:
    """How the tiles of N maps are cut into blocks: some rows of tiles of one map, or a few small maps."""

    def __init__(self, n: int, size: Pair, m: int, lanes: int, cp: int, fp: int, widest: int, cache: int) -> None:
        self.th, self.tw = ceil_div(size[0], m), ceil_div(size[1], m)
        wanted = max(8, cache // (4 * (m + 2) ** 2 * (cp + fp)))  # tiles
        wanted = min(wanted, ceil_div(n * self.th * self.tw, threads()))
        self.images = max(1, wanted // (self.th * self.tw))
        self.strip = min(self.th, max(1, wanted // self.tw)) if self.images == 1 else self.th
        self.strips = ceil_div(self.th, self.strip)
        self.count = ceil_div(n, self.images) * self.strips
        tiles = round_up(self.images * self.strip * self.tw, 2 * PIXELS[lanes])
        padded = 4 * (m * self.strip + 2) * (m * self.tw + 2) * widest
        # a step of an odd number of cache lines spreads the points of a tile over the sets of the first-level cache
        self.v_step, self.m_step = 4 * tiles * cp + 64, 4 * tiles * fp + 64
        self.v_offset = round_up(max(padded, 4 * m * m * lanes), 64)
        self.m_offset = self.v_offset + (m + 2) ** 2 * self.v_step
        self.scratch = self.m_offset + (m + 2) ** 2 * self.m_step


def convolve(
    x: Array, w: Array, taps: Taps, filters: int, size: Pair, padding: Pair, m: int, lanes: int, total: Array | None = None
) -> Any:
    """x (N, H, W, C) contiguous -> y (N, OH, OW, F); ``w`` is the address of the first tap, ``taps`` their strides.

    ``total``, of the shape of y and contiguous, becomes total + y instead.
    """
    n, h, width, c = x.shape
    cp, fp = round_up(c, lanes), round_up(filters, lanes)
    u_step = 4 * c * fp + 64
    own = constant(((m + 2) ** 2 * u_step,))
    memory = simd.workspace((m + 2) ** 2 * u_step) if own is None else own
    y = buffers.empty((n, *size, filters), np.float32) if total is None else total
    u = address(memory)
    weights = touched(w, taps, (c, filters, 3, 3))
    simd.run(
        _filter_job(lanes, m),
        [w, u, u_step, c, filters, fp, *taps],
        c,
        4 * 9 * lanes,
        lambda: Local([weights, whole(memory, True)], constant=own is not None),
    )
    b = _Blocks(n, size, m, lanes, cp, fp, cp, CACHE)
    per_job = round_up(ceil_div(b.count, 16 * threads()), b.strips if n >= 16 * threads() else 1)
    parameters = [
        address(x),
        u,
        address(y),
        n,
        h,
        width,
        c,
        *size,
        filters,
        *padding,
        b.th,
        b.tw,
        b.images,
        b.strip,
        b.strips,
        cp,
        fp,
        b.v_step,
        b.m_step,
        b.v_offset,
        b.m_offset,
        per_job,
        u_step,
    ]

    def local() -> Local | None:
        step, rest = divmod(per_job * b.images, b.strips)
        return None if rest else Local([by_image(x), by_image(y, True), whole(memory)], n, step)

    simd.run(_forward_job(lanes, m, total is not None), parameters, ceil_div(b.count, per_job), b.scratch, local)
    return y


def weight_gradient(dy: Array, x: Array, padding: Pair, m: int, lanes: int) -> Array:
    """dy (N, OH, OW, F), x (N, H, W, C), both contiguous -> dw (F, C, 3, 3)."""
    (n, h, width, c), (_, oh, ow, f) = x.shape, dy.shape
    cp, fp = round_up(c, 2 * ROWS[lanes]), round_up(f, lanes)
    splits = 1
    while 4 * (m + 2) ** 2 * cp * fp // splits > SUMS and fp // splits % (4 * lanes) == 0:
        splits *= 2
    b = _Blocks(n, (oh, ow), m, lanes, cp, fp // splits, max(cp, fp), WEIGHT_CACHE)
    parts = max(1, min(b.count, threads() * 2 // splits))
    points = (m + 2) ** 2
    memory, dw = simd.workspace(4 * parts * points * cp * fp), buffers.empty((f, c, 3, 3), np.float32)
    du = address(memory)
    parameters = [
        address(x),
        address(dy),
        du,
        n,
        h,
        width,
        c,
        oh,
        ow,
        f,
        *padding,
        b.th,
        b.tw,
        b.images,
        b.strip,
        b.strips,
        cp,
        fp,
        b.v_step,
        b.m_step,
        b.v_offset,
        b.m_offset,
        splits,
        parts,
        b.count,
    ]
    uses = lambda: Local([whole(x), whole(dy), whole(memory, True)])  # noqa: E731
    simd.run(_weight_job(lanes, m), parameters, splits * parts, b.scratch, uses)
    numbers = [du, address(dw), c, f, cp, fp, splits, parts]
    uses = lambda: Local([whole(memory), whole(dw, True)])  # noqa: E731
    simd.run(_weight_end_job(lanes, m), numbers, c, 4 * (points + 9) * lanes, uses)
    return dw
