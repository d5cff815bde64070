"""The network that `tinyres explain` looks at: of a training run, in a file of weights, or at the start."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tinyres
from tinyres.cli import options
from tinyres.cli.options import network
from tinyres.data import Dataset, first_batch, normalisation
from tinyres.errors import UsageError
from tinyres.files import printable, read_json
from tinyres.nn import Module

if TYPE_CHECKING:
    from tinyres.train.checkpoint import Loaded


class Subject(NamedTuple):
    """A network, where it comes from, and the images that it sees. ``seed`` is that of its weights, None if it is trained;
    ``start_seed`` is that of the weights with which its training began.
    """

    name: str
    state: str
    model: Module
    network: dict[str, Any]
    data: Dataset
    mean: np.ndarray
    scale: np.ndarray
    seed: int | None
    start_seed: int

    def batch(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first ``count`` training images, normalised, and their labels."""
        images, labels = self.data.train_images, self.data.train_labels
        if count > len(labels):
            raise UsageError(f"--batch-size {count}: {self.data.name} has {len(labels)} training images")
        return first_batch(images, labels, count, self.mean, self.scale)


def subject(arguments: argparse.Namespace) -> Subject:
    """What the command line names: RUN, --checkpoint or --model."""
    if arguments.run_folder or arguments.checkpoint:
        return from_file(arguments, arguments.run_folder or arguments.checkpoint)
    return at_the_start(arguments, arguments.model or "resnet20", arguments.shortcut)


def named(arguments: argparse.Namespace, name: str, data: Dataset) -> Subject:
    """A run or a file of weights, if there is one of this name, else a network at the start on the same ``data``."""
    if os.path.exists(name):
        return from_file(arguments, name, data)
    return at_the_start(arguments, name, data=data)


def at_the_start(
    arguments: argparse.Namespace,
    name: str,
    shortcut: str | None = None,
    data: Dataset | None = None,
    seed: int | None = None,
) -> Subject:
    from tinyres import models

    described = network(name, shortcut)
    models.build(**described)  # an unknown name is an error before the data are read
    data = data or load_data(arguments, "shapes")
    described["num_classes"] = len(data.classes)
    seed = (arguments.seed or 0) if seed is None else seed
    tinyres.manual_seed(seed)
    model = models.build(**described)
    mean, scale = normalisation(data.train_images, per="channel", divide_std=True)
    return Subject(name, f"at the start, seed {seed}", model, described, data, mean, scale, seed, seed)


def from_file(arguments: argparse.Namespace, place: str, data: Dataset | None = None) -> Subject:
    from tinyres.train import load_network

    file = weights_in(place, "last")
    loaded = load_network(file)
    data = data or load_data(arguments, loaded.data or "shapes", loaded.source)
    data = of_classes(file, loaded, data)
    seed = run_seed(Path(place)) if arguments.seed is None else arguments.seed
    name, state = loaded.network["name"], f"of {place}"
    return Subject(name, state, loaded.model, loaded.network, data, loaded.mean, loaded.scale, None, seed)


def weights_in(place: str, *names: str) -> Path:
    """A file of weights as it is; of a run's folder, the first that is there of the files of these names."""
    path = Path(place)
    if not path.is_dir():
        return path
    files = [path / f"{name}.safetensors" for name in names]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise UsageError(f"{place} holds no training run: there is no {files[0].name} in it")
    return found


def of_classes(file: str | Path, loaded: "Loaded", data: Dataset) -> Dataset:
    """The data set with its labels as the network numbers its classes.

    Raises `UsageError` if the network tells apart other classes than ``data`` has. Of a file that does not name them, only
    the number is compared.
    """
    have = loaded.network.get("num_classes", len(loaded.classes))
    if loaded.classes and set(data.classes) <= set(loaded.classes):
        places = np.array([loaded.classes.index(name) for name in data.classes])
        labels = {f"{part}_labels": places[getattr(data, f"{part}_labels")] for part in ("train", "test")}
        return replace(data, classes=tuple(loaded.classes), **labels)
    other = [name for name in data.classes if name not in loaded.classes] if loaded.classes else []
    if have != len(data.classes) or other:
        named = f", among them {printable(other[0])!r}, which the network does not know" if other else ""
        raise UsageError(
            f"{file} tells {have} classes apart and {data.name} has {len(data.classes)}{named}; choose the data set on "
            "which it was trained with --data"
        )
    return data


def load_data(arguments: argparse.Namespace, default: str, source: dict[str, Any] | None = None) -> Dataset:
    data = options.load_data(vars(arguments), default, source)
    for note in data.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    return data


def run_seed(folder: Path) -> int:
    """The seed of the run in ``folder``, if its config.json tells it, else 0."""
    try:
        seed = read_json(folder / "config.json")["settings"]["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return seed if isinstance(seed, int) and seed >= 0 else 0
