"""The kernel crop_flip against naive loops, and the mean and scale that it is given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyres.data import normalisation
from tinyres.errors import DataError, UsageError
from tinyres.kernels.reference.augment import crop_flip

# --- The kernel -------------------------------------------------------------------------------------------------------


def naive_crop_flip(images, offsets, flips, pad, mean, scale):
    count, channels, height, width = images.shape
    mean, scale = (np.broadcast_to(a, images.shape[1:]) for a in (mean, scale))
    out = np.zeros(images.shape, np.float32)
    for n in range(count):
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    row = h + int(offsets[n, 0]) - pad
                    column = (width - 1 - w if flips[n] else w) + int(offsets[n, 1]) - pad
                    if 0 <= row < height and 0 <= column < width:
                        value = np.float32(images[n, c, row, column]) / np.float32(255)
                        out[n, c, h, w] = (value - mean[c, row, column]) * scale[c, row, column]
    return out


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(*[st.integers(1, 5)] * 4),
    st.integers(0, 3),
    st.sampled_from(["pixel", "channel", "scalar"]),
    st.integers(0, 1000),
)
def test_crop_flip_agrees_with_naive_loops(shape, pad, per, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    offsets = random.integers(0, 2 * pad + 1, (shape[0], 2))
    flips = random.integers(0, 2, shape[0]).astype(bool)
    form = {"pixel": shape[1:], "channel": (shape[1], 1, 1), "scalar": ()}[per]
    mean, scale = random.random(form, np.float32), random.random(form, np.float32) + np.float32(0.5)
    given_images = images.copy()
    y = crop_flip(images, offsets, flips, pad, mean, scale)
    np.testing.assert_array_equal(y, naive_crop_flip(images, offsets, flips, pad, mean, scale))
    np.testing.assert_array_equal(images, given_images)
    assert (y.dtype, y.flags.c_contiguous) == (np.float32, True)


def test_crop_flip_reaches_each_corner_of_the_border():
    image = np.full((1, 1, 2, 2), 255, np.uint8)
    mean, scale = np.float32(0.5), np.float32(2)
    for i in range(5):
        for j in range(5):
            y = crop_flip(image, np.array([[i, j]]), np.array([False]), 2, mean, scale)
            down, right = 2 - i, 2 - j  # where the image's corner went
            inside = [[float(0 <= h - down < 2 and 0 <= w - right < 2) for w in range(2)] for h in range(2)]
            np.testing.assert_array_equal(y[0, 0], inside)


# --- Normalisation ----------------------------------------------------------------------------------------------------


def noise(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 7, 1000, 2345])
@pytest.mark.parametrize("divide_std", [False, True])
def test_normalisation_is_exact(count, divide_std):
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 2, 4), dtype=np.uint8)
    values = images / 255.0
    for per, axes, shape in (("pixel", 0, (3, 2, 4)), ("channel", (0, 2, 3), (3, 1, 1))):
        mean, scale = normalisation(images, per, divide_std)
        assert (mean.dtype, mean.shape, scale.dtype, scale.shape) == (np.float32, shape, np.float32, shape)
        np.testing.assert_allclose(mean, values.mean(axes).reshape(shape), rtol=1e-7)
        std = values.std(axes).reshape(shape)
        expected = 1 / np.where(std > 1e-9, std, 1) if divide_std else np.ones(shape)
        np.testing.assert_allclose(scale, expected, rtol=1e-6)


def test_normalisation_leaves_a_pixel_that_never_changes_at_scale_1():
    images = noise(50)
    images[:, 1, 2, 3] = 255
    mean, scale = normalisation(images, divide_std=True)
    assert (mean[1, 2, 3], scale[1, 2, 3]) == (1, 1)
    assert np.delete(scale.ravel(), 1 * 64 + 2 * 8 + 3).min() > 2


def test_normalisation_does_not_overflow_on_a_set_of_the_size_of_cifar():
    images = np.zeros((25_000, 1, 32, 32), np.uint8)
    images[::2] = 255  # n^2 var(x) is 1.07e19, beyond 63 bits
    mean, scale = normalisation(images, "channel", divide_std=True)
    assert (mean.item(), scale.item()) == (0.5, 2)


def test_normalisation_by_default_subtracts_the_mean_of_each_pixel():
    images = noise(50)
    for a, b in zip(normalisation(images), normalisation(images, "pixel", False), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UsageError, match="per='image': expected 'pixel' or 'channel'"):
        normalisation(images, "image")
    with pytest.raises(DataError, match="images: got float64"):
        normalisation(images / 255)
