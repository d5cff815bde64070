"""Where the windows of convolutions and pools lie, and the margin around an image."""

from collections.abc import Iterator

import numpy as np

from tinyres.kernels.arrays import Array, Pair


def starts(length: int, kernel: int, stride: int, dilation: int = 1) -> range:
    """Where the windows along one axis of a padded image begin: every ``stride``, as long as the whole window fits."""
    return range(0, length - dilation * (kernel - 1), stride)


def output_size(padded: Array, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Pair:
    """How many windows there are, one below the other and side by side: (OH, OW)."""
    height, width = padded.shape[-2:]
    return len(starts(height, kernel[0], stride[0], dilation[0])), len(starts(width, kernel[1], stride[1], dilation[1]))


def windows(padded: Array, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Iterator[tuple[int, int, Array]]:
    """For each output pixel (i, j), the window that it reads of padded images (..., H, W).

    The window (..., KH, KW) is a view: what is added to it is added to the image.
    """
    height, width = padded.shape[-2:]
    reach = dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1
    for i, top in enumerate(starts(height, kernel[0], stride[0], dilation[0])):
        for j, left in enumerate(starts(width, kernel[1], stride[1], dilation[1])):
            yield i, j, padded[..., top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]


def pad(x: Array, padding: Pair, value: float = 0.0) -> Array:
    """A copy of x (N, C, H, W) with ``padding`` rows above and below and columns left and right."""
    n, c, h, w = x.shape
    padded = np.full((n, c, h + 2 * padding[0], w + 2 * padding[1]), value, x.dtype)
    padded[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w] = x
    return padded


def crop(padded: Array, padding: Pair) -> Array:
    """A copy of the images inside the margin."""
    height, width = padded.shape[2] - padding[0], padded.shape[3] - padding[1]
    return padded[:, :, padding[0] : height, padding[1] : width].copy()
