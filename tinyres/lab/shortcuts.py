"""Which shortcut: the identity, projections, and what stands in the gradient's way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

import tinyres as tr
from tinyres import functional as F
from tinyres import models, nn
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.images import FULL, QUICK, TINY, curve, small, trained
from tinyres.lab.statistics import Check, above, below
from tinyres.models.cifar import BasicBlock, CifarResNet, blocks_per_stage, conv
from tinyres.tensor import Tensor

KEPT = 0.5  # of the signal on a shortcut that is scaled, or that has dropout


class OtherBlock(BasicBlock):
    """A block whose branch is that of `BasicBlock`; what becomes of it and the shortcut is `join`'s."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride, "A")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.join(self.bn2(self.conv2(self.bn1(self.conv1(x), relu=True))), x))

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Scaled(OtherBlock):
    """F(x) / 2 + x / 2 (figure 2b)."""

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        return branch * (1 - KEPT) + self.shortcut(x) * KEPT


class Convolved(OtherBlock):
    """F(x) + W x with a 1x1 convolution in every block (figure 2e)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.shortcut = conv(in_channels, channels, 1, stride)

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        return branch + self.shortcut(x)


class Dropped(OtherBlock):
    """F(x) + dropout(x) (figure 2f)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.dropout = nn.Dropout(1 - KEPT)

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        return branch + self.dropout(self.shortcut(x))


class Gated(OtherBlock):
    """F(x) + (1 - g) x with a gate g = sigmoid(W x + b) in each place, b = 0 at the start (figure 2d)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.gate = nn.Conv2d(in_channels, channels, 1, stride)

    def open(self, x: Tensor) -> Tensor:
        """1 - g = 1 / (1 + exp(h)), in operations that there are."""
        return 1.0 / (Tensor(np.array(math.e, np.float32)) ** self.gate(x) + 1.0)

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        return branch + self.open(x) * self.shortcut(x)


class Exclusive(Gated):
    """g F(x) + (1 - g) x, as in highway nets (figure 2c)."""

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        kept = self.open(x)
        return (1.0 - kept) * branch + kept * self.shortcut(x)


def other(block: type[OtherBlock]) -> Callable[[int], nn.Module]:
    return lambda depth: CifarResNet(block, 1, blocks_per_stage(depth, 2), 10, 3)


NETS: dict[str, Callable[[int], nn.Module]] = {
    **{f"option {option}": partial(models.resnet, shortcut=option) for option in "ABC"},
    "scaled by 0.5": other(Scaled),
    "1x1 convolution": other(Convolved),
    "dropout 0.5": other(Dropped),
    "gated": other(Gated),
    "gated exclusively": other(Exclusive),
    "pre-activation": models.preresnet,
}
IDENTITY, FAILING = "option A", ("scaled by 0.5", "1x1 convolution", "dropout 0.5", "gated", "gated exclusively")
SHORTCUTS = {IDENTITY, "option B", "pre-activation"}  # nothing but additions where shapes agree


def in_the_way(numbers: Numbers) -> list[Check]:
    identity = numbers[f"{IDENTITY}, training loss"]
    return [above(f"{kind}, above the identity", numbers[f"{kind}, training loss"], identity) for kind in FAILING]


def projections(numbers: Numbers) -> list[Check]:
    a, b, c = (numbers[f"option {option}, test error %"] for option in "ABC")
    return [below("B below A", b, a), below("C below B", c, b)]


def preactivation(numbers: Numbers) -> list[Check]:
    found, identity = numbers["pre-activation, training loss"], numbers[f"{IDENTITY}, training loss"]
    return [below("pre-activation below the original", found, identity)]


class Shortcuts(Lab):
    name = "shortcuts"
    title = "Which shortcut: whatever stands in its way makes training harder"
    claims = (
        Claim(
            "Scaling, gates, dropout and 1x1 convolutions on the shortcut make a deep net harder to train than the "
            "identity.",
            "He et al. 2016, arXiv 1603.05027, section 3.1 and table 1: 6.61 % error with the identity, 8.7 to 12.9 % and "
            "failures with the others",
            "each of them ends with a higher training loss than the identity (option A)",
            in_the_way,
        ),
        Claim(
            "Projections help a little: B is better than A, and C than B.",
            "He et al. 2015, arXiv 1512.03385, table 3: 25.03, 24.52, 24.19 % on ImageNet",
            "the test error falls from A to B and from B to C",
            projections,
        ),
        Claim(
            "With nothing after the addition either, training is easier still.",
            "He et al. 2016, section 4 and table 2: 6.37 % with full pre-activation",
            "pre-activation blocks end with a lower training loss than the original ones",
            preactivation,
        ),
    )
    method = (
        "Residual nets of {depth} layers that differ in their shortcuts, on {images} images of `{data}` at {size}x{size} "
        "pixels: batch {batch}, {epochs} epochs, recipe `{recipe}`, learning rate {lr}. The variants act in every block; "
        "where shapes change they come on top of option A. Scaling halves branch and shortcut; gates are 1x1 convolutions "
        "with a sigmoid, biases 0 at the start. The training loss is the mean over the last epoch."
    )
    differs = (
        "The paper's nets have 110 layers and 64,000 steps; its factor of 0.5 per block is 0.5^54 over all of them, and "
        "here over fewer blocks it hurts less. It tries several biases of the gates, which change the result. Differences "
        "of tenths of a per cent between A, B and C cannot be seen on 500 test images."
    )
    scales: ClassVar = {"quick": {"depth": 38, **QUICK}, "full": {"depth": 110, **FULL}, "tiny": {"depth": 8, **TINY}}

    def settings(self, config: Config) -> list[Setting]:
        return [{"shortcut": kind} for kind in NETS]

    def cost(self, setting: Setting, config: Config) -> float:
        return 2.0 if "gated" in setting["shortcut"] else 1.0

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        tr.manual_seed(seed)
        return curve(trained(NETS[setting["shortcut"]](config["depth"]), small(config, seed), seed, config))

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        results = {"last_loss": "training loss", "test_error": "test error %"}
        return {f"{kind}, {name}": values(runs, result, shortcut=kind) for kind in NETS for result, name in results.items()}

    def seen(self, numbers: Numbers) -> str:
        losses = numbers["dropout 0.5, training loss"]
        if not losses or min(losses) < 10:
            return ""
        return (
            "With dropout on the shortcuts training diverges, as the paper's failed to converge. Losses that large and that "
            "different have no interval to speak of, and the rule calls them undecided; the test error is that of a guess."
        )

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        left, right = figure.subplots(1, 2)
        for kind in NETS:
            for i, run in enumerate(by_setting(runs, shortcut=kind)):
                losses = run.result["train_loss"]
                figures.line(left, range(1, len(losses) + 1), losses, kind, kind in SHORTCUTS, first=i == 0)
        left.set(xlabel="epoch", ylabel="training loss", yscale="log", ylim=(None, 20))
        for row, kind in enumerate(NETS):
            colour = figures.SHORTCUTS if kind in SHORTCUTS else figures.PLAIN
            found = values(runs, "last_loss", shortcut=kind)
            right.plot(found, [row] * len(found), "o", color=colour, alpha=0.7)
        right.set_yticks(range(len(NETS)), list(NETS))
        right.set(xlabel="training loss, last epoch", xscale="log", ylim=(len(NETS) - 0.5, -0.5))
        figures.name_lines(left)
