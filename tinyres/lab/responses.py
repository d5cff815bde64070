"""Layer responses: how much each layer of a trained net adds to what it was given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tinyres import functional as F
from tinyres.guards import no_grad
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.images import FULL, QUICK, TINY, depths, layers, pairs, shown_to, small, trained
from tinyres.lab.statistics import Check, below
from tinyres.nn import BatchNorm2d, Module
from tinyres.tensor import Tensor

IMAGES = 256


def responses(model: Module, images: np.ndarray) -> list[float]:
    """The standard deviation of what each batch norm puts out, before ReLU and join, on images (N, C, H, W), in evaluation
    mode: one per 3x3 convolution, from the first to the last.
    """
    found: list[float] = []

    def respond(bn: Any, arguments: tuple) -> None:
        settings = (bn.running_mean, bn.running_var, bn.weight, bn.bias, False, bn.momentum, bn.eps)
        found.append(float(F.batch_norm(arguments[0], *settings).data.std()))

    norms = [m for name, m in model.named_modules() if isinstance(m, BatchNorm2d) and "shortcut" not in name]
    handles = [bn.register_forward_pre_hook(respond) for bn in norms]
    with no_grad():
        model.eval()(Tensor(images))
    for handle in handles:
        handle.remove()
    return found


def smaller_than_plain(numbers: Numbers) -> list[Check]:
    pairs = [(name, name.replace("resnet", "plain")) for name in numbers if name.startswith("resnet")]
    return [below(f"{name}, below {other}", numbers[name], numbers[other]) for name, other in pairs if other in numbers]


def smaller_with_depth(numbers: Numbers) -> list[Check]:
    names = [f"resnet{depth}" for depth in depths(numbers)]
    return [below(f"{b}, below {a}", numbers[b], numbers[a]) for a, b in itertools.pairwise(names)]


class Responses(Lab):
    name = "responses"
    title = "Layer responses: residual nets change their signal by smaller steps"
    claims = (
        Claim(
            "Layers of a residual net respond less than those of its plain counterpart: its branches are closer to zero.",
            "He et al. 2015, arXiv 1512.03385, section 4.2 and figure 7",
            "the mean response is smaller with shortcuts, at every depth",
            smaller_than_plain,
        ),
        Claim(
            "Layers of deeper residual nets respond less: each of them changes the signal less.",
            "He et al. 2015, section 4.2 and figure 7",
            "the mean response falls from depth to depth",
            smaller_with_depth,
        ),
    )
    method = (
        "Plain and residual nets of {depths} layers, trained on {images} images of `{data}` at {size}x{size} pixels: batch "
        "{batch}, {epochs} epochs, recipe `{recipe}`, learning rate {lr}. A response is the standard deviation of a layer's "
        "output after batch norm, before ReLU and addition, on 256 test images. The table has their means over layers."
    )
    differs = (
        "The paper looks at nets of 20, 56 and 110 layers after 64,000 steps on CIFAR-10. After 320 steps every batch "
        "norm's weight is still near its start, 1, and so is every response: what there is to see has only begun."
    )
    scales: ClassVar = {
        "quick": {"depths": [20, 56], **QUICK},
        "full": {"depths": [20, 56, 110], **FULL},
        "tiny": {"depths": [8, 14], **TINY},
    }

    def settings(self, config: Config) -> list[Setting]:
        return pairs(config)

    def cost(self, setting: Setting, config: Config) -> float:
        return layers(setting["net"])

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        trainer = trained(setting["net"], small(config, seed), seed, config)
        found = responses(trainer.model, shown_to(trainer, IMAGES)[0])
        return {"responses": found, "mean": float(np.mean(found))}

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        return {setting["net"]: values(runs, "mean", **setting) for setting in self.settings(config)}

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for setting in self.settings(config):
            for i, run in enumerate(by_setting(runs, **setting)):
                found, shortcuts = run.result["responses"], setting["net"].startswith("res")
                for axes, heights in ((left, found), (right, sorted(found, reverse=True))):
                    figures.line(axes, range(1, len(found) + 1), heights, setting["net"], shortcuts, first=i == 0)
        left.set(xlabel="layer", ylabel="standard deviation of the response", title="from the input to the output")
        right.set(xlabel="layer, by size", title="the same, sorted")
        figures.name_lines(right)
