"""The CUDA crop and flip, and the loader on the device, emulated, against the reference.

Launches are checked: results start as NaN, and each array ends where a page begins that may not be touched.
"""

import numpy as np
import pytest
from backends import BACKENDS, sweep

from tinyres.kernels import reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import augment, launch

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

rng = np.random.default_rng(10)


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")


def check_crop_flip(n, channels, height, width, pad, per=(True, True, True)):
    """Bit for bit, with every corner among the offsets; ``per``: along which axes mean and scale differ."""
    images = rng.integers(0, 256, (n, channels, height, width), np.uint8)
    offsets, flips = rng.integers(0, 2 * pad + 1, (n, 2)), rng.random(n) < 0.5
    offsets[: len(offsets) // 2] = 2 * pad * rng.integers(0, 2, (n // 2, 2))
    shape = tuple(size if own else 1 for size, own in zip((channels, height, width), per, strict=True))
    mean, scale = rng.random(shape, np.float32), rng.random(shape, np.float32) + 1
    y = augment.crop_flip(images, offsets, flips, pad, mean, scale)
    assert y.dtype == np.float32 and y.flags.c_contiguous
    np.testing.assert_array_equal(y, reference.crop_flip(images, offsets, flips, pad, mean, scale))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 0), (4, 3, 32, 32, 4), (5, 17, 5, 7, 3), (9, 2, 3, 4, 6), (3, 1, 16, 17, 1)])
def test_crops_and_flips_are_the_reference_s_bit_for_bit(sizes):
    check_crop_flip(*sizes)


@pytest.mark.parametrize("per", [(True, False, False), (False, False, False), (False, True, False)])
def test_mean_and_scale_broadcast_to_an_image(per):
    check_crop_flip(4, 3, 5, 6, 2, per)


def test_every_byte_is_divided_as_numpy_divides_it():
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    y = augment.crop_flip(images, np.zeros((1, 2), int), np.zeros(1, bool), 0, np.float32(0), np.float32(1))
    np.testing.assert_array_equal(y, images / np.float32(255))


def test_no_images_give_none_and_wrong_ones_are_refused():
    images, offsets, flips = np.zeros((2, 3, 4, 4), np.uint8), np.full((2, 2), 4), np.zeros(2, bool)
    assert augment.crop_flip(images[:0], offsets[:0], flips[:0], 4, 0.0, 1.0).shape == (0, 3, 4, 4)
    with pytest.raises(Unsupported, match="float32"):
        augment.crop_flip(images.astype("f4"), offsets, flips, 4, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"offsets are 4 to 4; they must be in 0 \.\. 2"):
        augment.crop_flip(images, offsets, flips, 1, 0.0, 1.0)
    with pytest.raises(ValueError, match="2 images, but"):
        augment.crop_flip(images, offsets[:1], flips, 4, 0.0, 1.0)


# --- random numbers --------------------------------------------------------------------------------------------------

