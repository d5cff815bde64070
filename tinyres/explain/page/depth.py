"""The gradient by depth, at the start: with shortcuts and without, with batch norm and without."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

import tinyres as tr
from tinyres import functional as F
from tinyres.explain.page.chain import Chain
from tinyres.explain.page.settings import norm
from tinyres.models import ResidualMLP
from tinyres.nn import Module
from tinyres.tensor import Tensor

# Yang et al. 2019 (arXiv 1902.08129): the growth per layer of the gradient in wide plain nets with batch norm and ReLU is
# sqrt(pi / (pi - 1)) at large depth; a block has two layers.
THEORY = math.pi / (math.pi - 1)
BATCH = 32


def norms(model: Module, images: np.ndarray, labels: np.ndarray) -> list[float]:
    """The norm of the gradient at the input of each block, from the first to the last, of one batch in training mode."""
    chain = Chain(model)
    runs, x = [], chain.stem(images)
    for block in chain.blocks:
        runs.append(block.run(x))
        x = runs[-1].z.data
    _, dz, _ = chain.head(x, labels)
    found = []
    for run in reversed(runs):
        dz = run.back(dz).dx
        found.append(norm(dz))
    return found[::-1]


def gain_norms(residual: bool, gain: float, seed: int = 0, depth: int = 30, width: int = 64, batch: int = 64) -> list[float]:
    """The same for a fully connected net without batch norm, on random inputs and labels of ten classes.

    ``gain`` multiplies the second layer's weights in every block. That of a residual block is not divided by sqrt(depth), as
    `ResidualMLP` does by itself: what shortcuts alone do to the gradient is the question.
    """
    tr.manual_seed(seed)
    model = ResidualMLP(width, width, depth, 10, residual=residual)
    for block in model.blocks:
        block.fc2.weight.data *= np.float32(gain * (math.sqrt(depth) if residual else 1))
    random = np.random.default_rng(seed)
    x = Tensor(random.standard_normal((batch, width), np.float32))
    labels = random.integers(0, 10, batch)
    entries = []
    h = F.relu(model.stem(x))
    for block in model.blocks:
        h.retain_grad()
        entries.append(h)
        h = block(h, relu=True)
    F.cross_entropy(model.fc(h), labels).backward()
    return [norm(entry.grad) for entry in entries if entry.grad is not None]


def factor(found: Sequence[float]) -> float:
    """By how much the gradient grows per block on its way to the input: the geometric mean."""
    return (found[0] / found[-1]) ** (1 / (len(found) - 1))
