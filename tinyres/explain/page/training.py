"""A short training, for those who bring no network of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyres import functional as F
from tinyres.data import Loader
from tinyres.kernels import dispatch
from tinyres.nn import Module
from tinyres.optim import SGD, OneCycleLR
from tinyres.tensor import Tensor

BATCH, LR = 32, 0.05


def train(
    model: Module,
    images: np.ndarray,
    labels: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    steps: int,
    seed: int = 0,
    on_done: Callable[[], None] = lambda: None,
) -> None:
    """``steps`` steps of batches of 32 images at most, one cycle of the learning rate. ``on_done`` is called after each."""
    crop_flip = dispatch.current().crop_flip
    loader = Loader(
        images, labels, min(BATCH, len(labels)), mean=mean, scale=scale, seed=seed, drop_last=True, crop_flip=crop_flip
    )
    optimizer = SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
    schedule = OneCycleLR(optimizer, max_lr=LR, total_steps=steps, cycle_momentum=False)
    model.train()
    done = 0
    while done < steps:
        for x, y in loader:
            loss = F.cross_entropy(model(Tensor(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_done()
            done += 1
            if done == steps:
                break
