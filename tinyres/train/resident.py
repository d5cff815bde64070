"""A training step that runs by itself on the device: data, learning rates, counters and sums all lie where the kernels run.

Then nothing passes between host and device within an epoch, and the whole step (augmentation, forward, backward, update,
bookkeeping) can be captured once as a CUDA graph and replayed: one launch a step instead of some 250, each of which would
cost Python and the driver more time than the GPU needs for the work.
"""

from typing import Any, NamedTuple

import numpy as np

from tinyres import functional as F
from tinyres.data.loader import PAD
from tinyres.device import to_dtype
from tinyres.kernels import dispatch
from tinyres.kernels.arrays import array_module
from tinyres.nn import Dropout, Module
from tinyres.optim import SGD, GradScaler
from tinyres.tensor import Tensor

BACKENDS = ("cupy", "cuda-emulated")  # whose kernels do all that a step needs
WARM_UP = 2  # steps before the capture: they compile, allocate and fill the tables that a captured step may not


class Sums(NamedTuple):
    """Of the epoch that is running, and whether a step could not be done."""

    step: int
    wrong: int
    loss: float  # summed over the images
    bad: bool


class ResidentStep:
    """Trains ``model``, whose arrays are on the device, on uint8 ``images`` (N, C, H, W) and ``labels`` (N,).

    An image is fed as (image / 255 - mean) * scale in ``dtype``, with ``augment`` randomly cropped and mirrored, by random
    numbers that depend on the seed, the epoch and its place in the epoch alone.  ``scaler``, if enabled, scales the loss.

    ``reason`` says why the step is not captured, and is "" if it is (or will be, once it has run ``WARM_UP`` times)."""

    def __init__(
        self, model: Module, optimizer: SGD, images: np.ndarray, labels: np.ndarray, batch_size: int, *, mean: Any,
        scale: Any, augment: bool = True, seed: int = 0, dtype: Any = np.float32, scaler: GradScaler | None = None,
        capture: bool = True,
    ) -> None:  # fmt: skip
        from tinyres.kernels.cuda import launch

        self.model, self.optimizer = model, optimizer
        self.parameters = list(model.parameters())
        self.xp = xp = array_module(self.parameters[0].data)
        self.device = launch.device(xp)
        self.images, self.labels = xp.asarray(images), xp.asarray(labels, "i8")
        self.mean, self.scale = (xp.asarray(np.broadcast_to(v, images.shape[1:]).copy(), "f4") for v in (mean, scale))
        self.augment, self.seed, self.scaler = augment, seed, scaler or GradScaler(enabled=False)
        n, c, h, w = images.shape
        self.order = xp.arange(n, dtype="i4")
        self.x = xp.empty((batch_size, h, w, c), to_dtype(dtype)).transpose(0, 3, 1, 2)
        self.y = xp.empty(batch_size, "i8")
        self.step, self.epoch, self.wrong, self.bad = (xp.zeros((), "i4") for _ in range(4))
        self.loss = xp.zeros((), "f8")
        self.one = xp.ones((), "f4")
        self.lr, self.lrs = xp.zeros((), "f4"), xp.zeros(1, "f4")
        optimizer.param_groups[0]["lr"] = self.lr
        self.graph: Any = None
        self.warm = 0
        dropout = any(isinstance(module, Dropout) and module.p > 0 for module in model.modules())
        self.reason = "" if capture else "not asked for"
        if capture and dropout:
            self.reason = "dropout draws its masks on the host"

    def start(self, epoch: int, sums: Sums, lrs: list[float], order: np.ndarray) -> None:
        """Begins an epoch, or goes on in it after ``sums.step`` steps; ``lrs`` are those of all its steps."""
        if len(self.lrs) != len(lrs):
            self.lrs, self.graph, self.warm = self.xp.zeros(len(lrs), "f4"), None, 0
        for target, value in (
            (self.lrs, np.array(lrs, "f4")), (self.order, order.astype("i4")), (self.epoch, epoch), (self.step, sums.step),
            (self.wrong, sums.wrong), (self.loss, sums.loss), (self.bad, 0),
        ):  # fmt: skip
            target[...] = self.xp.asarray(value, target.dtype)

    def run(self, steps: int) -> None:
        """Runs so many steps; on a GPU they go on after this returns."""
        for _ in range(steps):
            if self.reason:
                self._step()
            elif self.graph:
                self.graph.replay()
            else:
                self._warm_up()

    def sums(self) -> Sums:
        """Waits for the steps that run, and reads the sums."""
        return Sums(int(self.step), int(self.wrong), float(self.loss), bool(self.bad))

    def passes(self) -> None:
        """Forward and backward of the next step, without the update: to look for what went wrong in it."""
        self._next_batch()
        F.cross_entropy(self.model(Tensor(self.x)), self.y).backward()

    # --- the step -----------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """The first steps run as they are, in the memory of the graph to come; then one is captured, and replayed."""
        if self.warm == 0:
            self.arena = self.device.Graph()
        if self.warm < WARM_UP:
            with self.arena.memory():
                self._step()
            self.warm += 1
            return
        try:
            with self.arena.capture():
                self._step()
        except Exception as error:  # whatever CuPy, the driver or a kernel has against it
            self.reason = f"the capture failed: {error}"
            self._step()
            return
        self.graph = self.arena
        self.graph.replay()

    def _next_batch(self) -> None:
        from tinyres.kernels.cuda.augment import next_batch

        next_batch(self.images, self.labels, self.order, self.step, self.epoch, self.x, self.y, mean=self.mean,
                   scale=self.scale, pad=PAD if self.augment else 0, seed=self.seed)  # fmt: skip

    def _step(self) -> None:
        from tinyres.kernels.cuda.loss import count_wrong
        from tinyres.kernels.cuda.step import begin_step, end_step, note

        begin_step(self.lrs, self.step, self.lr)
        self._next_batch()
        logits = self.model(Tensor(self.x))
        loss = F.cross_entropy(logits, self.y)
        self.optimizer.zero_grad()
        if self.scaler.enabled:
            self.scaler.backward(loss)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward(self.one)
            grads = [p.grad for p in self.parameters if p.grad is not None]
            note(dispatch.current().unscale(grads, self.one), self.bad)
            self.optimizer.step(skip=self.bad)
        count_wrong(logits.data, self.y, self.wrong)
        end_step(loss.data, self.bad, len(self.y), self.loss, self.step)
