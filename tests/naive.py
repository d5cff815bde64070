"""Every operation once more, in loops that follow its definition: what the kernels are compared with.

Nothing here is imported from the package, and nothing is clever: one window, one channel or one row at a time.
"""

import math

import numpy as np


def pair(value):
    return tuple(value) if isinstance(value, tuple) else (value, value)


def spots(size, kernel, stride, padding, dilation=1):
    """Where the windows of one axis begin, in the padded image."""
    return range(0, size + 2 * padding - dilation * (kernel - 1), stride)


def windows(x_shape, kernel, stride, padding, dilation=(1, 1)):
    """(i, j), and the slices of the padded image that output pixel (i, j) reads."""
    rows = spots(x_shape[2], kernel[0], stride[0], padding[0], dilation[0])
    columns = spots(x_shape[3], kernel[1], stride[1], padding[1], dilation[1])
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            yield (
                (i, j),
                (
                    slice(top, top + dilation[0] * (kernel[0] - 1) + 1, dilation[0]),
                    slice(left, left + dilation[1] * (kernel[1] - 1) + 1, dilation[1]),
                ),
            )


def pad(x, padding, value=0.0):
    return np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=value)


def crop(padded, padding, x_shape):
    return padded[:, :, padding[0] : padding[0] + x_shape[2], padding[1] : padding[1] + x_shape[3]]


def out_shape(x_shape, kernel, stride, padding, dilation=(1, 1)):
    return tuple(len(spots(x_shape[i + 2], kernel[i], stride[i], padding[i], dilation[i])) for i in (0, 1))


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    (f, per_group), kernel = w.shape[:2], w.shape[2:]
    padded = pad(x, padding)
    y = np.zeros((len(x), f, *out_shape(x.shape, kernel, stride, padding, dilation)), x.dtype)
    for k in range(f):
        first = k // (f // groups) * per_group
        for (i, j), (rows, columns) in windows(x.shape, kernel, stride, padding, dilation):
            y[:, k, i, j] = (padded[:, first : first + per_group, rows, columns] * w[k]).sum(axis=(1, 2, 3))
    return y if b is None else y + b.reshape(1, -1, 1, 1)


def conv2d_backward(dy, x, w, stride=1, padding=0, dilation=1, groups=1):
    """dx, dw: every output pixel hands its cotangent to the window and to the weights that made it."""
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    (f, per_group), kernel = w.shape[:2], w.shape[2:]
    padded, dw = pad(x, padding), np.zeros(w.shape)
    dpadded = np.zeros(padded.shape)
    for k in range(f):
        first = k // (f // groups) * per_group
        channels = slice(first, first + per_group)
        for (i, j), (rows, columns) in windows(x.shape, kernel, stride, padding, dilation):
            for n in range(len(x)):
                dpadded[n, channels, rows, columns] += w[k] * dy[n, k, i, j]
                dw[k] += padded[n, channels, rows, columns] * dy[n, k, i, j]
    return crop(dpadded, padding, x.shape), dw


def max_pool2d(x, kernel, stride=None, padding=0):
    kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
    padded = pad(x, padding, -np.inf)
    y = np.zeros((*x.shape[:2], *out_shape(x.shape, kernel, stride, padding)), x.dtype)
    for (i, j), (rows, columns) in windows(x.shape, kernel, stride, padding):
        y[:, :, i, j] = padded[:, :, rows, columns].max(axis=(2, 3))
    return y


def max_pool2d_backward(dy, x, kernel, stride=None, padding=0):
    """The first of equal elements gets it all."""
    kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
    padded = pad(x, padding, -np.inf)
    dpadded = np.zeros(padded.shape)
    for (i, j), (rows, columns) in windows(x.shape, kernel, stride, padding):
        for n in range(x.shape[0]):
            for c in range(x.shape[1]):
                window = padded[n, c, rows, columns]
                place = np.unravel_index(np.argmax(window), window.shape)
                dpadded[n, c, rows, columns][place] += dy[n, c, i, j]
    return crop(dpadded, padding, x.shape)


