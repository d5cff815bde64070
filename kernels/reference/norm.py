"""Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167), fused with the ReLU that may follow.

Arrays are viewed as (N, H, W*C) rows, and a vector of C channels is repeated W times to match: NumPy then runs along
long rows instead of stopping every C elements. Sums are taken per block of about 65,536 elements in the arrays' own
precision, and added up in float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels.arrays import Array, array_module, channels_first, channels_last, for_blocks
from tinyres.kernels.reference.elementwise import select
from tinyres.kernels.reference.mixed import mixed

Part = Callable[[Array], Array]  # gives a block of an array's rows


@mixed
def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, relu: bool, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    mean, var = statistics(x, running)
    return normalise(x, weight, bias, mean, var, eps, None, relu), mean, var


@mixed
def batch_norm_inference(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool) -> Array:
    return normalise(x, weight, bias, mean, var, eps, None, relu)


def statistics(x: Array, running: tuple[Array, Array, float] | None) -> tuple[Array, Array]:
    """The mean and the biased variance of each channel; the running ones move in place."""
    rows, count = _Rows(x), x.size // x.shape[1]
    mean = (rows.sum(lambda part: part(x)) / count).astype(x.dtype)
    mean_row = rows.repeat(mean)

    def squares(part: Part) -> Array:
        centred = part(x) - mean_row
        centred *= centred
        return centred

    var = (rows.sum(squares) / count).astype(x.dtype)
    if running:
        running_mean, running_var, momentum = running
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * (var * (count / (count - 1)))
    return mean, var


def normalise(
    x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, residual: Array | None, relu: bool
) -> Array:
    """weight (x - mean) / sqrt(var + eps) + bias, then what may follow: the residual is added, the ReLU applied."""
    rows = _Rows(x)
    slope = weight / np.sqrt(var + x.dtype.type(eps))
    slope_row, mean_row, bias_row = rows.repeat(slope), rows.repeat(mean), rows.repeat(bias)

    def write(y: Array, part: Part) -> None:
        np.subtract(part(x), mean_row, out=y)
        y *= slope_row
        y += bias_row
        if residual is not None:
            y += part(residual)
        if relu:
            np.maximum(y, 0, out=y)

    return rows.map(write)


@mixed
def batch_norm_backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    rows, m = _Rows(x), x.size // x.shape[1]
    rstd = 1 / np.sqrt(var + x.dtype.type(eps))
    mean_row, rstd_row = rows.repeat(mean), rows.repeat(rstd)

    def dz_part(part: Part) -> Array:
        return part(dy) if y is None else select(part(dy), ~(part(y) <= 0))

    def times_xhat(part: Part) -> Array:
        xhat = part(x) - mean_row
        xhat *= rstd_row
        xhat *= dz_part(part)
        return xhat

    dbias, dweight = rows.sum(dz_part), rows.sum(times_xhat)
    slope_row = rows.repeat(weight * rstd)
    dbias_row = rows.repeat((dbias / m).astype(x.dtype))
    # xhat * dweight / m, with xhat's factor 1/std taken into the channel's constant
    dweight_row = rows.repeat((dweight / m).astype(x.dtype) * rstd)

    def write(dx: Array, part: Part) -> None:
        if training:
            np.subtract(part(x), mean_row, out=dx)
            dx *= dweight_row
            dx += dbias_row
            np.subtract(dz_part(part), dx, out=dx)
            dx *= slope_row
        else:
            np.multiply(dz_part(part), slope_row, out=dx)

    dx = rows.map(write)
    return dx, dweight.astype(x.dtype), dbias.astype(x.dtype)


class _Rows:
    """Runs elementwise work and sums per channel over arrays of one (N, C, H, W) shape, viewed as (N, H, W*C)."""

    def __init__(self, x: Array) -> None:
        self.xp, (self.n, self.c, self.h, self.w), self.dtype = array_module(x), x.shape, x.dtype
        image = max(1, self.c * self.h * self.w)
        self.block = max(1, (1 << 16) // image) if self.xp is np else max(1, self.n)
        self.views: dict[int, tuple[Array, Array]] = {}

    def view(self, a: Array) -> Array:
        if id(a) not in self.views:  # (the array is kept too, so that its id stays its own)
            self.views[id(a)] = (a, channels_last(a).reshape(self.n, self.h, self.w * self.c))
        return self.views[id(a)][1]

    def repeat(self, vector: Array) -> Array:
        """(C,) -> (W*C,)"""
        return self.xp.tile(vector, self.w)

    def part(self, block: slice) -> Part:
        return lambda a: self.view(a)[block]

    def map(self, write: Callable[[Array, Part], Any]) -> Array:
        """A new (N, C, H, W) array that ``write(out, part)`` fills block by block."""
        out = self.xp.empty((self.n, self.h, self.w, self.c), self.dtype)
        flat = out.reshape(self.n, self.h, self.w * self.c)
        for_blocks(lambda block: write(flat[block], self.part(block)), self.n, self.block)
        return channels_first(out)

    def sum(self, values: Callable[[Part], Array]) -> Array:
        """The float64 sum per channel of ``values(part)``."""

        def block_sum(block: slice) -> Array:
            rows = values(self.part(block)).reshape(-1, self.w * self.c).sum(axis=0)
            return rows.reshape(self.w, self.c).sum(axis=0, dtype=np.float64)

        return sum(for_blocks(block_sum, self.n, self.block), self.xp.zeros(self.c))
