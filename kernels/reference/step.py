"""What a training step does besides mathematics: its learning rate, and the sums that the host reads now and then."""

from tinyres.kernels.arrays import Array, array_module


def begin_step(lrs: Array, step: Array, lr: Array) -> None:
    lr[...] = lrs[step]


def note(found: Array, bad: Array) -> None:
    if found:
        bad[...] = 1


def end_step(loss: Array, bad: Array, rows: int, total: Array, step: Array) -> None:
    if bad:
        return
    if array_module(loss).isfinite(loss):
        total += rows * loss.astype("f8")
    step += 1
