"""Everything that the page shows, computed by the engine in one go."""

from __future__ import annotations

import copy
import itertools
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import tinyres as tr
from tinyres import functional as F
from tinyres.data import Dataset, first_batch
from tinyres.errors import UsageError
from tinyres.explain.ledger import gradient_ledger
from tinyres.explain.page import depth, maps, pack, steps
from tinyres.explain.page.chain import Chain
from tinyres.explain.page.lesions import lesions
from tinyres.explain.page.settings import FIELDS, masks, settings
from tinyres.explain.page.training import train
from tinyres.explain.trace import trace
from tinyres.explain.watch import watch
from tinyres.models import BasicBlock
from tinyres.nn import Module
from tinyres.tensor import Tensor
from tinyres.train import evaluate

TESTED = 256  # images for the test errors
DEPTHS = ("plain20", "resnet20", "plain56", "resnet56", "plain110", "resnet110")
DEEP_NET = "resnet56"  # whose paths are shown beside those of the page's net
GAINS = (0.5, 0.8, 1.0, 1.25, 2.0)
MOST_BLOCKS = 30  # a set of them is the bits of an integer, also in the browser
EVERY = 9  # so many blocks or fewer: all settings of the shortcuts are computed
STATES = "start", "trained"
TRAINING, CUT, DEEP, PATHS = 2.4, 0.5, 12.0, 80.0  # costs of steps, where one setting of the shortcuts has 1

Batch = tuple[np.ndarray, np.ndarray]


class Job(NamedTuple):
    """What to show: a network, its normalisation, its state at the start and trained (None: ``train_steps`` are made)."""

    command: str
    network: dict[str, Any]
    data: Dataset
    mean: np.ndarray
    scale: np.ndarray
    trained: Module | None = None
    train_steps: int = 120
    images: int = 4
    batch: int = 16
    seed: int = 0
    quick: bool = False

    def train_batch(self, count: int) -> Batch:
        return first_batch(self.data.train_images, self.data.train_labels, count, self.mean, self.scale)

    def test_batch(self, count: int) -> Batch:
        return first_batch(self.data.test_images, self.data.test_labels, count, self.mean, self.scale)


Display = Callable[[str, int, int, float | None], None]  # what is being done, its steps done and in all, seconds left


def collect(job: Job, display: Display = lambda *now: None) -> dict[str, Any]:
    """The page's data. ``display`` is called after each step of the work.

    Raises `UsageError` for a network without shortcuts, or for fewer images than the page shows.
    """
    tr.manual_seed(job.seed)
    start = tr.models.build(**job.network)
    chain = Chain(start)
    if all(block.switch is None for block in chain.blocks):
        raise UsageError(f"{job.network['name']} has no shortcuts to look at; choose a residual net, such as resnet20")
    if len(chain.blocks) > MOST_BLOCKS:
        raise UsageError(f"the page shows up to {MOST_BLOCKS} blocks, and {job.network['name']} has {len(chain.blocks)}")
    if job.images > min(job.batch, len(job.data.train_labels)):
        raise UsageError(f"the page shows images of the step's batch, and {job.images} are more than the batch has")
    every = len(chain.blocks) <= EVERY and not job.quick
    wanted, cuts = masks(len(chain.blocks), every), masks(len(chain.blocks), every, ends=False)
    networks = [job.network] if job.trained else [job.network, *_without_shortcuts(job.network, chain)]
    seeds = range(job.seed, job.seed + (1 if job.quick else 3))
    progress = Progress(
        display,
        [
            *((f"training {network['name']}", job.train_steps, TRAINING) for network in networks if not job.trained),
            *((f"shortcuts on and off, {when}", len(wanted), 1.0) for when in STATES),
            ("cutting branches", len(cuts), CUT),
            *((f"gradient by depth, {name}", len(seeds), DEEP) for name in DEPTHS),
            (f"paths of {DEEP_NET}", 1, PATHS),
        ],
    )
    trained = {network["name"]: _trained(job, network, progress) for network in networks}
    end = trained[job.network["name"]]
    models = {"start": start, "trained": end}
    step = job.train_batch(job.batch)
    _, found = maps.passes(start, *step)
    states = {when: _state(job, model, step, wanted, when, progress) for when, model in models.items()}
    blocks = [
        {"name": row["name"], "shortcut": row["shortcut"], "channels": one.back.dz.shape[1], "size": one.back.dz.shape[2]}
        for row, one in zip(states["start"]["ledger"], found, strict=True)
    ]
    return {
        "format": 1,
        "meta": _meta(job) | {"blocks": blocks},
        "images": [_image(job, i) for i in range(job.images)],
        "states": states,
        "lesions": lesions(end, *job.test_batch(TESTED), cuts, progress.phase()),
        "depth": _depth(job, seeds, trained, progress),
        "shipped": _shipped(job, progress),
    }


