"""Degradation: deeper plain nets train worse, deeper residual nets do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting, values
from tinyres.lab.images import FULL, KINDS, QUICK, TINY, curve, depths, layers, pairs, small, trained
from tinyres.lab.statistics import Check, above, below

LEARNED = 1.0  # training loss: a deep residual net that does not get below it was not trained for long enough


def degraded(numbers: Numbers) -> list[Check]:
    found = depths(numbers)
    shallow, deep = found[0], found[-1]
    loss = {name.removesuffix(", training loss"): v for name, v in numbers.items() if name.endswith("training loss")}
    learned = below(f"resnet{deep} has learned", loss[f"resnet{deep}"], LEARNED)
    if learned.sign < 1:  # nothing can be said about nets that have not
        return [Check(learned.text, 0)]
    plain, residual = (
        [d - s for d, s in zip(loss[f"{kind}{deep}"], loss[f"{kind}{shallow}"], strict=True)] for kind in KINDS
    )
    slower = [name for name in loss if name.startswith(f"plain{deep}, lr")]
    return [
        learned,
        above(f"plain{deep} less plain{shallow}", plain, 0),
        below(f"resnet{deep} less resnet{shallow}, below half of that", residual, [gap / 2 for gap in plain]),
        *(
            above(f"{name.split(', ')[1]}: plain{deep} less plain{shallow}", loss[name], loss[f"plain{shallow}"])
            for name in slower
        ),
    ]


class Degradation(Lab):
    name = "degradation"
    title = "Degradation: with depth, plain nets train worse, and residual nets do not"
    claims = (
        Claim(
            "A deeper plain net has a higher training error than a shallower one, though it could do the same and more; "
            "with shortcuts the difference goes away.",
            "He et al. 2015, arXiv 1512.03385, section 4.2 and figure 6",
            "the training loss of the deep plain net is above that of the shallow one, at both learning rates; between "
            "the residual nets the difference is less than half of that. Undecided unless the deep residual net ends "
            f"below {LEARNED}",
            degraded,
        ),
    )
    method = (
        "Plain and residual nets of {depths} layers, the same but for the shortcuts (option A), on {images} images of "
        "`{data}` shrunk to {size}x{size} pixels: batch {batch}, {epochs} epochs by the recipe `{recipe}` with learning "
        "rate {lr}; the deep plain net also with {other_lr}, to see whether smaller steps rescue it. The loss is the mean "
        "over the last epoch."
    )
    differs = (
        "The paper trains 64,000 steps on CIFAR-10 at 32x32 with augmentation, and compares errors at the end; here it is "
        "320 steps on a quarter of the pixels, so that what is seen is how fast nets train, not where they end. At this "
        "scale plain nets of 20 layers can beat residual ones: only the comparison by depth means something."
    )
    scales: ClassVar = {
        "quick": {"depths": [20, 56], **QUICK, "other_lr": 0.01},
        "full": {"depths": [20, 56], **FULL, "other_lr": 0.01},
        "tiny": {"depths": [8, 14], **TINY, "other_lr": 0.01},
    }

    def settings(self, config: Config) -> list[Setting]:
        nets = [net | {"lr": config["lr"]} for net in pairs(config)]
        return [*nets, {"net": f"plain{max(config['depths'])}", "lr": config["other_lr"]}]

    def cost(self, setting: Setting, config: Config) -> float:
        return layers(setting["net"])

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        return curve(trained(setting["net"], small(config, seed), seed, config, lr=setting["lr"]))

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        found = {}
        for setting in self.settings(config):
            for result, what in (
                ("last_loss", "training loss"),
                ("last_error", "training error %"),
                ("test_error", "test error %"),
            ):
                found[f"{named(setting, config)}, {what}"] = values(runs, result, **setting)
        return found

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        axes = figure.subplots()
        for setting in self.settings(config):
            for i, run in enumerate(by_setting(runs, **setting)):
                losses = run.result["train_loss"]
                figures.line(
                    axes, range(1, len(losses) + 1), losses, named(setting, config), setting["net"].startswith("res"), i == 0
                )
        axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        figures.name_lines(axes)


def named(setting: Setting, config: Config) -> str:
    return setting["net"] if setting["lr"] == config["lr"] else f"{setting['net']}, lr {setting['lr']:g}"
