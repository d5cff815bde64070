"""Fully connected residual blocks, as He et al. 2015 (arXiv 1512.03385) introduce them, and nets of them.

    eq. 1   y = W2 relu(W1 x) + x
    eq. 2   y = W2 relu(W1 x) + Ws x        where x and y differ in size

They are the smallest networks that show the lesson: the derivative of y by x is J_F + I, never J_F alone.
"""

from __future__ import annotations

from tinyres import functional as F
from tinyres import nn
from tinyres.errors import UsageError
from tinyres.tensor import Tensor


def he_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with He's normal weights (fan_in) and zero bias, for networks with ReLUs."""
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.kaiming_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class PlainLinearBlock(nn.Module):
    """y = W2 relu(W1 x): (N, in_features) -> (N, out_features). With ``relu``, then max(y, 0)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = he_linear(in_features, out_features)
        self.fc2 = he_linear(out_features, out_features)

    def branch(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        y = self.branch(x)
        return F.relu(y) if relu else y


class ResidualLinearBlock(PlainLinearBlock):
    """y = W2 relu(W1 x) + x (eq. 1), or + Ws x where the sizes differ (eq. 2). With ``relu`` the sum and max(y, 0) after it
    are one operation, the join `ops.AddReLU`. (N, in_features) -> (N, out_features)
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        same = in_features == out_features
        self.shortcut = nn.Identity() if same else he_linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        y, shortcut = self.branch(x), self.shortcut(x)
        return F.add_relu(y, shortcut) if relu else y + shortcut


class ResidualMLP(nn.Module):
    """A linear layer to ``width``, ``depth`` blocks with a ReLU after each, and a linear layer: 2 depth + 2 layers.
    (N, in_features) -> (N, out_features)

    With ``residual=False`` it is the plain counterpart: the same parameters and no shortcuts. Both keep the size of a
    signal at the start, each in its way: He's weights do so for the plain net, but with shortcuts every block would add
    its variance to what it was given, so W2 starts divided by sqrt(depth) there. Raises `UsageError` for a depth below 1.
    """

    def __init__(self, in_features: int, width: int, depth: int, out_features: int, residual: bool = True) -> None:
        super().__init__()
        if depth < 1:
            raise UsageError(f"ResidualMLP: depth is the number of blocks, 1 or more, got {depth}")
        block = ResidualLinearBlock if residual else PlainLinearBlock
        self.stem = he_linear(in_features, width)
        self.blocks = nn.ModuleList(block(width, width) for _ in range(depth))
        self.fc = nn.Linear(width, out_features)
        if residual:
            for made in self.blocks:
                made.fc2.weight.data *= depth**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x, relu=True)
        return self.fc(x)
