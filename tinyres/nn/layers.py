"""The layers: each holds its parameters and calls one function of `tinyres.functional`.

Default initialisation. Convolutions: He normal over fan_out, as He et al. 2015 derive for layers followed by a ReLU
(arXiv 1502.01852, eq. 14), biases zero. Linear layers: PyTorch's, uniform within 1 / sqrt(in_features) for weight and
bias: a softmax follows them here, not a ReLU, so He's factor of 2 would only make the first logits larger.
Batch norm: weight 1, bias 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyres import functional as F
from tinyres.errors import ShapeError, UsageError
from tinyres.nn import init
from tinyres.nn.activations import InPlace
from tinyres.nn.module import Module, Parameter
from tinyres.ops.check import refuse
from tinyres.tensor import Tensor, tensor

Size = int | tuple[int, int]


class Conv2d(Module):
    """y = x convolved with weight, + bias: (N, C, H, W) -> (N, F, OH, OW),  OH = (H + 2 p - d (KH - 1) - 1) // s + 1

    C and F are ``in_channels`` and ``out_channels``; weight is (F, C / ``groups``, KH, KW), and bias (F,), or None without
    ``bias``. ``kernel_size`` (KH, KW), ``stride`` s, ``padding`` p (zeros) and ``dilation`` d are ints or (height, width)
    pairs; ``padding`` may be "same" or "valid", as for `functional.conv2d`, and ``padding_mode`` is "zeros". Raises
    `UsageError` for sizes that make no convolution. Formula and backward pass: `ops.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if padding_mode != "zeros":
            refuse("Conv2d", "the margin is of zeros", padding_mode=padding_mode)
        check_counts("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise UsageError(
                f"Conv2d: groups must divide in_channels and out_channels, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _pair("Conv2d", "kernel_size", kernel_size, at_least=1)
        self.stride = _pair("Conv2d", "stride", stride, at_least=1)
        if padding == "same" and self.stride != (1, 1):
            raise UsageError(f'Conv2d: padding="same" needs stride=1, got {stride}; give the padding in numbers')
        same, sizes = padding == "same", 0 if padding == "valid" else padding
        self.padding = padding if same else _pair("Conv2d", "padding", sizes, at_least=0)
        self.dilation = _pair("Conv2d", "dilation", dilation, at_least=1)
        self.weight = parameter(out_channels, in_channels // groups, *self.kernel_size)
        init.kaiming_normal_(self.weight, mode="fan_out")
        self.bias = parameter(out_channels) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}"] * (self.padding != (0, 0))
        parts += [f"dilation={self.dilation}"] * (self.dilation != (1, 1))
        parts += [f"groups={self.groups}"] * (self.groups != 1)
        parts += ["bias=False"] * (self.bias is None)
        return ", ".join(parts)


class Linear(Module):
    """y = x W^T + b: (..., in_features) -> (..., out_features), with weight W (out_features, in_features) and bias b
    (out_features,), or None without ``bias``. Raises `UsageError` for sizes below 1.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        check_counts("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        bound = 1.0 / math.sqrt(in_features)
        self.weight = parameter(out_features, in_features)
        init.uniform_(self.weight, -bound, bound)
        self.bias = parameter(out_features) if bias else None
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class BatchNorm2d(Module):
    """y = weight (x - mean) / sqrt(var + eps) + bias for each channel over N, H and W: (N, C, H, W) -> the same.

    Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167) of ``num_features`` channels C. weight and bias (C,) are
    learned; with ``affine=False`` they are None, for 1 and 0.

    In training it normalises by the batch's mean and biased variance and moves ``running_mean`` and ``running_var`` (the
    unbiased variance) towards them by ``momentum``; in evaluation it normalises by the running statistics. Without
    ``track_running_stats`` there are none, and the batch's serve in evaluation, too.

    What follows a batch norm in a ResNet comes in the same pass over memory: ``bn(x, relu=True)`` is relu(bn(x)) and
    ``bn(x, residual=r, relu=True)`` is relu(bn(x) + r). A forward hook sees the result of the whole call.

    Raises `UsageError` for arguments out of range, and when called `ShapeError` for an x of other axes.
    """

    axes: tuple[int, ...] = (4,)  # how many x may have

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        check_counts(type(self).__name__, num_features=num_features)
        kind = type(self).__name__
        if momentum is None:
            raise UsageError(f"{kind}: momentum=None, a cumulative average, is not supported; give a number within [0, 1]")
        if eps <= 0 or not 0 <= momentum <= 1:
            raise UsageError(f"{kind}: eps must be positive and momentum within [0, 1], got {eps=} and {momentum=}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = parameter(num_features, value=1.0) if affine else None
        self.bias = parameter(num_features) if affine else None
        if not track_running_stats:
            self.running_mean = self.running_var = None
        else:
            self.register_buffer("running_mean", Tensor(np.zeros(num_features, np.float32)))
            self.register_buffer("running_var", Tensor(np.ones(num_features, np.float32)))

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if x.ndim not in self.axes:
            wanted = " or ".join(("(N, C)", "(N, C, L)", "(N, C, H, W)")[n - 2] for n in self.axes)
            raise ShapeError(f"{type(self).__name__}: x must be {wanted}, got shape {x.shape}.")
        training = self.training or self.running_mean is None
        settings = (self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum, self.eps)
        if relu and residual is not None:
            return F.batch_norm_add_relu(x, residual, *settings)
        y = F.batch_norm(x, *settings, relu=relu)
        return y if residual is None else y + residual

    def extra_repr(self) -> str:
        given = f"eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"
        return f"{self.num_features}, {given}" + ", track_running_stats=False" * (self.running_mean is None)


class BatchNorm1d(BatchNorm2d):
    """`BatchNorm2d` for features: (N, C), normalised over N, or (N, C, L), over N and L -> the same. y = weight (x - mean) /
    sqrt(var + eps) + bias.
    """

    axes = (2, 3)


class _Pool2d(Module):
    """What the two pooling layers share: a window. ``stride`` is by default the size of the window."""

    def __init__(self, kernel_size: Size, stride: Size | None, padding: Size, **options: Any) -> None:
        super().__init__()
        kind = type(self).__name__
        self.kernel_size = _pair(kind, "kernel_size", kernel_size, at_least=1)
        self.stride = self.kernel_size if stride is None else _pair(kind, "stride", stride, at_least=1)
        self.padding = _pair(kind, "padding", padding, at_least=0)
        self.options = options  # those of the function

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """The maximum of each window: (N, C, H, W) -> (N, C, OH, OW),  OH = (H + 2 padding - kernel_size) // stride + 1

    The arguments are those of `functional.max_pool2d`: ``stride`` is ``kernel_size`` unless given; ``ceil_mode`` lets
    windows reach beyond the margin; ``dilation`` and ``return_indices`` are not here. Raises `UsageError` for sizes that
    are no integers, or negative.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation=dilation, return_indices=return_indices, ceil_mode=ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, **self.options)


class AvgPool2d(_Pool2d):
    """The mean of each window: (N, C, H, W) -> (N, C, OH, OW),  OH = (H + 2 padding - kernel_size) // stride + 1

    The arguments are those of `functional.avg_pool2d`: ``stride`` is ``kernel_size`` unless given; ``ceil_mode`` lets
    windows reach beyond the margin; ``count_include_pad`` and ``divisor_override`` say what the sum is divided by. Raises
    `UsageError` for sizes that are no integers, or negative.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        options = {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode, **options)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, **self.options)


class AdaptiveAvgPool2d(Module):
    """The means of OH x OW windows that cover the map, ``output_size`` = (OH, OW) or one number for both:
    (N, C, H, W) -> (N, C, OH, OW). See `functional.adaptive_avg_pool2d`.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class GlobalAvgPool2d(Module):
    """The mean of each channel's map: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.global_avg_pool2d(x)


class Flatten(Module):
    """y = x with the axes from ``start_dim`` to ``end_dim`` as one: (N, ...) -> (N, product of the others) unless given."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)


class Dropout(InPlace):
    """In training, y = 0 with probability ``p`` and else x / (1 - p), any shape -> the same (Srivastava et al. 2014); in
    evaluation y = x. ``inplace`` as for `ReLU`. Raises `UsageError` for a ``p`` outside [0, 1].
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__(inplace)
        if not 0 <= p <= 1:
            raise UsageError(f"Dropout: p is the probability of dropping, within [0, 1], got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}" + ", inplace=True" * self.inplace


class Identity(Module):
    """y = x, any shape -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class CrossEntropyLoss(Module):
    """loss = the mean of -log softmax(logits)[n, labels[n]]: logits (N, K), labels (N,) -> a number.

    The arguments are those of `functional.cross_entropy`: ``weight`` (K,), a factor for each class, is a buffer; rows whose
    label is ``ignore_index`` count for nothing; ``reduction`` is "mean", "sum" or "none"; ``label_smoothing`` gives each
    class a share of the label.
    """

    def __init__(
        self,
        weight: Tensor | np.ndarray | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing
        if weight is None:
            self.weight = None
        else:
            self.register_buffer("weight", weight if isinstance(weight, Tensor) else tensor(weight))

    def forward(self, logits: Tensor, labels: Tensor | np.ndarray) -> Tensor:
        return F.cross_entropy(
            logits,
            labels,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        given = [f"ignore_index={self.ignore_index}"] * (self.ignore_index != -100)
        return ", ".join([*given, f"label_smoothing={self.label_smoothing}", f"reduction={self.reduction!r}"])


class MSELoss(Module):
    """loss = (x - target)^2, any shape, twice -> a number by ``reduction``, "mean" or "sum", or "none" of these: see
    `functional.mse_loss`.
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, x: Tensor, target: Tensor | np.ndarray) -> Tensor:
        return F.mse_loss(x, target, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def parameter(*shape: int, value: float = 0.0) -> Parameter:
    return Parameter(np.full(shape, value, np.float32))


def check_counts(layer: str, **counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise UsageError(f"{layer}: {name} must be an integer of at least 1, got {count!r}")


def _pair(layer: str, name: str, size: Any, at_least: int) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int | np.integer) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(n, int | np.integer) and n >= at_least for n in pair):
        raise UsageError(f"{layer}: {name} must be an integer of at least {at_least}, or a pair of them, got {size!r}")
    return int(pair[0]), int(pair[1])
