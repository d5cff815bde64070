"""Batch normalisation in two passes over memory each way, fused with the ReLU that may follow, and in `join` with the
addition before it.

Memory is a row of P pixels of C channels. A constant of each channel is repeated to a *table* of about 256 elements, and
a row of that period is worked on at once: the inner loops are then long and contiguous whatever C is. The kernels go
over *shares* of some rows; the last row may be cut short, at a pixel's end.

Statistics take one pass. Each share subtracts a guess g of the mean, that of its first rows, and sums d = x - g and d^2:

    mean = g + (sum d) / n,        M = sum (x - mean)^2 = sum d^2 - (sum d)^2 / n,

and the shares' means and M are put together in float64 (Chan, Golub and LeVeque 1983). What cancels in M is n (mean - g)^2.
The rows that made the guess are part of the share, so (mean - g)^2 is at most n / n_guess times its variance, and the
error at most n / n_guess = 32 times that of two passes, in the worst case; with rows alike there is no loss at all.
(Measured, float32, standard deviation 1: the variance is right to 6e-8 at means of 0 to 1,000,000.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from tinyres.kernels.arrays import Array, ceil_div
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.jobs import Local, by_image, constant, jobs, whole
from tinyres.kernels.cpu.layout import channels_last, contiguous
from tinyres.kernels.cpu.runtime import CHUNK, Kernel, address, advance, check, numbers, pointer, reals

TABLE = 256  # elements of a table: small enough to fold quickly, long enough for a vector loop
GUESS = 4  # rows that the guess is made from


def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, relu: bool, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    return forward(x, None, weight, bias, eps, relu, running)


def batch_norm_inference(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool) -> Array:
    return inference(x, None, weight, bias, mean, var, eps, relu)


def batch_norm_backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    return backward(dy, x, y, weight, mean, var, eps, training, False)[:3]


def forward(
    x: Array,
    residual: Array | None,
    weight: Array,
    bias: Array,
    eps: float,
    relu: bool,
    running: tuple[Array, Array, float] | None,
) -> tuple[Array, Array, Array]:
    """`batch_norm`; with a residual, `batch_norm_add_relu`."""
    *moving, momentum = running or (None, None, 0.0)
    if not all(a is None or (a.flags.c_contiguous and a.flags.writeable) for a in moving):
        raise Unsupported("running statistics that are read-only or have gaps between them")
    flat, rows = _prepare(x, residual, weight, bias, *moving)
    mean, var, tables = rows.empty(x.dtype), rows.empty(x.dtype), rows.tables(3, x.dtype)
    parts = buffers.empty((2, rows.shares, rows.channels), np.float64)
    means = address(parts)
    squares = means + parts.nbytes // 2
    weight, bias = contiguous(weight), contiguous(bias)
    local = rows.local([flat], [], [], [parts])
    _statistics(
        rows.shares, [flat], [*rows.sizes, means, squares], scratch=3 * rows.period, parallel=rows.parallel, local=local
    )
    _join_statistics(
        1, [mean, var, *moving, tables, weight, bias], [*rows.sizes, rows.shares, means, squares], [eps, momentum]
    )
    return _normalise(flat, rows, tables, residual, relu), mean, var


def inference(
    x: Array, residual: Array | None, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool
) -> Array:
    """`batch_norm_inference`; with a residual, `batch_norm_add_relu_inference`."""
    flat, rows = _prepare(x, residual, weight, bias, mean, var)
    own = constant((3, rows.period), x.dtype)
    tables = rows.tables(3, x.dtype) if own is None else own
    arrays = [*map(contiguous, (weight, bias, mean, var))]
    uses = lambda: Local([*map(whole, arrays), whole(tables, True)], constant=own is not None)  # noqa: E731
    _fill_tables(1, [tables, *arrays], rows.sizes, [eps], local=uses)
    return _normalise(flat, rows, tables, residual, relu)


def backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool, keeps: bool
) -> tuple[Array, Array, Array, Array | None]:
    """`batch_norm_backward`; with ``keeps``, also dz, and so it is `batch_norm_add_relu_backward`."""
    flat, rows = _prepare(x, dy, y, weight, mean, var)
    dz, y = channels_last(dy), None if y is None else channels_last(y)
    weight, mean, var = map(contiguous, (weight, mean, var))
    dx = buffers.empty_activations(x.shape, x.dtype)
    masked = buffers.empty_activations(x.shape, x.dtype) if keeps else None
    parts = buffers.empty((2, rows.shares, rows.channels), np.float64)
    sums = address(parts)
    products = sums + parts.nbytes // 2
    local = rows.local([dz, flat, y], [masked], [mean], [parts])
    arrays = [dz, flat, y, masked, mean]
    _sum_gradients(
        rows.shares, arrays, [*rows.sizes, sums, products], scratch=3 * rows.period, parallel=rows.parallel, local=local
    )
    dweight, dbias, tables = rows.empty(x.dtype), rows.empty(x.dtype), rows.tables(4, x.dtype)
    _join_gradients(1, [dweight, dbias, tables, weight, mean, var], [*rows.sizes, rows.shares, sums, products], [eps])
    if masked is not None:
        dz, y = masked, None
    _write_gradient(
        rows.shares,
        [dx, dz, flat, y, tables],
        [*rows.sizes, rows.shares, training, backwards()],
        parallel=rows.parallel,
        local=rows.local([dz, flat, y], [dx], [tables]),
    )
    return dx, dweight, dbias, masked


class _Rows:
    """How an array of activations is cut: ``sizes`` is (elements, channels, elements in a row, elements in a share)."""

    def __init__(self, x: Array) -> None:
        self.channels = x.shape[1]
        self.period = self.channels * max(1, TABLE // self.channels)
        share = self.period * max(GUESS, min(CHUNK, ceil_div(x.size, 16)) // self.period)
        self.images = len(x)
        self.parallel = x.size > 3 * CHUNK  # less is done before a helper is there; in a replay, helpers are there
        self.shares = ceil_div(x.size, share)
        self.sizes = (x.size, self.channels, self.period, share)

    def local(
        self,
        reads: Sequence[Array | None],
        writes: Sequence[Array | None],
        tables: Sequence[Array],
        parts: Sequence[Array] = (),
    ) -> Callable[[], Local | None]:
        """What a job on the shares uses: see `runtime.Local`."""

        def local() -> Local | None:
            images, image, share = self.images, self.sizes[0] // self.images, self.sizes[3]
            if share % image and image % share:
                return None
            uses = [by_image(a) for a in reads if a is not None] + [by_image(a, True) for a in writes if a is not None]
            uses += [whole(a) for a in tables] + [whole(a, True) for a in parts]
            return Local(uses, images, max(1, share // image), max(1, image // share))

        return local

    def empty(self, dtype: Any) -> Array:
        """A number for each channel."""
        return buffers.empty((self.channels,), dtype)

    def tables(self, count: int, dtype: Any) -> Array:
        return buffers.empty((count, self.period), dtype)


def _prepare(x: Array, *others: Array | None) -> tuple[Array, _Rows]:
    check(x, *others)
    if x.size == 0:
        raise Unsupported("empty arrays")
    return channels_last(x), _Rows(x)


def _normalise(x: Array, rows: _Rows, tables: Array, residual: Array | None, relu: bool) -> Array:
    """y from a channels-last x (N, H, W, C)."""
    n, h, w, c = x.shape
    y = buffers.empty_activations((n, c, h, w), x.dtype)
    joined = None if residual is None else channels_last(residual)
    _write(
        rows.shares,
        [y, x, joined, tables],
        [*rows.sizes, rows.shares, joined is not None, relu, backwards()],
        parallel=rows.parallel,
        local=rows.local([x, joined], [y], [tables]),
    )
    return y


def backwards() -> bool:
    """Whether a pass begins with the shares that the last one ended with, which may still be in the cache. In a recording,
    passes go over the same images right after each other (see `graph`).
    """
    return jobs.recorded is None


@register_jitable
def _repeat(table: Any, channels: int, period: int) -> None:
    """Repeats the first ``channels`` elements of a table all along it."""
    for start in range(channels, period, channels):
        for c in range(channels):
            table[start + c] = table[c]


@register_jitable
def _fold(table: Any, channels: int, period: int, out: Any) -> None:
    """The float64 sums of a table per channel."""
    for c in range(channels):
        out[c] = 0
    for start in range(0, period, channels):
        for c in range(channels):
            out[c] += table[start + c]


@register_jitable
def _clear(table: Any, period: int) -> None:
    for i in range(period):
        table[i] = 0


@Kernel
def _statistics(a: Any, index: int, scratch: Any) -> None:
    """The mean and M of each channel in one share."""
    n = numbers(a)
    x, size, channels, period, share = a[0], n[1], n[2], n[3], n[4]
    start, stop = index * share, min((index + 1) * share, size)
    mean = advance(pointer(n[5], types.float64), index * channels)
    squares = advance(pointer(n[6], types.float64), index * channels)
    guess, sums, products = scratch, advance(scratch, period), advance(scratch, 2 * period)

    known = min(start + GUESS * period, stop)
    _clear(sums, period)
    for row in range(start, known, period):
        for i in range(min(period, known - row)):
            sums[i] += x[row + i]
    _fold(sums, channels, period, mean)
    for c in range(channels):
        value = mean[c] * channels / (known - start)
        guess[c] = value if abs(value) < math.inf else 0  # an infinity must not spoil the sums of others
    _repeat(guess, channels, period)

    _clear(sums, period)
    _clear(products, period)
    row = start
    while row + 2 * period <= stop:
        for i in range(period):
            d, e = x[row + i] - guess[i], x[row + period + i] - guess[i]
            sums[i] += d + e
            products[i] += d * d + e * e
        row += 2 * period
    while row < stop:
        for i in range(min(period, stop - row)):
            d = x[row + i] - guess[i]
            sums[i] += d
            products[i] += d * d
        row += period

    count = (stop - start) // channels
    _fold(sums, channels, period, mean)
    _fold(products, channels, period, squares)
    for c in range(channels):
        squares[c] -= mean[c] * mean[c] / count
        mean[c] = guess[c] + mean[c] / count


@Kernel
def _join_statistics(a: Any, index: int, scratch: Any) -> None:
    """The shares' means and M, in order: mean and variance of all; the running statistics; and the tables of `_fill`."""
    n = numbers(a)
    mean, var, size, channels, share, shares = a[0], a[1], n[7], n[8], n[10], n[11]
    means, squares = pointer(n[12], types.float64), pointer(n[13], types.float64)
    moves, momentum, pixels = n[2] != 0, reals(a)[15], size // channels
    for c in range(channels):
        total = 0.0
        for i in range(shares):
            total += means[i * channels + c] * min(share, size - i * share)
        centre = total / size
        spread = 0.0
        for i in range(shares):
            d = means[i * channels + c] - centre
            spread += squares[i * channels + c] + d * d * (min(share, size - i * share) // channels)
        mean[c] = centre
        # not max(): a NaN stays; rounding can leave a hair less than nothing
        var[c] = 0.0 if spread < 0 else spread * channels / size
        if moves:
            a[2][c] = (1 - momentum) * a[2][c] + momentum * mean[c]
            a[3][c] = (1 - momentum) * a[3][c] + momentum * (var[c] * (pixels / (pixels - 1)))
    _fill(a[4], a[5], a[6], mean, var, channels, n[9], reals(a)[14])


@Kernel
def _fill_tables(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    _fill(a[0], a[1], a[2], a[3], a[4], n[6], n[7], reals(a)[9])


@register_jitable
def _fill(tables: Any, weight: Any, bias: Any, mean: Any, var: Any, channels: int, period: int, eps: float) -> None:
    """mean, weight / sqrt(var + eps) and bias, as tables."""
    means, slopes, biases = tables, advance(tables, period), advance(tables, 2 * period)
    for c in range(channels):
        means[c] = mean[c]
        slopes[c] = weight[c] / math.sqrt(var[c] + eps)
        biases[c] = bias[c]
    _repeat(means, channels, period)
    _repeat(slopes, channels, period)
    _repeat(biases, channels, period)


@Kernel
def _write(a: Any, index: int, scratch: Any) -> None:
    """y of one share. The shares that the statistics read last come first: they may still be in the cache."""
    n = numbers(a)
    y, x, residual, mean, size, period, share, shares = a[0], a[1], a[2], a[3], n[4], n[6], n[7], n[8]
    slope, bias, joined, relu = advance(mean, period), advance(mean, 2 * period), n[9], n[10]
    start = (shares - 1 - index if n[11] else index) * share
    stop = min(start + share, size)
    for row in range(start, stop, period):
        length = min(period, stop - row)
        if joined:
            for i in range(length):
                z = (x[row + i] - mean[i]) * slope[i] + bias[i] + residual[row + i]
                y[row + i] = 0 if z <= 0 else z
        else:
            for i in range(length):
                z = (x[row + i] - mean[i]) * slope[i] + bias[i]
                y[row + i] = 0 if relu and z <= 0 else z


@Kernel
def _sum_gradients(a: Any, index: int, scratch: Any) -> None:
    """sum dz and sum dz (x - mean) of one share; dz itself is written too where `join` needs it."""
    n = numbers(a)
    dy, x, y, masked, size, channels, period, share = a[0], a[1], a[2], a[3], n[5], n[6], n[7], n[8]
    has_relu, keeps = n[2] != 0, n[3] != 0
    start, stop = index * share, min((index + 1) * share, size)
    mean, sums, products = scratch, advance(scratch, period), advance(scratch, 2 * period)
    for c in range(channels):
        mean[c] = a[4][c]
    _repeat(mean, channels, period)
    _clear(sums, period)
    _clear(products, period)
    for row in range(start, stop, period):
        length = min(period, stop - row)
        if keeps:
            for i in range(length):
                masked[row + i] = 0 if y[row + i] <= 0 else dy[row + i]
            for i in range(length):
                sums[i] += masked[row + i]
                products[i] += masked[row + i] * (x[row + i] - mean[i])
        elif has_relu:
            for i in range(length):
                dz = 0 if y[row + i] <= 0 else dy[row + i]
                sums[i] += dz
                products[i] += dz * (x[row + i] - mean[i])
        else:
            for i in range(length):
                sums[i] += dy[row + i]
                products[i] += dy[row + i] * (x[row + i] - mean[i])
    _fold(sums, channels, period, advance(pointer(n[9], types.float64), index * channels))
    _fold(products, channels, period, advance(pointer(n[10], types.float64), index * channels))


@Kernel
def _join_gradients(a: Any, index: int, scratch: Any) -> None:
    """dweight, dbias, and the tables of dx = slope (dz - offset - (x - mean) factor), or of slope dz."""
    n = numbers(a)
    dweight, dbias, weight, mean, var = a[0], a[1], a[3], a[4], a[5]
    size, channels, period, shares, eps = n[6], n[7], n[8], n[10], reals(a)[13]
    sums, products = pointer(n[11], types.float64), pointer(n[12], types.float64)
    means, slopes, offsets, factors = a[2], advance(a[2], period), advance(a[2], 2 * period), advance(a[2], 3 * period)
    for c in range(channels):
        total, product = 0.0, 0.0
        for i in range(shares):
            total += sums[i * channels + c]
            product += products[i * channels + c]
        rstd, share = 1 / math.sqrt(var[c] + eps), channels / size
        dbias[c] = total
        dweight[c] = product * rstd
        means[c] = mean[c]
        slopes[c] = weight[c] * rstd
        offsets[c] = total * share
        factors[c] = product * rstd * rstd * share
    _repeat(means, channels, period)
    _repeat(slopes, channels, period)
    _repeat(offsets, channels, period)
    _repeat(factors, channels, period)


@Kernel
def _write_gradient(a: Any, index: int, scratch: Any) -> None:
    """dx of one share, the last first."""
    n = numbers(a)
    dx, dz, x, y, mean, size, period, share, shares = a[0], a[1], a[2], a[3], a[4], n[5], n[7], n[8], n[9]
    slope, offset, factor = advance(mean, period), advance(mean, 2 * period), advance(mean, 3 * period)
    has_relu, training = n[3] != 0, n[10]
    start = (shares - 1 - index if n[11] else index) * share
    stop = min(start + share, size)
    for row in range(start, stop, period):
        length = min(period, stop - row)
        if training and has_relu:
            for i in range(length):
                d = (0 if y[row + i] <= 0 else dz[row + i]) - offset[i]
                dx[row + i] = (d - (x[row + i] - mean[i]) * factor[i]) * slope[i]
        elif training:
            for i in range(length):
                d = dz[row + i] - offset[i]
                dx[row + i] = (d - (x[row + i] - mean[i]) * factor[i]) * slope[i]
        elif has_relu:
            for i in range(length):
                dx[row + i] = (0 if y[row + i] <= 0 else dz[row + i]) * slope[i]
        else:
            for i in range(length):
                dx[row + i] = dz[row + i] * slope[i]
