"""A network taken apart: a stem, blocks whose shortcuts and branches can be cut, and a head.

Each block is a small graph of its own. Its branch and its shortcut read the input through a leaf each, so that what comes
back through either is found apart. A block that is cut leaves everything below it as it was: whoever tries many cuts runs
only what comes above them.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from tinyres import functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.models import Bottleneck, CifarResNet, PlainBlock
from tinyres.tensor import Tensor


class Back(NamedTuple):
    """What comes back through one block: the cotangents of its output, of the sum in its join, and of its input in parts."""

    dz: np.ndarray
    ds: np.ndarray
    shortcut: np.ndarray | None  # None where the shortcut is cut, or never was
    branch: np.ndarray

    @property
    def dx(self) -> np.ndarray:
        """The cotangent of the block's input: the sum of what came back through both."""
        return self.branch if self.shortcut is None else self.shortcut + self.branch


class Chain:
    """A copy of a `CifarResNet` in training or evaluation mode, its parameters constant: only cotangents are wanted."""

    def __init__(self, model: nn.Module, training: bool = True) -> None:
        if not isinstance(model, CifarResNet):
            raise UsageError(f"a {type(model).__name__} is not a net of post-activation blocks; give a resnetD or plainD")
        self.model = copy.deepcopy(model).train(training)
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        found = [(name, m) for name, m in self.model.named_modules() if isinstance(m, PlainBlock | Bottleneck)]
        self.names = tuple(name for name, _ in found)
        self.blocks = [Block(module) for _, module in found]

    def stem(self, images: np.ndarray) -> np.ndarray:
        """The first block's input."""
        return self.model.bn1(self.model.conv1(Tensor(images)), relu=True).data

    def head(self, z: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss, the cotangent of the last block's output, and the logits."""
        leaf = Tensor(z, requires_grad=True)
        logits = self.model.fc(F.global_avg_pool2d(leaf))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        assert leaf.grad is not None
        return float(loss), leaf.grad, logits.data

    def logits(self, z: np.ndarray) -> np.ndarray:
        """The class scores of the last block's output."""
        return self.model.fc(F.global_avg_pool2d(Tensor(z))).data


class Block:
    """One block, with a switch in the place of its shortcut."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        shortcut = dict(module.named_children()).get("shortcut")
        self.switch = Switch(shortcut) if shortcut is not None else None
        if self.switch:
            module.shortcut = self.switch  # type: ignore[attr-defined]
        self.norm = [child for child in module.children() if isinstance(child, nn.BatchNorm2d)][-1]  # the branch's last

    def run(self, x: np.ndarray, shortcut: bool = True) -> Run:
        """The block on ``x``, recorded; without its shortcut if ``shortcut`` is False."""
        if self.switch:
            self.switch.on = shortcut
        entry = Tensor(x, requires_grad=True)
        z = self.module(entry)
        return Run(entry, self.switch.entry if self.switch and shortcut else None, z)

    def skip(self, x: np.ndarray) -> np.ndarray:
        """The block without its branch: relu(shortcut(x))."""
        assert self.switch
        return F.relu(self.switch.shortcut(Tensor(x))).data


class Run(NamedTuple):
    """A block's forward pass: the leaves through which branch and shortcut read the input, and the output."""

    branch: Tensor
    shortcut: Tensor | None
    z: Tensor

    def back(self, dz: np.ndarray) -> Back:
        """The backward pass from the cotangent of the output. It can be repeated with another one."""
        leaves = [leaf for leaf in (self.branch, self.shortcut) if leaf is not None]
        for leaf in leaves:
            leaf.grad = None
        self.z.backward(dz, retain_graph=True)
        through = None if self.shortcut is None else self.shortcut.grad
        assert self.branch.grad is not None
        return Back(dz, np.where(self.z.data > 0, dz, np.float32(0)), through, self.branch.grad)


class Switch(nn.Module):
    """A shortcut that can be cut. It reads the block's input through a leaf of its own."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.on = True
        self.entry: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.on:
            self.entry = Tensor(x.data, requires_grad=True)
            return self.shortcut(self.entry)
        self.entry = None
        return Tensor(np.zeros_like(self.shortcut(Tensor(x.data)).data))
