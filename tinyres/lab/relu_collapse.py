"""What a ReLU destroys in few dimensions, and what it leaves in many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tinyres import functional as F
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.images import FULL, QUICK, TINY, curve, small, trained
from tinyres.lab.statistics import Check, above, below
from tinyres.tensor import Tensor

FEW, MANY = 3, 15  # dimensions
BOTTLENECKS = ("linear", "ReLU6")
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))
LOST, KEPT = 0.85, 0.99  # of the variance that a linear map recovers


def spiral(points: int) -> np.ndarray:
    """Points (points, 2) on a spiral around the origin, of standard deviation 1."""
    t = np.linspace(0.5, 3 * np.pi, points)
    x = np.stack([t * np.cos(t), t * np.sin(t)], axis=1)
    return x / x.std()


def recovered(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """How well the best affine map takes y (points, n) back to x (points, 2): R^2, and what it makes of y."""
    padded = np.c_[y, np.ones(len(y))]
    back = padded @ np.linalg.lstsq(padded, x, rcond=None)[0]
    return 1 - float(((back - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()), back


def collapses(numbers: Numbers) -> list[Check]:
    checks = []
    for name, found in numbers.items():
        kind, _, n = name.rpartition(" ")
        if kind == "R2, ReLU, n =" and int(n) <= FEW:
            checks.append(below(f"n = {n}", found, LOST))
        if kind == "R2, ReLU, n =" and int(n) >= MANY:
            checks.append(above(f"n = {n}", found, KEPT))
        if kind == "R2, no ReLU, n =":
            checks.append(above(f"n = {n}, without ReLU", found, KEPT))
    return checks


def bottlenecks(numbers: Numbers) -> list[Check]:
    linear, relu6 = (numbers[f"{kind} bottlenecks, test error %"] for kind in BOTTLENECKS)
    return [below("linear bottlenecks, test error below that with ReLU6", linear, relu6)]


class ReluCollapse(Lab):
    name = "relu-collapse"
    title = "What a ReLU destroys: a spiral in few dimensions, and a net's bottlenecks"
    seeds = 5
    claims = (
        Claim(
            "A ReLU destroys what lies in few dimensions, and leaves it whole if there are many more than it needs.",
            "Sandler et al. 2018 (MobileNetV2), arXiv 1801.04381, section 3.2 and figure 1",
            f"the best affine map recovers less than {LOST} of the spiral's variance from up to {FEW} dimensions, and more "
            f"than {KEPT} from {MANY} and more; without a ReLU more than {KEPT} from any number",
            collapses,
        ),
        Claim(
            "So the thin ends of an inverted residual block, its bottlenecks, should have no ReLU.",
            "Sandler et al. 2018, section 6 and figure 6a: linear bottlenecks are better on ImageNet",
            "the test error is lower with linear bottlenecks than with a ReLU6 after them",
            bottlenecks,
        ),
    )
    method = (
        "A spiral of {points} points in two dimensions goes through a random matrix into n dimensions and through a ReLU; "
        "R2 is the share of its variance that the best affine map brings back, the mean of {draws} random matrices per "
        "seed. The control has no ReLU. A point is lost if fewer than two units are open: one number cannot hold two. For "
        "the second claim, a small MobileNetV2 (a stem and five blocks of up to 32 channels, expansion 6) is trained with "
        "ReLU6 after its bottlenecks and without, on {images} images of `{data}` at {size}x{size} pixels: batch {batch}, "
        "{epochs} epochs, recipe `{recipe}`, learning rate {lr}."
    )
    differs = (
        "The paper shows pictures, brought back by the pseudo-inverse of the matrix. That is right up to an affine map "
        "only, and its R2 says nothing; the best affine map is the fair judge. Its nets have 17 blocks and learn ImageNet, "
        "where these have five and see small images for 320 steps."
    )
    scales: ClassVar = {
        "quick": {"dimensions": [2, 3, 5, 15, 30, 50], "points": 2000, "draws": 20, **QUICK},
        "full": {"dimensions": [2, 3, 5, 15, 30, 50], "points": 2000, "draws": 200, **FULL},
        "tiny": {"dimensions": [2, 15], "points": 100, "draws": 2, **TINY},
    }

    def settings(self, config: Config) -> list[Setting]:
        spirals = [{"relu": relu, "n": n} for relu in (True, False) for n in config["dimensions"]]
        return [*spirals, *({"bottlenecks": kind} for kind in BOTTLENECKS)]

    def cost(self, setting: Setting, config: Config) -> float:
        return 100.0 if "bottlenecks" in setting else 1.0

    def label(self, setting: Setting) -> str:
        if "bottlenecks" in setting:
            return f"{setting['bottlenecks']} bottlenecks"
        return f"n = {setting['n']}{'' if setting['relu'] else ', no ReLU'}"

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        if "bottlenecks" in setting:
            network = {"name": "mobilenet_v2_cifar", "linear": setting["bottlenecks"] == "linear", "stages": STAGES}
            return curve(trained(network, small(config, seed), seed, config))
        x = spiral(config["points"])
        scores, lost, shown = [], [], np.empty((0, 2))
        for draw in range(config["draws"]):
            matrix = np.random.default_rng([seed, draw]).standard_normal((2, setting["n"]))
            h = Tensor(x @ matrix)
            y = F.relu(h).data if setting["relu"] else h.data
            score, back = recovered(x, y)
            scores.append(score)
            lost.append(float(np.mean((h.data > 0).sum(1) < 2)))
            if seed == draw == 0:  # for the figure
                shown = np.round(back[:: max(1, len(back) // 200)], 3)
        return {"r2": float(np.mean(scores)), "lost": float(np.mean(lost)), "back": shown}

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        found = {}
        for setting in self.settings(config):
            if "bottlenecks" in setting:
                for result, what in (("last_loss", "training loss"), ("test_error", "test error %")):
                    found[f"{setting['bottlenecks']} bottlenecks, {what}"] = values(runs, result, **setting)
                continue
            found[f"R2, {'ReLU' if setting['relu'] else 'no ReLU'}, n = {setting['n']}"] = values(runs, "r2", **setting)
            if setting["relu"]:
                found[f"share of points lost, n = {setting['n']}"] = values(runs, "lost", **setting)
        return found

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        dimensions = config["dimensions"]
        figure.set_size_inches(8, 4.6)
        grid = figure.add_gridspec(2, max(2, len(dimensions)), height_ratios=(1, 2))
        for k, n in enumerate(dimensions):
            back = np.array(by_setting(runs, relu=True, n=n)[0].result["back"])
            axes = figure.add_subplot(grid[0, k])
            axes.scatter(back[:, 0], back[:, 1], c=np.arange(len(back)), cmap="viridis", s=3)
            axes.set(xticks=[], yticks=[], aspect="equal", title=f"n = {n}")
            axes.spines[["left", "bottom"]].set_visible(False)
        left, right = figure.add_subplot(grid[1, :-1]), figure.add_subplot(grid[1, -1:])
        for relu, name, colour in ((True, "ReLU", figures.PLAIN), (False, "no ReLU", figures.SHORTCUTS)):
            for n in dimensions:
                heights = values(runs, "r2", relu=relu, n=n)
                label = name if n == dimensions[0] else None
                left.plot([n] * len(heights), heights, "o" if relu else "x", color=colour, alpha=0.7, label=label)
        left.set(xscale="log", xlabel="dimensions", ylabel="variance recovered, R2", xticks=dimensions)
        left.set_xticklabels([str(n) for n in dimensions])
        left.minorticks_off()
        left.legend(fontsize=8)
        for k, kind in enumerate(BOTTLENECKS):
            found = values(runs, "test_error", bottlenecks=kind)
            right.plot([k] * len(found), found, "o", color=figures.PLAIN if k else figures.SHORTCUTS, alpha=0.7)
        right.set(xlim=(-0.6, 1.6), ylim=(0, None), ylabel="test error %", title="bottlenecks")
        right.set_xticks(range(len(BOTTLENECKS)), BOTTLENECKS)
