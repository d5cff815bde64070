"""How deep each kind of net trains in the same number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.images import FULL, QUICK, TINY, curve, layers, small, trained
from tinyres.lab.statistics import Check, above, below

KINDS: dict[str, dict[str, Any]] = {  # the network's name without its depth, and its options
    "plain": {"name": "plain"},
    "residual": {"name": "resnet"},
    "pre-activation": {"name": "preresnet"},
    "zero gamma": {"name": "resnet", "zero_init_residual": True},
    "Fixup": {"name": "fixup_resnet"},
    "stochastic depth": {"name": "resnet", "survival": 0.5},
}
LEARNED = 1.0  # training loss, where a guess has 2.3


def deepest(numbers: Numbers) -> int:
    return max(layers(name) for name in numbers if name.startswith("residual"))


def shallowest(numbers: Numbers) -> int:
    return min(layers(name) for name in numbers if name.startswith("residual"))


def loss(numbers: Numbers, kind: str, depth: int) -> Sequence[float]:
    return numbers[f"{kind}, {depth} layers, training loss"]


def shortcuts(numbers: Numbers) -> list[Check]:
    deep, shallow = deepest(numbers), shallowest(numbers)
    plain, residual = loss(numbers, "plain", deep), loss(numbers, "residual", deep)
    return [
        above(f"plain: {deep} layers above {shallow}", plain, loss(numbers, "plain", shallow)),
        below(f"residual, {deep} layers, has learned", residual, LEARNED),
        below(f"{deep} layers: residual below plain", residual, plain),
    ]


def without_norm(numbers: Numbers) -> list[Check]:
    deep = deepest(numbers)
    return [
        below(f"Fixup, {deep} layers, has learned", loss(numbers, "Fixup", deep), LEARNED),
        below(
            f"{deep} layers: Fixup below plain with batch norm", loss(numbers, "Fixup", deep), loss(numbers, "plain", deep)
        ),
    ]


def better(kind: str, result: str = "training loss") -> Any:
    """The rule that at the greatest depth a kind has less of a result than the residual net."""

    def judge(numbers: Numbers) -> list[Check]:
        deep = deepest(numbers)
        one, other = (numbers[f"{k}, {deep} layers, {result}"] for k in (kind, "residual"))
        return [below(f"{deep} layers, {result}: {kind} below residual", one, other)]

    return judge


class Depth(Lab):
    name = "depth"
    title = "How deep each kind of net trains: plain, residual, and what came after"
    claims = (
        Claim(
            "Plain nets do not train where they are deep, even with batch norm; residual ones do.",
            "He et al. 2015, arXiv 1512.03385, section 4.2",
            "the deepest plain net has a higher training loss than the shallowest; the deepest residual net is below "
            f"{LEARNED} and below that plain net",
            shortcuts,
        ),
        Claim(
            "With pre-activation, very deep residual nets train more easily.",
            "He et al. 2016, arXiv 1603.05027, section 4.1",
            "at the greatest depth its training loss is below that of the original residual net",
            better("pre-activation"),
        ),
        Claim(
            "Branches whose last batch norm begins with weight 0 make the beginning of training easier.",
            "Goyal et al. 2017, arXiv 1706.02677, section 5.1",
            "at the greatest depth the training loss is below that of the same net with weight 1",
            better("zero gamma"),
        ),
        Claim(
            "It is not batch norm that deep nets need: begun as their shortcuts, they train without it.",
            "Zhang et al. 2019 (Fixup), arXiv 1901.09321, section 4",
            f"the deepest net with Fixup and without batch norm has a training loss below {LEARNED} and below the plain "
            "net's",
            without_norm,
        ),
        Claim(
            "A net that trains with branches left out at random is better on images that it has not seen.",
            "Huang et al. 2016, arXiv 1603.09382, section 4",
            "at the greatest depth the test error is below that of the residual net",
            better("stochastic depth", "test error %"),
        ),
    )
    method = (
        "Nets of {depths} layers of each kind on {images} images of `{data}` at {size}x{size} pixels: batch {batch}, "
        "{epochs} epochs, recipe `{recipe}`, learning rate {lr}, the same for all. The training loss is the mean over the "
        "last epoch. Stochastic depth keeps the last branch with probability 0.5."
    )
    differs = (
        "The papers train for 64,000 steps or more, and choose the learning rate for each net; Fixup's gives its scalars a "
        "tenth of it. Here it is the first 320 steps: who begins well, not who ends well. Stochastic depth trains a "
        "shorter net, and its training loss is that of the shorter one."
    )
    scales: ClassVar = {
        "quick": {"depths": [20, 110], **QUICK, "images": 1280, "batch": 32},
        "full": {"depths": [20, 56, 110], **FULL},
        "tiny": {"depths": [8, 14], **TINY},
    }

    def settings(self, config: Config) -> list[Setting]:
        return [{"kind": kind, "depth": depth} for kind in KINDS for depth in config["depths"]]

    def cost(self, setting: Setting, config: Config) -> float:
        return setting["depth"] * (2 if setting["kind"] == "Fixup" else 1)

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        network = KINDS[setting["kind"]]
        network = {**network, "name": f"{network['name']}{setting['depth']}"}
        return curve(trained(network, small(config, seed), seed, config))

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        results = {"last_loss": "training loss", "test_error": "test error %"}
        return {
            f"{s['kind']}, {s['depth']} layers, {name}": values(runs, result, **s)
            for s in self.settings(config)
            for result, name in results.items()
        }

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        grid = figure.subplots(1, len(config["depths"]), sharey=True, squeeze=False)[0]
        for setting in self.settings(config):
            axes = grid[config["depths"].index(setting["depth"])]
            for i, run in enumerate(by_setting(runs, **setting)):
                losses = run.result["train_loss"]
                shortcuts = setting["kind"] != "plain"
                figures.line(axes, range(1, len(losses) + 1), losses, setting["kind"], shortcuts, first=i == 0)
        for axes, depth in zip(grid, config["depths"], strict=True):
            axes.set(title=f"{depth} layers", xlabel="epoch", ylim=(0, 3))
        grid[0].set_ylabel("training loss")
        figures.name_lines(grid[-1])
