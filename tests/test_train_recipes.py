"""The recipes: learning rates over the steps of a run, and what is subtracted from the images."""

from collections.abc import Callable

import numpy as np
import pytest
from test_train_trainer import colours

import tinyres as tr
from tinyres import nn
from tinyres.optim import SGD
from tinyres.train import RECIPES
from tinyres.train.recipes import depth_of


def course(recipe: str, model: nn.Module, steps: int) -> Callable[[int], float]:
    recipe_ = RECIPES[recipe]
    optimizer = SGD(model.parameters(), lr=recipe_.lr)
    return recipe_.make_schedule(optimizer, recipe_.lr, steps, depth_of(model)).lr_at


def test_he2015_divides_the_learning_rate_at_32k_and_48k_of_64k() -> None:
    lr = course("he2015", tr.models.resnet(20), 64_000)
    assert [lr(0), lr(31_999), lr(32_000), lr(47_999), lr(48_000)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3])
    assert [course("he2015", tr.models.resnet(20), 100)(step) for step in (49, 50, 75)] == pytest.approx([0.1, 0.01, 1e-3])
    assert RECIPES["he2015"].default_epochs("cifar10", 390) == 164


def test_he2015_starts_110_layers_at_a_tenth_for_400_steps() -> None:
    for model, start in ((tr.models.resnet(110), 0.01), (tr.models.resnet(104, shortcut="C"), 0.1)):
        lr = course("he2015", model, 64_000)
        assert [lr(0), lr(399), lr(400)] == pytest.approx([start, start, 0.1])


def test_he2015_subtracts_the_mean_of_each_pixel() -> None:
    mean, scale = RECIPES["he2015"].normalisation(colours().train_images)
    np.testing.assert_allclose(mean, colours().train_images.mean(0) / 255, rtol=1e-5)
    assert (scale == 1).all()


def test_onecycle_rises_for_30_per_cent_of_the_steps_and_falls_to_nothing() -> None:
    lr = course("onecycle", tr.models.resnet(8), 390)
    assert [lr(0), lr(58), lr(116), lr(252.5), lr(389)] == pytest.approx(  # type: ignore[arg-type]
        [0.4 / 25, (0.4 / 25 + 0.4) / 2, 0.4, 0.2, 0.4 / 25 / 1e4], rel=1e-3
    )
