"""The kernels themselves, arrays in and arrays out, against loops: at sizes around the edges of blocks, and with every
array that `np.empty` hands out filled with NaN and fenced, so that an element left unwritten, or written beside, shows.
"""

import importlib
import inspect
import itertools

import numpy as np
import pytest
from backends import BACKENDS, running, tolerance
from layouts import LAYOUTS

import tinyres as tr
from tinyres.kernels import contract, dispatch, naive, reference
from tinyres.kernels.arrays import channels_first

EDGES = (1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025)
FENCE = 64
rng = np.random.default_rng(5)


class Fenced:
    """`np.empty` that returns NaN between two fences."""

    def __init__(self):
        self.empty, self.fences = np.empty, []

    def __call__(self, shape, dtype=float, order="C", **_):
        dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(shape, dtype=int))
        memory = self.empty(size + 2 * FENCE, dtype)
        memory[...] = np.nan if dtype.kind == "f" else 77
        memory[:FENCE] = memory[FENCE + size :] = 77
        self.fences += [memory[:FENCE], memory[FENCE + size :]]
        return memory[FENCE : FENCE + size].reshape(shape, order=order)

    def like(self, a, dtype=None, order="K", **_):
        axes = np.argsort([-abs(s) for s in a.strides], kind="stable")  # a's axes from the outermost inwards
        out = self(tuple(a.shape[i] for i in axes), dtype or a.dtype)
        return out.transpose(np.argsort(axes)) if a.ndim else out.reshape(a.shape)

    def check(self):
        assert self.fences, "nothing was allocated by np.empty: this test sees nothing"
        assert all((fence == 77).all() for fence in self.fences), "a kernel wrote beside its array"


@pytest.fixture
def fenced(monkeypatch):
    allocator = Fenced()
    monkeypatch.setattr(np, "empty", allocator)
    monkeypatch.setattr(np, "empty_like", allocator.like)
    return allocator


def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def close(got, want, factor=1.0):
    assert isinstance(got, np.ndarray) and got.dtype == np.float32 and got.shape == np.shape(want)
    np.testing.assert_allclose(got, want, **tolerance("float32", np.asarray(want), factor))


