"""The checkpoint of a `Trainer`: everything that a step depends on, written whole or not at all, and read back."""

from collections.abc import Collection
from typing import Any

from tinyres.errors import CheckpointError, UsageError
from tinyres.random import default_generator
from tinyres.train import checkpoint
from tinyres.train.state import State, changed, parse_state

CHANGEABLE = ("epochs", "lr", "early_stop")  # on resuming, by name
NAMES = {"momentum_buffer": "momentum"}  # of an optimizer's arrays, in a file; the others have their own


def save(trainer: Any) -> None:
    """Writes the checkpoint of a run that has a folder."""
    assert trainer.folder
    names, state = [name for name, _ in trainer.model.named_parameters()], dict[str, dict[str, Any]]()
    for i, arrays in trainer.optimizer.state_dict()["state"].items():
        for slot, array in arrays.items():
            state.setdefault(NAMES.get(slot, slot), {})[names[i]] = array
    if trainer.ema:
        state["ema"] = trainer.ema.state_dict()
    trainer.state.generator = default_generator().bit_generator.state  # type: ignore[assignment]
    trainer.state.scaler = trainer.scaler.state_dict()
    texts = {
        "network": trainer.network,
        "normalisation": checkpoint.normalisation_text(trainer.mean, trainer.scale),
        "run": {"settings": trainer.settings, "options": trainer.options, "state": trainer.state.text()},
        "classes": trainer.dataset.classes,
    }
    checkpoint.write(trainer.folder.last, trainer.model.state_dict(), state, texts)


def restore(trainer: Any, change: Collection[str]) -> dict[str, Any]:
    """Puts the trainer where its checkpoint was; settings named in ``change``, of those that `CHANGEABLE` lists, may differ.

    Returns the changes, {name: [before, now]}, which are on record in the trainer's state. Raises `CheckpointError` for a
    checkpoint that is damaged or does not fit, `UsageError` for one of a run with other settings; then nothing has changed.
    """
    assert trainer.folder
    path = trainer.folder.last
    if unknown := [name for name in change if name not in CHANGEABLE]:
        raise UsageError(f"{', '.join(unknown)} cannot be changed when a run goes on; {', '.join(CHANGEABLE)} can")
    arrays, saved, texts = checkpoint.read(path)
    run = texts.get("run")
    if not isinstance(run, dict):
        raise CheckpointError(f"{path} is not the checkpoint of a run: it holds a network alone")
    allowed = [name.replace("_", " ") for name in change]  # as settings spell them
    changes = changed(run.get("settings"), trainer.settings, trainer.folder.path, allowed)
    if texts.get("normalisation") != checkpoint.normalisation_text(trainer.mean, trainer.scale):
        raise UsageError(
            f"{path}: its run normalises images in another way; give the trainer the network that it began with"
        )
    positions = {name: i for i, (name, _) in enumerate(trainer.model.named_parameters())}
    try:
        before = changes["epochs"][0] if "epochs" in changes else trainer.epochs
        state = parse_state(run.get("state"), before, trainer.steps, set(State().line(trainer.held_out, 0, 0, 0)))
    except (CheckpointError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} does not fit this run, or it is damaged: {error}") from error
    if state.epoch + (state.step > 0) > trainer.epochs:
        begun = state.epoch + (state.step > 0)
        raise UsageError(f"{trainer.folder.path} has begun {begun} epochs, so epochs={trainer.epochs} is too few")
    try:
        averages, slots = saved.pop("ema", {}), {file: slot for slot, file in NAMES.items()}
        buffers: dict[int, dict[str, Any]] = {}
        for kind, named in saved.items():
            for name, array in named.items():
                buffers.setdefault(positions[name], {})[slots.get(kind, kind)] = array
        trainer.optimizer.load_state_dict({**trainer.optimizer.state_dict(), "state": buffers})
        trainer.model.load_state_dict(arrays)
        if trainer.ema:
            trainer.ema.load_state_dict(averages)
        default_generator().bit_generator.state = state.generator
        if state.scaler:
            trainer.scaler.load_state_dict(state.scaler)
    except (CheckpointError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} does not fit this run, or it is damaged: {error}") from error
    if changes:
        state.changes = [*state.changes, {"epoch": state.epoch, "step": state.step, **changes}]
    trainer.state = state
    return changes
