"""The contract: every kernel, its arguments and what it returns. An implementation is a module with functions of these
names; what it lacks, or refuses by raising `Unsupported`, the reference does.

Arrays are float32 or float64, all of one dtype in a call, with any strides; they may be read-only and are not written to
unless it says so. In mixed precision, activations and their cotangents are float16 or bfloat16 (all of one dtype), while
parameters, statistics, gradients of parameters, logits and losses stay float32, and sums are computed in float32.

Activations are (N, C, H, W) to the caller, whatever their memory looks like. Results are new arrays, laid out channels-last:
the (N, C, H, W) view of a contiguous (N, H, W, C) array (the reference's elementwise kernels keep the layout that they are
given; `naive` lets NumPy choose). ``stride``, ``padding``, ``dilation`` and pooling windows are (height, width) pairs.
Arguments have been checked by the caller.

Costs: with M = N * OH * OW output pixels, a convolution takes 2 M F C KH KW / groups floating-point operations, and so
does each of its gradients; an elementwise kernel moves its arrays once each.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

from tinyres.kernels.arrays import Array, Pair, Shape


class Unsupported(Exception):
    """Raised by an implementation, before it has computed anything, for what it does not do; the text says why."""


class Conv(Protocol):
    """y[n,f,i,j] = sum over c,a,b of w[f,c,a,b] * x[n, c, i*s - p + a*d, j*s - p + b*d]"""

    def conv2d(self, x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
        """x (N, C, H, W), w (F, C / groups, KH, KW) -> y (N, F, OH, OW)."""

    def conv2d_backward_input(
        self,
        dy: Array,
        w: Array,
        x_shape: Shape,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        total: Array | None = None,
    ) -> Array:
        """dy (N, F, OH, OW), w -> dx (N, C, H, W); rows and columns that no window reached get zero.

        With ``total``, another cotangent of x, dx is added to that in place, and that is returned.
        """

    def conv2d_backward_weight(
        self, dy: Array, x: Array, w_shape: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Array:
        """dy (N, F, OH, OW), x (N, C, H, W) -> dw (F, C / groups, KH, KW)."""


class Linear(Protocol):
    """y = x w^T + b"""

    def linear(self, x: Array, w: Array, b: Array | None) -> Array:
        """x (N, I), w (O, I), b (O,) -> y (N, O)."""

    def linear_backward_input(self, dy: Array, w: Array) -> Array:
        """dy (N, O), w (O, I) -> dx (N, I)."""

    def linear_backward_weight(self, dy: Array, x: Array) -> Array:
        """dy (N, O), x (N, I) -> dw (O, I)."""

    def linear_backward_bias(self, dy: Array) -> Array:
        """dy (N, O) -> db (O,)."""


class Norm(Protocol):
    """z = weight * (x - mean) / sqrt(var + eps) + bias, by channel;  y = relu(z) or z"""

    def batch_norm(
        self, x: Array, weight: Array, bias: Array, eps: float, relu: bool, running: tuple[Array, Array, float] | None = None
    ) -> tuple[Array, Array, Array]:
        """Training: x (N, C, H, W) -> y, and the batch's mean and biased variance (C,).

        The variance is as exact as that of two passes, also where the mean is large beside it: E[x^2] - E[x]^2 is not.
        One that is too large for the dtype (float32: from deviations of about 1e19 on) is an infinity, as long as the mean
        is finite, and no NaN: then y is ``bias``, and dx and dweight are 0.

        ``running``: the running mean and variance (C,), which become (1 - momentum) running + momentum new in place, with
        the third as the momentum, and of the batch of m elements per channel the unbiased variance, var m / (m - 1).
        """

    def batch_norm_inference(
        self, x: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float, relu: bool
    ) -> Array:
        """The same with given statistics -> y."""

    def batch_norm_backward(
        self, dy: Array, x: Array, y: Array | None, weight: Array, mean: Array, var: Array, eps: float, training: bool
    ) -> tuple[Array, Array, Array]:
        """dy -> dx, dweight (C,), dbias (C,).

        ``y`` is the forward result if a ReLU was fused, and then dz = dy, but 0 where y <= 0; else None, and dz = dy.
        With xhat = (x - mean) / sqrt(var + eps) and sums over N, H, W, of m elements each: dbias = sum dz,
        dweight = sum dz xhat, dx = weight / sqrt(var + eps) * (dz - (dbias + xhat dweight) / m) when ``training``,
        weight / sqrt(var + eps) * dz when not.
        """


class Join(Protocol):
    """The end of a residual block, z = relu(s) with s = x + y; and the shortcut that has no parameters."""

    def add_relu(self, x: Array, y: Array) -> Array:
        """max(x + y, 0): 3 arrays moved, where two kernels move 5. Its gradient is `relu_backward`."""

    def batch_norm_add_relu(
        self,
        x: Array,
        residual: Array,
        weight: Array,
        bias: Array,
        eps: float,
        running: tuple[Array, Array, float] | None = None,
    ) -> tuple[Array, Array, Array]:
        """Training: z = relu(s) with s = batch_norm(x) + residual, and the batch's mean and biased variance, as
        `batch_norm`: one pass over memory for the three steps.
        """

    def batch_norm_add_relu_inference(
        self, x: Array, residual: Array, weight: Array, bias: Array, mean: Array, var: Array, eps: float
    ) -> Array:
        """The same with given statistics -> z."""

    def batch_norm_add_relu_backward(
        self, dz: Array, x: Array, z: Array, weight: Array, mean: Array, var: Array, eps: float, training: bool
    ) -> tuple[Array, Array, Array, Array]:
        """dz -> dx, dweight, dbias, ds with ds = dz, but 0 where z <= 0: the cotangent of the sum s, which the residual
        receives as it is, and which reaches x, weight and bias through the batch norm: the three follow from ds as in
        `batch_norm_backward`.
        """

    def subsample_pad(self, x: Array, out_channels: int, stride: int) -> Array:
        """x[:, :, ::stride, ::stride], with zero channels: (out_channels - C) // 2 before, the rest behind."""

    def subsample_pad_backward(self, dy: Array, x_shape: Shape, stride: int) -> Array:
        """-> dx, zero wherever x was not read."""


