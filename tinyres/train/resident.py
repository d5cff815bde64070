"""Training and testing entirely on the device: data, learning rates, counters and sums all live where the kernels run.

Then nothing passes between host and device within an epoch, and the whole step (augmentation, forward, backward, update,
bookkeeping) can be captured and replayed (`tinyres.captured`). On a GPU that is one launch per step instead of some 180,
each of which would cost Python and the driver more time than the GPU needs for its work. The same holds for the pass over a
batch of test images.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyres import functional as F
from tinyres.captured import NOT_ASKED, Captured
from tinyres.data.loader import PAD
from tinyres.device import to_dtype
from tinyres.errors import NonFiniteError
from tinyres.guards import detect_anomaly, no_grad
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module
from tinyres.models import StochasticBlock
from tinyres.nn import Dropout, Module
from tinyres.nn.module import evaluating
from tinyres.optim import GradScaler, Optimizer
from tinyres.tensor import Tensor
from tinyres.train.evaluation import Evaluation

LOOK = 0.1  # seconds: the host reads the sums ever more rarely, until this much time passes in between


class Sums(NamedTuple):
    """The sums of the current epoch, and whether a step failed."""

    step: int
    wrong: int
    loss: float  # summed over the images
    bad: bool


class Batches:
    """uint8 ``images`` (N, C, H, W) and ``labels`` (N,) on the device, and one batch of them: ``x``, channels-last, of
    (image / 255 - mean) * scale in ``dtype``, and ``y``.

    `next` reads which batch it is from the arrays ``order`` (N,), the number of the image at each position, and ``step``.
    """

    def __init__(
        self, xp: Any, images: Any, labels: Any, size: int, mean: Any, scale: Any, dtype: Any = np.float32, first: int = 0
    ) -> None:
        n, c, h, w = images.shape
        self.images, self.labels = xp.asarray(images, order="C"), xp.asarray(labels, "i8", order="C")
        self.mean, self.scale = (xp.broadcast_to(xp.asarray(v, "f4"), (c, h, w)).copy() for v in (mean, scale))
        self.x = xp.empty((size, h, w, c), to_dtype(dtype)).transpose(0, 3, 1, 2)
        self.y = xp.empty(size, "i8")
        self.order = xp.asarray((np.arange(n) + first) % n, "i4")
        self.step, self.epoch = (xp.zeros((), "i4") for _ in range(2))

    def next(self, pad: int = 0, seed: int = 0) -> None:
        """Fills ``x`` and ``y``. With ``pad``, crops and mirrors by random numbers of the seed, ``epoch`` and position."""
        dispatch.current().next_batch(
            self.images, self.labels, self.order, self.step, self.epoch, self.x, self.y, self.mean, self.scale, pad, seed
        )


class ResidentStep:
    """Trains ``model``, whose arrays are on the device, on uint8 ``images`` (N, C, H, W) and ``labels`` (N,).

    An image is fed as (image / 255 - mean) * scale in ``dtype``. With ``augment`` it is cropped and mirrored by random
    numbers that depend only on the seed, the epoch and its position in the epoch. ``scaler``, if enabled, scales the loss.

    ``reason`` says why the step is not captured; it is "" if it is, or will be.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        mean: Any,
        scale: Any,
        augment: bool = True,
        seed: int = 0,
        dtype: Any = np.float32,
        scaler: GradScaler | None = None,
        label_smoothing: float = 0.0,
        capture: bool = True,
    ) -> None:
        self.model, self.optimizer, self.label_smoothing = model, optimizer, label_smoothing
        self.parameters = list(model.parameters())
        self.xp = xp = array_module(self.parameters[0].data)
        self.batches = Batches(xp, images, labels, batch_size, mean, scale, dtype)
        self.pad, self.seed, self.scaler = PAD if augment else 0, seed, scaler or GradScaler(enabled=False)
        self.wrong, self.bad = (xp.zeros((), "i4") for _ in range(2))
        self.loss = xp.zeros((), "f8")
        self.one = xp.ones((), "f4")
        self.lr, self.lrs = xp.zeros((), "f4"), xp.zeros(1, "f4")
        optimizer.param_groups[0]["lr"] = self.lr
        reason = "" if capture else NOT_ASKED
        if capture and any(isinstance(module, Dropout) and module.p > 0 for module in model.modules()):
            reason = "dropout draws its masks on the host"
        if capture and any(isinstance(module, StochasticBlock) for module in model.modules()):
            reason = "stochastic depth draws on the host which branches are left out"
        self.captured = Captured(self._step, reason)

    @property
    def reason(self) -> str:
        """Why the step is not captured: see `Captured`."""
        return self.captured.reason

    def start(self, epoch: int, sums: Sums, lrs: list[float], order: np.ndarray) -> None:
        """Begins an epoch, or continues it after ``sums.step`` steps; ``lrs`` are the learning rates of all its steps."""
        if len(self.lrs) != len(lrs):
            self.lrs = self.xp.zeros(len(lrs), "f4")
            self.captured.forget()
        for target, value in (
            (self.lrs, np.array(lrs, "f4")),
            (self.batches.order, order.astype("i4")),
            (self.batches.epoch, epoch),
            (self.batches.step, sums.step),
            (self.wrong, sums.wrong),
            (self.loss, sums.loss),
            (self.bad, 0),
        ):
            target[...] = self.xp.asarray(value, target.dtype)

    def run(self, steps: int) -> None:
        """Runs ``steps`` steps; on a GPU they continue after this returns."""
        for _ in range(steps):
            self.captured()

    def sums(self) -> Sums:
        """Waits for the running steps, and reads the sums."""
        return Sums(int(self.batches.step), int(self.wrong), float(self.loss), bool(self.bad))

    def passes(self) -> None:
        """Forward and backward of the next step, without the update: to find out what went wrong in it."""
        self.batches.next(self.pad, self.seed)
        self._loss(self.model(Tensor(self.batches.x))).backward()

    def _loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.batches.y, label_smoothing=self.label_smoothing)

    def _step(self) -> None:
        kernels, batches = dispatch.current(), self.batches
        kernels.begin_step(self.lrs, batches.step, self.lr)
        batches.next(self.pad, self.seed)
        logits = self.model(Tensor(batches.x))
        loss = self._loss(logits)
        self.optimizer.zero_grad()
        if self.scaler.enabled:
            self.scaler.backward(loss)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward(self.one)
            grads = [p.grad for p in self.parameters if p.grad is not None]
            kernels.note(kernels.unscale(grads, self.one), self.bad)
            self.optimizer.step(skip=self.bad)
        kernels.count_wrong(logits.data, batches.y, self.wrong)
        kernels.end_step(loss.data, self.bad, len(batches.y), self.loss, batches.step)


