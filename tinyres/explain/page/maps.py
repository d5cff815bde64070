"""One step's arrays, for the eye: what each block computes and what comes back, for a few images and channels.

And for those who click on a number: the arithmetic behind a few of them, exact.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from tinyres.explain.page import pack
from tinyres.explain.page.chain import Back, Chain, Run
from tinyres.nn import Conv2d, Module
from tinyres.tensor import Tensor

CHANNELS = 6  # of each block, where there are nine of them; of more blocks fewer, so that the page stays small
WINDOWS = 2  # of the largest parts of a convolution's sum, these many are shown as products


class Pass(NamedTuple):
    """One block of one training step: forward and back."""

    x: np.ndarray
    branch: np.ndarray
    run: Run
    back: Back
    convolutions: dict[str, tuple[Module, np.ndarray, np.ndarray]]  # name -> module, cotangents of output and of input


def passes(model: Module, images: np.ndarray, labels: np.ndarray) -> tuple[float, list[Pass]]:
    """The loss of one batch in training mode, and the forward and backward pass of every block."""
    chain = Chain(model)
    x, runs = chain.stem(images), []
    for block in chain.blocks:
        kept: dict[str, Any] = {}
        hooks = [
            m.register_forward_hook(functools.partial(_keep, kept, name))
            for name, m in block.module.named_modules()
            if isinstance(m, Conv2d) and not name.startswith("shortcut")
        ]
        run = block.run(x)
        for hook in hooks:
            hook.remove()
        runs.append((x, run, kept))
        x = run.z.data
    loss, dz, _ = chain.head(x, labels)
    found: list[Pass] = []
    for block, (x, run, kept) in zip(reversed(chain.blocks), reversed(runs), strict=True):
        back = run.back(dz)
        dz = back.dx
        _, _, last = list(kept.values())[-1]
        branch = block.norm(last.detach()).data
        found.append(Pass(x, branch, run, back, {n: (m, out.grad, given.grad) for n, (m, given, out) in kept.items()}))
    return loss, found[::-1]


def _keep(kept: dict[str, Any], name: str, module: Module, given: tuple, out: Tensor) -> None:
    for tensor in (given[0], out):
        tensor.retain_grad()
    kept[name] = module, given[0], out


def block_maps(found: list[Pass], images: int) -> list[dict[str, Any]]:
    """Per block, the channels shown and the arrays as int8: see the page's ``data.js``, which decodes them.

    A block's input is the output of the block below it, and so are their cotangents, so only the first block keeps its own.
    The channels are those of its stage with the largest cotangents.
    """
    stages: dict[int, np.ndarray] = {}
    for cotangent in (found[0].back.dx, *(p.back.dz for p in found)):
        size = (cotangent.astype(np.float64) ** 2).sum((0, 2, 3))
        stages[len(size)] = stages.get(len(size), 0) + size / size.sum()
    most = max(1, min(CHANNELS, CHANNELS * 9 // len(found)))
    shown = {width: np.sort(np.argsort(-size, kind="stable")[:most]) for width, size in stages.items()}
    result = []
    for k, p in enumerate(found):
        outer, inner = shown[p.back.dz.shape[1]], shown[p.x.shape[1]]
        arrays = {
            "branch": (p.branch, outer),
            "z": (p.run.z.data, outer),
            "dz": (p.back.dz, outer),
            "back": (p.back.branch, inner),
        }
        if k == 0:
            arrays |= {"x": (p.x, inner), "dx": (p.back.dx, inner)}
        scales, shapes, data = {}, {}, b""
        for name, (array, channels) in arrays.items():
            cut = array[:images][:, channels]
            steps, scale = pack.int8(cut, positive=name in ("x", "z"))
            scales[name], shapes[name] = pack.digits(scale), list(cut.shape)
            data += np.ascontiguousarray(steps).tobytes()
        result.append(
            {
                "channels": outer.tolist(),
                "input_channels": inner.tolist(),
                "scale": scales,
                "shape": shapes,
                "arrays": pack.text(data),
            }
        )
    return result


def cells(found: list[Pass], maps: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Per block, the arithmetic of a few numbers: two of the join (open and closed), and per image one of each convolution
    and one of the fork.
    """
    return [_block_cells(p, m["channels"], m["input_channels"], images) for p, m in zip(found, maps, strict=True)]


def _block_cells(p: Pass, outer: list[int], inner: list[int], images: int) -> dict[str, Any]:
    z, dx = p.run.z.data, p.back.dx
    join, fork, convolutions = [], [], []
    for is_open in (True, False):
        where = _largest(np.where((z > 0) == is_open, p.back.dz, 0)[:images], outer)
        join.append(_cell(where, dz=p.back.dz[where], z=z[where], ds=p.back.ds[where]))
    for image in range(images):
        where = (image, *_largest(dx[image : image + 1], inner)[1:])
        parts = {} if p.back.shortcut is None else {"shortcut": p.back.shortcut[where]}
        fork.append(_cell(where, **parts, branch=p.back.branch[where], dx=dx[where]))
        for name, (module, dy, back) in p.convolutions.items():
            channels = inner if back.shape[1] == p.x.shape[1] and name == next(iter(p.convolutions)) else outer
            channels = channels if max(channels) < back.shape[1] else list(range(back.shape[1]))
            chosen = (image, *_largest(back[image : image + 1], channels)[1:])
            convolutions.append({"layer": name, **_cell(chosen), **convolution_cell(module, dy, chosen)})
    return {"join": join, "fork": fork, "convolution": convolutions}


def convolution_cell(module: Any, dy: np.ndarray, where: tuple[int, ...]) -> dict[str, Any]:
    """One number of a convolution's input cotangent as the sum of what each output channel sends back to it:

    dx[c, i, j] = sum over o, a, b of w[o, c, a, b] dy[o, (i + p - a) / s, (j + p - b) / s], where that is a whole place.
    """
    image, channel, row, column = where
    weight = module.weight.data.astype(np.float64)[:, channel]
    window = np.zeros_like(weight)
    for a in range(weight.shape[1]):
        for b in range(weight.shape[2]):
            i, rest = divmod(row + module.padding[0] - a, module.stride[0])
            j, more = divmod(column + module.padding[1] - b, module.stride[1])
            if rest == more == 0 and 0 <= i < dy.shape[2] and 0 <= j < dy.shape[3]:
                window[:, a, b] = dy[image, :, i, j]
    parts = (weight * window).sum((1, 2))
    largest = np.argsort(-np.abs(parts), kind="stable")[:WINDOWS]
    return {
        "value": pack.digits(parts.sum()),
        "parts": [pack.digits(v, 5) for v in parts],
        "windows": [{"from": int(o), "dy": _numbers(window[o]), "weight": _numbers(weight[o])} for o in largest],
    }


def _largest(a: np.ndarray, channels: list[int]) -> tuple[int, ...]:
    """The place of the largest magnitude in these channels of (N, C, H, W)."""
    image, channel, row, column = np.unravel_index(np.abs(a[:, channels]).argmax(), a[:, channels].shape)
    return int(image), channels[channel], int(row), int(column)


def _cell(where: tuple[int, ...], **values: Any) -> dict[str, Any]:
    return {"place": list(where), **{name: pack.digits(value) for name, value in values.items()}}


def _numbers(a: np.ndarray) -> list[list[float]]:
    return [[pack.digits(v, 5) for v in row] for row in a]
