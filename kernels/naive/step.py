"""What a training step does besides mathematics: its learning rate, and the sums that the host reads now and then."""

import math

from tinyres.kernels.arrays import Array


def begin_step(lrs: Array, step: Array, lr: Array) -> None:
    """lr = lrs[step]"""
    lr[...] = lrs[step]


def note(found: Array, bad: Array) -> None:
    """bad = 1 if found"""
    if found:
        bad[...] = 1


def end_step(loss: Array, bad: Array, rows: int, total: Array, step: Array) -> None:
    """total += rows loss, if the loss is finite, and step += 1; nothing after a step that failed."""
    if not bad:
        if math.isfinite(loss):
            total += rows * float(loss)
        step += 1
