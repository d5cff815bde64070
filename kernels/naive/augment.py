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
    """x[n], y[n] = image and label number order[place], where place = step B + n, and behind the last the first follows.

    With ``pad`` the image is cropped and flipped, by random words that depend on the seed, the epoch and the place alone:

        offsets = a (2 pad + 1) / 2^32, b (2 pad + 1) / 2^32, rounded down,   flipped where c >= 2^31
    """
    for n in range(len(y)):
        place = int(step) * len(y) + n
        k = order[place % len(order)]
        down, right, flip = pad, pad, False
        if pad:
            a, b, c, _ = philox((place, int(epoch), 0, 0), (seed % 2**32, (seed >> 32) % 2**32))
            down, right, flip = a * (2 * pad + 1) >> 32, b * (2 * pad + 1) >> 32, c >= 2**31
        x[n] = crop_flip(images[k : k + 1], np.array([[down, right]]), np.array([flip]), pad, mean, scale)[0]
        y[n] = labels[k]


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four words of 32 random bits for a counter and a key: Philox4x32-10 (Salmon et al. 2011, section 3.3).

    Ten rounds: two products, whose upper and lower halves change places and are mixed with the key, which moves on.
    """
    (c0, c1, c2, c3), (k0, k1), mask = counter, key, 2**32 - 1
    for _ in range(10):
        p, q = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (q >> 32) ^ c1 ^ k0, q & mask, (p >> 32) ^ c3 ^ k1, p & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3
