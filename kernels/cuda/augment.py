"""Random crop and flip, and a loader that lives on the device: `src/augment.cu`."""

import numpy as np

from tinyres.kernels.arrays import Array, array_module, ceil_div
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda.common import BLOCK, c_type, empty
from tinyres.kernels.cuda.launch import kernel


def crop_flip(images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
    """As the reference's, C-contiguous too. Offsets, flips, mean and scale may lie on the host."""
    if images.dtype != np.uint8:
        raise Unsupported(f"images of {images.dtype}")
    xp, (n, c, h, w) = array_module(images), images.shape
    if offsets.shape != (n, 2) or flips.shape != (n,):
        raise ValueError(f"crop_flip: {n} images, but offsets {offsets.shape} and flips {flips.shape}.")
    if isinstance(offsets, np.ndarray) and offsets.size and not 0 <= offsets.min() <= offsets.max() <= 2 * pad:
        raise ValueError(f"crop_flip: offsets are {offsets.min()} to {offsets.max()}; they must be in 0 .. {2 * pad}.")
    images, offsets = xp.ascontiguousarray(images), xp.ascontiguousarray(xp.asarray(offsets, np.int64))
    flips = xp.ascontiguousarray(xp.asarray(flips, bool)).view(np.uint8)
    mean, scale = _whole(mean, images), _whole(scale, images)
    y = empty(images, images.shape, np.float32)
    if y.size:
        blocks = ceil_div(c * h * w, BLOCK)  # of an image
        run = kernel("augment", "crop_flip", REAL="float")
        run(n * blocks, BLOCK, images, offsets, flips, mean, scale, y, blocks, c, h, w, pad)
    return y


def next_batch(
    images: Array,
    labels: Array,
    order: Array,
    step: Array,
    epoch: Array,
    x: Array,
    y: Array,
    mean: Array,
    scale: Array,
    pad: int,
    seed: int,
) -> None:
    (count, c, h, w), batch = images.shape, len(x)
    inside = x.transpose(0, 2, 3, 1)
    if x.shape != (batch, c, h, w) or y.shape != (batch,) or labels.shape != (count,) or order.shape != (count,):
        raise ValueError(
            f"next_batch: images {images.shape}, labels {labels.shape} and order {order.shape} do not go into "
            f"x {x.shape} and y {y.shape}."
        )
    if not inside.flags.c_contiguous:
        raise ValueError("next_batch: x must be channels-last in memory.")
    if not x.size or not count:
        return
    run, blocks = kernel("augment", "next_batch", REAL=c_type(x)), ceil_div(h * w, BLOCK)
    run(
        batch * blocks,
        BLOCK,
        images,
        labels,
        order,
        step,
        epoch,
        _whole(mean, images),
        _whole(scale, images),
        inside,
        y,
        blocks,
        batch,
        count,
        c,
        h,
        w,
        pad,
        seed % (1 << 64),
    )


def _whole(values: Array, images: Array) -> Array:
    """``values``, which broadcast to an image, as float32 (C, H, W) where the images are: itself, if it is that."""
    xp = array_module(images)
    return xp.ascontiguousarray(xp.broadcast_to(xp.asarray(values, np.float32), images.shape[1:]))