def check_conv2d(kernels, x_shape, w_shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    x, w, geometry = draw(*x_shape), draw(*w_shape), (stride, padding, dilation, groups)
    y = kernels.conv2d(x, w, *geometry)
    dy = draw(*y.shape)
    exact_x, exact_w, exact_dy = (a.astype(float) for a in (x, w, dy))
    close(y, naive.conv2d(exact_x, exact_w, *geometry), 4)
    dx = naive.conv2d_backward_input(exact_dy, exact_w, x.shape, *geometry)
    close(kernels.conv2d_backward_input(dy, w, x.shape, *geometry), dx, 4)
    dw = naive.conv2d_backward_weight(exact_dy, exact_x, w.shape, *geometry)
    close(kernels.conv2d_backward_weight(dy, x, w.shape, *geometry), dw, 4)


def check_added_input_gradient(kernels, x_shape, w_shape, stride=(1, 1), padding=(0, 0), groups=1):
    x, w, geometry = draw(*x_shape), draw(*w_shape), (stride, padding, (1, 1), groups)
    dy = draw(*kernels.conv2d(x, w, *geometry).shape)
    dx = naive.conv2d_backward_input(dy.astype(float), w.astype(float), x.shape, *geometry)
    total = channels_first(draw(*dx.transpose(0, 2, 3, 1).shape))
    before = total.astype(float)
    assert kernels.conv2d_backward_input(dy, w, x.shape, *geometry, total) is total
    close(total, before + dx, 4)


NORMS = ("plain", "relu", "join")  # a batch norm alone, with the ReLU behind it, with addition and ReLU


def check_batch_norm(kernels, shape, training=True, kind="plain"):
    c, eps = shape[1], 1e-5
    x, weight, bias = draw(*shape), 1 + 0.1 * draw(c), draw(c)
    r = draw(*shape) if kind == "join" else None
    if training:
        running, m = [draw(c), np.exp(draw(c))], x.size // c
        before = [a.copy() for a in running]
        moving = (*running, 0.25) if m > 1 else None
        if kind == "join":
            y, mean, var = kernels.batch_norm_add_relu(x, r, weight, bias, eps, moving)
        else:
            y, mean, var = kernels.batch_norm(x, weight, bias, eps, kind == "relu", moving)
        exact = x.astype(float)
        close(mean, exact.mean(axis=(0, 2, 3)))
        close(var, exact.var(axis=(0, 2, 3)))
        if m > 1:
            close(running[0], 0.75 * before[0] + 0.25 * exact.mean(axis=(0, 2, 3)))
            close(running[1], 0.75 * before[1] + 0.25 * exact.var(axis=(0, 2, 3), ddof=1))
    else:
        mean, var = draw(c), np.exp(draw(c))
        if kind == "join":
            y = kernels.batch_norm_add_relu_inference(x, r, weight, bias, mean, var, eps)
        else:
            y = kernels.batch_norm_inference(x, weight, bias, mean, var, eps, kind == "relu")
    exact = naive.batch_norm_inference(*(a.astype(float) for a in (x, weight, bias, mean, var)), eps, kind == "relu")
    close(y, naive.add_relu(exact, r) if kind == "join" else exact, 10)
    dy = draw(*shape)
    dz = dy if kind == "plain" else dy * (y > 0)
    if kind == "join":
        *got, ds = kernels.batch_norm_add_relu_backward(dy, x, y, weight, mean, var, eps, training)
        np.testing.assert_array_equal(ds, dz)
    else:
        got = kernels.batch_norm_backward(dy, x, y if kind == "relu" else None, weight, mean, var, eps, training)
    dz, x, weight, mean, var = (a.astype(float) for a in (dz, x, weight, mean, var))
    want = naive.batch_norm_backward(dz, x, None, weight, mean, var, eps, training)
    for a, b in zip(got, want, strict=True):
        close(a, b, 20)


def check_pool(kernels, shape, kernel, stride, padding, ties=False):
    x = np.round(draw(*shape)) if ties else draw(*shape)
    y, index = kernels.max_pool2d(x, kernel, stride, padding)
    want, places = naive.max_pool2d(x, kernel, stride, padding)
    close(y, want)
    assert index.shape == y.shape and index.dtype.kind in "iu"
    dy = draw(*y.shape)
    close(
        kernels.max_pool2d_backward(dy, index, x.shape, kernel, stride, padding),
        naive.max_pool2d_backward(dy, places, x.shape, kernel, stride, padding),
    )
    close(kernels.avg_pool2d(x, kernel, stride, padding), naive.avg_pool2d(x.astype(float), kernel, stride, padding))
    close(
        kernels.avg_pool2d_backward(dy, x.shape, kernel, stride, padding),
        naive.avg_pool2d_backward(dy.astype(float), x.shape, kernel, stride, padding),
    )


def check_elementwise(kernels, shape):
    x, y, dy = 4 * draw(*shape), draw(*shape), draw(*shape)
    close(kernels.relu(x), np.where(x > 0, x, 0))
    close(kernels.relu6(x), np.clip(x, 0, 6))
    close(kernels.add(x, y), x + y)
    close(kernels.add_relu(x, y), np.where(x + y > 0, x + y, 0))
    close(kernels.relu_backward(dy, kernels.relu(x)), np.where(x > 0, dy, 0))
    close(kernels.relu6_backward(dy, kernels.relu6(x)), np.where((x > 0) & (x < 6), dy, 0))


def check_accumulate(kernels, shape):
    """Whatever the memory of the two looks like; the second stays as it is."""
    for total_layout, layout in itertools.product(LAYOUTS.values(), repeat=2):
        total, x = total_layout(draw(*shape)), layout(draw(*shape))
        before, kept = total.astype(float), x.copy()
        assert kernels.accumulate(total, x) is None
        close(total, before + x)
        np.testing.assert_array_equal(x, kept)


def check_linear(kernels, n, i, o):
    x, w, b, dy = draw(n, i), draw(o, i), draw(o), draw(n, o)
    x64, w64, dy64 = (a.astype(float) for a in (x, w, dy))
    y = np.array([[(row * column).sum() for column in w64] for row in x64])
    close(kernels.linear(x, w, None), y, 4)
    close(kernels.linear(x, w, b), y + b, 4)
    close(kernels.linear_backward_input(dy, w), sum(dy64[:, k, None] * w64[k] for k in range(o)), 4)
    close(kernels.linear_backward_weight(dy, x), sum(dy64[k, :, None] * x64[k] for k in range(n)), 4)
    close(kernels.linear_backward_bias(dy), dy64.sum(axis=0), 4)


def check_loss(kernels, n, k, smoothing):
    logits, labels, d = 4 * draw(n, k), rng.integers(0, k, n), draw(n)
    losses, log_probs = kernels.cross_entropy(logits, labels, smoothing)
    exact, exact_log_probs = naive.cross_entropy(logits.astype(float), labels, smoothing)
    close(losses, exact, 4)
    close(log_probs, exact_log_probs, 4)
    close(
        kernels.cross_entropy_backward(d, log_probs, labels, smoothing),
        naive.cross_entropy_backward(d.astype(float), exact_log_probs, labels, smoothing),
        4,
    )


def check_shortcut(kernels, shape, out_channels, stride):
    x = draw(*shape)
    close(kernels.global_avg_pool2d(x), x.astype(float).mean(axis=(2, 3)))
    d = draw(*shape[:2])
    close(kernels.global_avg_pool2d_backward(d, shape), np.broadcast_to(d[..., None, None], shape) / (shape[2] * shape[3]))
    y = kernels.subsample_pad(x, out_channels, stride)
    close(y, naive.subsample_pad(x, out_channels, stride))
    dy, dx, before = draw(*y.shape), np.zeros(shape), (out_channels - shape[1]) // 2
    dx[:, :, ::stride, ::stride] = dy[:, before : before + shape[1]]
    close(kernels.subsample_pad_backward(dy, shape, stride), dx)


def check_crop_flip(kernels, n, size, pad):
    images = rng.integers(0, 256, (n, 3, size, size), np.uint8)
    offsets, flips = rng.integers(0, 2 * pad + 1, (n, 2)), rng.random(n) < 0.5
    mean, scale = draw(3, 1, 1), np.exp(draw(3, 1, 1))
    want = np.zeros(images.shape)
    for k, (down, right) in enumerate(offsets):
        for i in range(size):
            for j in range(size):
                row, column = i + down - pad, (size - 1 - j if flips[k] else j) + right - pad
                if 0 <= row < size and 0 <= column < size:
                    want[k, :, i, j] = (images[k, :, row, column] / 255 - mean[:, 0, 0]) * scale[:, 0, 0]
    close(kernels.crop_flip(images, offsets, flips, pad, mean, scale), want)


# name of the check -> the arguments that it is run with. Sizes are at the edges of vectors, and of the reference's blocks:
# 65,536 elements elementwise, 512 KB of columns in a convolution.
CHECKS = {
    "conv2d channels": (check_conv2d, [((1, c, 3, 3), (2, c, 3, 3), (1, 1), (1, 1)) for c in EDGES[:7]]),
    "conv2d filters": (check_conv2d, [((2, 2, 3, 4), (f, 2, 3, 3), (2, 2), (1, 1)) for f in EDGES[:7]]),
    "conv2d images": (check_conv2d, [((n, 3, 4, 4), (2, 3, 3, 3), (1, 1), (1, 1)) for n in (1, 2, 3, 5, 31, 33)]),
    "conv2d blocks": (check_conv2d, [((3, 32, 21, 22), (2, 32, 3, 3), (s, s), (1, 1)) for s in (1, 2)]),
    "conv2d width": (check_conv2d, [((1, 1, 1, n), (1, 1, 1, 3), (1, s), (0, 1)) for n in EDGES[1:] for s in (1, 2)]),
    "conv2d 1x1": (check_conv2d, [((3, c, 5, 5), (c, c, 1, 1), (s, s)) for c in (1, 31, 33) for s in (1, 2)]),
    "conv2d groups": (
        check_conv2d,
        [((2, c, 4, 5), (c, 1, 3, 3), (s, s), (1, 1), (1, 1), c) for c in (1, 31, 33) for s in (1, 2)],
    ),
    "conv2d added": (
        check_added_input_gradient,
        [((2, c, 9, 6), (f, c, 3, 3), (s, s), (1, 1)) for c, f in ((3, 4), (16, 32), (33, 17)) for s in (1, 2)]
        + [((2, 4, 5, 6), (4, 1, 3, 3), (1, 1), (1, 1), 4), ((2, 5, 6, 6), (3, 5, 1, 1), (2, 2))],
    ),
    "batch_norm channels": (check_batch_norm, [((2, c, 2, 3),) for c in EDGES]),
    "batch_norm images": (check_batch_norm, [((n, 3, 1, 2),) for n in EDGES]),
    "batch_norm blocks": (check_batch_norm, [((3, 16, 40, 40), True, "join"), ((9, 16, 32, 32), False, "join")]),
    "batch_norm kinds": (check_batch_norm, [((4, 5, 3, 3), training, kind) for training in (True, False) for kind in NORMS]),
    "pool": (
        check_pool,
        [
            ((2, c, 5, 6), k, s, p)
            for c in (1, 31, 33)
            for k, s, p in (((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 2), (1, 0)))
        ]
        + [((3, 2, 6, 6), (3, 3), (2, 2), (1, 1), True)],
    ),
    "elementwise": (
        check_elementwise,
        [(s,) for s in (*((n,) for n in EDGES), (1 << 16,), ((1 << 16) + 1,), (3, 40000), (2, 3, 33, 1), (70, 1025))],
    ),
    "linear": (check_linear, [(1, 1, 1), *((n, 33, 10) for n in (31, 128, 129)), (2, 1025, 3), (3, 2, 1023)]),
    "loss": (check_loss, [(n, k, e) for n, k in ((1, 1), (1, 31), (33, 10), (129, 3), (2, 1025)) for e in (0.0, 0.1)]),
    "shortcut": (
        check_shortcut,
        [((2, c, h, h + 1), c + more, s) for c in (1, 31, 33) for h in (1, 7, 8) for more in (0, 1, 32) for s in (1, 2)],
    ),
    "crop_flip": (check_crop_flip, [(1, 8, 0), (3, 32, 4), (33, 5, 2)]),
}


@pytest.mark.parametrize("shape", [(33,), (7, 1025), (2, 3, 5, 7), (1 << 17,)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulating_adds_in_place_whatever_the_layouts(backend, shape):
    with tr.use_backend(backend):  # not strict: a total with gaps in memory may go to the reference
        check_accumulate(dispatch.current(), shape)
    contiguous = draw(*shape), draw(*shape)
    with running(backend):
        dispatch.current().accumulate(*contiguous)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_agrees_with_loops_at_the_edges_of_blocks(name, backend, fenced):
    check, sizes = CHECKS[name]
    with running(backend):
        for arguments in sizes:
            check(dispatch.current(), *arguments)
        fenced.check()


def check_update(kernels, momentum, nesterov, sizes):
    params, grads, buffers = ([draw(n) for n in sizes] for _ in range(3))
    buffers = buffers if momentum else []
    old = [[a.astype(float) for a in group] for group in (params, grads, buffers)]
    kernels.sgd(params, grads, buffers, 0.1, momentum, 1e-2, nesterov)
    for i, (p, g) in enumerate(zip(*old[:2], strict=True)):
        np.testing.assert_array_equal(grads[i], g)
        g = g + 1e-2 * p
        if momentum:
            v = momentum * old[2][i] + g
            close(buffers[i], v)
            g = g + momentum * v if nesterov else v
        close(params[i], p - 0.1 * g)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_update_writes_parameters_and_buffers_and_leaves_gradients_alone(backend, momentum, nesterov):
    with running(backend):
        for sizes in ((1,), (33, 1025), (128, 3, 1)):
            check_update(dispatch.current(), momentum, nesterov, sizes)


def check_adamw(kernels, sizes):
    """Parameters that are at different steps, written in place; gradients stay as they are."""
    columns = [[draw(n) for n in sizes] for _ in range(4)]
    columns[3] = [abs(a) for a in columns[3]]
    steps, (beta1, beta2) = [2 + 3 * i for i in range(len(sizes))], (0.8, 0.99)
    old = [[a.astype(float) for a in column] for column in columns]
    kernels.adamw(*columns, steps, 0.1, (beta1, beta2), 1e-2, 0.5)
    for i, (p, g, m, v) in enumerate(zip(*old, strict=True)):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = m / (1 - beta1 ** steps[i]) / (np.sqrt(v / (1 - beta2 ** steps[i])) + 1e-2)
        for column, want in zip(columns, (p - 0.1 * 0.5 * p - 0.1 * step, g, m, v), strict=True):
            close(column[i], want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adamw_writes_parameters_and_means_and_leaves_gradients_alone(backend):
    with running(backend):
        for sizes in ((1,), (33, 1025), (128, 3, 1)):
            check_adamw(dispatch.current(), sizes)


def test_the_reference_has_every_kernel_of_the_contract_with_its_arguments():
    assert set(contract.NAMES) == set(contract.kernels_of("tinyres.kernels.reference"))
    for name in contract.NAMES:
        promised = list(inspect.signature(getattr(contract.Kernels, name)).parameters)[1:]
        assert list(inspect.signature(getattr(reference, name)).parameters) == promised, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_takes_the_arguments_of_the_reference(backend):
    package = importlib.import_module(dispatch.BACKENDS[backend]).__package__
    kernels = contract.kernels_of(package)
    assert kernels
    for name, kernel in kernels.items():
        arguments = list(inspect.signature(kernel).parameters)
        assert arguments == list(inspect.signature(getattr(reference, name)).parameters), name


def test_the_fences_are_seen_to_fail(fenced):
    a = np.empty((3, 4), np.float32)
    assert np.isnan(a).all() and np.isnan(np.empty_like(a.T)).all()
    a.base[FENCE - 1] = 0  # one element before the array
    with pytest.raises(AssertionError, match="beside"):
        fenced.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_result_is_not_overwritten_by_later_calls(backend):
    """Also when only a view of it, or something that took over its memory, is kept: kernels may reuse what was let go."""
    x, w, c = draw(4, 16, 20, 20), draw(16, 16, 3, 3), draw(16)

    def results():
        kernels, geometry = dispatch.current(), ((1, 1), (1, 1), (1, 1), 1)
        y = kernels.conv2d(x, w, *geometry)
        z, mean, var = kernels.batch_norm_add_relu(y, x, c, c, 1e-5)
        dx, _, _, residual = kernels.batch_norm_add_relu_backward(x, y, z, c, mean, var, 1e-5, True)
        yield from (y, z, dx, residual, kernels.relu(x), kernels.add_relu(x, y))
        yield kernels.conv2d_backward_input(x, w, x.shape, *geometry)
        yield kernels.max_pool2d(x, (2, 2), (2, 2), (0, 0))[0]

    with tr.use_backend(backend):
        kept = list(results())
        views = [y[1:, :, ::2] for y in results()]
        views += [memoryview(y.transpose(0, 2, 3, 1)) for y in results()]
        views += [np.asarray(memoryview(y.transpose(0, 2, 3, 1))) for y in results()]
        copies = [np.array(a) for a in (*kept, *views)]
        for _ in range(3):
            for y in results():
                y[...] = np.nan
        for a, copy in zip((*kept, *views), copies, strict=True):
            np.testing.assert_array_equal(a, copy)
