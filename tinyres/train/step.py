"""The training step to read: forward, backward, update. `resident` has the same for backends that capture it as a graph."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres import functional as F
from tinyres.errors import NonFiniteError
from tinyres.guards import detect_anomaly
from tinyres.kernels.arrays import array_module
from tinyres.nn import Module
from tinyres.optim import EMA, SGD, GradScaler, Optimizer, clip_grad_norm_
from tinyres.random import default_generator
from tinyres.tensor import Tensor
from tinyres.train.evaluation import count_wrong


class StepFailed(Exception):
    """A loss or a gradient is not finite. ``passes`` runs forward and backward again, to find out where."""

    def __init__(self, passes: Callable[[], object]) -> None:
        super().__init__()
        self.passes = passes


class Step:
    """A step on a batch of images on the host. ``clip``: the largest norm of the gradients, or None. ``ema``: weights to be
    averaged after each step, or None. ``dtype``: that of the images that the model is fed.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        scaler: GradScaler,
        *,
        device: str,
        dtype: str = "float32",
        label_smoothing: float = 0.0,
        clip: float | None = None,
        ema: EMA | None = None,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.device, self.dtype = device, dtype
        self.label_smoothing, self.clip, self.ema = label_smoothing, clip, ema

    @property
    def plain(self) -> str:
        """What this step has and that of `resident` has not, or ""."""
        return "" if isinstance(self.optimizer, SGD) and not (self.clip or self.ema) else "AdamW, clipping or EMA"

    def run(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """The mean loss of the batch, and how many images were taken for another class; of a blend, for another one than its
        largest part. ``labels`` are integers (N,) or probabilities (N, K).

        Raises `StepFailed`, and updates nothing, if the loss or a gradient is not finite.
        """
        random = default_generator().bit_generator.state
        x, y = Tensor(images).to(self.device).to(self.dtype), Tensor(labels).to(self.device)
        logits = self.model(x)
        loss = self._loss(logits, y)
        self.optimizer.zero_grad()
        self.scaler.backward(loss)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not (np.isfinite(loss.item()) and (self.scaler.enabled or all(map(finite, gradients)))):
            default_generator().bit_generator.state = random
            raise StepFailed(lambda: self._loss(self.model(x), y).backward())
        if self.clip is not None:
            clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < 1:  # not for its size: no gradient was finite at any scale
            raise StepFailed(lambda: self.scaler.backward(self._loss(self.model(x), y)))
        if self.ema:
            self.ema.update()
        return loss.item(), count_wrong(logits, labels if labels.ndim == 1 else labels.argmax(axis=1))

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)


def culprit(passes: Callable[[], object]) -> NonFiniteError:
    """Runs the passes of a step again, with every result checked; returns the error that names the operation."""
    try:
        with detect_anomaly():
            passes()
    except NonFiniteError as error:
        return error
    return NonFiniteError("the loss or a gradient is not finite", "CrossEntropy")


def finite(array: Any) -> bool:
    """Whether all of its elements are."""
    return bool(array_module(array).isfinite(array).all())
