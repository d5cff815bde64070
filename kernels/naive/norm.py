"""Batch normalisation, one channel at a time (Ioffe and Szegedy 2015, arXiv 1502.03167)."""

import math

import numpy as np

from tinyres.kernels.arrays import Array
from tinyres.kernels.naive.elementwise import relu as rectify
from tinyres.kernels.naive.elementwise import relu_backward


def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, relu: bool, running: tuple[Array, Array, float] | None = None
) -> tuple[Array, Array, Array]:
    """Of each channel with its m = N H W elements,

        mean = sum x / m
        var = sum (x - mean)^2 / m
        y = weight (x - mean) / sqrt(var + eps) + bias,   with ``relu`` max(y, 0)

    and the running statistics move towards mean, and towards the unbiased variance var m / (m - 1).
    """
    mean, var, m = np.empty_like(weight), np.empty_like(weight), x.size // len(weight)
    for c in range(len(weight)):
        mean[c] = x[:, c].sum() / m
        var[c] = ((x[:, c] - mean[c]) ** 2).sum() / m
    if running:
        running_mean, running_var, momentum = running
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * var * m / (m - 1)
    return batch_norm_inference(x, weight, bias, mean, var, eps, relu), mean, var


def batch_norm_inference(x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool) -> Array:
    """y = weight (x - mean) / sqrt(var + eps) + bias, with statistics that are given."""
    y = np.empty(x.shape, x.dtype)
    for c in range(len(weight)):
        y[:, c] = weight[c] * (x[:, c] - mean[c]) / math.sqrt(var[c] + eps) + bias[c]
    return rectify(y) if relu else y


def batch_norm_backward(
    dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool
) -> tuple[Array, Array, Array]:
    """With s = sqrt(var + eps), xhat = (x - mean) / s and, where a ReLU followed (``y`` is given), dz = dy where y > 0:

        dbias = sum dz
        dweight = sum dz xhat
        dxhat = dz weight

    and x reaches xhat = (x - mean) / s in three ways. Directly, and in training through the statistics as well:

        dx = dxhat / s  +  dvar 2 (x - mean) / m  +  dmean / m
        dvar = sum dxhat (x - mean) (-1/2) s^-3         since  d(1/s) / dvar = -1/2 s^-3  and  dvar / dx = 2 (x - mean) / m
        dmean = - sum dxhat / s                         and  dmean / dx = 1 / m

    (The mean acts on var too, but that adds nothing: the sum of x - mean is 0.)
    """
    dz = dy if y is None else relu_backward(dy, y)
    dx, dweight, dbias, m = np.empty(x.shape, x.dtype), np.empty_like(weight), np.empty_like(weight), x.size // len(weight)
    for c in range(len(weight)):
        s, centred = math.sqrt(var[c] + eps), x[:, c] - mean[c]
        dbias[c] = dz[:, c].sum()
        dweight[c] = (dz[:, c] * centred / s).sum()
        dxhat = dz[:, c] * weight[c]
        dx[:, c] = dxhat / s
        if training:
            dvar = (dxhat * centred).sum() * -0.5 * s**-3
            dmean = -dxhat.sum() / s
            dx[:, c] += dvar * 2 * centred / m + dmean / m
    return dx, dweight, dbias
