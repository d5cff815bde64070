"""Fitting the identity by a stack of nonlinear layers, with shortcuts and without; and fitting zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

import tinyres as tr
from tinyres import nn
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.statistics import Check, below
from tinyres.models.mlp import PlainLinearBlock, ResidualLinearBlock
from tinyres.optim import SGD, clip_grad_norm_
from tinyres.tensor import Tensor

EVERY = 10  # steps per point of a curve
LAST = 50  # steps whose mean is the final loss


def stack(residual: bool, depth: int, width: int) -> nn.Sequential:
    """``depth`` blocks of two layers. At the start the output is about as large as the input, in both kinds.

    The input of a plain block is not rectified, so that He's weights, made for inputs that are, would double it in each
    block: its first layer is divided by sqrt(2). A residual branch is divided by sqrt(depth), as in `ResidualMLP`.
    """
    blocks = [(ResidualLinearBlock if residual else PlainLinearBlock)(width, width) for _ in range(depth)]
    for block in blocks:
        block.fc1.weight.data *= np.float32(0.5**0.5)
        if residual:
            block.fc2.weight.data *= np.float32(depth**-0.5)
    return nn.Sequential(*blocks)


def fit(residual: bool, depth: int, target: float, seed: int, config: Config) -> list[float]:
    """The loss by step of fitting ``target`` times the input, a new random batch each step."""
    tr.manual_seed(seed)
    net, random = stack(residual, depth, config["width"]), np.random.default_rng(seed)
    optimizer, losses = SGD(net.parameters(), config["lr"], momentum=0.9), []
    for _ in range(config["steps"]):
        x = Tensor(random.standard_normal((config["batch"], config["width"]), np.float32))
        error = net(x) - x * target
        loss = (error * error).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(list(net.parameters()), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def easier(numbers: Numbers) -> list[Check]:
    """At every depth the residual stack's loss is below a tenth of the plain one's."""
    return [
        below(name, numbers[name], [v / 10 for v in numbers[name.replace("residual", "plain")]])
        for name in numbers
        if name.startswith("identity, residual")
    ]


def in_the_target(numbers: Numbers) -> list[Check]:
    """At every depth the plain stack's loss for the target 0 is below the residual one's."""
    return [
        below(name, numbers[name], numbers[name.replace("plain", "residual")])
        for name in numbers
        if name.startswith("zero, plain")
    ]


class Identity(Lab):
    name = "identity"
    title = "Fitting the identity: easy with a shortcut, hard without"
    seeds = 5
    claims = (
        Claim(
            "If the identity is what a stack of layers should do, it is easier to push the residual to zero than to fit the "
            "identity by nonlinear layers.",
            "He et al. 2015, arXiv 1512.03385, section 3.1",
            "at every depth the loss with shortcuts is below a tenth of the loss without",
            easier,
        ),
        Claim(
            "The advantage lies in the target, not in shortcuts as such: if zero is what the stack should do, it is the "
            "plain one that fits it better.",
            "the counter-case",
            "at every depth the loss without shortcuts is below the loss with them",
            in_the_target,
        ),
    )
    method = (
        "Stacks of {depths} blocks of two layers, {width} wide, with and without shortcuts, are trained to return their "
        "input, or zero: {steps} steps of SGD with momentum 0.9 and learning rate {lr}, a new batch of {batch} random "
        "inputs each step, gradients clipped to norm 1. Both kinds begin with outputs as large as their inputs. The loss "
        "is the mean square error, in units of the input's variance, over the last 50 steps."
    )
    differs = (
        "The paper argues, and makes no such experiment: what layers of a trained net do is near the identity, and not it."
    )
    scales: ClassVar = {
        "quick": {"depths": [1, 2, 4, 8, 16], "width": 16, "steps": 500, "batch": 64, "lr": 0.02},
        "full": {"depths": [1, 2, 4, 8, 16, 32, 64], "width": 64, "steps": 5000, "batch": 128, "lr": 0.02},
        "tiny": {"depths": [1, 2], "width": 4, "steps": 20, "batch": 8, "lr": 0.02},
    }

    def settings(self, config: Config) -> list[Setting]:
        return [
            {"target": target, "kind": kind, "depth": depth}
            for target in ("identity", "zero")
            for kind in ("plain", "residual")
            for depth in config["depths"]
        ]

    def cost(self, setting: Setting, config: Config) -> float:
        return 2.0 + setting["depth"]

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        target = 1.0 if setting["target"] == "identity" else 0.0
        losses = fit(setting["kind"] == "residual", setting["depth"], target, seed, config)
        return {"final": float(np.mean(losses[-LAST:])), "losses": losses[::EVERY]}

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        return {f"{s['target']}, {s['kind']}, depth {s['depth']}": values(runs, "final", **s) for s in self.settings(config)}

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        depths = config["depths"]
        grid = figure.subplots(2, len(depths), sharex=True, sharey=True, squeeze=False)
        for setting in self.settings(config):
            axes = grid[int(setting["target"] == "zero"), depths.index(setting["depth"])]
            for i, run in enumerate(by_setting(runs, **setting)):
                losses = [v or float("nan") for v in run.result["losses"]]
                steps = [EVERY * k for k in range(len(losses))]
                figures.line(axes, steps, losses, setting["kind"], setting["kind"] == "residual", first=i == 0)
        for axes, depth in zip(grid[0], depths, strict=True):
            axes.set(yscale="log", title=f"{depth} block{'s' * (depth > 1)}")
        for axes, target in zip(grid[:, 0], ("identity", "zero"), strict=True):
            axes.set_ylabel(f"loss, target {target}")
        figures.name_lines(grid[0, 0])
        figure.supxlabel("step", fontsize=10)
