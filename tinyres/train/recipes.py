"""Recipes: what a training run does to the images, the learning rate and the weights.

Both are made for SGD with momentum 0.9 and weight decay 1e-4 for all parameters, and images padded by 4, cropped and
mirrored. Their learning rates are for batches of 128 and grow in proportion to the batch (Goyal et al. 2017, arXiv
1706.02677): twice as many images per batch make half as many steps, each twice as long. With AdamW they are a fortieth of
that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.data import normalisation
from tinyres.nn import Conv2d, Linear, Module
from tinyres.optim import SGD, AdamW, MultiStepLR, OneCycleLR, Optimizer
from tinyres.optim.schedules import Schedule, Warmup

BATCH_SIZE = 128
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
HE_ITERATIONS = 64_000
HE_WARM_UP = 400
SHAPES_EPOCHS = 6  # in every recipe: the 5,000 generated images are easy to learn


@dataclass(frozen=True)
class Recipe:
    """A way to train, under a ``name``. ``lr`` is the highest learning rate, at batch 128;
    ``make_schedule(optimizer, lr, steps, depth)`` makes the schedule for all the steps of a run. ``per`` and ``divide_std``
    say how images are normalised: see `data.normalisation`. ``epochs`` gives their number from the steps per epoch.
    """

    name: str
    lr: float
    make_schedule: Callable[[Optimizer, float, int, int], Schedule]
    per: str  # what has a mean of its own: "pixel" or "channel"
    divide_std: bool
    epochs: Callable[[int], int]  # for CIFAR, from the steps per epoch

    def normalisation(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, scale) of the training images, as `data.normalisation` gives them."""
        return normalisation(images, self.per, self.divide_std)

    def default_epochs(self, dataset: str, steps: int) -> int:
        return SHAPES_EPOCHS if dataset == "shapes" else self.epochs(steps)


def depth_of(model: Module) -> int:
    """Weighted layers, counted as in the paper: convolutions and linear layers, without projection shortcuts."""
    layers = [name for name, module in model.named_modules() if isinstance(module, Conv2d | Linear)]
    return sum("shortcut" not in name for name in layers)


def one_cycle(optimizer: Optimizer, lr: float, steps: int, depth: int) -> Schedule:
    """Up to ``lr`` in the first 30 % of the steps and down to nothing, each along half a cosine."""
    return OneCycleLR(optimizer, max_lr=lr, total_steps=steps, cycle_momentum=False)


def he_steps(optimizer: Optimizer, lr: float, steps: int, depth: int) -> Schedule:
    """``lr``, a tenth of it after half of the steps, a hundredth after three quarters: after 32k and 48k of 64k.

    Networks of 110 layers or more start with a tenth of ``lr``. The paper keeps that until the training error is under
    80 %, "about 400 iterations"; here it is always 400 iterations, so that the schedule is known in advance.
    """
    schedule = MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])
    return Warmup(schedule, HE_WARM_UP, factor=0.1, kind="constant") if depth >= 110 else schedule


@dataclass(frozen=True)
class Rule:
    """An update rule as recipes use it: its class, its momentum (AdamW's first beta) and weight decay, and the part of the
    recipe's learning rate that suits it.
    """

    new: Callable[..., Optimizer]
    momentum: float
    weight_decay: float
    of_lr: float

    def lr(self, recipe: Recipe, batch_size: int) -> float:
        return self.of_lr * recipe.lr * batch_size / BATCH_SIZE

    def make(self, model: Module, lr: float, momentum: float | None, weight_decay: float | None) -> Optimizer:
        """The optimizer of all parameters; None stands for the rule's own."""
        momentum = self.momentum if momentum is None else momentum
        weight_decay = self.weight_decay if weight_decay is None else weight_decay
        how: dict[str, Any] = {"momentum": momentum} if self.new is SGD else {"betas": (momentum, 0.999)}
        return self.new(model.parameters(), lr, weight_decay=weight_decay, **how)


OPTIMIZERS = {"sgd": Rule(SGD, MOMENTUM, WEIGHT_DECAY, 1.0), "adamw": Rule(AdamW, 0.9, 0.05, 0.025)}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        # Ours for a machine without a GPU: about 16 % test error on CIFAR-10 after ten epochs of a ResNet-20.
        Recipe("onecycle", 0.4, one_cycle, "channel", divide_std=True, epochs=lambda steps: 10),
        # He et al. 2015 (arXiv 1512.03385), section 4.2: 64k iterations, 164 epochs of 390 steps.
        Recipe("he2015", 0.1, he_steps, "pixel", divide_std=False, epochs=lambda steps: max(1, HE_ITERATIONS // steps)),
    )
}
