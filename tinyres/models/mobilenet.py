"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): inverted residuals with linear bottlenecks.

    1x1 convolution to t times the channels, bn, ReLU6      expand
    3x3 depthwise convolution, bn, ReLU6                    filter
    1x1 convolution to few channels, bn                     project, without a ReLU: the bottleneck is linear

The shortcut joins the thin ends, where the block's input and output have one shape. A ReLU there would destroy what a thin
tensor holds (section 3.2). Names of the parameters are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyres import functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.models.description import described
from tinyres.tensor import Tensor

Stages = Sequence[tuple[int, int, int, int]]
STAGES: Stages = (  # table 2: t, the expansion; c, the channels; n, how many blocks; s, the first one's stride
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
CIFAR_STAGES: Stages = (STAGES[0], (6, 24, 2, 1), *STAGES[2:])
STEM, HEAD = 32, 1280


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of 8, and none that is less than 90 % of ``channels``."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size of the maps, but for its stride, and its batch norm."""
    padding = kernel_size // 2
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(out_channels)]


class InvertedResidual(nn.Module):
    """(N, in_channels, H, W) -> (N, channels, H / stride, W / stride): expand, filter, project, and the shortcut if shapes
    agree. The filters have ``expansion`` times as many channels. Without ``linear`` a ReLU6 follows the projection too.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int, linear: bool) -> None:
        super().__init__()
        wide = in_channels * expansion
        parts: list[nn.Module] = []
        if expansion != 1:
            parts.append(nn.Sequential(*conv_bn(in_channels, wide, 1), nn.ReLU6()))
        parts.append(nn.Sequential(*conv_bn(wide, wide, 3, stride, groups=wide), nn.ReLU6()))
        parts += conv_bn(wide, channels, 1)
        self.conv = nn.Sequential(*parts)
        self.linear, self.joins = linear, stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.linear:
            y = F.relu6(y)
        return x + y if self.joins else y


class MobileNetV2(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes): a stem, the blocks of ``stages``, a 1x1 convolution to the head.

    ``width_mult`` multiplies all channels, ``stem_stride`` is that of the first convolution, ``linear`` as for
    `InvertedResidual`. Raises `UsageError` for a ``width_mult`` that is not above 0.
    """

    def __init__(self, stages: Stages, num_classes: int, width_mult: float, stem_stride: int, linear: bool) -> None:
        super().__init__()
        if not width_mult > 0:
            raise UsageError(f"width_mult must be above 0, got {width_mult!r}")
        channels = divisible(STEM * width_mult)
        features: list[nn.Module] = [nn.Sequential(*conv_bn(3, channels, 3, stem_stride), nn.ReLU6())]
        for t, c, n, s in stages:
            for k in range(n):
                out = divisible(c * width_mult)
                features.append(InvertedResidual(channels, out, s if k == 0 else 1, t, linear))
                channels = out
        head = divisible(HEAD * max(1.0, width_mult))
        features.append(nn.Sequential(*conv_bn(channels, head, 1), nn.ReLU6()))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, num_classes))
        last = self.classifier[1]
        nn.init.normal_(last.weight, 0, 0.01)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.global_avg_pool2d(self.features(x)))


@described
def mobilenet_v2(
    num_classes: int = 1000, width_mult: float = 1.0, linear: bool = True, stages: Stages = STAGES
) -> MobileNetV2:
    """MobileNetV2 for ImageNet: images (N, 3, 224, 224) -> logits (N, 1000).

    Sandler et al. 2018, arXiv 1801.04381, table 2. Parameters: 3,504,872 at width 1; multiply-adds: 300,774,272.

    Options:
        ``num_classes``   the number of logits for each image
        ``width_mult``    multiplies the channels of all layers; they are rounded to multiples of 8
        ``linear``        False: a ReLU6 follows the bottlenecks too, against the paper's advice
        ``stages``        rows (t, c, n, s) in place of the paper's

    Raises `UsageError` for a width that is not above 0.
    """
    return MobileNetV2(stages, num_classes, width_mult, 2, linear)


@described
def mobilenet_v2_cifar(
    num_classes: int = 10, width_mult: float = 1.0, linear: bool = True, stages: Stages = CIFAR_STAGES
) -> MobileNetV2:
    """MobileNetV2 for CIFAR: images (N, 3, 32, 32) -> logits (N, 10).

    Sandler et al. 2018, arXiv 1801.04381, table 2, with stride 1 in the stem and in the stage of 24 channels. Parameters:
    2,236,682 at width 1; multiply-adds: 87,976,448.

    Options:
        ``num_classes``   the number of logits for each image
        ``width_mult``    multiplies the channels of all layers; they are rounded to multiples of 8
        ``linear``        False: a ReLU6 follows the bottlenecks too, against the paper's advice
        ``stages``        rows (t, c, n, s) in place of these

    Raises `UsageError` for a width that is not above 0.
    """
    return MobileNetV2(stages, num_classes, width_mult, 1, linear)