class Progress:
    """Tells how far the work is. ``phases`` are (what is done, steps, cost of a step), in the order in which they come."""

    def __init__(self, display: Display, phases: list[tuple[str, int, float]]) -> None:
        self.display, self.coming = display, iter(phases)
        self.cost = sum(steps * cost for _, steps, cost in phases)
        self.done, self.began = 0.0, time.monotonic()

    def phase(self) -> Callable[[], None]:
        """Begins the next phase; what is returned is to be called after each of its steps."""
        what, steps, cost = next(self.coming)
        count = itertools.count(1)
        self.display(what, 0, steps, self.left())

        def step() -> None:
            self.done += cost
            self.display(what, next(count), steps, self.left())

        return step

    def left(self) -> float | None:
        """Seconds, at the pace so far; None before there is one."""
        return (time.monotonic() - self.began) * (self.cost / self.done - 1) if self.done else None


def _trained(job: Job, network: dict[str, Any], progress: Progress) -> Module:
    if job.trained:
        return job.trained
    tr.manual_seed(job.seed)
    model = tr.models.build(**network)
    data = job.data.train_images, job.data.train_labels, job.mean, job.scale
    train(model, *data, steps=job.train_steps, seed=job.seed, on_done=progress.phase())
    return model


def _without_shortcuts(network: dict[str, Any], chain: Chain) -> list[dict[str, Any]]:
    """The plain counterpart, if the blocks are those that have one."""
    if not isinstance(chain.blocks[0].module, BasicBlock):
        return []
    return [{"name": network["name"].replace("resnet", "plain"), "num_classes": network["num_classes"]}]


def _state(job: Job, model: Module, step: Batch, wanted: list[int], when: str, progress: Progress) -> dict[str, Any]:
    """What one step of the network shows."""
    loss, found = maps.passes(model, *step)
    images, labels = job.data.test_images[:TESTED], job.data.test_labels[:TESTED]
    tested = evaluate(model, images, labels, job.mean, job.scale)
    shown = maps.block_maps(found, job.images)
    own = copy.deepcopy(model).train()  # the running statistics of ``model`` stay as they are
    with watch(own) as seen:
        traced = F.cross_entropy(own(Tensor(step[0])), step[1])
    ledger = gradient_ledger(model, step).json()
    return {
        "loss": pack.digits(loss),
        "accuracy": 1 - tested.error / 100,
        "ledger": ledger["rows"],
        "paths": ledger["paths"],
        "settings": {
            "masks": wanted,
            "fields": list(FIELDS),
            "data": pack.float32(settings(model, *step, wanted, progress.phase())),
        },
        "maps": shown,
        "cells": maps.cells(found, shown, job.images),
        "walk": steps.walk(trace(traced, seen), [row["name"] for row in ledger["rows"]]),
    }


def _depth(job: Job, seeds: range, trained: dict[str, Module], progress: Progress) -> dict[str, Any]:
    """Norms by depth: of nets at the start, of the trained ones, and of fully connected ones by their gain."""
    x, y = job.train_batch(depth.BATCH)
    found = []
    for name in DEPTHS:
        on_done = progress.phase()
        for seed in seeds:
            tr.manual_seed(seed)
            model = tr.models.build(name, num_classes=len(job.data.classes))
            found.append(_norms(name, seed, False, depth.norms(model, x, y)))
            on_done()
    found += [_norms(name, job.seed, True, depth.norms(model, x, y)) for name, model in trained.items()]
    gains = [
        {"family": family, "gain": gain, "norms": _digits(depth.gain_norms(family == "residual", gain, job.seed))}
        for family in ("plain", "residual")
        for gain in GAINS
    ]
    return {"batch": len(y), "norms": found, "gains": gains, "theory": pack.digits(depth.THEORY)}


def _shipped(job: Job, progress: Progress) -> dict[str, Any]:
    """The paths of a deeper net at the start."""
    on_done = progress.phase()
    tr.manual_seed(job.seed)
    model = tr.models.build(DEEP_NET, num_classes=len(job.data.classes))
    ledger = gradient_ledger(model, job.train_batch(job.batch), paths=True)
    on_done()
    return {DEEP_NET: ledger.json()["paths"]}


def _meta(job: Job) -> dict[str, Any]:
    versions = {"tinyres": tr.__version__, "python": platform.python_version(), "numpy": np.__version__}
    if tr.get_backend() == "numba":
        import numba

        versions["numba"] = numba.__version__
    return {
        "command": job.command,
        "model": job.network["name"],
        "data": job.data.name,
        "seed": job.seed,
        "images": job.images,
        "batch": job.batch,
        "train_steps": None if job.trained else job.train_steps,
        "quick": job.quick,
        "backend": tr.get_backend(),
        "versions": versions,
        "classes": list(job.data.classes),
    }


def _image(job: Job, i: int) -> dict[str, Any]:
    pixels = job.data.train_images[i].transpose(1, 2, 0)
    return {"label": int(job.data.train_labels[i]), "size": list(pixels.shape), "pixels": pack.text(pixels.tobytes())}


def _norms(name: str, seed: int, trained: bool, found: list[float]) -> dict[str, Any]:
    return {
        "net": name,
        "family": "plain" if name.startswith("plain") else "residual",
        "blocks": len(found),
        "batch_norm": True,
        "trained": trained,
        "seed": seed,
        "norms": _digits(found),
        "first_over_last": pack.digits(found[0] / found[-1]),
        "per_block": pack.digits(depth.factor(found)),
    }


def _digits(found: list[float]) -> list[float]:
    return [pack.digits(v) for v in found]
