"""Random crop and flip of a batch of images, from bytes to normalised floats, and a loader without a host."""

from tinyres.kernels.arrays import Array, array_module


def crop_flip(images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
    """Normalise, pad with zeros, crop back to the old size and mirror: uint8 (N, C, H, W) -> float32 (N, C, H, W).

    z is (images / 255 - mean) * scale with a border of ``pad`` zeros around it; for image n, (i, j) = offsets[n] and

        y[n, c, h, w] = z[n, c, i + h, j + w]              as it is,
        y[n, c, h, w] = z[n, c, i + h, j + W - 1 - w]      where flips[n].

    offsets: integers (N, 2), down and right, each in 0 .. 2 pad, where (pad, pad) leaves the image in its place. flips:
    booleans (N,). mean, scale: float32 that broadcast to (C, H, W), in units of images / 255. The border is laid after
    the mean is taken away, as in He et al. 2015, section 4.2: it is as bright as the mean, not black. y is C-contiguous.
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
    xp, batch = array_module(images), len(y)
    places = int(step) * batch + xp.arange(batch)
    chosen = order[places % len(order)]
    random = _philox([places, xp.full(batch, int(epoch)), xp.zeros(batch), xp.zeros(batch)], seed)
    offsets, flips = xp.stack(random[:2], axis=1) * (2 * pad + 1) >> 32, random[2] >= 1 << 31
    x[...] = crop_flip(images[chosen], offsets, flips & (pad > 0), pad, mean, scale)
    y[...] = labels[chosen]


def _philox(counter: list[Array], seed: int) -> list[Array]:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3): four words of 32 random bits, in uint64, for each counter of four.

    Ten rounds of multiplications whose upper and lower halves are exchanged and mixed with the key, which moves on.
    """
    mask = (1 << 32) - 1
    c0, c1, c2, c3 = (word.astype("u8") for word in counter)
    for i in range(10):
        key0, key1 = ((word + i * weyl) & mask for word, weyl in ((seed, 0x9E3779B9), (seed >> 32, 0xBB67AE85)))
        p, q = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (q >> 32) ^ c1 ^ key0, q & mask, (p >> 32) ^ c3 ^ key1, p & mask
    return [c0, c1, c2, c3]