class ResidentEvaluation:
    """`evaluate` of ``model``, whose arrays are on the device, on uint8 ``images`` (N, C, H, W) and ``labels`` (N,).

    The images are uploaded once. The pass over a full batch is captured, and so is the pass over the last images, if they
    fill no batch. The graphs see what training changes in place: weights and running statistics. ``reason``: see `Captured`.
    """

    def __init__(
        self, model: Module, images: Any, labels: Any, *, mean: Any, scale: Any, batch_size: int = 250, capture: bool = True
    ) -> None:
        self.model, self.count = model, len(images)
        xp = array_module(next(model.parameters()).data)
        self.wrong, self.bad = (xp.zeros((), "i4") for _ in range(2))
        self.loss, self.one = xp.zeros((), "f8"), xp.ones((), "f4")
        self.parts: list[tuple[int, Batches, Captured]] = []  # how many batches, where they come from, the pass over one
        times, rest = divmod(self.count, batch_size)
        for many, size, first in ((times, batch_size, 0), (1, rest, self.count - rest)):
            if many and size:
                batches = Batches(xp, images, labels, size, mean, scale, first=first)
                images, labels = batches.images, batches.labels
                work = functools.partial(self._pass, batches)
                self.parts.append((many, batches, Captured(work, "" if capture else NOT_ASKED)))

    @property
    def reason(self) -> str:
        return next((captured.reason for _, _, captured in self.parts if captured.reason), "")

    def run(self, on_batch: Callable[[int, int], None] | None = None) -> Evaluation:
        """Returns and raises what `evaluate` does. ``on_batch(done, total)`` is called after 1, 2, 4, ... batches, at most a
        fraction of a second apart.
        """
        for target in (self.wrong, self.bad, self.loss, *(batches.step for _, batches, _ in self.parts)):
            target[...] = 0
        with evaluating(self.model), no_grad():
            self._run(on_batch)
        return Evaluation(float(self.loss) / self.count, 100 * int(self.wrong) / self.count, self.count)

    def _run(self, on_batch: Callable[[int, int], None] | None) -> None:
        done, total, group = 0, sum(many for many, _, _ in self.parts), 1
        for many, batches, captured in self.parts:
            end = done + many
            while done < end:
                began, before = time.perf_counter(), done
                done = min(done + group, end)
                for _ in range(done - before):
                    captured()
                if self.bad:  # reading it waits for the batches
                    self._name_the_culprit(batches)
                group *= 2 if time.perf_counter() - began < LOOK else 1
                if on_batch:
                    on_batch(done, total)

    def _pass(self, batches: Batches) -> None:
        kernels = dispatch.current()
        batches.next()
        logits = self.model(Tensor(batches.x))
        loss = F.cross_entropy(logits, batches.y).data
        kernels.note(kernels.unscale([loss], self.one), self.bad)
        kernels.count_wrong(logits.data, batches.y, self.wrong)
        kernels.end_step(loss, self.bad, len(batches.y), self.loss, batches.step)

    def _name_the_culprit(self, batches: Batches) -> None:
        """After a bad batch none is counted and ``step`` no longer moves, so ``batches`` still holds that one."""
        with detect_anomaly():
            logits = self.model(Tensor(batches.x))
        raise NonFiniteError(f"the loss is {F.cross_entropy(logits, batches.y).item()}", op="CrossEntropy")
