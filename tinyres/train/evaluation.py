"""Loss and error of a network on images that it was not trained on."""

from collections.abc import Callable, Iterator
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
    for logits, y in _passes(model, images, labels, mean, scale, batch_size, on_batch):
        loss += F.cross_entropy(logits, Tensor(y).to(logits.device)).item() * len(y)
        wrong += count_wrong(logits, y)
        if confusion is not None:
            np.add.at(confusion, (y, logits.numpy().argmax(axis=1)), 1)
    return Evaluation(loss / len(labels), 100 * wrong / len(labels), len(labels))


def predict(
    model: Module,
    images: np.ndarray,
    mean: Any = 0.0,
    scale: Any = 1.0,
    batch_size: int = 250,
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The probability of each class for each image, float32 (N, K): the softmax of what `evaluate` judges."""
    labels = np.zeros(len(images), np.int64)
    passes = _passes(model, images, labels, mean, scale, batch_size, on_batch)
    return np.concatenate([np.exp(F.log_softmax(logits).numpy()) for logits, _ in passes])


def _passes(
    model: Module,
    images: np.ndarray,
    labels: np.ndarray,
    mean: Any,
    scale: Any,
    batch_size: int,
    on_batch: Callable[[int, int], None] | None,
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The logits of each batch, and its labels."""
    device = next(model.parameters()).device
    kernel = dispatch.current().crop_flip if device == "cpu" else crop_flip  # (the loader's arrays are on the host)
    loader = Loader(images, labels, batch_size, shuffle=False, augment=False, mean=mean, scale=scale, crop_flip=kernel)
    with evaluating(model), no_grad(), np.errstate(all="ignore"):  # what is not finite is an error with a name
        for done, (batch, y) in enumerate(loader, 1):
            x = Tensor(batch).to(device)
            logits = model(x)
            if not np.isfinite(logits.numpy()).all():
                with detect_anomaly():
                    model(x)
                raise NonFiniteError("the logits are not finite", op=type(model).__name__)
            yield logits, y
            if on_batch:
                on_batch(done, len(loader))


def count_wrong(logits: Tensor, labels: np.ndarray) -> int:
    """How many rows of logits (N, K) do not have their highest value at the label."""
    return int((logits.numpy().argmax(axis=1) != labels).sum())
