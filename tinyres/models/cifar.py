"""Residual networks for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2) and the plain nets beside them.

    3x3 conv to 16 channels                             32 x 32
    layer1, n blocks of 16 channels                     32 x 32
    layer2, n blocks of 32 channels, the first halves   16 x 16
    layer3, n blocks of 64 channels, the first halves    8 x 8
    mean of each map, linear layer, softmax

A block adds what it computes to what it was given: z = relu(F(x) + x). Backward, the join hands the same cotangent ds to
the branch and to the shortcut, and the fork at the input adds what comes back: dx = ds + J_F^T ds. So ds reaches x
whatever F is.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tinyres import functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.models.description import described
from tinyres.random import default_generator
from tinyres.tensor import Tensor


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the maps, or halves it with stride 2. The batch norm after it has the bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class PlainBlock(nn.Module):
    """z = relu(F(x)) with F(x) = bn(conv(relu(bn(conv(x))))): two 3x3 convolutions and no shortcut.

    (N, in_channels, H, W) -> (N, channels, H / stride, W / stride)
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), relu=True)


class BasicBlock(PlainBlock):
    """z = relu(F(x) + x): the same two convolutions, and the shortcut around them (figure 2).

    (N, in_channels, H, W) -> (N, channels, H / stride, W / stride). ``option``, "A", "B" or "C", is the kind of shortcut:
    see `resnet`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__(in_channels, channels, stride)
        self.shortcut = make_shortcut(option, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(y), residual=self.shortcut(x), relu=True)


class StochasticBlock(BasicBlock):
    """A basic block whose branch is left out at random in training (stochastic depth, Huang et al. 2016, arXiv 1603.09382).

    Block l of L keeps it with probability p_l = 1 - l / L (1 - p_L), drawn for the whole batch from `tr.default_generator`;
    a branch that is left out costs nothing. In evaluation each branch counts as it did on the average:
    z = relu(p_l F(x) + x). (N, in_channels, H, W) -> (N, channels, H / stride, W / stride)
    """

    survival = 1.0  # p_l

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            y = self.bn1(self.conv1(x), relu=True)
            return F.add_relu(self.bn2(self.conv2(y)) * self.survival, self.shortcut(x))
        if default_generator().random() < self.survival:
            return super().forward(x)
        return F.relu(self.shortcut(x))

    def extra_repr(self) -> str:
        return f"survival={self.survival:.3g}"


class Bottleneck(nn.Module):
    """z = relu(F(x) + x), where F narrows to ``channels``, convolves 3x3 and widens fourfold: figure 5, right.

    (N, in_channels, H, W) -> (N, 4 channels, H / stride, W / stride). ``option`` as for `BasicBlock`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, 4 * channels, 1)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut = make_shortcut(option, in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return self.bn3(self.conv3(y), residual=self.shortcut(x), relu=True)


class SubsamplePad(nn.Module):
    """Shortcut A: every ``stride``-th row and column, and zeros in the new channels. It has no parameters."""

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.subsample_pad(x, self.out_channels, self.stride)

    def extra_repr(self) -> str:
        return f"{self.out_channels}, stride={self.stride}"


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity if x and F(x) have the same shape; if not, A subsamples and pads, B projects. C always projects."""
    same_shape = in_channels == out_channels and stride == 1
    if same_shape and option != "C":
        return nn.Identity()
    if option == "A":
        return SubsamplePad(out_channels, stride)
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def stage(
    block: Callable[..., nn.Module], inputs: int, channels: int, stride: int, n: int, expansion: int = 1
) -> nn.Sequential:
    """``n`` blocks, the first with ``stride``: (N, inputs, H, W) -> (N, expansion * channels, H / stride, W / stride).

    ``block(in_channels, channels, stride)`` makes a block that returns ``expansion * channels`` channels.
    """
    rest = (block(expansion * channels, channels, 1) for _ in range(n - 1))
    return nn.Sequential(block(inputs, channels, stride), *rest)


def zero_last_norms(net: nn.Module) -> None:
    """Sets the weight of each branch's last batch norm to 0, so that each block begins as its shortcut."""
    for module in net.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            weight = (module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight
            assert weight is not None
            nn.init.zeros_(weight)


class CifarResNet(nn.Module):
    """Three stages of ``n`` blocks: (N, in_channels, 32, 32) -> logits (N, num_classes). Images of other sizes work too.

    ``block`` and ``expansion``: see `stage`.
    """

    def __init__(self, block: Callable[..., nn.Module], expansion: int, n: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(block, 16, 16, 1, n, expansion)
        self.layer2 = stage(block, 16 * expansion, 32, 2, n, expansion)
        self.layer3 = stage(block, 32 * expansion, 64, 2, n, expansion)
        self.fc = nn.Linear(64 * expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x), relu=True)
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.fc(F.global_avg_pool2d(y))


def blocks_per_stage(depth: int, layers_per_block: int) -> int:
    """n for a net of ``depth`` weighted layers: 6n + 2 with two layers per block, 9n + 2 with three."""
    step = 3 * layers_per_block
    if not isinstance(depth, int) or depth < step + 2 or (depth - 2) % step:
        below = max(2 + step, depth - (depth - 2) % step) if isinstance(depth, int) else 20
        raise UsageError(
            f"the depth of a net of {layers_per_block}-layer blocks must be {step}n + 2 with n >= 1, got {depth!r}; "
            f"the nearest are {below} and {below + step}"
        )
    return (depth - 2) // step


@described
def resnet(
    depth: int,
    shortcut: str = "A",
    block: str = "basic",
    num_classes: int = 10,
    in_channels: int = 3,
    zero_init_residual: bool = False,
    survival: float | None = None,
) -> CifarResNet:
    """A residual net of ``depth`` layers: 6n + 2 with "basic" blocks, 9n + 2 with "bottleneck" blocks.
    (N, in_channels, 32, 32) -> logits (N, num_classes)

    ``shortcut`` is the paper's option "A" (without parameters: the paper uses it on CIFAR), "B" or "C".
    ``zero_init_residual``: each branch's last batch norm begins with weight 0, so that each block begins as its shortcut
    (Goyal et al. 2017, arXiv 1706.02677, section 5.1). ``survival``: stochastic depth, see `StochasticBlock`.
    Raises `UsageError` for a depth or an option that does not exist.
    """
    if shortcut not in ("A", "B", "C"):
        raise UsageError(f'shortcut must be "A", "B" or "C", got {shortcut!r}')
    if block not in ("basic", "bottleneck"):
        raise UsageError(f'block must be "basic" or "bottleneck", got {block!r}')
    kind, layers, expansion = (BasicBlock, 2, 1) if block == "basic" else (Bottleneck, 3, 4)
    n = blocks_per_stage(depth, layers)
    if survival is not None:
        kind = StochasticBlock
        if block != "basic" or not 0 < survival <= 1:
            raise UsageError(f"survival must be a probability above 0, in a net of basic blocks, got {survival!r} ({block})")
    net = CifarResNet(partial(kind, option=shortcut), expansion, n, num_classes, in_channels)
    if survival is not None:
        blocks = [*net.layer1, *net.layer2, *net.layer3]
        for place, made in enumerate(blocks, 1):
            made.survival = 1 - place / len(blocks) * (1 - survival)
    if zero_init_residual:
        zero_last_norms(net)
    return net


@described
def plain(depth: int, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """The plain counterpart of ``resnet(depth)`` with option A: the same layers and parameters, no shortcuts.
    (N, in_channels, 32, 32) -> logits (N, num_classes). Raises `UsageError` for a depth that does not exist.
    """
    return CifarResNet(PlainBlock, 1, blocks_per_stage(depth, 2), num_classes, in_channels)


class _BuildResNet(Protocol):
    def __call__(
        self,
        shortcut: str = "A",
        block: str = "basic",
        num_classes: int = 10,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        survival: float | None = None,
    ) -> CifarResNet: ...


class _BuildPlain(Protocol):
    def __call__(self, num_classes: int = 10, in_channels: int = 3) -> CifarResNet: ...


def _resnet(depth: int, a: int, b: int, c: int, block: str = "basic", source: str = "") -> _BuildResNet:
    """`resnet` at one depth, as a function with a name and documentation of its own.

    ``a``, ``b`` and ``c`` are its numbers of parameters with these shortcuts, ``block`` is the default for that option.
    """
    default, expansion, layers = (block, 1, 2) if block == "basic" else (block, 4, 3)
    blocks = f"{blocks_per_stage(depth, layers)} {block} blocks"

    def build(
        shortcut: str = "A",
        block: str = default,
        num_classes: int = 10,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        survival: float | None = None,
    ) -> CifarResNet:
        return resnet(depth, shortcut, block, num_classes, in_channels, zero_init_residual, survival)

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"""A residual net of {depth} layers for CIFAR: images (N, 3, 32, 32) -> logits (N, 10).

    {source or "He et al. 2015, arXiv 1512.03385, section 4.2"}. Images of other sizes work too.

        3x3 convolution, bn, relu        (N, 16, 32, 32)
        layer1: {blocks:<24} (N, {16 * expansion}, 32, 32)
        layer2: {blocks:<24} (N, {32 * expansion}, 16, 16)
        layer3: {blocks:<24} (N, {64 * expansion}, 8, 8)
        mean of each map, linear layer   (N, 10)

    Parameters: {a:,} with shortcut "A", {b:,} with "B", {c:,} with "C".

    Options:
        ``shortcut``      where a block changes the shape, "A" takes every second row and column and adds channels of
                          zeros, "B" projects with a 1x1 convolution; "C" projects in every block
        ``block``         "basic": two 3x3 convolutions; "bottleneck": 1x1, 3x3, 1x1, in nets of 9n + 2 layers
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones
        ``zero_init_residual``  each branch begins as 0 (Goyal et al. 2017)
        ``survival``      stochastic depth (Huang et al. 2016): in training the last branch is left out with probability
                          1 - survival, the others with less; basic blocks only

    Raises `UsageError` for an option that does not exist.
    """
    return described(build)


def _plain(depth: int, parameters: int) -> _BuildPlain:
    """`plain` at one depth, as a function with a name and documentation of its own."""

    def build(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
        return plain(depth, num_classes, in_channels)

    build.__name__ = build.__qualname__ = f"plain{depth}"
    build.__doc__ = f"""A plain net of {depth} layers for CIFAR: images (N, 3, 32, 32) -> logits (N, 10).

    He et al. 2015, arXiv 1512.03385, section 4.2: the layers of `resnet{depth}`, in the same shapes, without shortcuts.

    Parameters: {parameters:,}, as many as `resnet{depth}` has with shortcut "A".

    Options:
        ``num_classes``   the number of logits for each image
        ``in_channels``   3 for colour images, 1 for grey ones
    """
    return described(build)


resnet20 = _resnet(20, 269_722, 272_474, 283_962)
resnet32 = _resnet(32, 464_154, 466_906, 489_594)
resnet44 = _resnet(44, 658_586, 661_338, 695_226)
resnet56 = _resnet(56, 853_018, 855_770, 900_858)
resnet110 = _resnet(110, 1_727_962, 1_730_714, 1_826_202)
resnet1202 = _resnet(1202, 19_421_274, 19_424_026, 20_538_714)
resnet164 = _resnet(164, 1_661_274, 1_704_154, 3_181_658, "bottleneck", "He et al. 2016, arXiv 1603.05027, table 2")
plain20 = _plain(20, 269_722)
plain32 = _plain(32, 464_154)
plain44 = _plain(44, 658_586)
plain56 = _plain(56, 853_018)
plain110 = _plain(110, 1_727_962)
plain1202 = _plain(1202, 19_421_274)