class Elementwise(Protocol):
    """Element by element. NaN stays NaN."""

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""

    def relu_backward(self, dy: Array, y: Array) -> Array:
        """dy, but 0 where y <= 0, whatever dy is there: a choice, since a product would make NaN of an infinity. Where y is
        NaN, it is dy.
        """

    def relu6(self, x: Array) -> Array:
        """min(max(x, 0), 6)."""

    def relu6_backward(self, dy: Array, y: Array) -> Array:
        """dy, but 0 where y <= 0 or y >= 6: a choice as well."""

    def cast(self, x: Array, dtype: Any) -> Array:
        """x in another floating-point dtype, rounded to nearest; what is too large for it becomes an infinity."""

    def add(self, x: Array, y: Array) -> Array:
        """x + y, of one shape and dtype: where a shortcut ends that no ReLU follows."""

    def accumulate(self, total: Array, x: Array) -> None:
        """total += x, in place: how cotangents meet where a block's input forks."""


class Pool(Protocol):
    """Pooling: one number from each window, or from each map."""

    def max_pool2d(self, x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
        """-> y, and for each of its elements which of the window's KH * KW places held it (int, the first of equals).

        Padding never does, not even beside minus infinity; NaN is more than any number.
        """

    def max_pool2d_backward(
        self, dy: Array, index: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair
    ) -> Array:
        """-> dx: each cotangent goes to the place that held the maximum; overlapping windows add."""

    def avg_pool2d(self, x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        """-> the mean over each window, padding counted as zeros."""

    def avg_pool2d_backward(self, dy: Array, x_shape: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Array:
        """-> dx: each cotangent, divided by KH * KW, goes to all of its window."""

    def global_avg_pool2d(self, x: Array) -> Array:
        """x (N, C, H, W) -> the mean of each map (N, C)."""

    def global_avg_pool2d_backward(self, dy: Array, x_shape: Shape) -> Array:
        """dy (N, C) -> dx (N, C, H, W)."""


class Loss(Protocol):
    """Cross-entropy of integer labels."""

    def cross_entropy(self, logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
        """logits (N, K), labels (N,) of int -> losses (N,) = -sum q log p, and log p (N, K), where
        q = (1 - label_smoothing) * one_hot(labels) + label_smoothing / K. Where q is 0, log p may be minus infinity.
        """

    def cross_entropy_backward(self, dlosses: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
        """dlosses (N,) -> dlogits (N, K) = (p - q) * dlosses."""

    def cross_entropy_mean(self, logits: Array, labels: Array, label_smoothing: float) -> tuple[Array, Array]:
        """The same -> the mean of the losses, of shape (), and log p (N, K)."""

    def cross_entropy_mean_backward(self, dloss: Array, log_probs: Array, labels: Array, label_smoothing: float) -> Array:
        """dloss, of shape () -> dlogits (N, K) = (p - q) * dloss / N."""

    def count_wrong(self, logits: Array, labels: Array, total: Array) -> None:
        """total (int32, shape ()) += how many rows of logits (N, K) have their first maximum elsewhere than at the label,
        where NaN is more than any number.
        """


class Update(Protocol):
    """The optimiser's step, in place, and what mixed precision adds to it."""

    def sgd(
        self,
        params: list[Array],
        grads: list[Array],
        buffers: list[Array],
        lr: float | Array,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        skip: Array | None = None,
    ) -> None:
        """In place, over all parameters: g = grad + weight_decay p;  v = momentum v + g;  p -= lr v, or with ``nesterov``
        p -= lr (g + momentum v). Without momentum ``buffers`` is empty and p -= lr g. Gradients stay as they are.

        ``lr`` is a number, or a float32 array of shape () where the parameters live. Where ``skip`` (int32, shape ()) is
        not 0, nothing changes.
        """

    def adamw(
        self,
        params: list[Array],
        grads: list[Array],
        means: list[Array],
        squares: list[Array],
        steps: list[int],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """In place, over all parameters, with b1, b2 = betas and the parameter's t in ``steps``, which counts from 1:
        p -= lr weight_decay p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
        p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). Gradients stay as they are.
        """

    def unscale(self, grads: list[Array], scale: Array) -> Array:
        """In place, grads /= scale (float32, shape ()).  -> int32 of shape (): 1 if one is not finite, else 0."""

    def update_scale(
        self, scale: Array, good_steps: Array, found: Array, growth: float, backoff: float, interval: int
    ) -> None:
        """Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740), in place on arrays of shape (): where
        ``found``, scale *= backoff and good_steps (int32) is 0; else good_steps goes up by one, and at ``interval`` scale
        *= growth and it starts again from 0. A product outside of float32's normal numbers is not taken: the scale stays.
        """


class Augment(Protocol):
    """What a loader does: crops and flips, from bytes to normalised floats."""

    def crop_flip(self, images: Array, offsets: Array, flips: Array, pad: int, mean: Array, scale: Array) -> Array:
        """images (N, C, H, W) uint8 -> float32 of the same shape: (images / 255 - mean) * scale, surrounded by ``pad``
        zeros, cropped at offsets (N, 2) in 0 .. 2 pad, mirrored left to right where flips (N,).
        """

    def next_batch(
        self,
        images: Array,
        labels: Array,
        order: Array,
        step: Array,
        epoch: Array,
        x: Array,
        y: Array,
        mean: Array,
        scale: Array,
        pad: int,
        seed: int,
    ) -> None:
        """Batch ``step`` of a data set that lies where the kernels run, written into x and y; ``step`` stays.

        images (M, C, H, W) uint8, labels (M,) int64, order (M,) int32: which image is at which place of the epoch, where
        behind the last the first follows. step and epoch are int32 of shape (). x (B, C, H, W), channels-last in memory, of
        any floating-point dtype, y (B,) int64. mean and scale are float32 and broadcast to (C, H, W).

        As `crop_flip` makes them; with ``pad`` 0 images come as they are. Place k of the epoch has the random words (a, b,
        c, _) = Philox4x32-10 of the counter (k, epoch, 0, 0) and the key (seed mod 2^32, seed >> 32) (Salmon et al. 2011,
        "Parallel random numbers: as easy as 1, 2, 3"): offsets a (2 pad + 1) >> 32 and b (2 pad + 1) >> 32, flipped where c
        >= 2^31. So they depend on nothing else, as the batch size.
        """


class Step(Protocol):
    """What a training step does besides mathematics, so that it needs no host: in place, on arrays of shape (), of which
    ``step`` and ``bad`` are int32.
    """

    def begin_step(self, lrs: Array, step: Array, lr: Array) -> None:
        """lr = lrs[step]: lrs (steps,) and lr float32."""

    def note(self, found: Array, bad: Array) -> None:
        """bad = 1 where ``found`` (int32) is not 0: remembers that something was not finite."""

    def end_step(self, loss: Array, bad: Array, rows: int, total: Array, step: Array) -> None:
        """total += rows loss (float64, float32), unless the loss is not finite, and step += 1. Where ``bad`` is not 0,
        nothing changes: step goes on pointing at the step that failed.
        """


class Kernels(Conv, Linear, Norm, Join, Elementwise, Pool, Loss, Update, Augment, Step, Protocol):
    """All kernels."""


# kernel -> the file that holds it, in the folder of each implementation: that of its group above
FILES = {
    kernel: group.__name__.lower()
    for group in Kernels.__bases__
    if group is not Protocol
    for kernel in vars(group)
    if not kernel.startswith("_")
}
NAMES = tuple(FILES)


def kernels_of(package: str) -> dict[str, Callable[..., Any]]:
    """The kernels that a package holds: each function of the contract that stands, by its name, in the file of its group."""
    files = {file for file in FILES.values() if importlib.util.find_spec(f"{package}.{file}")}
    modules = {file: importlib.import_module(f"{package}.{file}") for file in files}
    return {
        kernel: getattr(modules[file], kernel)
        for kernel, file in FILES.items()
        if file in files and hasattr(modules[file], kernel)
    }
