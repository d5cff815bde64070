"""Pre-activation residual networks for CIFAR (He et al. 2016, arXiv 1603.05027).

    y = x + F(x),    F(x) = conv(relu(bn(conv(relu(bn(x))))))

Nothing follows the addition: from block to block leads a path on which there is nothing but additions, so that with
identity shortcuts x_L = x_l + the sum of the branches in between (eq. 4), and backward the loss's gradient reaches every
block unchanged, plus what comes through the branches (eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tinyres import functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.models.cifar import SubsamplePad, blocks_per_stage, conv, stage
from tinyres.models.description import described
from tinyres.tensor import Tensor


class PreactBlock(nn.Module):
    """y = F(x) + x with two 3x3 convolutions, each after a batch norm and a ReLU.

    Where shapes change, the shortcut starts behind the first ReLU: it subsamples and pads (A), or is a 1x1 convolution (B):
    that is its ``option``. (N, in_channels, H, W) -> (N, channels, H / stride, W / stride)
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.shortcut = make_shortcut(option, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(x, relu=True)
        y = self.conv2(self.bn2(self.conv1(a), relu=True))
        return y + (x if isinstance(self.shortcut, nn.Identity) else self.shortcut(a))


class WideBlock(PreactBlock):
    """A `PreactBlock` with dropout between its convolutions (Zagoruyko and Komodakis 2016, section 2.4).

    (N, in_channels, H, W) -> (N, channels, H / stride, W / stride). ``option`` as for `PreactBlock`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: str, dropout: float) -> None:
        super().__init__(in_channels, channels, stride, option)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(x, relu=True)
        y = self.conv2(self.dropout(self.bn2(self.conv1(a), relu=True)))
        return y + (x if isinstance(self.shortcut, nn.Identity) else self.shortcut(a))


class PreactBottleneck(nn.Module):
    """`PreactBlock` with 1x1, 3x3 and 1x1 convolutions; the last one widens fourfold.

    (N, in_channels, H, W) -> (N, 4 channels, H / stride, W / stride). ``option`` as for `PreactBlock`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, 4 * channels, 1)
        self.shortcut = make_shortcut(option, in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        a = self.bn1(x, relu=True)
        y = self.conv2(self.bn2(self.conv1(a), relu=True))
        y = self.conv3(self.bn3(y, relu=True))
        return y + (x if isinstance(self.shortcut, nn.Identity) else self.shortcut(a))


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity if shapes agree; if not, A subsamples and pads, and B is a 1x1 convolution, here without batch norm."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return SubsamplePad(out_channels, stride) if option == "A" else conv(in_channels, out_channels, 1, stride)


class PreactResNet(nn.Module):
    """Three stages of ``n`` blocks, and a batch norm and a ReLU at the end: (N, in_channels, 32, 32) -> logits
    (N, num_classes). ``width`` multiplies the 16, 32 and 64 channels of the stages; ``block`` and ``expansion``: see
    `cifar.stage`.
    """

    def __init__(
        self, block: Callable[..., nn.Module], expansion: int, n: int, num_classes: int, in_channels: int, width: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 16, 3)
        self.layer1 = stage(block, 16, 16 * width, 1, n, expansion)
        self.layer2 = stage(block, 16 * width * expansion, 32 * width, 2, n, expansion)
        self.layer3 = stage(block, 32 * width * expansion, 64 * width, 2, n, expansion)
        self.bn = nn.BatchNorm2d(64 * width * expansion)
        self.fc = nn.Linear(64 * width * expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.global_avg_pool2d(self.bn(y, relu=True)))


@described
def preresnet(
    depth: int, shortcut: str | None = None, block: str = "basic", num_classes: int = 10, in_channels: int = 3
) -> PreactResNet:
    """A pre-activation net of ``depth`` layers: 6n + 2 with "basic" blocks, 9n + 2 with "bottleneck" blocks.
    (N, in_channels, 32, 32) -> logits (N, num_classes)

    ``shortcut`` is "A", without parameters, or "B", a 1x1 convolution where shapes change; None: "A" for basic blocks, "B"
    for bottlenecks, as in the authors' code. Raises `UsageError` for a depth or an option that does not exist.
    """
    if block not in ("basic", "bottleneck"):
        raise UsageError(f'block must be "basic" or "bottleneck", got {block!r}')
    kind, layers, expansion = (PreactBlock, 2, 1) if block == "basic" else (PreactBottleneck, 3, 4)
    option = ("A" if block == "basic" else "B") if shortcut is None else shortcut
    if option not in ("A", "B"):
        raise UsageError(f'shortcut must be "A" or "B" in a pre-activation net, got {shortcut!r}')
    n = blocks_per_stage(depth, layers)
    return PreactResNet(partial(kind, option=option), expansion, n, num_classes, in_channels)


class _Build(Protocol):
    def __call__(self, shortcut: str | None = None, num_classes: int = 10, in_channels: int = 3) -> PreactResNet: ...


def _preresnet(depth: int, a: int, b: int, block: str = "basic") -> _Build:
    """`preresnet` at one depth, as a function with a name and documentation of its own, with its numbers of parameters."""

    def build(shortcut: str | None = None, num_classes: int = 10, in_channels: int = 3) -> PreactResNet:
        return preresnet(depth, shortcut, block, num_classes, in_channels)

    wide, blocks = (1 if block == "basic" else 4), f"{blocks_per_stage(depth, 2 if block == 'basic' else 3)} {block} blocks"
    build.__name__ = build.__qualname__ = f"preresnet{depth}"
    build.__doc__ = f"""A pre-activation residual net of {depth} layers for CIFAR: images (N, 3, 32, 32) -> logits (N, 10).

    He et al. 2016, arXiv 1603.05027, section 4. Images of other sizes work too.

        3x3 convolution                  (N, 16, 32, 32)
        layer1: {blocks:<24} (N, {16 * wide}, 32, 32)
        layer2: {blocks:<24} (N, {32 * wide}, 16, 16)
        layer3: {blocks:<24} (N, {64 * wide}, 8, 8)
        bn, relu
        mean of each map, linear layer   (N, 10)

    Parameters: {a:,} with shortcut "A", {b:,} with "B".

    Options:
        ``shortcut``      where a block changes the shape, "A" takes every second row and column and adds channels of
                          zeros, "B" is a 1x1 convolution; None: {'"A"' if block == "basic" else '"B"'}
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones

    Raises `UsageError` for an option that does not exist.
    """
    return described(build)


preresnet20 = _preresnet(20, 269_722, 272_282)
preresnet56 = _preresnet(56, 853_018, 855_578)
preresnet110 = _preresnet(110, 1_727_962, 1_730_522)
preresnet164 = _preresnet(164, 1_661_274, 1_703_258, "bottleneck")
preresnet1001 = _preresnet(1001, 10_285_722, 10_327_706, "bottleneck")


def wide_resnet(depth: int, width: int, dropout: float = 0.0, num_classes: int = 10, in_channels: int = 3) -> PreactResNet:
    """A wide residual net of ``depth`` = 6n + 4 layers, ``width`` times as wide: (N, 3, 32, 32) -> logits (N, 10).

    Zagoruyko and Komodakis 2016, arXiv 1605.07146: pre-activation blocks, 1x1 convolutions as shortcuts where shapes change
    (they count as layers), ``dropout`` between a block's two convolutions. Raises `UsageError` for a depth or a width that
    does not exist.
    """
    if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6 or width < 1:
        raise UsageError(f"a wide net has 6n + 4 layers, n >= 1, and a width of 1 or more, got {depth!r} and {width!r}")
    block = partial(WideBlock, option="B", dropout=dropout)
    return PreactResNet(block, 1, (depth - 4) // 6, num_classes, in_channels, width)


class _BuildWide(Protocol):
    def __call__(self, dropout: float = 0.0, num_classes: int = 10, in_channels: int = 3) -> PreactResNet: ...


def _wide(depth: int, width: int, parameters: int) -> _BuildWide:
    """`wide_resnet` at one depth and width, as a function with a name and documentation of its own."""

    def build(dropout: float = 0.0, num_classes: int = 10, in_channels: int = 3) -> PreactResNet:
        return wide_resnet(depth, width, dropout, num_classes, in_channels)

    build.__name__ = build.__qualname__ = f"wrn{depth}_{width}"
    build.__doc__ = f"""A wide residual net, WRN-{depth}-{width}, for CIFAR: images (N, 3, 32, 32) -> logits (N, 10).

    Zagoruyko and Komodakis 2016, arXiv 1605.07146, table 1: {(depth - 4) // 6} pre-activation blocks per stage,
    of {16 * width}, {32 * width} and {64 * width} channels. Images of other sizes work too.

    Parameters: {parameters:,}.

    Options:
        ``dropout``       the probability of dropout between a block's convolutions
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones
    """
    return described(build)


wrn16_8 = _wide(16, 8, 10_961_370)
wrn28_10 = _wide(28, 10, 36_479_194)
wrn40_2 = _wide(40, 2, 2_243_546)
wrn40_4 = _wide(40, 4, 8_949_210)
