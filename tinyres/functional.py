"""Operations on tensors as functions, named and called as in ``torch.nn.functional``.

    import tinyres.functional as F

Each is an operation of `tinyres.ops`, where its formula and its backward pass are, or is made of a few of them. Arrays may
stand for tensors, and one image (C, H, W) for a batch of them. What comes by position is in PyTorch's place; arguments that
PyTorch does not have come by keyword. What PyTorch takes and is not here: ``docs/pytorch.md``.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tinyres import guards, ops
from tinyres.errors import GraphError, ShapeError, UsageError
from tinyres.kernels.arrays import array_module, ceil_div, is_half
from tinyres.losses import cross_entropy, log_softmax, mse_loss, softmax
from tinyres.norms import group_norm, layer_norm
from tinyres.ops.check import fail, pair, refuse
from tinyres.ops.shape import integers
from tinyres.random import default_generator
from tinyres.tensor import Array, Tensor, TensorLike
from tinyres.tensor import array_of as _array
from tinyres.tensor import tensor_of as _t

__all__ = ["adaptive_avg_pool2d", "add_relu", "avg_pool2d", "batch_norm", "batch_norm_add_relu", "conv2d"]
__all__ += ["cross_entropy", "dropout", "gelu", "global_avg_pool2d", "group_norm", "layer_norm", "leaky_relu"]
__all__ += ["linear", "log_softmax", "max_pool2d", "mse_loss", "pad", "relu", "relu6", "sigmoid", "silu"]
__all__ += ["softmax", "subsample_pad", "tanh"]

Size = int | tuple[int, int]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _one_or_many(function: _Function) -> _Function:
    """For one image (C, H, W), too: it is a batch of one for as long."""

    @functools.wraps(function)
    def run(x: TensorLike, *args: Any, **options: Any) -> Tensor:
        x = _t(x)
        return function(x.unsqueeze(0), *args, **options).squeeze(0) if x.ndim == 3 else function(x, *args, **options)

    return run  # type: ignore[return-value]


def _in_place(x: Tensor, y: Tensor, inplace: bool) -> Tensor:
    """y; if it is to be ``inplace``, x becomes y for all who have x. The array of x stays as it is: a graph may need it."""
    if not inplace:
        return y
    if x.is_leaf and x.requires_grad and guards.is_grad_enabled():
        raise GraphError("inplace=True: a leaf that requires a gradient cannot be changed in place; leave inplace out.")
    x.data, x.node, x.requires_grad = y.data, y.node, y.requires_grad
    return x


def relu(x: TensorLike, inplace: bool = False) -> Tensor:
    """y = max(x, 0), any shape -> the same. With ``inplace``, x becomes y, as in PyTorch, but no memory is saved.

    Raises `GraphError` for ``inplace`` of a leaf that requires a gradient.
    """
    x = _t(x)
    return _in_place(x, ops.ReLU.apply(x), inplace)


def relu6(x: TensorLike, inplace: bool = False) -> Tensor:
    """y = min(max(x, 0), 6), any shape -> the same. ``inplace`` as for `relu`. Raises `GraphError` as that."""
    x = _t(x)
    return _in_place(x, ops.ReLU6.apply(x), inplace)


def leaky_relu(x: TensorLike, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """y = x where x > 0, else ``negative_slope`` x, any shape -> the same. ``inplace`` as for `relu`. Raises `GraphError` as
    that.
    """
    x = _t(x)
    return _in_place(x, ops.LeakyReLU.apply(x, slope=negative_slope), inplace)


def gelu(x: TensorLike, *, approximate: str = "none") -> Tensor:
    """y = x P(x), any shape -> the same, with the distribution function P of the normal distribution: see `ops.GELU`.

    ``approximate`` is "none" or "tanh". Raises `UsageError` for any other.
    """
    if approximate not in ("none", "tanh"):
        raise UsageError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}.')
    return ops.GELU.apply(_t(x), approximate=approximate)


def silu(x: TensorLike, inplace: bool = False) -> Tensor:
    """y = x / (1 + exp(-x)), any shape -> the same. ``inplace`` as for `relu`. Raises `GraphError` as that."""
    x = _t(x)
    return _in_place(x, ops.SiLU.apply(x), inplace)


def sigmoid(x: TensorLike) -> Tensor:
    """y = 1 / (1 + exp(-x)), any shape -> the same. Raises `ShapeError` for an x that holds no floats."""
    return _t(x).sigmoid()


def tanh(x: TensorLike) -> Tensor:
    """y = tanh(x), any shape -> the same. Raises `ShapeError` for an x that holds no floats."""
    return _t(x).tanh()


def add_relu(x: TensorLike, y: TensorLike) -> Tensor:
    """z = max(x + y, 0) in one pass, any shape, twice -> the same: the join that ends a residual block.

    Raises `ShapeError` for shapes or dtypes that differ.
    """
    return ops.AddReLU.apply(_t(x), _t(y))


def linear(x: TensorLike, weight: TensorLike, bias: TensorLike | None = None) -> Tensor:
    """y = x weight^T + bias: (..., I) * (O, I) + (O,) -> (..., O).

    Raises `ShapeError` for shapes or dtypes that do not fit together.
    """
    x, parameters = _t(x), [_t(weight), *([] if bias is None else [_t(bias)])]
    if x.ndim == 2 or not x.ndim or not x.shape[-1]:
        return ops.Linear.apply(x, *parameters)
    y = ops.Linear.apply(x.reshape(-1, x.shape[-1]), *parameters)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def pad(x: TensorLike, pad: tuple[int, ...], mode: str = "constant", value: float | None = None) -> Tensor:
    """x with margins of ``value`` (0 unless given): ``pad`` is (left, right) of the last axis, then of the one before it
    (top, bottom), and so on: (..., H, W) -> (..., top + H + bottom, left + W + right) for pad=(left, right, top, bottom).

    Raises `ShapeError` for sizes that are negative or do not come in pairs, `UsageError` for a ``mode`` that is not here.
    """
    x, sizes = _t(x), integers(pad)
    if mode != "constant":
        refuse("pad", 'only "constant" is', mode=mode)
    if len(sizes) % 2 or len(sizes) > 2 * x.ndim or min(sizes, default=0) < 0:
        raise ShapeError(
            f"pad: pad={pad} must be two sizes, of at least 0, for each of the last axes of x, {list(x.shape)}."
        )
    margins = [(0, 0)] * (x.ndim - len(sizes) // 2) + list(zip(sizes[::2], sizes[1::2], strict=True))[::-1]
    return ops.Pad.apply(x, margins=tuple(margins), value=0.0 if value is None else value)


@_one_or_many
def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """y[n, f] = bias[f] + sum over c of weight[f, c] correlated with x[n, c]: see `ops.Conv2d` for the whole formula.

    (N, C, H, W) * (F, C / groups, KH, KW) -> (N, F, OH, OW),  OH = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1

    ``padding`` "valid" is 0; "same", with stride 1, gives y the size of x: a margin that is odd is wider below and right.
    Raises `ShapeError` for arrays or sizes that do not fit together, `UsageError` for another text as ``padding``.
    """
    inputs = [_t(x), _t(weight)] if bias is None else [_t(x), _t(weight), _t(bias)]
    if not isinstance(padding, str):
        return ops.Conv2d.apply(*inputs, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if padding not in ("same", "valid") or (padding == "same" and pair("conv2d", "stride", stride, 1) != (1, 1)):
        raise UsageError(
            f'conv2d: padding={padding!r} must be numbers, "valid", or with stride=1 "same"; got stride={stride}.'
        )
    margins = [0, 0]  # before and behind, together; then the one before is made as wide as that behind, and cut off
    if padding == "same" and inputs[1].ndim == 4:
        margins = [d * (k - 1) for d, k in zip(pair("conv2d", "dilation", dilation, 1), inputs[1].shape[2:], strict=True)]
    wide = tuple(ceil_div(m, 2) for m in margins)
    y = ops.Conv2d.apply(*inputs, stride=stride, padding=wide, dilation=dilation, groups=groups)
    return y[:, :, margins[0] % 2 :, margins[1] % 2 :] if any(m % 2 for m in margins) else y


def batch_norm(
    x: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    relu: bool = False,
) -> Tensor:
    """y = weight (x - mean) / sqrt(var + eps) + bias for each channel, (N, C, ...) -> the same: see `ops.BatchNorm`. With
    ``relu``, then max(y, 0) in the same pass.

    In ``training`` mean and var are the batch's, and the running statistics (C,) move towards them by ``momentum``, in
    place; they may be None there. Else they are the running ones. ``weight`` and ``bias`` (C,) are 1 and 0 unless given.
    Raises `ShapeError` for shapes or dtypes that do not fit, and for running statistics that are missing.
    """
    parameters, statistics = _channel_arrays(x, running_mean, running_var, weight, bias, training)
    return ops.BatchNorm.apply(_t(x), *parameters, **statistics, training=training, momentum=momentum, eps=eps, relu=relu)


def batch_norm_add_relu(
    x: TensorLike,
    residual: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """z = max(batch_norm(x) + residual, 0), the join that ends a residual block: see `ops.BatchNormAddReLU`.

    (N, C, ...), twice -> the same. The other arguments are those of `batch_norm`. Raises `ShapeError` for shapes or dtypes
    that do not fit, and for running statistics that are missing.
    """
    parameters, statistics = _channel_arrays(x, running_mean, running_var, weight, bias, training)
    return ops.BatchNormAddReLU.apply(
        _t(x), _t(residual), *parameters, **statistics, training=training, momentum=momentum, eps=eps
    )


def _channel_arrays(
    x: TensorLike,
    running_mean: TensorLike | None,
    running_var: TensorLike | None,
    weight: TensorLike | None,
    bias: TensorLike | None,
    training: bool,
) -> tuple[tuple[Tensor, Tensor], dict[str, Array]]:
    """A batch norm's weight and bias (1 and 0 unless given), and its running statistics (for nobody if there are none)."""
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        raise ShapeError("batch_norm: running_mean and running_var must both be given, or with training=True both be None.")
    given = [a.dtype for a in (running_mean, weight, bias) if a is not None]
    dtype = given[0] if given else np.dtype(np.float32) if is_half(x.dtype) else x.dtype
    xp, c = array_module(_array(x)), x.shape[1:2]
    zeros, ones = (lambda: xp.zeros(c, dtype)), (lambda: xp.ones(c, dtype))
    statistics = {
        "running_mean": zeros() if running_mean is None else _array(running_mean),
        "running_var": ones() if running_var is None else _array(running_var),
    }
    return (_t(ones() if weight is None else weight), _t(zeros() if bias is None else bias)), statistics


