"""What the operations are compared with: the kernels of the backend ``naive``, under PyTorch's names and arguments, and in
loops as well what no kernel computes.
"""

import math

import numpy as np

from tinyres.kernels import naive


def pair(value):
    return tuple(value) if isinstance(value, tuple) else (value, value)


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    y = naive.conv2d(x, w, pair(stride), pair(padding), pair(dilation), groups)
    return y if b is None else y + b.reshape(1, -1, 1, 1)


def linear(x, w, b=None):
    return naive.linear(x, w, b)


def batch_norm(x, w, b, mean=None, var=None, eps=1e-5):
    """With the batch's own statistics, unless mean and var are given."""
    if mean is None:
        return naive.batch_norm(x, w, b, eps, False)[0]
    return naive.batch_norm_inference(x, w, b, mean, var, eps, False)


def max_pool2d(x, kernel, stride=None, padding=0):
    return naive.max_pool2d(x, pair(kernel), pair(stride or kernel), pair(padding))[0]


def max_pool2d_backward(dy, x, kernel, stride=None, padding=0):
    geometry = pair(kernel), pair(stride or kernel), pair(padding)
    return naive.max_pool2d_backward(dy, naive.max_pool2d(x, *geometry)[1], x.shape, *geometry)


def avg_pool2d(x, kernel, stride=None, padding=0):
    return naive.avg_pool2d(x, pair(kernel), pair(stride or kernel), pair(padding))


def avg_pool2d_backward(dy, x_shape, kernel, stride=None, padding=0):
    return naive.avg_pool2d_backward(dy, x_shape, pair(kernel), pair(stride or kernel), pair(padding))


def cross_entropy(logits, labels, label_smoothing=0.0, reduction="mean"):
    losses, _ = naive.cross_entropy(logits, labels, label_smoothing)
    return losses if reduction == "none" else losses.sum() / (len(losses) if reduction == "mean" else 1)


def matmul(a, b):
    rows, columns = a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None]
    y = sum(rows[..., :, k, None] * columns[..., k, None, :] for k in range(a.shape[-1]))
    y = y if b.ndim > 1 else y[..., 0]
    return y if a.ndim > 1 else (y[..., 0, :] if b.ndim > 1 else y[..., 0])


def log_softmax(x, dim=-1):
    rows = np.moveaxis(np.array(x, np.float64), dim, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    for row in flat:
        top = max(row)
        row[...] = row - top - math.log(sum(math.exp(v - top) for v in row))
    return np.moveaxis(flat.reshape(rows.shape), -1, dim)
