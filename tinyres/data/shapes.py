"""A data set that is generated, not downloaded: ten kinds of figures and patterns in random colours, with noise.

It is for tests and first steps. A ResNet-20 learns it in minutes; a linear model cannot, since neither position nor
colour tells the classes apart. Each figure is a signed distance d(x, y, r), in pixels, negative inside (0, 0 is
its centre, r its size); a pixel is covered by 1/2 - d, cut to 0..1.
"""

from collections.abc import Callable

import numpy as np

from tinyres.data.dataset import Dataset
from tinyres.errors import UsageError

SIZE = 32  # pixels
NOISE = np.float32(20)  # standard deviation, where 255 is white
CONTRAST = 80  # least difference of figure and ground in each colour, of 255

Array = np.ndarray


def shapes(seed: int = 0, n_train: int = 5000, n_test: int = 1000) -> Dataset:
    """Ten classes of 32x32 colour images, equally many of each, in random order; the same seed gives the same images.

    Training and test images are drawn independently: the number of one does not change the other. An image that is
    mirrored left to right stays in its class, so the usual augmentation applies. Raises `UsageError` for a negative seed
    or a number of images below 1.
    """
    if seed < 0 or n_train < 1 or n_test < 1:
        raise UsageError(f"shapes(seed={seed}, n_train={n_train}, n_test={n_test}): expected seed >= 0 and both n >= 1")
    train, test = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    return Dataset("shapes", *_draw(train, n_train), *_draw(test, n_test), tuple(_CLASSES))


def _draw(random: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Images uint8 (count, 3, 32, 32) and their labels int64 (count,)."""
    labels = random.permutation(np.arange(count, dtype=np.int64) % len(_CLASSES))
    covered = np.empty((count, 1, SIZE, SIZE), np.float32)
    for label, (distance, angle, spread) in enumerate(_CLASSES.values()):
        (chosen,) = np.nonzero(labels == label)
        column = (len(chosen), 1, 1)
        left, top = random.uniform(-5, 5, (2, *column)) + (SIZE - 1) / 2
        turn = random.choice([-1, 1], column) * np.radians(angle + random.uniform(-spread, spread, column))
        across, down = np.arange(SIZE) - left, np.arange(SIZE)[:, None] - top
        x, y = np.cos(turn) * across + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * across
        covered[chosen, 0] = np.clip(0.5 - distance(x, y, random.uniform(7, 12, column)), 0, 1)
    ground = random.integers(0, 256, (count, 3, 1, 1))
    figure = (ground + random.integers(CONTRAST, 256 - CONTRAST, ground.shape, endpoint=True)) % 256
    images = covered * (figure - ground).astype(np.float32)
    images += ground
    images += NOISE * random.standard_normal(images.shape, np.float32)
    return np.clip(np.rint(images, out=images), 0, 255, out=images).astype(np.uint8), labels


def _circle(x: Array, y: Array, r: Array) -> Array:
    return np.hypot(x, y) - r


def _ring(x: Array, y: Array, r: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r


def _square(x: Array, y: Array, r: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8 * r


def _triangle(x: Array, y: Array, r: Array) -> Array:
    """The inside of three lines, each 0.6 r from the centre."""
    return np.maximum(y, np.abs(x) * np.sqrt(0.75) - y / 2) - 0.6 * r


def _cross(x: Array, y: Array, r: Array) -> Array:
    """The union of a horizontal and a vertical bar."""
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - r, y - 0.3 * r), np.maximum(x - 0.3 * r, y - r))


def _star(x: Array, y: Array, r: Array) -> Array:
    """Five points. Folded along its axes of symmetry it is one edge: from the tip (r, 0) to a notch at 36 degrees, 0.4 r."""
    angle = np.abs((np.arctan2(y, x) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, aside = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    notch_x, notch_y = 0.4 * np.cos(np.pi / 5), 0.4 * np.sin(np.pi / 5)
    return ((along - r) * notch_y + aside * (1 - notch_x)) / np.hypot(notch_y, 1 - notch_x)


def _stripes(x: Array, y: Array, r: Array) -> Array:
    """Stripes along x, r / 2 wide and as far apart."""
    return np.abs(y % r - r / 2) - r / 4


def _checker(x: Array, y: Array, r: Array) -> Array:
    """Inside a stripe of one direction and outside those of the other."""
    rows, columns = _stripes(x, y, r), _stripes(y, x, r)
    return np.minimum(np.maximum(rows, -columns), np.maximum(-rows, columns))


# Class: its distance, and its rotation in degrees, to either side: the first number, plus or minus up to the second.
_CLASSES: dict[str, tuple[Callable[[Array, Array, Array], Array], float, float]] = {
    "circle": (_circle, 0, 0),
    "ring": (_ring, 0, 0),
    "square": (_square, 0, 180),
    "triangle": (_triangle, 0, 180),
    "cross": (_cross, 0, 180),
    "star": (_star, 0, 180),
    "horizontal stripes": (_stripes, 0, 12),
    "vertical stripes": (_stripes, 90, 12),
    "diagonal stripes": (_stripes, 45, 12),
    "checker": (_checker, 0, 12),
}