@_one_or_many
def max_pool2d(
    x: TensorLike,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The maximum of each window: (N, C, H, W) -> (N, C, OH, OW),  OH = (H + 2 padding - kernel_size) // stride + 1

    ``stride`` is ``kernel_size`` unless given. With ``ceil_mode``, windows may reach beyond the margin below and right, as
    long as they begin before it. Raises `ShapeError` for windows that do not fit, `UsageError` for ``dilation`` and
    ``return_indices``, which are not here.
    """
    if pair("max_pool2d", "dilation", dilation, 1) != (1, 1):
        refuse("max_pool2d", "windows have no gaps here", dilation=dilation)
    if return_indices:
        refuse("max_pool2d", "the places of the maxima stay inside", return_indices=return_indices)
    x = _reaching("max_pool2d", _t(x), kernel_size, stride, padding, -np.inf) if ceil_mode else x
    return ops.MaxPool2d.apply(x, kernel_size=kernel_size, stride=stride or None, padding=padding)


@_one_or_many
def avg_pool2d(
    x: TensorLike,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, padding counted as zeros: (N, C, H, W) -> (N, C, OH, OW), with the OH of `max_pool2d`.

    ``stride`` is ``kernel_size`` unless given. ``ceil_mode`` as for `max_pool2d`, where what lies beyond the margin does not
    count. Without ``count_include_pad``, the sum is divided by the number of pixels of x in the window, and with
    ``divisor_override`` by that. Raises `ShapeError` for windows that do not fit, `UsageError` for a divisor of 0.
    """
    inside = _t(x)
    x = _reaching("avg_pool2d", inside, kernel_size, stride, padding, 0.0) if ceil_mode else inside
    y = ops.AvgPool2d.apply(x, kernel_size=kernel_size, stride=stride or None, padding=padding)
    if divisor_override == 0:
        raise UsageError("avg_pool2d: divisor_override must not be 0.")
    if count_include_pad and not ceil_mode and divisor_override is None:
        return y
    kernel = pair("avg_pool2d", "kernel_size", kernel_size, 1)
    counts = []
    for size, out, k, s, p in zip(
        inside.shape[2:], y.shape[2:], *_window("avg_pool2d", kernel_size, stride, padding), strict=True
    ):
        first = np.arange(out) * s - p
        last = np.minimum(first + k, size + p)
        counts.append(last - first if count_include_pad else np.minimum(last, size) - np.maximum(first, 0))
    terms = divisor_override or counts[0][:, None] * counts[1]
    return y * array_module(y.data).asarray(kernel[0] * kernel[1] / terms, y.dtype)


def _window(op: str, kernel_size: Size, stride: Size | None, padding: Size) -> tuple[tuple[int, int], ...]:
    kernel = pair(op, "kernel_size", kernel_size, 1)
    return kernel, pair(op, "stride", stride, 1) if stride else kernel, pair(op, "padding", padding, 0)


def _reaching(op: str, x: Tensor, kernel_size: Size, stride: Size | None, padding: Size, value: float) -> Tensor:
    """x with so much more below and right that windows which would reach beyond the margin fit. They begin before it."""
    more = []
    for size, k, s, p in zip(x.shape[2:], *_window(op, kernel_size, stride, padding), strict=True):
        windows = ceil_div(size + 2 * p - k, s) + 1
        windows -= (windows - 1) * s >= size + p
        more.append(max((windows - 1) * s + k - size - 2 * p, 0))
    return pad(x, (0, more[1], 0, more[0]), value=value) if any(more) else x


@_one_or_many
def adaptive_avg_pool2d(x: TensorLike, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """The means of OH x OW windows that cover the map: row i is from floor(i H / OH) to ceil((i + 1) H / OH), columns alike.

    (N, C, H, W) -> (N, C, OH, OW). ``output_size`` is (OH, OW), or one number for both; None keeps the size of x. Raises
    `ShapeError` for an x or sizes that are otherwise.
    """
    x = _t(x)
    asked = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size,) * 2
    if x.ndim != 4 or len(asked) != 2:
        fail("adaptive_avg_pool2d", f"x must be (N, C, H, W), output_size={output_size} one number or two.", x=x.data)
    sizes = pair(
        "adaptive_avg_pool2d", "output_size", [n if a is None else a for a, n in zip(asked, x.shape[2:], strict=True)], 1
    )
    if sizes == (1, 1):
        return global_avg_pool2d(x).reshape(*x.shape[:2], 1, 1)
    (h, w), (oh, ow) = x.shape[2:], sizes
    if h % oh == w % ow == 0 < min(h, w):
        return avg_pool2d(x, (h // oh, w // ow))
    return ops.AdaptiveAvgPool2d.apply(x, output_size=sizes)


def global_avg_pool2d(x: TensorLike) -> Tensor:
    """The mean of each map: (N, C, H, W) -> (N, C). Raises `ShapeError` for an x of other axes."""
    return ops.GlobalAvgPool2d.apply(_t(x))


def subsample_pad(x: TensorLike, out_channels: int, stride: int = 2) -> Tensor:
    """Every ``stride``-th pixel, between zero channels: the shortcut without parameters (He et al. 2015, option A).

    y[:, before : before + C] = x[:, :, ::stride, ::stride] with before = (out_channels - C) // 2, else 0:
    (N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)). Raises `ShapeError` for fewer channels than C.
    """
    return ops.SubsamplePad.apply(_t(x), out_channels=out_channels, stride=stride)


def dropout(
    x: TensorLike,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """In ``training``, y = 0 with probability ``p`` and else x / (1 - p), any shape -> the same; otherwise x itself.

    ``inplace`` as for `relu`. ``generator`` is by default `default_generator`'s. Raises `ShapeError` for a ``p`` outside
    [0, 1], `GraphError` as `relu`.
    """
    x = _t(x)
    if not training or not p:
        return x
    return _in_place(x, ops.Dropout.apply(x, p=p, generator=generator or default_generator()), inplace)


def __dir__() -> list[str]:
    return __all__
