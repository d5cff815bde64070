"""Lesions: what is left of a trained net when a branch or a shortcut is cut, or blocks change places."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

import tinyres as tr
from tinyres.errors import UsageError
from tinyres.explain.ledger import gradient_ledger
from tinyres.explain.page.lesions import Cuts
from tinyres.lab import figures
from tinyres.lab.experiment import Claim, Config, Lab, Numbers, Run, Setting, by_setting
from tinyres.lab.images import FULL, QUICK, TINY, layers, shown_to, small, trained
from tinyres.lab.statistics import Check, above, below, mean
from tinyres.nn import Module
from tinyres.weights import import_weights

PUBLISHED = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
MEAN, STD = (np.array(v, np.float32).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
HIT = 5.0  # per cent: a cut that costs less is none to speak of
LOST = 50.0  # per cent: one that costs more destroys the net


def lesions(model: Module, images: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """The cost in points of error of each cut: lists by block, NaN where there is nothing to cut."""
    cuts = Cuts(model, images, labels)
    base, blocks = 100 * cuts.whole(), range(len(cuts.chain.blocks))
    shortcuts = all(block.switch for block in cuts.chain.blocks)

    def costs(cut: Callable[[int], float], possible: Callable[[int], bool]) -> list[float]:
        return [100 * cut(k) - base if possible(k) else math.nan for k in blocks]

    found: dict[str, Any] = {
        "base": base,
        "branch": costs(cuts.without_branch, lambda k: shortcuts or cuts.kept(k)),
        "swap": costs(cuts.swapped, lambda k: k + 1 in blocks and cuts.kept(k) and cuts.kept(k + 1)),
        "changes": [k for k in blocks if not cuts.kept(k)],
    }
    if shortcuts:
        random = np.random.default_rng(seed)
        counts = [n for n in (1, 2, 4, 8, 16) if n <= len(blocks)]
        found["shortcut"] = costs(cuts.without_shortcut, lambda k: True)
        found["several"] = {str(n): 100 * cuts.without_some(n, random) - base for n in counts}
        paths = gradient_ledger(model, (images[:32], labels[:32]), paths=True).paths
        assert paths
        found["paths"] = {"share": paths.share, "mean": paths.mean_length / len(blocks)}
    return found


def branches(numbers: Numbers) -> list[Check]:
    cut, plain = of_deepest(numbers, "resnet", "one branch cut"), of_deepest(numbers, "plain", "one block cut")
    checks = [below("one branch cut, points", cut, HIT), below("less than one block of the plain net", cut, plain)]
    deep, shallow = (numbers.get(f"published {net}, one branch cut", []) for net in ("resnet32", "resnet20"))
    return [*checks, below("published weights, 32 layers less than 20", deep, shallow)] if deep and shallow else checks


def changing(numbers: Numbers) -> list[Check]:
    those, all_of_them = (of_deepest(numbers, "resnet", f"{cut} cut") for cut in ("shape-changing branch", "one branch"))
    return [above("branches where shapes change, above the median of all", those, all_of_them)]


def shortcuts(numbers: Numbers) -> list[Check]:
    checks = [above("one shortcut cut, points", of_deepest(numbers, "resnet", "one shortcut cut"), LOST)]
    published = of_deepest(numbers, "published resnet", "one shortcut cut")
    return [*checks, above("the same, published weights", published, LOST)] if published else checks


def short_paths(numbers: Numbers) -> list[Check]:
    length = of_deepest(numbers, "resnet", "mean path length / blocks")
    return [below("mean path length, as a share of the blocks", length, 1 / 3)]


def of_deepest(numbers: Numbers, kind: str, what: str) -> Sequence[float]:
    """The numbers of the deepest of the nets that were trained here; none if there is no such net."""
    names = [name for name in numbers if name.startswith(kind) and name.endswith(what)]
    return numbers[max(names, key=layers)] if names else []


class Lesion(Lab):
    name = "lesion"
    title = "Lesions: a residual net can lose a branch, but not a shortcut"
    claims = (
        Claim(
            "Cutting one residual branch of a trained deep net hardly matters; taking a layer out of a plain one destroys "
            "it.",
            "Veit et al. 2016, arXiv 1605.06431, section 4.1 and figure 3",
            f"the median cost of a branch is below {HIT:g} points of error, and below that of a plain block; of published "
            "nets, it is smaller in the deeper one",
            branches,
        ),
        Claim(
            "The blocks that change the shape matter more than the others.",
            "Veit et al. 2016, section 4.1",
            "the mean cost of their branches is above the median of all",
            changing,
        ),
        Claim(
            "It is the shortcuts that carry the net: cutting one of them destroys it.",
            "the counterpart of Veit et al.'s experiment",
            f"the median cost of a shortcut is above {LOST:g} points, with published weights too",
            shortcuts,
        ),
        Claim(
            "The gradient comes through short paths, shorter than most paths are.",
            "Veit et al. 2016, section 4.3: 5 to 17 of 54 blocks",
            "the gradient at the first block has passed through less than a third of the branches, in the mean; half the "
            "branches is the mean of all paths",
            short_paths,
        ),
    )
    method = (
        "Nets trained on {images} images of `{data}` at {size}x{size} pixels: batch {batch}, {epochs} epochs, recipe "
        "`{recipe}`, learning rate {lr}; then, on {shown} test images in evaluation mode, one cut at a time: a branch (the "
        "block becomes its shortcut), a shortcut (the block becomes its branch), two neighbours in each other's place, "
        "several branches at once; a block of the plain net, where its input and output have one shape. Costs are points "
        "of error more than the whole net's. The gradient by path length is exact (`tr.gradient_ledger(..., paths=True)`), "
        "of one training step. Where `TINYRES_PRETRAINED` and `TINYRES_EXACT` name published weights and CIFAR-10 test "
        "images, those nets are cut as well; their seeds are other images."
    )
    differs = (
        "The paper cuts a ResNet-110 trained on CIFAR-10, and for a plain net VGG. Costs fall with depth, as each block "
        "does less: 27 blocks are half of the paper's 54. The published nets have 9 and 15 blocks only."
    )
    scales: ClassVar = {
        "quick": {"nets": ["plain20", "resnet20", "resnet56"], **QUICK, "shown": 500},
        "full": {"nets": ["plain20", "resnet20", "resnet56", "resnet110"], **FULL, "shown": 2000},
        "tiny": {"nets": ["plain8", "resnet8"], **TINY, "shown": 32},
    }

    def settings(self, config: Config) -> list[Setting]:
        nets = [{"net": net} for net in config["nets"]]
        folder = os.environ.get("TINYRES_PRETRAINED")
        if folder and os.environ.get("TINYRES_EXACT") and config["size"] >= 16:
            nets += [{"net": f"published {name}"} for name, file in PUBLISHED.items() if (Path(folder) / file).exists()]
        return nets

    def cost(self, setting: Setting, config: Config) -> float:
        return layers(setting["net"]) * (0.5 if " " in setting["net"] else 1)

    def run(self, setting: Setting, seed: int, config: Config) -> dict[str, Any]:
        kind, _, name = setting["net"].rpartition(" ")
        if kind:
            return lesions(*published(name, seed), seed)
        trainer = trained(name, small(config, seed), seed, config)
        return lesions(trainer.model, *shown_to(trainer, config["shown"]), seed)

    def numbers(self, runs: Sequence[Run], config: Config) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for net in dict.fromkeys(run.setting["net"] for run in runs):
            results = [run.result for run in by_setting(runs, net=net)]
            found[f"{net}, error % before"] = [r["base"] for r in results]
            if "shortcut" not in results[0]:
                found[f"{net}, one block cut"] = [middle(r["branch"]) for r in results]
                continue
            found[f"{net}, one branch cut"] = [middle(r["branch"]) for r in results]
            found[f"{net}, shape-changing branch cut"] = [mean([r["branch"][k] for k in r["changes"]]) for r in results]
            found[f"{net}, one shortcut cut"] = [middle(r["shortcut"]) for r in results]
            if not all(map(math.isnan, results[0]["swap"])):
                found[f"{net}, two neighbours swapped"] = [middle(r["swap"]) for r in results]
            for count in results[0]["several"]:
                if count != "1":
                    found[f"{net}, {count} branches cut"] = [r["several"][count] for r in results]
            found[f"{net}, mean path length / blocks"] = [r["paths"]["mean"] for r in results]
        return found

    def draw(self, figure: Any, runs: Sequence[Run], config: Config) -> None:
        nets = list(dict.fromkeys(run.setting["net"] for run in runs))
        rows = figure.subplots(len(nets), 1, squeeze=False)[:, 0]
        figure.set_size_inches(8, 1.7 * len(nets) + 0.6)
        for axes, net in zip(rows, nets, strict=True):
            results = [run.result for run in by_setting(runs, net=net)]
            plain = "shortcut" not in results[0]
            for shift, cut, colour in ((-0.2, "branch", figures.PLAIN), (0.2, "shortcut", figures.SHORTCUTS)):
                if cut not in results[0]:
                    continue
                places = [k for k, cost in enumerate(results[0][cut]) if not math.isnan(cost)]
                costs = np.array([[r[cut][k] for k in places] for r in results], float)
                label = "plain block cut" if plain else f"{cut} cut"
                width = 0.7 if plain else 0.38
                axes.bar([k + 1 + (0 if plain else shift) for k in places], costs.mean(0), width, color=colour, label=label)
            axes.set(ylim=(-5, 100), xlim=(0.3, len(results[0]["branch"]) + 0.7))
            axes.set_title(f"{net}: {np.mean([r['base'] for r in results]):.1f} % wrong before", fontsize=9, loc="left")
            axes.legend(fontsize=8, loc="upper right", ncols=2)
        figure.supylabel("cost of a cut, points of error", fontsize=10)
        rows[-1].set_xlabel("block")


def middle(costs: Sequence[float]) -> float:
    return median(cost for cost in costs if not math.isnan(cost))


def published(name: str, seed: int) -> tuple[Module, np.ndarray, np.ndarray]:
    """A net with published weights, and a third of the exact test images with their labels, chosen by ``seed``."""
    x, labels = exact_images()
    chosen = np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 3]
    return published_net(name), x[chosen], labels[chosen]


def published_net(name: str) -> Module:
    """The net with the weights in the folder ``TINYRES_PRETRAINED``."""
    model = tr.models.build(name, shortcut="A")
    shapes = {key: array.shape for key, array in model.state_dict().items()}
    model.load_state_dict(import_weights(Path(_place("TINYRES_PRETRAINED")) / PUBLISHED[name], shapes))
    return model


def exact_images() -> tuple[np.ndarray, np.ndarray]:
    """The test images in the file ``TINYRES_EXACT``, normalised as the published nets were fed, and their labels."""
    with np.load(_place("TINYRES_EXACT")) as file:
        images, labels = file["test_images"], file["test_labels"].astype(np.int64)
    return (images.reshape(-1, 3, 32, 32).astype(np.float32) / 255 - MEAN) / STD, labels


def _place(variable: str) -> str:
    found = os.environ.get(variable)
    if not found:
        raise UsageError(f"{variable} must say where published weights and test images are")
    return found
