"""Wrong kernels, which the checks of the other files must notice: see mutants.py."""

import numpy as np
import pytest
import test_engine_backward as engine
import test_ops_kernels as kernel_checks
from cases import BY_NAME
from mutants import case, check_caught, kernel, registry, replace, slope

from tinyres.kernels import reference
from tinyres.kernels.arrays import ceil_div
from tinyres.kernels.naive.windows import crop, pad, windows

mutant, MUTANTS = registry()

STRIDED = next(name for name in BY_NAME if name.startswith("conv2d") and "[3,2,3,3]-s2-p1-d1" in name)
STRAIGHT = next(name for name in BY_NAME if name.startswith("conv2d") and "[3,2,3,3]-s1-p1-d1" in name)


@mutant(
    kernel(kernel_checks.check_added_input_gradient, (2, 2, 7, 7), (2, 2, 3, 3), (2, 2)),
    engine.check_cotangents_that_meet_in_a_convolution,
)
def input_gradient_that_overwrites_what_it_is_added_to(patch):
    def backward(dy, w, x_shape, stride, padding, dilation, groups, total=None):
        dx = reference.conv2d_backward_input(dy, w, x_shape, stride, padding, dilation, groups)
        if total is None:
            return dx
        total[...] = dx
        return total

    replace(patch, "conv2d_backward_input", backward)


def _short(x_shape, w_shape, stride, padding, dilation):
    """The image without the rows and columns that no window reaches."""
    rest = [(x_shape[i + 2] + 2 * padding[i] - dilation[i] * (w_shape[i + 2] - 1) - 1) % stride[i] for i in (0, 1)]
    return (*x_shape[:2], x_shape[2] - rest[0], x_shape[3] - rest[1]), rest


REMAINDERS = [name for name in BY_NAME if "[3,2,3,3]-s2-p0-d1" in name or "[3,2,3,3]-s3-p1-d1" in name]


@mutant(*map(case, REMAINDERS))
def remainder_at_the_wrong_end(patch):
    """The rows left over stand before the image's gradient instead of behind it."""

    def backward(dy, w, x_shape, stride, padding, dilation, groups, total=None):
        short, rest = _short(x_shape, w.shape, stride, padding, dilation)
        dx = reference.conv2d_backward_input(dy, w, short, stride, padding, dilation, groups)
        return np.pad(dx, ((0, 0), (0, 0), (rest[0], 0), (rest[1], 0)))

    replace(patch, "conv2d_backward_input", backward)


@mutant(case(STRIDED))
def weight_gradient_of_windows_at_the_end(patch):
    """The windows are counted from the last row: right whenever the stride divides."""

    def backward(dy, x, w_shape, stride, padding, dilation, groups):
        _, rest = _short(x.shape, w_shape, stride, padding, dilation)
        moved = x[:, :, rest[0] :, rest[1] :]
        return reference.conv2d_backward_weight(dy, moved, w_shape, stride, padding, dilation, groups)

    replace(patch, "conv2d_backward_weight", backward)


@mutant(case("conv2d[2,4,6,7][6,2,3,3]-s1-p1-g2"), slope("conv2d[2,4,6,7][6,2,3,3]-s1-p1-g2"))
def groups_exchanged(patch):
    def backward(dy, x, *a):
        return np.ascontiguousarray(reference.conv2d_backward_weight(dy, x, *a)[::-1])

    replace(patch, "conv2d_backward_weight", backward)


@mutant(kernel(kernel_checks.check_pool, (2, 3, 6, 6), (2, 2), (2, 2), (0, 0), True))
def maximum_shared_by_ties(patch):
    seen = {}

    def forward(x, kernel, stride, padding):
        y, index = reference.max_pool2d(x, kernel, stride, padding)
        seen[id(index)] = (x, y)
        return y, index

    def backward(dy, index, x_shape, kernel, stride, padding):
        x, y = seen[id(index)]
        dx = pad(np.zeros_like(x), padding)
        places = zip(windows(pad(x, padding, -np.inf), kernel, stride), windows(dx, kernel, stride), strict=True)
        for (i, j, window), (_, _, dwindow) in places:
            dwindow += (window == y[:, :, i, j, None, None]) * dy[:, :, i, j, None, None]
        return crop(dx, padding)

    replace(patch, "max_pool2d", forward)
    replace(patch, "max_pool2d_backward", backward)


@mutant(case("avg_pool2d-3-2-1"))
def average_that_does_not_count_the_margin(patch):
    def forward(x, kernel, stride, padding):
        inside = reference.avg_pool2d(np.ones_like(x), kernel, stride, padding)
        return reference.avg_pool2d(x, kernel, stride, padding) / inside

    replace(patch, "avg_pool2d", forward)


@mutant(case("subsample_pad-2-4-2-4"), kernel(kernel_checks.check_shortcut, (2, 3, 5, 5), 7, 2))
def shortcut_padded_at_the_end(patch):
    def forward(x, out_channels, stride):
        return np.pad(x[:, :, ::stride, ::stride], ((0, 0), (0, out_channels - x.shape[1]), (0, 0), (0, 0)))

    replace(patch, "subsample_pad", forward)


@mutant(kernel(kernel_checks.check_update, 0.9, True, (33,)))
def nesterov_without_the_look_ahead(patch):
    replace(patch, "sgd", lambda *a: reference.sgd(*a[:-1], False))


@mutant(kernel(kernel_checks.check_update, 0.9, False, (33,)))
def momentum_with_dampening(patch):
    def sgd(params, grads, buffers, lr, momentum, weight_decay, nesterov):
        for p, g, v in zip(params, grads, buffers, strict=True):
            v *= momentum
            v += (1 - momentum) * (g + weight_decay * p)
            p -= lr * v

    replace(patch, "sgd", sgd)


@mutant(kernel(kernel_checks.check_update, 0.9, False, (33,)))
def weight_decay_beside_the_momentum(patch):
    def sgd(params, grads, buffers, lr, momentum, weight_decay, nesterov):
        old = [p.copy() for p in params]
        reference.sgd(params, grads, buffers, lr, momentum, 0.0, nesterov)
        for p, before in zip(params, old, strict=True):
            p -= lr * weight_decay * before

    replace(patch, "sgd", sgd)


def fenced(check):
    """The check with NaN in all new arrays and fences around them."""

    def run():
        allocator = kernel_checks.Fenced()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "empty", allocator)
            patch.setattr(np, "empty_like", allocator.like)
            check()
            allocator.check()

    return run


@mutant(fenced(kernel(kernel_checks.check_elementwise, (33,))))
def kernel_that_skips_the_last_element(patch):
    def relu(x):
        y = np.empty_like(x)
        np.maximum(x[: len(x) // 8 * 8], 0, out=y[: len(x) // 8 * 8])
        return y

    replace(patch, "relu", relu)


@mutant(fenced(kernel(kernel_checks.check_elementwise, (33,))))
def kernel_that_writes_past_the_end(patch):
    def relu(x):
        y = np.empty_like(x)
        whole = ceil_div(len(x), 8) * 8
        beyond = np.lib.stride_tricks.as_strided(y, (whole,), y.strides)
        beyond[: len(x)] = np.maximum(x, 0)
        beyond[len(x) :] = 0
        return y

    replace(patch, "relu", relu)


@mutant(case("relu"), case("add_relu"))
def kernel_that_writes_to_its_input(patch):
    replace(patch, "relu", lambda x: np.maximum(x, 0, out=x).copy())
    replace(patch, "add_relu", lambda x, y: np.maximum(np.add(x, y, out=x), 0).copy())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name):
    check_caught(*MUTANTS[name])
