"""The counters of a training step that runs by itself: `src/step.cu`. All arguments are arrays of shape () but ``lrs``."""

from typing import Any

from tinyres.kernels.cuda.launch import kernel


def begin_step(lrs: Any, step: Any, lr: Any) -> None:
    """lr = lrs[step]: float32 (steps,), int32, float32."""
    kernel("step", "begin_step")(1, 32, lrs, step, lr)


def note(found: Any, bad: Any) -> None:
    """bad = 1 if found: int32."""
    kernel("step", "note")(1, 32, found, bad)


def end_step(loss: Any, bad: Any, rows: int, total: Any, step: Any) -> None:
    """total += rows loss (float64, float32) unless the loss is not finite, and step += 1 (int32); nothing if bad (int32)."""
    kernel("step", "end_step")(1, 32, loss, bad, rows, total, step)
