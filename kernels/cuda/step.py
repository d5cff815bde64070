"""The counters of a training step that runs by itself: `src/step.cu`."""

from tinyres.kernels.arrays import Array
from tinyres.kernels.cuda.launch import kernel


def begin_step(lrs: Array, step: Array, lr: Array) -> None:
    kernel("step", "begin_step")(1, 32, lrs, step, lr)


def note(found: Array, bad: Array) -> None:
    kernel("step", "note")(1, 32, found, bad)


def end_step(loss: Array, bad: Array, rows: int, total: Array, step: Array) -> None:
    kernel("step", "end_step")(1, 32, loss, bad, rows, total, step)
