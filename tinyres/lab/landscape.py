"""The loss around trained weights, along two random directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tinyres import functional as F
from tinyres.guards import no_grad
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.images import FULL, KINDS, QUICK, TINY, depths, layers, pairs, shown_to, small, trained
from tinyres.lab.statistics import Check, above, below
from tinyres.nn import Module
from tinyres.tensor import Tensor

BENT = 0.1  # a point counts as not convex if its least curvature is below minus this times its largest


def direction(model: Module, random: np.random.Generator) -> list[np.ndarray]:
    """A random direction in the space of the weights, in which every filter is as long as the net's own (Li et al. 2018,
    section 4), and which does not change batch norms and biases.
    """
    found = []
    for parameter in model.parameters():
        w = parameter.data
        d = np.zeros_like(w) if w.ndim == 1 else random.standard_normal(w.shape, np.float32)
        if w.ndim > 1:
            axes = tuple(range(1, w.ndim))
            lengths = [np.sqrt(np.square(a, dtype=np.float64).sum(axes, keepdims=True)) for a in (w, d)]
            d *= (lengths[0] / np.maximum(lengths[1], 1e-12)).astype(np.float32)
        found.append(d)
    return found


def surface(model: Module, x: np.ndarray, labels: np.ndarray, directions: list[list[np.ndarray]], points: int) -> np.ndarray:
    """The loss (points, points) at w + a d1 + b d2 for a and b from -1 to 1, in evaluation mode. The weights are put
    back.
    """
    parameters = list(model.parameters())
    start = [p.data.copy() for p in parameters]
    steps, images = np.linspace(-1, 1, points, dtype=np.float32), Tensor(x)
    losses = np.empty((points, points))
    model.eval()
    with no_grad():
        for i, a in enumerate(steps):
            for j, b in enumerate(steps):
                for p, w, d1, d2 in zip(parameters, start, *directions, strict=True):
                    p.data = w + a * d1 + b * d2
                losses[i, j] = F.cross_entropy(model(images), labels).item()
        for p, w in zip(parameters, start, strict=True):
            p.data = w
    return losses


def not_convex(losses: np.ndarray) -> float:
    """The share of the inner points where the surface's Hessian, by differences, has a negative eigenvalue that matters."""
    f = losses
    xx = f[2:, 1:-1] - 2 * f[1:-1, 1:-1] + f[:-2, 1:-1]
    yy = f[1:-1, 2:] - 2 * f[1:-1, 1:-1] + f[1:-1, :-2]
    xy = (f[2:, 2:] - f[2:, :-2] - f[:-2, 2:] + f[:-2, :-2]) / 4
    middle, radius = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    least, largest = middle - radius, np.maximum(abs(middle - radius), abs(middle + radius))
    return float(np.mean(least < -BENT * largest))


def smoother(numbers: Numbers) -> list[Check]:
    deep = depths(numbers)[-1]
    plain, residual = (numbers[f"{kind}{deep}, share not convex"] for kind in KINDS)
    learned = below(f"plain{deep} has learned", numbers[f"plain{deep}, loss at the centre"], np.log(10) / 2)
    return [
        Check(learned.text, max(learned.sign, 0)),  # around weights that learned nothing, there is no valley to look at
        above(f"plain{deep}, more than twice that of resnet{deep}", plain, [2 * share for share in residual]),
    ]


class Landscape(Lab):
    name = "landscape"
    title = "The loss landscape: with shortcuts, the valley is smooth"
    claims = (
        Claim(
            "Around the minimum of a deep plain net the loss surface is chaotic, and not convex; shortcuts keep it smooth.",
            "Li et al. 2018, arXiv 1712.09913, section 5, figures 5 and 7",
            "along filter-normalised random directions, the share of points that are not convex is more than twice as large "
            "for the deep plain net as for the deep residual one; not decided if the plain net has not halved the loss of a "
            "guess",
            smoother,
        ),
    )
    method = (
        "Plain and residual nets of {depths} layers, trained as in `degradation`, but the plain nets for {plain_epochs} "
        "epochs in place of {epochs}. Around the trained weights: {pairs} pairs of random directions, each filter as long "
        "as the net's own, batch norms and biases kept; the loss on {shown} training images at {points} x {points} points "
        "from -1 to 1, in evaluation mode. A point is not convex if the least eigenvalue of the surface's Hessian is below "
        "-0.1 times the largest in size."
    )
    differs = (
        "The paper compares nets of 20, 56 and 110 layers after 300 epochs on CIFAR-10, and measures the whole Hessian's "
        "eigenvalues; here it is the 2 x 2 Hessian of the surface itself, of nets trained for minutes."
    )
    scales: ClassVar = {
        "quick": {"depths": [20, 38], **QUICK, "plain_epochs": 24, "points": 21, "pairs": 2, "shown": 256},
        "full": {"depths": [20, 56, 110], **FULL, "plain_epochs": 164, "points": 51, "pairs": 2, "shown": 2000},
        "tiny": {"depths": [8, 14], **TINY, "plain_epochs": 2, "points": 5, "pairs": 1, "shown": 16},
    }

    least: ClassVar = {"points": 3}

    def settings(self, config: Config) -> list[Setting]:
        return pairs(config)

    def cost(self, setting: Setting, config: Config) -> float:
        return layers(setting["net"])

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        epochs = config["plain_epochs" if setting["net"].startswith("plain") else "epochs"]
        trainer = trained(setting["net"], small(config, seed), seed, {**config, "epochs": epochs})
        model = trainer.model
        x, labels = shown_to(trainer, config["shown"], training=True)
        random = np.random.default_rng([seed, 9])
        directions = [[direction(model, random) for _ in range(2)] for _ in range(config["pairs"])]
        surfaces = [surface(model, x, labels, pair, config["points"]) for pair in directions]
        return {
            "surfaces": [[[float(f"{v:.4g}") for v in row] for row in one] for one in surfaces],
            "share": float(np.mean([not_convex(one) for one in surfaces])),
            "spread": float(np.mean([np.log(np.maximum(one, 1e-6)).std() for one in surfaces])),
            "centre": float(surfaces[0][config["points"] // 2, config["points"] // 2]),
        }

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        names = {"share": "share not convex", "spread": "sd of the log loss", "centre": "loss at the centre"}
        return {
            f"{setting['net']}, {names[result]}": values(runs, result, **setting)
            for setting in self.settings(config)
            for result in names
        }

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        settings = self.settings(config)
        grid = figure.subplots(2, len(settings) // 2, sharex=True, sharey=True, squeeze=False)
        levels = np.geomspace(0.02, 20, 19)
        for k, setting in enumerate(settings):
            axes, found = grid[k % 2, k // 2], by_setting(runs, **setting)
            if found:
                losses = np.array(found[0].result["surfaces"][0], float)
                steps = np.linspace(-1, 1, len(losses))
                shown = axes.contourf(steps, steps, np.clip(losses.T, 0.02, 20), levels, cmap="viridis", norm="log")
                axes.contour(steps, steps, np.clip(losses.T, 0.02, 20), levels, colors="white", linewidths=0.4)
            axes.set(title=setting["net"], aspect="equal")
            axes.grid(False)
        bar = figure.colorbar(shown, ax=grid, label="loss", ticks=[0.02, 0.1, 0.5, 2, 10])
        bar.ax.set_yticklabels(["0.02", "0.1", "0.5", "2", "10"])
