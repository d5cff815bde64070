"""The ledger of one step for every setting of the shortcuts, on or off.

The settings are walked as a tree, block by block from the input: what lies below a block that is switched is computed once
for all settings that agree there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tinyres.explain.page.chain import Chain, Run
from tinyres.nn import Module

FIELDS = ("lent", "through_shortcut", "through_branch", "total", "cosine")


def masks(blocks: int, every: bool, ends: bool = True) -> list[int]:
    """The settings that are computed, bit k for block k: all of them, or without ``every`` none, each one alone, all, and
    with ``ends`` all but each one.
    """
    full = (1 << blocks) - 1
    if every:
        return list(range(full + 1))
    singles = [1 << k for k in range(blocks)]
    return sorted({0, full, *singles, *(full ^ bit for bit in singles if ends)})


def settings(
    model: Module, images: np.ndarray, labels: np.ndarray, wanted: list[int], on_done: Callable[[], None] = lambda: None
) -> np.ndarray:
    """float32 (settings, blocks, fields): norms of the cotangents, and the cosine of the two parts of the input's.

    Bit k of a setting in ``wanted`` is 1 where the shortcut of block k is on. The batch is normalised by its own
    statistics, anew in each setting. ``on_done`` is called after each. Where the shortcut is off, nothing
    comes through it, and the cosine is NaN.
    """
    chain = Chain(model)
    result = np.empty((len(wanted), len(chain.blocks), len(FIELDS)), np.float32)
    place = {mask: i for i, mask in enumerate(wanted)}
    for mask, runs in _walk(chain, chain.stem(images), set(wanted), 0, 0, []):
        _, dz, _ = chain.head(runs[-1].z.data, labels)
        for k, run in reversed(list(enumerate(runs))):
            back = run.back(dz)
            dz = back.dx
            result[place[mask], k] = measures(back.ds, back.shortcut, back.branch, dz)
        on_done()
    return result


def measures(ds: np.ndarray, shortcut: np.ndarray | None, branch: np.ndarray, dx: np.ndarray) -> tuple[float, ...]:
    """The `FIELDS` of one block."""
    through, total = norm(branch), norm(dx)
    if shortcut is None:
        return norm(ds), 0.0, through, total, np.nan
    past = norm(shortcut)  # |a + b|^2 = |a|^2 + |b|^2 + 2 |a| |b| cos
    return norm(ds), past, through, total, (total**2 - past**2 - through**2) / max(2 * past * through, 1e-300)


def norm(a: np.ndarray) -> float:
    """As `trace.norm`, but in float32: all settings of nine shortcuts take 37,000."""
    flat = a.ravel(order="K")
    return float(np.sqrt(np.dot(flat, flat)))


def _walk(
    chain: Chain, x: np.ndarray, wanted: set[int], mask: int, k: int, runs: list[Run]
) -> Iterator[tuple[int, list[Run]]]:
    """The wanted settings whose bits below k are those of ``mask``, with the forward passes of all blocks."""
    if k == len(chain.blocks):
        yield mask, runs
        return
    for bit in (0, 1):
        chosen = mask | bit << k
        rest = {m for m in wanted if m & ((2 << k) - 1) == chosen}
        if rest:
            run = chain.blocks[k].run(x, shortcut=bool(bit))
            yield from _walk(chain, run.z.data, rest, chosen, k + 1, [*runs, run])
