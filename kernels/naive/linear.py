"""The linear layer y = x w^T + b, one number at a time, and where each cotangent goes."""

import numpy as np

from tinyres.kernels.arrays import Array


def linear(x: Array, w: Array, b: Array | None) -> Array:
    """y[n, o] = sum over i of x[n, i] w[o, i], + b[o]"""
    y = np.empty((len(x), len(w)), x.dtype)
    for n in range(len(x)):
        for o in range(len(w)):
            y[n, o] = (x[n] * w[o]).sum()
            if b is not None:
                y[n, o] += b[o]
    return y


def linear_backward_input(dy: Array, w: Array) -> Array:
    """dx[n, i] = sum over o of dy[n, o] w[o, i]"""
    dx = np.zeros((len(dy), w.shape[1]), dy.dtype)
    for n in range(len(dy)):
        for o in range(len(w)):
            dx[n] += dy[n, o] * w[o]
    return dx


def linear_backward_weight(dy: Array, x: Array) -> Array:
    """dw[o, i] = sum over n of dy[n, o] x[n, i]"""
    dw = np.zeros((dy.shape[1], x.shape[1]), dy.dtype)
    for n in range(len(x)):
        for o in range(len(dw)):
            dw[o] += dy[n, o] * x[n]
    return dw


def linear_backward_bias(dy: Array) -> Array:
    """db[o] = sum over n of dy[n, o]"""
    db = np.zeros(dy.shape[1], dy.dtype)
    for row in dy:
        db += row
    return db
