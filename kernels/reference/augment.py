"""Random crop and flip of a batch of images, from bytes to normalised floats."""

from tinyres.kernels.arrays import Array, array_module


def crop_flip(images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
    """Normalise, pad with zeros, crop back to the old size and mirror: uint8 (N, C, H, W) -> float32 (N, C, H, W).

    z is (images / 255 - mean) * scale with a border of ``pad`` zeros around it; for image n, (i, j) = offsets[n] and

        y[n, c, h, w] = z[n, c, i + h, j + w]              as it is,
        y[n, c, h, w] = z[n, c, i + h, j + W - 1 - w]      where flips[n].

    offsets: integers (N, 2), down and right, each in 0 .. 2 pad, where (pad, pad) leaves the image in its place.  flips:
    booleans (N,).  mean, scale: float32 that broadcast to (C, H, W), in units of images / 255. The border is laid after
    the mean is taken away, as in He et al. 2015, section 4.2: it is as bright as the mean, not black.  y is C-contiguous.
    """
    xp = array_module(images)
    count, channels, height, width = images.shape
    padded = xp.zeros((count, channels, height + 2 * pad, width + 2 * pad), xp.float32)
    inside = padded[:, :, pad : pad + height, pad : pad + width]
    xp.divide(images, xp.float32(255), out=inside, dtype=xp.float32)
    inside -= mean
    inside *= scale
    y = xp.empty(images.shape, xp.float32)
    for n, ((i, j), flip) in enumerate(zip(offsets.tolist(), flips.tolist(), strict=True)):
        window = padded[n, :, i : i + height, j : j + width]
        y[n] = window[:, :, ::-1] if flip else window
    return y
