"""How far a training run is: the part of a checkpoint that is not arrays."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tinyres.errors import CheckpointError, UsageError
from tinyres.files import shown


@dataclass
class State:
    """How far a run is. The sums are those of the current epoch."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the current epoch
    images: int = 0
    wrong: int = 0
    loss: float = 0.0  # summed over the images
    seconds: float = 0.0
    lines: list = field(default_factory=list)  # those of metrics.jsonl
    generator: dict = field(default_factory=dict)  # of `tinyres.random`
    scaler: dict = field(default_factory=dict)  # of the loss, in float16
    changes: list = field(default_factory=list)  # of settings, on resuming: {"epoch": 3, "step": 0, "lr": [0.1, 0.05]}

    def text(self) -> dict[str, Any]:
        return asdict(self)

    def line(self, held_out: str, loss: float, error: float, lr: float) -> dict[str, Any]:
        """The line of ``metrics.jsonl`` for the current epoch, with the loss and error on the ``held_out`` images."""
        images = max(self.images, 1)
        return {
            "epoch": self.epoch + 1,
            "train_loss": self.loss / images,
            "train_error": 100 * self.wrong / images,
            f"{held_out}_loss": loss,
            f"{held_out}_error": error,
            "lr": lr,
            "images_per_second": round(images / max(self.seconds, 1e-9), 1),
            "seconds": round(self.seconds, 2),
        }

    def numbers(self) -> str:
        """The epoch so far, to be shown."""
        loss, error = self.loss / self.images, 100 * self.wrong / self.images
        return f"loss {loss:.4f}  error {error:.2f} %  {self.images / max(self.seconds, 1e-9):.0f} images/s"

    def seconds_left(self, epochs: int, steps: int, test_seconds: float) -> float:
        """Until a run of so many epochs of so many steps, each with a test, is at its end."""
        left = (epochs - self.epoch) * steps - self.step
        return left * self.seconds / self.step + (epochs - self.epoch) * test_seconds


def parse_state(text: Any, epochs: int, steps: int, line_keys: set[str]) -> State:
    """The state behind what `State.text` returned. Raises `CheckpointError` for one that such a run cannot be in."""
    try:
        state = State(**text)
    except TypeError as error:
        raise CheckpointError(f"it does not say where the run was ({error})") from error
    numbers = [number for line in state.lines if type(line) is dict for number in line.values()]
    if (
        any(type(getattr(state, item.name)) is not item.type for item in fields(state))
        or not (0 <= state.epoch <= epochs and 0 <= state.step <= steps and len(state.lines) == state.epoch)
        or not (0 <= state.wrong <= state.images < 2**53 and (state.images > 0) == (state.step > 0))
        or not all(math.isfinite(number) for number in (state.loss, state.seconds))
        or any(type(line) is not dict or set(line) != line_keys for line in state.lines)
        or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    ):
        raise CheckpointError("its place in the run or its metrics are impossible")
    return state


def changed(saved: Any, now: dict[str, Any], where: object, allowed: Collection[str] = ()) -> dict[str, Any]:
    """Which of the ``allowed`` settings differ: {name: [what it was, what it is]}. Raises `UsageError`, which names each
    difference, if a run is resumed with other settings than those with which it began, beyond these.
    """
    if not isinstance(saved, dict):
        raise CheckpointError(f"{where}: its checkpoint has no settings")
    different = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
    if refused := [key for key in different if key not in allowed]:
        were = {key: shown(repr(saved.get(key))) for key in refused}
        listed = "; ".join(f"{shown(key)} was {were[key]} and is {now.get(key)!r} now" for key in refused)
        raise UsageError(
            f"{where} cannot be resumed with other settings: {listed}. "
            "Use the settings of the run, or start another run in another folder"
        )
    return {key: [saved.get(key), now.get(key)] for key in different}
