"""Residual and plain networks for ImageNet (He et al. 2015, arXiv 1512.03385, table 1).

    7x7 conv to 64 channels, stride 2     112 x 112
    3x3 max-pooling, stride 2              56 x 56
    layer1, blocks of 64 channels          56 x 56
    layer2, blocks of 128                  28 x 28
    layer3, blocks of 256                  14 x 14
    layer4, blocks of 512                   7 x 7
    mean of each map, linear layer

The blocks are those of the CIFAR nets. Bottlenecks have their stride in the 3x3 convolution, as torchvision's; the paper has
it in the first 1x1. Weights in torchvision's layout load by `tinyres import-weights` and `weights.import_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from tinyres import functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.models.cifar import BasicBlock, Bottleneck, PlainBlock, stage, zero_last_norms
from tinyres.models.description import described
from tinyres.tensor import Tensor

# blocks per stage, and whether they are bottlenecks
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECKS = (50, 101, 152)


class ImageNetResNet(nn.Module):
    """Four stages of ``counts`` blocks: (N, in_channels, 224, 224) -> logits (N, num_classes). Other sizes work too.

    ``block`` and ``expansion``: see `cifar.stage`.
    """

    def __init__(
        self, block: Callable[..., nn.Module], expansion: int, counts: Sequence[int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(block, 64, 64, 1, counts[0], expansion)
        self.layer2 = stage(block, 64 * expansion, 128, 2, counts[1], expansion)
        self.layer3 = stage(block, 128 * expansion, 256, 2, counts[2], expansion)
        self.layer4 = stage(block, 256 * expansion, 512, 2, counts[3], expansion)
        self.fc = nn.Linear(512 * expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maxpool(self.bn1(self.conv1(x), relu=True))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return self.fc(F.global_avg_pool2d(y))


class _BuildResNet(Protocol):
    def __call__(
        self, shortcut: str = "B", num_classes: int = 1000, in_channels: int = 3, zero_init_residual: bool = False
    ) -> ImageNetResNet: ...


class _BuildPlain(Protocol):
    def __call__(self, num_classes: int = 1000, in_channels: int = 3) -> ImageNetResNet: ...


def _resnet(depth: int, parameters: int, multiply_adds: int) -> _BuildResNet:
    """The residual net of one depth, as a function with a name and documentation of its own."""

    def build(
        shortcut: str = "B", num_classes: int = 1000, in_channels: int = 3, zero_init_residual: bool = False
    ) -> ImageNetResNet:
        if shortcut not in ("A", "B", "C"):
            raise UsageError(f'shortcut must be "A", "B" or "C", got {shortcut!r}')
        kind, expansion = (Bottleneck, 4) if depth in BOTTLENECKS else (BasicBlock, 1)
        net = ImageNetResNet(partial(kind, option=shortcut), expansion, STAGES[depth], num_classes, in_channels)
        if zero_init_residual:
            zero_last_norms(net)
        return net

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"""A residual net of {depth} layers for ImageNet: images (N, 3, 224, 224) -> logits (N, 1000).

    He et al. 2015, arXiv 1512.03385, table 1: {" ".join(map(str, STAGES[depth]))}
    {"bottleneck" if depth in BOTTLENECKS else "basic"} blocks in four stages. Images of other sizes work too.

    Parameters: {parameters:,}; multiply-adds: {multiply_adds:,}, with shortcut "B".

    Options:
        ``shortcut``      where a block changes the shape, "A" subsamples and adds channels of zeros, "B" projects with a 1x1
                          convolution; "C" projects in every block
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones
        ``zero_init_residual``  each branch begins as 0 (Goyal et al. 2017)

    Raises `UsageError` for an option that does not exist.
    """
    return described(build)


def _plain(depth: int, parameters: int, multiply_adds: int) -> _BuildPlain:
    """The plain net of one depth, as a function with a name and documentation of its own."""

    def build(num_classes: int = 1000, in_channels: int = 3) -> ImageNetResNet:
        return ImageNetResNet(PlainBlock, 1, STAGES[depth], num_classes, in_channels)

    build.__name__ = build.__qualname__ = f"plain{depth}"
    build.__doc__ = f"""A plain net of {depth} layers for ImageNet: images (N, 3, 224, 224) -> logits (N, 1000).

    He et al. 2015, arXiv 1512.03385, table 1: the layers of `resnet{depth}` without shortcuts, which on ImageNet train worse
    from 18 to 34 layers (table 2: 27.94 and 28.54 % error).

    Parameters: {parameters:,}; multiply-adds: {multiply_adds:,}.

    Options:
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones
    """
    return described(build)


resnet18 = _resnet(18, 11_689_512, 1_814_073_344)
resnet34 = _resnet(34, 21_797_672, 3_663_761_408)
resnet50 = _resnet(50, 25_557_032, 4_089_184_256)
resnet101 = _resnet(101, 44_549_160, 7_801_405_440)
resnet152 = _resnet(152, 60_192_808, 11_513_626_624)
plain18 = _plain(18, 11_515_688, 1_794_805_760)
plain34 = _plain(34, 21_623_848, 3_644_493_824)
