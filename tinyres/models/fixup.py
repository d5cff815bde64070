"""Residual networks without batch norm: Fixup initialisation (Zhang et al. 2019, arXiv 1901.09321).

    z = relu(s F(x + b1) + b4 + x),    F(x) = conv(relu(conv(x) + b2) + b3)

Without normalisation every branch adds its variance to the signal, and over L blocks it would explode. Fixup's rules: the
last layer of each branch and the classifier begin as 0, so that the net begins as its shortcuts; the branch's other layers
are scaled by L^(-1 / (2m - 2)) for m layers, so that one step of SGD changes the output by as much as in a shallow net; and
a scalar bias before each convolution, linear layer and ReLU, and a scalar factor per branch, do what batch norm's did.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from tinyres import functional as F
from tinyres import nn
from tinyres.models.cifar import SubsamplePad, blocks_per_stage, conv, stage
from tinyres.models.description import described
from tinyres.nn.module import Parameter
from tinyres.tensor import Tensor


def scalar(value: float) -> Parameter:
    return Parameter(np.full(1, value, np.float32))


class FixupBlock(nn.Module):
    """Two 3x3 convolutions, four scalar biases and a scalar factor. Where shapes change, the shortcut subsamples x + b1 and
    pads. (N, in_channels, H, W) -> (N, channels, H / stride, W / stride)
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bias1a = scalar(0)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bias1b = scalar(0)
        self.bias2a = scalar(0)
        self.conv2 = conv(channels, channels, 3)
        self.scale = scalar(1)
        self.bias2b = scalar(0)
        same_shape = in_channels == channels and stride == 1
        self.shortcut = nn.Identity() if same_shape else SubsamplePad(channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        biased = x + self.bias1a
        y = F.relu(self.conv1(biased) + self.bias1b)
        y = self.conv2(y + self.bias2a) * self.scale + self.bias2b
        return F.add_relu(y, x if isinstance(self.shortcut, nn.Identity) else self.shortcut(biased))


class FixupResNet(nn.Module):
    """Three stages of ``n`` blocks: (N, in_channels, 32, 32) -> logits (N, num_classes), all 0 at the start."""

    def __init__(self, n: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 16, 3)
        self.bias1 = scalar(0)
        self.layer1 = stage(FixupBlock, 16, 16, 1, n)
        self.layer2 = stage(FixupBlock, 16, 32, 2, n)
        self.layer3 = stage(FixupBlock, 32, 64, 2, n)
        self.bias2 = scalar(0)
        self.fc = nn.Linear(64, num_classes)
        for block in (*self.layer1, *self.layer2, *self.layer3):
            block.conv1.weight.data *= np.float32(1 / math.sqrt(3 * n))  # L = 3n branches of m = 2 layers
            nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(self.fc.weight)
        assert self.fc.bias is not None
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x) + self.bias1)
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.fc(F.global_avg_pool2d(y) + self.bias2)


@described
def fixup_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> FixupResNet:
    """A residual net of ``depth`` = 6n + 2 layers without batch norm: images (N, 3, 32, 32) -> logits (N, 10).

    Zhang et al. 2019, arXiv 1901.09321, section 3. The paper trains it with a tenth of the learning rate for the scalars.
    Raises `UsageError` for a depth that does not exist.
    """
    return FixupResNet(blocks_per_stage(depth, 2), num_classes, in_channels)


class _Build(Protocol):
    def __call__(self, num_classes: int = 10, in_channels: int = 3) -> FixupResNet: ...


def _fixup(depth: int, parameters: int) -> _Build:
    """`fixup_resnet` at one depth, as a function with a name and documentation of its own."""

    def build(num_classes: int = 10, in_channels: int = 3) -> FixupResNet:
        return fixup_resnet(depth, num_classes, in_channels)

    build.__name__ = build.__qualname__ = f"fixup_resnet{depth}"
    build.__doc__ = f"""A net of {depth} layers without batch norm for CIFAR: images (N, 3, 32, 32) -> logits (N, 10).

    Zhang et al. 2019, arXiv 1901.09321, section 3: the layers of `resnet{depth}` with shortcut "A", in the same shapes, with
    Fixup initialisation and scalar biases and factors in place of the batch norms. At the start all logits are 0.

    Parameters: {parameters:,}.

    Options:
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones
    """
    return described(build)


fixup_resnet20 = _fixup(20, 268_393)
fixup_resnet56 = _fixup(56, 849_091)
fixup_resnet110 = _fixup(110, 1_720_138)
