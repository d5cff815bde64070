"""What may be done to a batch of normalised images besides cropping and mirroring: mixup and random erasing.

Both are in NumPy and run in the loader's thread. The random numbers come from the caller, so that a batch depends on the
seed and its position alone.
"""

import math

import numpy as np


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels (N,) as probabilities, float32 (N, classes)."""
    return np.eye(classes, dtype=np.float32)[labels]


def mixup(x: np.ndarray, y: np.ndarray, alpha: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blends each image with another one of the batch, and their labels in the same proportion (Zhang et al. 2018,
    arXiv 1710.09412, section 2):

        x'[n] = share x[n] + (1 - share) x[p(n)]
        y'[n] = share y[n] + (1 - share) y[p(n)]

    x: float32 (N, C, H, W). y: probabilities, float32 (N, K). p is a random permutation of the batch, and ``share`` one
    number for the batch, drawn from Beta(alpha, alpha): with 1, anything from 0 to 1; near 0, mostly close to 0 or 1.
    """
    share, partners = np.float32(random.beta(alpha, alpha)), random.permutation(len(x))
    return share * x + (1 - share) * x[partners], share * y + (1 - share) * y[partners]


AREA = 0.02, 0.4  # of the image, and
ASPECT = 0.3  # to 1 / 0.3, height by width: as in the authors' code, github.com/zhunzhong07/Random-Erasing
TRIES = 100


def random_erasing(x: np.ndarray, probability: float, random: np.random.Generator) -> np.ndarray:
    """Sets a rectangle of each image to 0, the mean colour, with this probability (Zhong et al. 2020, arXiv 1708.04896,
    which fills it with noise; the authors' code fills it with the mean, too).

    x: float32 (N, C, H, W), changed in place and returned. The area is from 2 to 40 % of the image, the height from 0.3
    to 3.3 times the width; a rectangle that does not fit is drawn anew.
    """
    height, width = x.shape[2:]
    for n in np.flatnonzero(random.random(len(x)) < probability):
        for _ in range(TRIES):
            area, aspect = random.uniform(*AREA) * height * width, random.uniform(ASPECT, 1 / ASPECT)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                i, j = random.integers(0, height - h, endpoint=True), random.integers(0, width - w, endpoint=True)
                x[n, :, i : i + h, j : j + w] = 0
                break
    return x