PUBLISHED = [  # Philox4x32-10 in Random123's table of known answers: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


def check_published():
    for counter, key, result in PUBLISHED:
        got = np.zeros((1, 4), np.uint32)
        launch.kernel("augment", "philox_words", REAL="float")(1, 32, words(counter)[None], words(key), got, 1)
        np.testing.assert_array_equal(got[0], words(result))


def test_the_generator_gives_its_published_answers():
    check_published()


def philox(counter, key):
    """In Python's integers, as the paper has it (Salmon et al. 2011, section 3.3)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(0xD2511F53 * c[0], 1 << 32), divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % (1 << 32), (k[1] + 0xBB67AE85) % (1 << 32)]
    return c


def drawn(seed, epoch, places, pad):
    """Offsets and flips of the places of an epoch."""
    random = np.array([philox((place, epoch, 0, 0), (seed % (1 << 32), seed >> 32)) for place in places], np.uint64)
    return (random[:, :2] * np.uint64(2 * pad + 1) >> np.uint64(32)).astype(np.int64), random[:, 2] >= 1 << 31


# --- the loader on the device ----------------------------------------------------------------------------------------


class Data:
    """A data set of 23 images where the kernels run, and room for a batch of 6."""

    def __init__(self, batch=6, shape=(3, 9, 10), dtype="float32"):
        self.images, self.labels = rng.integers(0, 256, (23, *shape), np.uint8), rng.integers(0, 10, 23)
        self.order = rng.permutation(23).astype("i4")
        self.mean, self.scale = rng.random(shape, np.float32), rng.random(shape, np.float32) + 1
        self.step, self.epoch = np.zeros((), "i4"), np.zeros((), "i4")
        self.x = np.full((batch, *shape[1:], shape[0]), 7, dtype).transpose(0, 3, 1, 2)
        self.y = np.full(batch, 77)

    def next(self, pad=4, seed=0):
        augment.next_batch(
            self.images,
            self.labels,
            self.order,
            self.step,
            self.epoch,
            self.x,
            self.y,
            mean=self.mean,
            scale=self.scale,
            pad=pad,
            seed=seed,
        )

    def want(self, step, pad=4, seed=0):
        places = len(self.y) * step + np.arange(len(self.y))
        chosen = self.order[places % 23]
        offsets, flips = drawn(seed, int(self.epoch), places.tolist(), pad)
        if not pad:
            offsets, flips = np.zeros_like(offsets), np.zeros_like(flips)
        return reference.crop_flip(self.images[chosen], offsets, flips, pad, self.mean, self.scale), self.labels[chosen]


def check_batches(pad=4, seed=0, **options):
    """Three steps; the data set and the counters stay as they are."""
    data = Data(**options)
    kept = [a.copy() for a in (data.images, data.labels, data.order, data.mean, data.scale)]
    for step, epoch in ((0, 0), (1, 0), (1, 5)):
        data.step[...], data.epoch[...] = step, epoch
        data.next(pad, seed)
        x, y = data.want(step, pad, seed)
        np.testing.assert_array_equal(data.x, x.astype(data.x.dtype))
        np.testing.assert_array_equal(data.y, y)
        assert (data.step, data.epoch) == (step, epoch)
    for a, b in zip(kept, (data.images, data.labels, data.order, data.mean, data.scale), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", [0, 1, 0xFEDCBA9876543210])
def test_a_batch_is_what_the_reference_makes_of_the_drawn_crops_and_flips(seed):
    check_batches(seed=seed)


def test_without_a_border_images_come_as_they_are():
    check_batches(pad=0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 16, 16), (2, 17, 16), (17, 3, 2)])
def test_images_of_any_size(shape):
    check_batches(shape=shape)


@pytest.mark.parametrize("dtype", ["float16", *sweep("float64", "bfloat16")])
def test_a_batch_is_rounded_to_the_dtype_asked_for(dtype):
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: NumPy has no bfloat16")
        dtype = ml_dtypes.bfloat16
    check_batches(dtype=dtype)


def test_the_first_image_follows_the_last():
    data = Data()
    data.step[...] = 3  # places 18 to 23
    data.next()
    x, y = data.want(3)
    np.testing.assert_array_equal(data.x, x)
    assert data.y[-1] == data.labels[data.order[0]] == y[-1]


def test_what_happens_to_an_image_does_not_depend_on_the_batch_size():
    large, small = Data(6), Data(2)
    for name in ("images", "labels", "order", "mean", "scale"):
        setattr(small, name, getattr(large, name))
    large.next()
    for step in range(3):
        small.step[...] = step
        small.next()
        np.testing.assert_array_equal(small.x, large.x[2 * step : 2 * step + 2])


def test_a_graph_goes_on_with_the_step_that_stands_in_memory():
    data, graph = Data(), launch.device(np).Graph()
    with graph.capture():
        data.next()
    assert (data.y == 77).all(), "a captured launch ran"
    for step in range(3):
        data.step[...] = step
        graph.replay()
        np.testing.assert_array_equal(data.x, data.want(step)[0])


def test_crops_and_flips_are_spread_evenly():
    """Chi-squared over the 81 offsets and the 2 flips, of 16,200 draws: their 99.9 % points are 124.8 and 10.8."""
    counters = np.zeros((16200, 4), np.uint32)
    counters[:, 0], counters[:, 1] = np.arange(16200), 3
    got = np.zeros_like(counters)
    launch.kernel("augment", "philox_words", REAL="float")(64, 256, counters, np.array([42, 0], "u4"), got, 16200)
    offsets, flips = (got[:, :2].astype("u8") * 9 >> 32).astype(int), got[:, 2] >> 31
    counts = np.bincount(9 * offsets[:, 0] + offsets[:, 1], minlength=81)
    assert ((counts - 200) ** 2 / 200).sum() < 124.8
    assert ((np.bincount(flips) - 8100) ** 2 / 8100).sum() < 10.8


def test_arrays_that_do_not_fit_are_refused():
    data = Data()
    data.y = np.zeros(5, "i8")
    with pytest.raises(ValueError, match="do not go into"):
        data.next()
    data = Data()
    data.x = np.ascontiguousarray(data.x)
    with pytest.raises(ValueError, match="channels-last"):
        data.next()
