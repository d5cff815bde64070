"""Activation functions beside the rectifiers of `tinyres.ops.elementwise`. None of them overflows, however large x is.

What has 16 bits is computed in float32 and rounded once; integers become float32.
"""

import functools
import math
from typing import Any

import numpy as np

from tinyres.autograd import Cotangents, Function, Node
from tinyres.kernels.arrays import Array, array_module
from tinyres.ops.pointwise import rounded, wide


def logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the exponential of what is not positive."""
    xp = array_module(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, 1) / (1 + e)


class Tanh(Function):
    """y = tanh(x).   dx = dy (1 - y^2). Keeps y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return ctx.save(rounded(array_module(x).tanh(wide(x)), x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        y = wide(ctx.saved[0])
        return rounded(dy * (1 - y * y), dy)


class Sigmoid(Function):
    """y = 1 / (1 + exp(-x)).   dx = dy y (1 - y). Keeps y."""

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        return ctx.save(rounded(logistic(wide(x)), x))

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        y = wide(ctx.saved[0])
        return rounded(dy * (y * (1 - y)), dy)


class SiLU(Function):
    """y = x s with s = 1 / (1 + exp(-x)) (Elfwing et al. 2017, arXiv 1702.03118; also called swish).

    dx = dy s (1 + x (1 - s)). Keeps x.
    """

    @staticmethod
    def forward(ctx: Node, x: Array) -> Array:
        ctx.save(x)
        x_wide = wide(x)
        return rounded(x_wide * logistic(x_wide), x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        x = wide(ctx.saved[0])
        s = logistic(x)
        return rounded(dy * (s * (1 + x * (1 - s))), dy)


class GELU(Function):
    """y = x P(x), P the normal distribution function (Hendrycks and Gimpel 2016, arXiv 1606.08415):

        P(x) = (1 + erf(x / sqrt 2)) / 2                                     if ``approximate`` is "none"
        P(x) = (1 + tanh(u)) / 2,  u = sqrt(2 / pi) (x + 0.044715 x^3)       if it is "tanh"

    dx = dy (P(x) + x P'(x)). Beyond |x| = 40 in the slope, and 10 in u, P' is 0 to any precision here, so x is cut off there
    before it is squared. Keeps x.
    """

    @staticmethod
    def forward(ctx: Node, x: Array, *, approximate: str) -> Array:
        ctx.save(x)
        ctx.parts = _by_tanh if approximate == "tanh" else _by_erf
        x_wide = wide(x)
        return rounded(x_wide * ctx.parts(x_wide)[0], x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        x = wide(ctx.saved[0])
        p, x_slope = ctx.parts(x, slope=True)
        return rounded(dy * (p + x_slope), dy)


def _by_erf(x: Array, slope: bool = False) -> tuple[Array, Array | None]:
    """P(x) and, if the ``slope`` is asked for, x P'(x)."""
    xp = array_module(x)
    p = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    c = xp.clip(x, -40, 40)
    return p, c * xp.exp(-0.5 * c * c) * (1 / math.sqrt(2 * math.pi)) if slope else None


def _by_tanh(x: Array, slope: bool = False) -> tuple[Array, Array | None]:
    xp, k = array_module(x), math.sqrt(2 / math.pi)
    c = xp.clip(x, -10, 10)
    t = xp.tanh(k * (c + 0.044715 * c * c * c))
    return 0.5 * (1 + t), 0.5 * c * (1 - t * t) * k * (1 + 3 * 0.044715 * c * c) if slope else None


class LeakyReLU(Function):
    """y = x where x > 0, else ``slope`` x (Maas et al. 2013).   dx = dy where x > 0, else ``slope`` dy. Keeps x."""

    @staticmethod
    def forward(ctx: Node, x: Array, *, slope: float) -> Array:
        ctx.save(x)
        ctx.slope = slope
        return rounded(_leaky(wide(x), wide(x), slope), x)

    @staticmethod
    def backward(ctx: Node, dy: Array) -> Cotangents:
        return rounded(_leaky(wide(dy), ctx.saved[0], ctx.slope), dy)


def _leaky(a: Array, x: Array, slope: float) -> Array:
    return array_module(a).where(x > 0, a, slope * a)


# --- the error function, which NumPy does not have -------------------------------------------------------------------

_STEPS, _END = 256, 6.0  # points for each unit of x; beyond the end, erf is 1 in float64


def erf(x: Array) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, by its Taylor series about the nearest of 1,537 points: off
    by 2e-16 at most in float64, by 6e-8 in float32. On a GPU it is CuPy's.
    """
    if not isinstance(x, np.ndarray | np.generic):
        from cupyx.scipy import special

        return special.erf(x)
    size = np.minimum(np.abs(x), _END)
    point = np.rint(np.where(size == size, size, 0) * _STEPS).astype(np.intp)
    step = size - (point / _STEPS).astype(x.dtype)
    y: Any = 0
    for terms in _taylor(x.dtype)[::-1]:
        y = y * step + terms[point]
    return np.copysign(y, x)


@functools.cache
def _taylor(dtype: Any) -> np.ndarray:
    """erf^(n)(p) / n! for n from 0 to 6 (rows) at each point p; float32 needs no more than 4 of them. Up to a factor, the
    derivatives are exp(-p^2) times the Hermite polynomials, H_(n+1) = 2 p H_n - 2 n H_(n-1).
    """
    p = np.arange(_END * _STEPS + 1) / _STEPS
    hermite = [np.ones_like(p), 2 * p]
    for n in range(1, 5):
        hermite.append(2 * p * hermite[n] - 2 * n * hermite[n - 1])
    bell = 2 / math.sqrt(math.pi) * np.exp(-p * p)
    rows = [(-1) ** n * h * bell / math.factorial(n + 1) for n, h in enumerate(hermite)]
    return np.array([[math.erf(v) for v in p], *rows])[: 4 if dtype == np.float32 else 7].astype(dtype)
