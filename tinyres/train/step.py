"""The training step to read: forward, backward, update. `resident` has the same for data that lie on a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres import functional as F
from tinyres.captured import NOT_ASKED, Captured
from tinyres.errors import NonFiniteError
from tinyres.guards import detect_anomaly
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module
from tinyres.nn import Module
from tinyres.optim import EMA, SGD, GradScaler, Optimizer, clip_grad_norm_
from tinyres.random import default_generator
from tinyres.tensor import Tensor


class StepFailed(Exception):
    """A loss or a gradient is not finite. ``passes`` runs forward and backward again, to find out where."""

    def __init__(self, passes: Callable[[], object]) -> None:
        super().__init__()
        self.passes = passes


class Step:
    """A step on a batch of images on the host. Its passes, and with SGD the update, are captured where the backend can (see
    `tinyres.captured`). ``clip``: the largest norm of the gradients, or None. ``ema``: weights to be averaged after each
    step, or None. ``dtype``: that of the images that the model is fed.
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
        capture: bool = True,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.device, self.dtype = device, dtype
        self.label_smoothing, self.clip, self.ema = label_smoothing, clip, ema
        xp = array_module(next(model.parameters()).data)
        self.wrong, self.one = xp.zeros((), "i4"), xp.ones((), "f4")
        self.updates = isinstance(optimizer, SGD) and clip is None  # else the host does that: it looks at numbers in between
        self.captured = Captured(self._step, "" if capture else NOT_ASKED)

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
        classes = Tensor(labels if labels.ndim == 1 else labels.argmax(axis=1)).to(self.device)
        x, y = Tensor(images).to(self.device).to(self.dtype), Tensor(labels).to(self.device)
        before = int(self.wrong)
        loss, bad = self.captured(x, classes, None if labels.ndim == 1 else y)
        if bad.item():
            default_generator().bit_generator.state = random
            raise StepFailed(lambda: self._loss(self.model(x), y).backward())
        if not self.updates:
            if self.clip is not None:
                clip_grad_norm_(self.model.parameters(), self.clip)
            self._update(None)
        if self.scaler.get_scale() < 1:  # not for its size: no gradient was finite at any scale
            raise StepFailed(lambda: self.scaler.backward(self._loss(self.model(x), y)))
        if self.ema:
            self.ema.update()
        return loss.item(), int(self.wrong) - before

    def _step(self, x: Tensor, classes: Tensor, blend: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss, and 1 where it or a gradient is not finite; then nothing is updated. Adds to ``wrong``."""
        kernels = dispatch.current()
        logits = self.model(x)
        loss = self._loss(logits, classes if blend is None else blend)
        self.optimizer.zero_grad()
        self.scaler.backward(loss)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        checked = [loss.data, *([] if self.scaler.enabled else gradients)]
        bad = kernels.unscale(checked, self.one)
        kernels.count_wrong(logits.data, classes.data, self.wrong)
        if self.updates:
            self._update(bad)
        return loss, Tensor(bad)

    def _update(self, skip: Any) -> None:
        if self.scaler.enabled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step(skip=skip)

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
