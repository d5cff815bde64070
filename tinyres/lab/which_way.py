"""Which way the gradient goes at the start of training: it vanishes, explodes, or stays level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import tinyres as tr
from tinyres.explain.page import depth
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting
from tinyres.lab.images import batch, depths, layers, pairs
from tinyres.lab.statistics import Check, above, below

LEVEL = 1.25  # a factor per block that is larger explodes; one over it, or less, vanishes


def plain(numbers: Numbers) -> list[Check]:
    return [above(name, numbers[name], 1.3) for name in numbers if name.startswith("plain") and "gain" not in name]


def residual(numbers: Numbers) -> list[Check]:
    found = depths(numbers)
    checks = [below(f"resnet{d}, below plain{d}", numbers[f"resnet{d}"], numbers[f"plain{d}"]) for d in found]
    for shallow, deep in itertools.pairwise(found):
        checks.append(below(f"resnet{deep}, below resnet{shallow}", numbers[f"resnet{deep}"], numbers[f"resnet{shallow}"]))
    return [*checks, below(f"resnet{found[-1]}", numbers[f"resnet{found[-1]}"], LEVEL)]


def without(numbers: Numbers) -> list[Check]:
    """Without batch norm: plain nets' gradients do all three; residual ones' explode where plain ones' are level."""
    return [
        below("plain, gain 0.5, vanishes", numbers["plain, gain 0.5"], 1 / LEVEL),
        above("plain, gain 1, does not vanish", numbers["plain, gain 1"], 1 / LEVEL),
        below("plain, gain 1, does not explode", numbers["plain, gain 1"], LEVEL),
        above("plain, gain 2, explodes", numbers["plain, gain 2"], LEVEL),
        above("residual, gain 1, explodes", numbers["residual, gain 1"], LEVEL),
        below("residual, branches divided by the root of the depth, does not", numbers["residual, damped"], LEVEL),
    ]


class WhichWay(Lab):
    name = "which-way"
    title = "Which way the gradient goes: it vanishes, explodes, or stays level"
    claims = (
        Claim(
            "With batch norm, the gradient of a plain net does not vanish on its way to the input: it explodes, by the same "
            "factor in every block.",
            "Yang et al. 2019, arXiv 1902.08129: in wide nets by 1.47 per block of two layers",
            "the factor per block is above 1.3 at every depth",
            plain,
        ),
        Claim(
            "Shortcuts turn that into a growth that gets slower with depth.",
            "Yang et al. 2019; Balduzzi et al. 2017, arXiv 1702.08591, section 3",
            f"at every depth the factor per block is below the plain net's, it falls with depth, and in the deepest net it "
            f"is below {LEVEL}",
            residual,
        ),
        Claim(
            "Without batch norm all three happen: the gradient of a plain net vanishes or explodes with the size of its "
            "weights, and shortcuts alone make one explode that was level without them.",
            "He et al. 2015, arXiv 1502.01852, section 2.2; Zhang et al. 2019 (Fixup), arXiv 1901.09321, section 2",
            f"level means a factor per block between 1 / {LEVEL} and {LEVEL}: plain nets of gain 0.5, 1 and 2 are below, "
            "within and above it, residual ones of gain 1 above it, and no longer if their branches are divided by the root "
            "of the depth",
            without,
        ),
    )
    method = (
        "Gradient norm at the input of the first block over that at the last, at the start of training; per block, as a "
        "geometric mean. With batch norm: the CIFAR nets of {depths} layers, one batch of {batch} images of `{data}`. "
        "Without: fully connected nets of {blocks} blocks of two layers, 64 wide, on random inputs; `gain` multiplies the "
        "weights of each block's second layer, which begin with He's initialisation."
    )
    differs = (
        "The theory is about infinitely wide nets and one layer at a time; here the nets are 16 to 64 channels wide, and "
        "the factor is a mean over blocks. All is at the start: after training, gradients are more even (`tinyres explain "
        "RUN`)."
    )
    scales: ClassVar = {
        "quick": {"depths": [20, 56, 110], "batch": 32, "data": "shapes", "blocks": 30},
        "full": {"depths": [20, 32, 44, 56, 110], "batch": 128, "data": "cifar10", "blocks": 100},
        "tiny": {"depths": [8, 14], "batch": 4, "data": "shapes", "blocks": 5},
    }

    least: ClassVar = {"blocks": 2}

    def settings(self, config: Config) -> list[Setting]:
        gains = [{"net": "plain", "gain": gain} for gain in (0.5, 1.0, 2.0)]
        return [
            *pairs(config),
            *gains,
            {"net": "residual", "gain": 1.0},
            {"net": "residual", "gain": config["blocks"] ** -0.5},
        ]

    def cost(self, setting: Setting, config: Config) -> float:
        return 1.0 if "gain" in setting else layers(setting["net"]) / 10

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        if "gain" in setting:
            found = depth.gain_norms(setting["net"] == "residual", setting["gain"], seed, depth=config["blocks"])
        else:
            tr.manual_seed(seed)
            found = depth.norms(tr.models.build(setting["net"]), *batch(config["data"], config["batch"]))
        return {"norms": found, "factor": depth.factor(found)}

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        return {named(s): [r.result["factor"] for r in by_setting(runs, **s)] for s in self.settings(config)}

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        left, right = figure.subplots(1, 2)
        for setting in self.settings(config):
            axes, shortcuts = (right if "gain" in setting else left), setting["net"].startswith("res")
            for i, run in enumerate(by_setting(runs, **setting)):
                norms = run.result["norms"]
                places = [k / (len(norms) - 1) for k in range(len(norms))]
                figures.line(axes, places, [n / norms[-1] for n in norms], named(setting), shortcuts, first=i == 0)
        for axes, title in ((left, "with batch norm"), (right, f"without, {config['blocks']} blocks")):
            axes.set(yscale="log", title=title, xlabel="depth: 0 first block, 1 last")
            figures.name_lines(axes)
        left.set_ylabel("gradient norm at a block's input, last block = 1")


def named(setting: Setting) -> str:
    if "gain" not in setting:
        return setting["net"]
    damped = setting["net"] == "residual" and setting["gain"] != 1
    return "residual, damped" if damped else f"{setting['net']}, gain {setting['gain']:g}"
