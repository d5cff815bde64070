"""Random crop and flip of a batch of images, from bytes to normalised floats."""

import numpy as np

from tinyres.kernels.arrays import Array, array_module, channels_first
from tinyres.kernels.numba_cuda.runtime import BLOCK, REAL, Kernel, blocks, check, cuda, empty
from tinyres.kernels.reference.augment import next_batch  # noqa: F401


@Kernel
def crop_flip_kernel(images, offsets, flips, pad, mean, scale, y):
    """y[n, h, w, c] = (images[n, c, i, j] / 255 - mean[c, i, j]) * scale[c, i, j] at i = h + down - pad and j = w + right -
    pad, where w counts from the right if the image is mirrored; 0 beside the image. (down, right) = offsets[n].

    One thread per element: a byte read, 4 bytes written.
    """
    height, width, channels = y.shape[1], y.shape[2], y.shape[3]
    for e in range(cuda.grid(1), y.shape[0] * height * width * channels, cuda.gridsize(1)):
        c, w, h = e % channels, e // channels % width, e // (channels * width) % height
        n = e // (channels * width * height)
        i, j = h + offsets[n, 0] - pad, w + offsets[n, 1] - pad
        if flips[n]:
            j = width - 1 - w + offsets[n, 1] - pad
        if i >= 0 and i < height and j >= 0 and j < width:
            y[n, h, w, c] = (REAL(images[n, c, i, j]) / REAL(255) - mean[c, i, j]) * scale[c, i, j]
        else:
            y[n, h, w, c] = 0


def crop_flip(images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
    check(mean, scale)
    xp, (n, c, h, w) = array_module(images), images.shape
    y = empty(images, n, h, w, c, dtype=np.float32)
    mean, scale = (xp.broadcast_to(a, (c, h, w)) for a in (mean, scale))
    crop_flip_kernel[blocks(y.size), BLOCK](images, offsets, flips, pad, mean, scale, y)
    return channels_first(y)
