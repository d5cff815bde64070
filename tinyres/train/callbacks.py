"""Callbacks: what a `Trainer` calls while it trains. ``examples/train_loop.py`` has the loop itself, for all else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyres.errors import UsageError

Line = dict[str, Any]


class Callback:
    """Base: overwrite what you need. All attributes of the `Trainer` may be read; `Trainer.stop` ends the run.

    The methods are called in the order in which the callbacks were given. What one raises ends the run, with the checkpoint
    of the last epoch in place.
    """

    def on_fit_start(self, trainer: Any) -> None:
        """Before the first step, when a resumed run is where it was."""

    def on_step_end(self, trainer: Any) -> None:
        """After each step; ``trainer.state`` has the step's number and the sums of the epoch. A step of the CUDA backends is
        then not captured as a graph.
        """

    def on_epoch_end(self, trainer: Any, line: Line) -> None:
        """After each epoch, tested and saved; ``line`` is that of ``metrics.jsonl``."""

    def on_fit_end(self, trainer: Any) -> None:
        """After the last epoch. Not called if the run was interrupted."""


class _EachEpoch(Callback):
    """A function as a callback."""

    def __init__(self, function: Callable[[Any, Line], object]) -> None:
        self.function = function

    def on_epoch_end(self, trainer: Any, line: Line) -> None:
        self.function(trainer, line)


def as_callback(given: Any) -> Callback:
    """A callback, or a function that is called as `Callback.on_epoch_end`. Raises `UsageError` for anything else."""
    if isinstance(given, Callback):
        return given
    if callable(given) and not isinstance(given, type):
        return _EachEpoch(given)
    got = given.__name__ if isinstance(given, type) else type(given).__name__
    raise UsageError(
        f"callbacks has a {got}; it takes objects of tr.train.Callback and functions f(trainer, line), called after an epoch"
    )


class TensorBoard(Callback):
    """Writes the numbers of ``metrics.jsonl`` as events for TensorBoard (by tensorboardX), into ``folder``: by default
    ``tensorboard`` in the run's folder. Then ``tensorboard --logdir runs`` shows them.

    When a run begins or goes on, the events are written anew from the lines of the run, so that none is there twice.
    Raises `UsageError` if tensorboardX is missing, or without a folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        try:
            import tensorboardX
        except ImportError:
            raise UsageError("TensorBoard's events are written by tensorboardX: pip install tensorboardX") from None
        self.folder, self.open = folder, tensorboardX.SummaryWriter
        self.writer: Any = None

    def on_fit_start(self, trainer: Any) -> None:
        folder = self.folder or (trainer.folder.path / "tensorboard" if trainer.folder else None)
        if folder is None:
            raise UsageError("TensorBoard needs a folder: TensorBoard('logs'), or a run with out=...")
        for old in Path(folder).glob("events.out.tfevents.*.tinyres"):
            old.unlink()
        self.writer = self.open(str(folder), filename_suffix=".tinyres")
        for line in trainer.state.lines:
            self._write(line)

    def on_epoch_end(self, trainer: Any, line: Line) -> None:
        self._write(line)

    def on_fit_end(self, trainer: Any) -> None:
        self.writer.close()

    def _write(self, line: Line) -> None:
        for name, value in line.items():
            if name != "epoch":  # train_loss as train/loss: then TensorBoard makes a group of it
                self.writer.add_scalar(re.sub("^(train|test|validation)_", r"\1/", name), value, line["epoch"])
        self.writer.flush()
