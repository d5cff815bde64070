"""The test error of a network whose branches or shortcuts are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.explain.page.chain import Chain
from tinyres.guards import no_grad
from tinyres.nn import Module


def lesions(
    model: Module, images: np.ndarray, labels: np.ndarray, wanted: list[int], on_done: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The share of ``images`` that is put into the wrong class, in evaluation mode, after each cut.

    ``branch`` and ``shortcut``: one is cut, per block. ``branch_masks``: bit k of a mask is 1 where the branch of block k is
    cut, for the masks in ``wanted``: among them 0 and each single bit. ``on_done`` is called after each mask.
    """
    chain = Chain(model, training=False)
    blocks = len(chain.blocks)
    errors: dict[int, float] = {}

    def error(z: np.ndarray) -> float:
        return float(np.mean(chain.logits(z).argmax(1) != labels))

    def walk(x: np.ndarray, below: int, k: int) -> None:
        if k == blocks:
            errors[below] = error(x)
            on_done()
            return
        for bit in (0, 1):
            mask = below | bit << k
            if any(m & ((2 << k) - 1) == mask for m in wanted):
                walk(chain.blocks[k].skip(x) if bit else chain.blocks[k].run(x).z.data, mask, k + 1)

    with no_grad():
        first = chain.stem(images)
        walk(first, 0, 0)
        shortcut, x = [], first
        for k, block in enumerate(chain.blocks):
            z = block.run(x, shortcut=False).z.data
            for above in chain.blocks[k + 1 :]:
                z = above.run(z).z.data
            shortcut.append(error(z))
            x = block.run(x).z.data
    return {
        "images": len(labels),
        "base": errors[0],
        "branch": [errors[1 << k] for k in range(blocks)],
        "shortcut": shortcut,
        "branch_masks": {"masks": wanted, "error": [errors[m] for m in wanted]},
    }