def avg_pool2d(x, kernel, stride=None, padding=0):
    kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
    padded = pad(x, padding)
    y = np.zeros((*x.shape[:2], *out_shape(x.shape, kernel, stride, padding)), x.dtype)
    for (i, j), (rows, columns) in windows(x.shape, kernel, stride, padding):
        y[:, :, i, j] = padded[:, :, rows, columns].sum(axis=(2, 3)) / (kernel[0] * kernel[1])
    return y


def avg_pool2d_backward(dy, x_shape, kernel, stride=None, padding=0):
    kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
    dpadded = pad(np.zeros(x_shape), padding)
    for (i, j), (rows, columns) in windows(x_shape, kernel, stride, padding):
        dpadded[:, :, rows, columns] += dy[:, :, i, j][:, :, None, None] / (kernel[0] * kernel[1])
    return crop(dpadded, padding, x_shape)


def global_avg_pool2d(x):
    return np.array([[image.sum() / image.size for image in maps] for maps in x]).reshape(x.shape[:2])


def subsample_pad(x, out_channels, stride=2):
    n, c, h, w = x.shape
    y = np.zeros((n, out_channels, len(range(0, h, stride)), len(range(0, w, stride))), x.dtype)
    before = (out_channels - c) // 2
    for k in range(c):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                y[:, before + k, i, j] = x[:, k, i * stride, j * stride]
    return y


def batch_norm(x, weight, bias, mean=None, var=None, eps=1e-5, residual=None, relu=False):
    """With the batch's own statistics, unless mean and var are given."""
    y = np.zeros(x.shape, x.dtype)
    for c in range(x.shape[1]):
        channel = x[:, c]
        m = channel.sum() / channel.size if mean is None else mean[c]
        v = ((channel - m) ** 2).sum() / channel.size if var is None else var[c]
        y[:, c] = weight[c] * (channel - m) / math.sqrt(v + eps) + bias[c]
    if residual is not None:
        y = y + residual
    return relu_(y) if relu else y


def batch_norm_backward(dz, x, weight, mean, var, eps=1e-5, training=True):
    """dx, dweight, dbias from the definition: each x reaches z directly, and in training through mean and variance."""
    dx, dweight, dbias = np.zeros(x.shape), np.zeros(len(weight)), np.zeros(len(weight))
    for c in range(x.shape[1]):
        d, centred, m = dz[:, c], x[:, c] - mean[c], x[:, c].size
        std = math.sqrt(var[c] + eps)
        dbias[c], dweight[c] = d.sum(), (d * centred / std).sum()
        dxhat = d * weight[c]
        dx[:, c] = dxhat / std
        if training:
            dvar = (dxhat * centred).sum() * -0.5 * std**-3
            dmean = -dxhat.sum() / std
            dx[:, c] += dvar * 2 * centred / m + dmean / m
    return dx, dweight, dbias


def relu_(x):
    return np.where((x > 0) | np.isnan(x), x, 0)


def relu6(x):
    return np.where(x > 6, 6, relu_(x))


def linear(x, w, b=None):
    y = np.zeros((len(x), len(w)), x.dtype)
    for n in range(len(x)):
        for o in range(len(w)):
            y[n, o] = sum(x[n, i] * w[o, i] for i in range(x.shape[1])) + (0 if b is None else b[o])
    return y


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


def cross_entropy(logits, labels, label_smoothing=0.0, reduction="mean"):
    log_p, k = log_softmax(logits), logits.shape[1]
    losses = []
    for row, label in zip(log_p, labels, strict=True):
        target = [label_smoothing / k + (1 - label_smoothing) * (j == label) for j in range(k)]
        losses.append(-sum(q * lp for q, lp in zip(target, row, strict=True)))
    total = np.array(losses)
    return total if reduction == "none" else total.sum() / (len(losses) if reduction == "mean" else 1)


def cross_entropy_backward(dlosses, logits, labels, label_smoothing=0.0):
    p, k = np.exp(log_softmax(logits)), logits.shape[1]
    for n, label in enumerate(labels):
        for j in range(k):
            p[n, j] = (p[n, j] - label_smoothing / k - (1 - label_smoothing) * (j == label)) * dlosses[n]
    return p
