"""The test error of a network whose branches or shortcuts are cut, or whose blocks change places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.explain.page.chain import Chain
from tinyres.guards import no_grad
from tinyres.nn import Module


class Cuts:
    """A net in evaluation mode on one batch of images: the share that it gets wrong, as it is and after each cut."""

    def __init__(self, model: Module, images: np.ndarray, labels: np.ndarray) -> None:
        self.chain, self.labels = Chain(model, training=False), labels
        with no_grad():
            self.inputs = [self.chain.stem(images)]  # of each block, and the last one's output
            for block in self.chain.blocks:
                self.inputs.append(block.run(self.inputs[-1]).z.data)

    def error(self, k: int, z: np.ndarray) -> float:
        """If ``z`` is the input of block k."""
        with no_grad():
            for block in self.chain.blocks[k:]:
                z = block.run(z).z.data
        return float(np.mean(self.chain.logits(z).argmax(1) != self.labels))

    def whole(self) -> float:
        return self.error(0, self.inputs[0])

    def kept(self, k: int) -> bool:
        """Whether the input and the output of block k have one shape."""
        return self.inputs[k].shape == self.inputs[k + 1].shape

    def without_branch(self, k: int) -> float:
        """Only what the shortcut brings; a plain block, which has none, is left out."""
        block = self.chain.blocks[k]
        with no_grad():
            z = block.skip(self.inputs[k]) if block.switch else self.inputs[k]
        return self.error(k + 1, z)

    def without_shortcut(self, k: int) -> float:
        with no_grad():
            z = self.chain.blocks[k].run(self.inputs[k], shortcut=False).z.data
        return self.error(k + 1, z)

    def swapped(self, k: int) -> float:
        """Block k + 1 before block k."""
        with no_grad():
            z = self.chain.blocks[k].run(self.chain.blocks[k + 1].run(self.inputs[k]).z.data).z.data
        return self.error(k + 2, z)

    def without_some(self, count: int, random: np.random.Generator, draws: int = 5) -> float:
        """The mean over ``draws`` choices of ``count`` blocks without their branches."""
        found = []
        for _ in range(draws):
            out = set(random.choice(len(self.chain.blocks), count, replace=False).tolist())
            z = self.inputs[0]
            with no_grad():
                for k, block in enumerate(self.chain.blocks):
                    z = block.skip(z) if k in out else block.run(z).z.data
            found.append(self.error(len(self.chain.blocks), z))
        return float(np.mean(found))


def lesions(
    model: Module, images: np.ndarray, labels: np.ndarray, wanted: list[int], on_done: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The share of ``images`` that is put into the wrong class, in evaluation mode, after each cut.

    ``branch`` and ``shortcut``: one is cut, per block. ``branch_masks``: bit k of a mask is 1 where the branch of block k is
    cut, for the masks in ``wanted``: among them 0 and each single bit. ``on_done`` is called after each mask.
    """
    cuts = Cuts(model, images, labels)
    blocks = cuts.chain.blocks
    errors: dict[int, float] = {}

    def walk(x: np.ndarray, below: int, k: int) -> None:
        if k == len(blocks):
            errors[below] = cuts.error(k, x)
            on_done()
            return
        for bit in (0, 1):
            mask = below | bit << k
            if any(m & ((2 << k) - 1) == mask for m in wanted):
                walk(blocks[k].skip(x) if bit else blocks[k].run(x).z.data, mask, k + 1)

    with no_grad():
        walk(cuts.inputs[0], 0, 0)
    return {
        "images": len(labels),
        "base": errors[0],
        "branch": [errors[1 << k] for k in range(len(blocks))],
        "shortcut": [cuts.without_shortcut(k) for k in range(len(blocks))],
        "branch_masks": {"masks": wanted, "error": [errors[m] for m in wanted]},
    }
