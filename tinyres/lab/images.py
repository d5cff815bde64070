"""The images of the labs, small enough for a laptop, and training on them."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tinyres as tr
from tinyres.data import Dataset, first_batch, normalisation
from tinyres.errors import NonFiniteError, UsageError
from tinyres.kernels import dispatch
from tinyres.lab.experiment import Config, Setting
from tinyres.nn import Module
from tinyres.train import Trainer
from tinyres.train.progress import Silent

# how the labs train, as entries of their configurations: 320 steps; the paper's 64,000; eight
QUICK: Config = {
    "data": "shapes", "size": 16, "images": 2560, "test": 500, "shuffle_labels": False,
    "recipe": "onecycle", "epochs": 8, "batch": 64, "lr": 0.05, "augment": False,
}  # fmt: skip
FULL: Config = {
    "data": "cifar10", "size": 32, "images": 50000, "test": 10000, "shuffle_labels": False,
    "recipe": "he2015", "epochs": 164, "batch": 128, "lr": 0.1, "augment": True,
}  # fmt: skip
TINY: Config = {**QUICK, "size": 8, "images": 64, "test": 32, "epochs": 2, "batch": 16}

KINDS = ("plain", "resnet")

_checkpoints: Path | None = None
_backend: str | None = None


def pairs(config: Config) -> list[Setting]:
    """The plain and the residual net of each of the configuration's ``depths``."""
    return [{"net": f"{kind}{depth}"} for depth in config["depths"] for kind in KINDS]


def layers(name: str) -> int:
    """The depth in the name of a net, or of a number of one: 56 in "plain56, lr 0.01" and in "Fixup, 56 layers"."""
    found = re.search(r"(?:plain|resnet|, )(\d+)", name)
    if not found:
        raise UsageError(f"{name!r} is not the name of a plain or a residual net, such as plain20 or resnet56")
    return int(found[1])


def depths(names: Iterable[str]) -> list[int]:
    """Of the residual nets in ``names``, from the shallowest to the deepest."""
    return sorted({layers(name) for name in names if name.startswith("resnet")})


@contextmanager
def trained_by(backend: str) -> Iterator[None]:
    """Inside, training uses the kernels of ``backend``, whichever others are in use."""
    global _backend
    _backend = backend
    try:
        yield
    finally:
        _backend = None


@contextmanager
def checkpoints_in(folder: str) -> Iterator[None]:
    """Inside, training keeps its checkpoints in ``folder``, which is removed at the end of what is done there; not if that
    ends early. An empty name: it keeps none.
    """
    global _checkpoints
    _checkpoints = Path(folder) if folder else None
    try:
        yield
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        _checkpoints = None


@functools.lru_cache(maxsize=2)
def load(data: str) -> Dataset:
    return tr.data.load(data)


def batch(data: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of a data set, normalised, and their labels."""
    found = load(data)
    mean, scale = normalisation(found.train_images, per="channel", divide_std=True)
    return first_batch(found.train_images, found.train_labels, count, mean, scale)


def shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, C, H, W) -> (N, C, size, size), by the means of squares of pixels."""
    n, c, h, w = images.shape
    if h % size or w % size:
        raise UsageError(f"size: images of {h} x {w} pixels cannot be shrunk to {size} x {size}; it must divide both")
    if h == w == size:
        return images
    return np.rint(images.reshape(n, c, size, h // size, size, w // size).mean((3, 5))).astype(np.uint8)


def small(config: Config, seed: int = 0) -> Dataset:
    """The data set of a configuration: its ``images`` first images and ``test`` test images, ``size`` pixels wide. With
    ``shuffle_labels`` the labels are those of other images, by ``seed``: there is nothing to learn but by heart.
    """
    found = load(config["data"]).limit(config["images"], config["test"])
    found = replace(
        found, train_images=shrunk(found.train_images, config["size"]), test_images=shrunk(found.test_images, config["size"])
    )
    if config.get("shuffle_labels"):
        random = np.random.default_rng(seed)
        found = replace(found, train_labels=random.permutation(found.train_labels))
    return found


def trained(
    model: Module | str | dict[str, Any], data: Dataset, seed: int, config: Config, lr: float | None = None
) -> Trainer:
    """A finished training run by the configuration's ``recipe``, ``epochs``, ``batch``, ``lr`` and ``augment``.

    Its lines are empty if a loss or a gradient was not finite. Within `checkpoints_in` a folder, it goes on from what is
    there. The model is on the host afterwards.
    """
    how: dict[str, Any] = {"epochs": config["epochs"], "batch_size": config["batch"], "augment": config["augment"]}
    how |= {"lr": config["lr"] if lr is None else lr, "seed": seed, "out": _checkpoints, "display": Silent()}
    with dispatch.use_backend(_backend) if _backend else nullcontext():
        trainer = Trainer(model, data, config["recipe"], **how)
        try:
            trainer.fit(resume=bool(trainer.folder and trainer.folder.last.exists()))
        except NonFiniteError:
            trainer.state.lines.clear()
    trainer.model.to("cpu")
    return trainer


def shown_to(trainer: Trainer, count: int, training: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` test images of a run, or training images, normalised as there, and their labels; all if fewer."""
    data = trainer.dataset
    chosen = (data.train_images, data.train_labels) if training else (data.test_images, data.test_labels)
    return first_batch(*chosen, min(count, len(chosen[1])), trainer.mean, trainer.scale)


def curve(trainer: Trainer) -> dict[str, Any]:
    """What a run leaves: the training loss and error by epoch, and at the end the test error, in per cent."""
    lines = trainer.state.lines
    return {
        "train_loss": [line["train_loss"] for line in lines],
        "train_error": [line["train_error"] for line in lines],
        "test_error": lines[-1]["test_error"] if lines else None,
        "last_loss": lines[-1]["train_loss"] if lines else None,
        "last_error": lines[-1]["train_error"] if lines else None,
    }
