"""Random crop and flip of images, one pixel at a time."""

import numpy as np

from tinyres.kernels.arrays import Array


def crop_flip(images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
    """z = (images / 255 - mean) scale, with a border of ``pad`` zeros. Then, with (down, right) = offsets[n],

        y[n, c, i, j] = z[n, c, i + down, j + right]                 as it is
        y[n, c, i, j] = z[n, c, i + down, W - 1 - j + right]         where flips[n]

    in coordinates of the bordered image: offsets of ``pad`` leave the image in its place.
    """
    height, width = images.shape[2:]
    y = np.zeros(images.shape, np.float32)
    mean, scale = (np.broadcast_to(v, images.shape[1:]) for v in (mean, scale))
    for n, c, i, j in np.ndindex(images.shape):
        row = i + offsets[n, 0] - pad
        column = (width - 1 - j if flips[n] else j) + offsets[n, 1] - pad
        if 0 <= row < height and 0 <= column < width:
            pixel = np.float32(images[n, c, row, column]) / np.float32(255)
            y[n, c, i, j] = (pixel - mean[c, row, column]) * scale[c, row, column]
    return y
