"""Loss and error of a network on images that it was not trained on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyres import functional as F
from tinyres.data import Loader
from tinyres.errors import NonFiniteError
from tinyres.guards import detect_anomaly, no_grad
from tinyres.kernels import dispatch
from tinyres.kernels.reference import crop_flip
from tinyres.nn import Module
from tinyres.nn.module import evaluating
from tinyres.tensor import Tensor


class Evaluation(NamedTuple):
    """Mean cross-entropy, top-1 error in per cent, and the number of images."""

    loss: float
    error: float
    images: int


def evaluate(
    model: Module,
    images: np.ndarray,
    labels: np.ndarray,
    mean: Any = 0.0,
    scale: Any = 1.0,
    batch_size: int = 250,
    on_batch: Callable[[int, int], None] | None = None,
    confusion: np.ndarray | None = None,
) -> Evaluation:
    """Loss and error of ``model`` in evaluation mode on uint8 images (N, C, H, W), fed (images / 255 - mean) * scale.

    ``on_batch(done, total)`` is called after each batch. To ``confusion``, integers (K, K), is added how many images of each
    class (row) were taken for each class (column). Every module's mode is left as it was. At a NaN or an infinity,
    raises `NonFiniteError` with the operation that made it.
    """
    loss, wrong = 0.0, 0

    def judge(logits: Tensor, y: np.ndarray) -> float:
        nonlocal loss, wrong
        batch_loss = F.cross_entropy(logits, Tensor(y).to(logits.device)).item()
        loss += batch_loss * len(y)
        wrong += count_wrong(logits, y)
        if confusion is not None:
            np.add.at(confusion, (y, logits.numpy().argmax(axis=1)), 1)
        return batch_loss

    _each_batch(model, images, labels, mean, scale, batch_size, judge, on_batch)
    return Evaluation(loss / len(labels), 100 * wrong / len(labels), len(labels))


def predict(model: Module, images: np.ndarray, mean: Any = 0.0, scale: Any = 1.0, batch_size: int = 250) -> np.ndarray:
    """The probability of each class for each image, float32 (N, K): the softmax of what `evaluate` judges.

    Images, modes and errors as there.
    """
    found: list[np.ndarray] = []

    def keep(logits: Tensor, _: np.ndarray) -> float:
        found.append(np.exp(F.log_softmax(logits).numpy()))
        return float(found[-1].sum())

    _each_batch(model, images, np.zeros(len(images), np.int64), mean, scale, batch_size, keep)
    return np.concatenate(found)


def _each_batch(
    model: Module,
    images: np.ndarray,
    labels: np.ndarray,
    mean: Any,
    scale: Any,
    batch_size: int,
    use: Callable[[Tensor, np.ndarray], float],
    on_batch: Callable[[int, int], None] | None = None,
) -> None:
    """Calls ``use`` with the logits and the labels of each batch; the number that it returns must be finite."""
    device = next(model.parameters()).device
    kernel = dispatch.current().crop_flip if device == "cpu" else crop_flip  # (the loader's arrays are on the host)
    loader = Loader(images, labels, batch_size, shuffle=False, augment=False, mean=mean, scale=scale, crop_flip=kernel)
    with evaluating(model), no_grad(), np.errstate(all="ignore"):  # what is not finite is an error with a name
        for done, (batch, y) in enumerate(loader, 1):
            x = Tensor(batch).to(device)
            number = use(model(x), y)
            if not math.isfinite(number):
                with detect_anomaly():
                    model(x)
                raise NonFiniteError(f"the loss is {number}", op="CrossEntropy")
            if on_batch:
                on_batch(done, len(loader))


def count_wrong(logits: Tensor, labels: np.ndarray) -> int:
    """How many rows of logits (N, K) do not have their highest value at the label."""
    return int((logits.numpy().argmax(axis=1) != labels).sum())
