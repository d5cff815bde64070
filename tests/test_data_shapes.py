"""The generated set: the same for a seed, balanced, out of reach for a linear model, and fit to be mirrored."""

import numpy as np
import pytest

from tinyres.data import load, shapes
from tinyres.data.shapes import _CLASSES
from tinyres.errors import UsageError

NAMES = list(_CLASSES)


@pytest.fixture(scope="module")
def full():
    return shapes()


def as_bytes(data):
    return tuple(a.tobytes() for a in (data.train_images, data.train_labels, data.test_images, data.test_labels))


def test_the_set_has_ten_balanced_classes_of_small_colour_images(full):
    assert (full.train_images.shape, full.train_images.dtype) == ((5000, 3, 32, 32), np.uint8)
    assert (full.test_images.shape, full.test_images.dtype) == ((1000, 3, 32, 32), np.uint8)
    assert (full.train_labels.dtype, full.test_labels.dtype) == (np.int64, np.int64)
    assert np.bincount(full.train_labels).tolist() == [500] * 10
    assert np.bincount(full.test_labels).tolist() == [100] * 10
    assert (full.name, len(set(full.classes)), full.notes) == ("shapes", 10, [])
    assert len(set(full.train_labels[:100])) == 10  # in random order


def test_the_default_set_is_loaded_by_name(full):
    assert as_bytes(load("shapes")) == as_bytes(full)


def test_the_seed_alone_decides():
    assert as_bytes(shapes(3, 50, 20)) == as_bytes(shapes(3, 50, 20))
    assert all(a != b for a, b in zip(as_bytes(shapes(3, 50, 20)), as_bytes(shapes(4, 50, 20)), strict=True))


def test_training_and_test_images_are_drawn_apart():
    few, more = shapes(0, 50, 20), shapes(0, 90, 20)
    np.testing.assert_array_equal(few.test_images, more.test_images)
    alike = shapes(0, 20, 20)
    assert alike.train_images.tobytes() != alike.test_images.tobytes()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"n_train": 0}, {"n_test": 0}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        shapes(**wrong)


def linear_accuracy(data, count=2000, ridge=300):
    """Test accuracy of the best linear model of the pixels: least squares on one-hot labels, in its dual form."""
    train, test = (i.reshape(len(i), -1) / np.float32(255) for i in (data.train_images[:count], data.test_images))
    mean = train.mean(0)
    train, test = train - mean, test - mean
    targets = np.eye(10, dtype=np.float32)[data.train_labels[:count]]
    weights = train.T @ np.linalg.solve(train @ train.T + ridge * np.eye(count, dtype=np.float32), targets)
    return np.mean((test @ weights).argmax(1) == data.test_labels)


def test_a_linear_model_on_pixels_learns_little(full):
    """The bound is 45 % and chance is 10 %, where a ResNet-20 has over 90 % after a few epochs."""
    assert 0.12 < linear_accuracy(full) < 0.45


def test_neither_colour_nor_place_tells_the_classes_apart(full):
    bright = full.train_images.mean((1, 2, 3))
    means = [bright[full.train_labels == label].mean() for label in range(10)]
    assert np.ptp(means) < 15
    assert bright.std() > 20


def test_a_figure_stands_anywhere_about_the_middle(full):
    circles = full.train_images[full.train_labels == NAMES.index("circle")].astype(float)
    ground = circles[:, :, :3, :3].mean((2, 3), keepdims=True)  # no circle reaches into a corner
    covered = np.abs(circles - ground).sum(1) > 150
    for axis in (1, 2):
        places = np.arange(32)[:, None] if axis == 1 else np.arange(32)
        centres = (covered * places).sum((1, 2)) / covered.sum((1, 2))
        assert centres.mean() == pytest.approx(15.5, abs=0.5)
        assert 2 < centres.std() < 4


def test_every_image_shows_a_figure_that_stands_out(full):
    """The figure differs from the ground by 80 or more in each colour: far more than the noise does."""
    spread = full.train_images.reshape(5000, 3, -1).std(2)
    assert spread.min() > 20


def distances(name, turn=0.0):
    """The class's signed distance on a fine grid, 24 pixels wide, for a figure of size 10 turned by `turn` degrees."""
    y, x = np.mgrid[-12:12:97j, -12:12:97j]
    turn = np.radians(turn)
    return _CLASSES[name][0](np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x, np.float64(10))


SYMMETRY = {"circle": 37, "ring": 37, "square": 90, "triangle": 120, "cross": 90, "star": 72, "checker": 90}


@pytest.mark.parametrize(("name", "degrees"), SYMMETRY.items())
def test_a_figure_has_its_symmetry(name, degrees):
    np.testing.assert_allclose(distances(name, degrees), distances(name), atol=1e-9)
    if name not in ("circle", "ring"):
        assert np.abs(distances(name, degrees / 2) - distances(name)).max() > 1


AREAS = {  # of size 10, in square pixels
    "circle": np.pi * 100,
    "ring": np.pi * (10**2 - 5**2),
    "square": 16**2,
    "triangle": 3 * np.sqrt(3) * 6**2,  # of inner radius 6
    "cross": 2 * 20 * 6 - 6**2,
    "star": 5 * 10 * 4 * np.sin(np.pi / 5),  # ten triangles between the radii 10 and 4
}


@pytest.mark.parametrize(("name", "area"), AREAS.items())
def test_a_figure_covers_its_area(name, area):
    cell = (24 / 96) ** 2
    assert np.sum(np.clip(0.5 - 4 * distances(name), 0, 1)) * cell == pytest.approx(area, rel=0.02)


@pytest.mark.parametrize("name", ["horizontal stripes", "vertical stripes", "diagonal stripes", "checker"])
def test_a_pattern_covers_half(name):
    y, x = np.mgrid[-10:10:200j, -10:10:200j]  # two periods
    assert np.mean(_CLASSES[name][0](x, y, np.float64(10)) < 0) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_turned_as_far_to_one_side_as_to_the_other(name, full):
    """So that a mirrored image is one of its class: its mean spectrum is nearly its own mirror image."""
    images = full.train_images[full.train_labels == NAMES.index(name)].astype(np.float64).mean(1)
    images -= images.mean((1, 2), keepdims=True)
    spectrum = np.abs(np.fft.fft2(images)).mean(0)[:6, :]
    mirrored = np.roll(spectrum[:, ::-1], 1, 1)
    middle = spectrum[1:, 1:]
    assert np.abs(middle - mirrored[1:, 1:]).mean() < 0.25 * middle.mean()


def test_stripes_run_the_way_their_class_says(full):
    """The strongest frequency lies upright for horizontal stripes, across for vertical ones, in both for diagonal ones."""
    angles = {}
    for name in NAMES[6:9]:
        images = full.train_images[full.train_labels == NAMES.index(name)].astype(np.float64)
        spectrum = np.abs(np.fft.fft2(images - images.mean((2, 3), keepdims=True))).sum(1)[:, :16, :]
        rows, columns = np.unravel_index(spectrum.reshape(len(images), -1).argmax(1), spectrum.shape[1:])
        angles[name] = np.degrees(np.arctan2(rows, np.minimum(columns, 32 - columns)))
    assert np.median(angles["horizontal stripes"]) == pytest.approx(90, abs=8)
    assert np.median(angles["vertical stripes"]) == pytest.approx(0, abs=8)
    assert np.median(angles["diagonal stripes"]) == pytest.approx(45, abs=8)
