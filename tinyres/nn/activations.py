"""Activation functions as layers. They have no parameters."""

from __future__ import annotations

from tinyres import functional as F
from tinyres.errors import UsageError
from tinyres.nn.module import Module
from tinyres.tensor import Tensor


class InPlace(Module):
    """What layers with ``inplace`` share: see `functional.relu`."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" * self.inplace


class ReLU(InPlace):
    """y = max(x, 0), any shape -> the same. With ``inplace``, x becomes y: see `functional.relu`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, self.inplace)


class ReLU6(InPlace):
    """y = min(max(x, 0), 6), any shape -> the same (Sandler et al. 2018). ``inplace`` as for `ReLU`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x, self.inplace)


class LeakyReLU(InPlace):
    """y = x where x > 0, else ``negative_slope`` x, any shape -> the same. ``inplace`` as for `ReLU`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__(inplace)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}" + ", inplace=True" * self.inplace


class SiLU(InPlace):
    """y = x / (1 + exp(-x)), also called swish, any shape -> the same. ``inplace`` as for `ReLU`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, self.inplace)


class GELU(Module):
    """y = x P(x), any shape -> the same, with the distribution function P of the normal distribution: see `functional.gelu`.
    ``approximate`` is "none" or "tanh"; raises `UsageError` for any other.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise UsageError(f'GELU: approximate must be "none" or "tanh", got {approximate!r}')
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Sigmoid(Module):
    """y = 1 / (1 + exp(-x)), any shape -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class Tanh(Module):
    """y = tanh(x), any shape -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


class Softmax(Module):
    """y = exp(x) / sum of exp(x) along ``dim``, any shape -> the same. `CrossEntropyLoss` takes logits, before a softmax."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
