"""Random crop and flip. It runs in one thread, without the interpreter: the loader's, beside those that train."""

from typing import Any

import numpy as np
from numba import types

from tinyres.kernels.arrays import Array
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cpu import buffers
from tinyres.kernels.cpu.runtime import Kernel, address, advance, check, numbers, pointer
from tinyres.kernels.reference.augment import next_batch  # noqa: F401


def crop_flip(images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
    """As the reference's; bit for bit the same."""
    shape = images.shape
    y = buffers.empty(shape, np.float32)
    mean, scale = (np.ascontiguousarray(np.broadcast_to(v, shape[1:]), np.float32) for v in (mean, scale))
    check(y, mean, scale)
    if images.dtype != np.uint8:
        raise Unsupported(f"images of {images.dtype}")
    images = np.ascontiguousarray(images)
    offsets, flips = np.ascontiguousarray(offsets, np.int64), np.ascontiguousarray(flips, np.uint8)
    if offsets.shape != (len(images), 2) or flips.shape != (len(images),):
        raise ValueError(f"crop_flip: {len(images)} images, but offsets {offsets.shape} and flips {flips.shape}.")
    if offsets.size and not 0 <= offsets.min() <= offsets.max() <= 2 * pad:
        raise ValueError(f"crop_flip: offsets are {offsets.min()} to {offsets.max()}; they must be in 0 .. {2 * pad}.")
    sizes = [*shape[1:], pad, address(images), address(offsets), address(flips)]
    _crop_flip(len(images), [y, mean, scale], sizes, parallel=False)
    return y


@Kernel
def _crop_flip(a: Any, index: int, scratch: Any) -> None:
    n = numbers(a)
    channels, height, width, pad = n[3], n[4], n[5], n[6]
    image = advance(pointer(n[7], types.uint8), index * channels * height * width)
    offset, flip = advance(pointer(n[8], types.int64), 2 * index), pointer(n[9], types.uint8)[index]
    down, right = offset[0] - pad, offset[1] - pad  # y[h, w] is the pixel [h + down, w + right], before the flip
    first, last = max(-right, 0), min(width - right, width)
    for c in range(channels):
        for h in range(height):
            place = (c * height + h) * width
            y = advance(a[0], index * channels * height * width + place)
            if not 0 <= h + down < height:
                for w in range(width):
                    y[w] = 0
                continue
            source = place + down * width + right
            pixels, mean, scale = advance(image, source), advance(a[1], source), advance(a[2], source)
            for w in range(width):
                y[w] = 0
            if flip:
                back = advance(y, width - 1)
                for w in range(first, last):
                    back[-w] = (pixels[w] / types.float32(255) - mean[w]) * scale[w]
            else:
                for w in range(first, last):
                    y[w] = (pixels[w] / types.float32(255) - mean[w]) * scale[w]
