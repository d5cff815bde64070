"""Pooling. An index is an image; inner loops run along the channels, which lie side by side in memory."""

import math
from typing import Any

import numpy as np
from numba import types

from tinyres.kernels.arrays import Array, Pair, Shape, output_size
from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.layout import channels_last, contiguous
from tinyres.kernels.cpu.runtime import Kernel, address, advance, check, numbers, pointer


def max_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    check(x)
    sizes = _sizes(x.shape, kernel, stride, padding)
    y = buffers.empty_activations((*x.shape[:2], *sizes[3:5]), x.dtype)
    index = buffers.empty_activations(y.shape, np.int32)
    _max_pool(len(x), [y, channels_last(x)], [*sizes, address(index)])
    return y, index


def max_pool2d_backward(dy: Array, index: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    check(dy)
    dx = buffers.empty_activations(x_shape, dy.dtype)
    index = contiguous(index.transpose(0, 2, 3, 1), np.int32)
    _max_pool_backward(len(dx), [dx, channels_last(dy)], [*_sizes(x_shape, kernel, stride, padding), address(index)])
    return dx


def avg_pool2d(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    check(x)
    sizes = _sizes(x.shape, kernel, stride, padding)
    y = buffers.empty_activations((*x.shape[:2], *sizes[3:5]), x.dtype)
    _avg_pool(len(x), [y, channels_last(x)], sizes)
    return y


def avg_pool2d_backward(dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    check(dy)
    dx = buffers.empty_activations(x_shape, dy.dtype)
    _avg_pool_backward(len(dx), [dx, channels_last(dy)], _sizes(x_shape, kernel, stride, padding))
    return dx


def global_avg_pool2d(x: Array) -> Array:
    check(x)
    n, c, h, w = x.shape
    y, sums = buffers.empty((n, c), x.dtype), buffers.empty((n, c), np.float64)
    _global_avg_pool(n, [y, channels_last(x)], [c, h * w, address(sums)])
    return y


def global_avg_pool2d_backward(dy: Array, x_shape: Shape) -> Array:
    check(dy)
    dx = buffers.empty_activations(x_shape, dy.dtype)
    n, c, h, w = x_shape
    _global_avg_pool_backward(n, [dx, contiguous(dy)], [c, h * w])
    return dx


def _sizes(x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    """(H, W, C, OH, OW, KH, KW, stride, stride, padding, padding)"""
    out = [output_size(x_shape[i + 2], kernel[i], stride[i], padding[i]) for i in (0, 1)]
    return (*x_shape[2:], x_shape[1], *out, *kernel, *stride, *padding)


@Kernel
def _max_pool(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    h, w, c, oh, ow, kh, kw, sh, sw, ph, pw = n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]
    x = advance(a[1], index * h * w * c)
    for i in range(oh):
        for j in range(ow):
            place = ((index * oh + i) * ow + j) * c
            y, where = advance(a[0], place), advance(pointer(n[13], types.int32), place)
            inside = max(ph - i * sh, 0) * kw + max(pw - j * sw, 0)  # the first place inside the image
            for k in range(c):
                y[k], where[k] = -math.inf, inside
            for tap in range(kh * kw):
                row, column = i * sh - ph + tap // kw, j * sw - pw + tap % kw
                if 0 <= row < h and 0 <= column < w:
                    value = advance(x, (row * w + column) * c)
                    for k in range(c):
                        v, best = value[k], y[k]
                        better = (v > best) | ((v != v) & (best == best))  # a NaN wins over a number
                        y[k] = v if better else best
                        where[k] = tap if better else where[k]


@Kernel
def _max_pool_backward(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    h, w, c, oh, ow, kh, kw, sh, sw, ph, pw = n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]
    dx = advance(a[0], index * h * w * c)
    for i in range(h * w * c):
        dx[i] = 0
    for i in range(oh):
        for j in range(ow):
            place = ((index * oh + i) * ow + j) * c
            dy, where = advance(a[1], place), advance(pointer(n[13], types.int32), place)
            for tap in range(kh * kw):
                row, column = i * sh - ph + tap // kw, j * sw - pw + tap % kw
                if 0 <= row < h and 0 <= column < w:
                    target = advance(dx, (row * w + column) * c)
                    for k in range(c):
                        target[k] += dy[k] if where[k] == tap else 0


@Kernel
def _avg_pool(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    h, w, c, oh, ow, kh, kw, sh, sw, ph, pw = n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]
    x = advance(a[1], index * h * w * c)
    for i in range(oh):
        for j in range(ow):
            y = advance(a[0], ((index * oh + i) * ow + j) * c)
            for k in range(c):
                y[k] = 0
            for row in range(max(i * sh - ph, 0), min(i * sh - ph + kh, h)):
                for column in range(max(j * sw - pw, 0), min(j * sw - pw + kw, w)):
                    value = advance(x, (row * w + column) * c)
                    for k in range(c):
                        y[k] += value[k]
            for k in range(c):
                y[k] /= kh * kw


@Kernel
def _avg_pool_backward(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    h, w, c, oh, ow, kh, kw, sh, sw, ph, pw = n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12]
    dx = advance(a[0], index * h * w * c)
    for i in range(h * w * c):
        dx[i] = 0
    for i in range(oh):
        for j in range(ow):
            dy = advance(a[1], ((index * oh + i) * ow + j) * c)
            for row in range(max(i * sh - ph, 0), min(i * sh - ph + kh, h)):
                for column in range(max(j * sw - pw, 0), min(j * sw - pw + kw, w)):
                    target = advance(dx, (row * w + column) * c)
                    for k in range(c):
                        target[k] += dy[k] / (kh * kw)


@Kernel
def _global_avg_pool(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    c, pixels = n[2], n[3]
    y, x, sums = (
        advance(a[0], index * c),
        advance(a[1], index * pixels * c),
        advance(pointer(n[4], types.float64), index * c),
    )
    for k in range(c):
        sums[k] = 0
    for i in range(pixels):
        pixel = advance(x, i * c)
        for k in range(c):
            sums[k] += pixel[k]
    for k in range(c):
        y[k] = sums[k] / pixels


@Kernel
def _global_avg_pool_backward(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    c, pixels = n[2], n[3]
    dx, dy = advance(a[0], index * pixels * c), advance(a[1], index * c)
    for i in range(pixels):
        pixel = advance(dx, i * c)
        for k in range(c):
            pixel[k] = dy[k] / pixels
