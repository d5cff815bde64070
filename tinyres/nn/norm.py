"""Norms of each example by itself, which do the same in training and in evaluation: see `tinyres.ops.group_norm`."""

from __future__ import annotations

from tinyres import functional as F
from tinyres.errors import UsageError
from tinyres.nn.layers import check_counts, parameter
from tinyres.nn.module import Module
from tinyres.ops.shape import integers
from tinyres.tensor import Tensor


class LayerNorm(Module):
    """y = weight (x - mean) / sqrt(var + eps) + bias, (..., *normalized_shape) -> the same, with means over the last axes,
    of the lengths ``normalized_shape``, which is also the shape of weight (1 at first) and bias (0): see
    `functional.layer_norm`.

    Without ``elementwise_affine`` it has neither weight nor bias. Raises `UsageError` for sizes below 1 or a negative eps.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        try:
            self.normalized_shape = integers(normalized_shape)
        except TypeError:
            self.normalized_shape = ()
        if min(self.normalized_shape, default=0) < 1 or eps < 0:
            raise UsageError(
                f"LayerNorm: normalized_shape must be an integer of at least 1 or several, and eps not negative; "
                f"got {normalized_shape!r} and {eps=}"
            )
        self.eps = eps
        self.weight = parameter(*self.normalized_shape, value=1.0) if elementwise_affine else None
        self.bias = parameter(*self.normalized_shape) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        end = ", bias=False" * (self.weight is not None and self.bias is None)
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}{end}"


class GroupNorm(Module):
    """y = weight (x - mean) / sqrt(var + eps) + bias, (N, C, ...) -> the same, with means over each of ``num_groups`` groups
    of the C = ``num_channels`` channels, weight (1 at first) and bias (0) per channel: see `functional.group_norm`. One
    group for each channel is an instance norm.

    Without ``affine`` it has neither weight nor bias. Raises `UsageError` where ``num_groups`` does not divide the channels.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        check_counts("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_channels % num_groups or eps < 0:
            raise UsageError(
                f"GroupNorm: num_groups must divide num_channels, and eps not be negative; "
                f"got {num_groups=}, {num_channels=} and {eps=}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = parameter(num_channels, value=1.0) if affine else None
        self.bias = parameter(num_channels) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.weight is not None}"
