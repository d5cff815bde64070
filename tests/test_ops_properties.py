"""What holds for any shape, stride and view: drawn by hypothesis."""

import definitions
import numpy as np
import pytest
from backends import BACKENDS, tolerance
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinyres as tr
import tinyres.functional as F

few = settings(deadline=None, max_examples=40, derandomize=True)
small = st.integers(1, 4)
two = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(params=BACKENDS, autouse=True, scope="module")
def backend(request):
    with tr.use_backend(request.param):
        yield


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def gradients(y, dy, *leaves):
    y.backward(dy)
    return [leaf.grad for leaf in leaves]


@st.composite
def convolutions(draw):
    kernel, stride, dilation = draw(two), draw(two), draw(two)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    groups = draw(st.integers(1, 3))
    size = [draw(st.integers(max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]), 9)) for i in (0, 1)]
    c, f = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (draw(small), c, *size), (f, c // groups, *kernel), options


@few
@given(convolutions(), st.integers(0, 9))
def test_any_convolution_is_its_definition_and_its_gradients_are_its_adjoints(case, seed):
    """A convolution is linear in x and in w, so <dy, conv(x, w)> = <dx, x> = <dw, w>; x and w are independent of dy, which
    makes this as strict as a comparison of all elements.
    """
    x_shape, w_shape, options = case
    x, w = tr.tensor(draw(seed, *x_shape), requires_grad=True), tr.tensor(draw(seed + 1, *w_shape), requires_grad=True)
    y = F.conv2d(x, w, **options)
    np.testing.assert_allclose(y.data, definitions.conv2d(x.data, w.data, **options), atol=1e-12)
    dy = draw(seed + 2, *y.shape)
    dx, dw = gradients(y, dy, x, w)
    other_x, other_w = draw(seed + 3, *x_shape), draw(seed + 4, *w_shape)
    np.testing.assert_allclose((dx * other_x).sum(), (dy * definitions.conv2d(other_x, w.data, **options)).sum(), atol=1e-9)
    np.testing.assert_allclose((dw * other_w).sum(), (dy * definitions.conv2d(x.data, other_w, **options)).sum(), atol=1e-9)


@st.composite
def pools(draw):
    kernel, stride = draw(two), draw(two)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [draw(st.integers(max(1, kernel[i] - 2 * padding[i]), 8)) for i in (0, 1)]
    return (draw(small), draw(small), *size), kernel, stride, padding


@few
@given(pools(), st.integers(0, 9), st.booleans())
def test_any_pooling_is_its_definition(case, seed, ties):
    shape, *window = case
    a = draw(seed, *shape)
    if ties:  # few different values: the first of equals gets the gradient
        a = np.round(a)
    for pool, loops, backward in (
        (F.max_pool2d, definitions.max_pool2d, lambda dy: definitions.max_pool2d_backward(dy, a, *window)),
        (F.avg_pool2d, definitions.avg_pool2d, lambda dy: definitions.avg_pool2d_backward(dy, shape, *window)),
    ):
        x = tr.tensor(a, requires_grad=True)
        y = pool(x, *window)
        np.testing.assert_allclose(y.data, loops(a, *window), atol=1e-12)
        dy = draw(seed + 1, *y.shape)
        np.testing.assert_allclose(gradients(y, dy, x)[0], backward(dy), atol=1e-12)


@few
@given(st.integers(2, 5), small, st.none() | st.tuples(small, small), st.booleans(), st.booleans(), st.integers(0, 9))
def test_batch_norm_is_composed_of_means_and_products(n, c, size, residual, relu, seed):
    """The same network of primitive operations, differentiated by the engine alone."""
    shape = (n, c, *(size or ()))
    per_channel = (1, c, *(1 for _ in size or ()))
    axes = (0, *range(2, len(shape)))
    arrays = [draw(seed, *shape), draw(seed + 1, *shape), draw(seed + 2, c), draw(seed + 3, c)]
    fused, composed = ([tr.tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
    statistics = np.zeros(c), np.ones(c)

    x, r, weight, bias = fused
    if residual:
        y = F.batch_norm_add_relu(x, r, *statistics, weight, bias, training=True)
    else:
        y = F.batch_norm(x, *statistics, weight, bias, training=True, relu=relu)

    x, r, weight, bias = composed
    centred = x - x.mean(dim=axes, keepdim=True)
    std = ((centred * centred).mean(dim=axes, keepdim=True) + 1e-5) ** 0.5
    z = centred / std * weight.reshape(*per_channel) + bias.reshape(*per_channel)
    z = (z + r).relu() if residual else z.relu() if relu else z

    dy = draw(seed + 4, *shape)
    np.testing.assert_allclose(y.data, z.data, atol=1e-9)
    for a, b in zip(gradients(y, dy, *fused), gradients(z, dy, *composed), strict=True):
        if a is not None or b is not None:
            np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, np.abs(b).max()))


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3), st.integers(0, 9))
def test_broadcasting_follows_numpy_and_its_gradient_sums_what_was_repeated(shapes, seed):
    arrays = [np.array(draw(seed + i, *s)) + 3 for i, s in enumerate(shapes.input_shapes)]
    for f in (lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b):
        leaves = [tr.tensor(a, requires_grad=True) for a in arrays]
        y = f(*leaves)
        np.testing.assert_allclose(y.data, f(*arrays))
        dy = np.array(draw(seed + 2, *y.shape))
        # the gradient of the same operation on the operands written out in full, summed over their copies
        wide = [tr.tensor(np.broadcast_to(a, y.shape), requires_grad=True) for a in arrays]
        gradients(f(*wide), dy, *wide)
        gradients(y, dy, *leaves)
        for leaf, full in zip(leaves, wide, strict=True):
            extra = tuple(range(full.ndim - leaf.ndim))
            ones = tuple(i + len(extra) for i, k in enumerate(leaf.shape) if k == 1)
            np.testing.assert_allclose(leaf.grad, full.grad.sum(axis=extra + ones).reshape(leaf.shape), atol=1e-12)


def view_of(data, a):
    """``a`` as a view with other strides: axes exchanged, steps, reversed axes, or in the middle of a larger array."""
    order = data.draw(st.permutations(range(a.ndim)))
    steps = [data.draw(st.sampled_from([1, 2, -1, -2])) for _ in a.shape]
    offsets = [data.draw(st.integers(0, 2)) for _ in a.shape]
    memory = np.full([abs(steps[i]) * a.shape[i] + offsets[i] for i in order], np.nan, a.dtype)
    axes_back = memory.transpose(np.argsort(order))
    index = [slice(o, o + abs(s) * n, abs(s)) for n, s, o in zip(a.shape, steps, offsets, strict=True)]
    view = axes_back[tuple(index)]
    view = view[tuple(slice(None, None, -1 if s < 0 else 1) for s in steps)]
    view[...] = a
    return view


@few
@given(st.data(), st.sampled_from(["conv", "conv-strided", "bn", "join", "max", "avg", "mean", "shortcut", "relu6"]))
def test_strides_of_the_input_do_not_matter(data, name):
    a, b = draw(1, 2, 3, 4, 5), draw(2, 2, 3, 4, 5)
    w, c = draw(3, 4, 3, 3, 3), draw(4, 3)
    ops = {
        "conv": lambda x, _: F.conv2d(x, view_of(data, w), padding=1),
        "conv-strided": lambda x, _: F.conv2d(x, view_of(data, w), stride=2, padding=1),
        "bn": lambda x, y: F.batch_norm_add_relu(x, y, np.zeros(3), np.ones(3), view_of(data, c), c, training=True),
        "join": F.add_relu,
        "max": lambda x, _: F.max_pool2d(x, 3, 2, 1),
        "avg": lambda x, _: F.avg_pool2d(x, 2),
        "mean": lambda x, _: F.global_avg_pool2d(x),
        "shortcut": lambda x, _: F.subsample_pad(x, 5),
        "relu6": lambda x, _: F.relu6(x),
    }
    straight = [tr.tensor(v, requires_grad=True) for v in (a, b)]
    views = [tr.Tensor(view_of(data, v), requires_grad=True) for v in (a, b)]
    y, z = ops[name](*straight), ops[name](*views)
    np.testing.assert_allclose(z.data, y.data, atol=1e-12)
    dy = draw(5, *y.shape)
    for g, h in zip(gradients(y, dy, *straight), gradients(z, view_of(data, dy), *views), strict=True):
        assert (g is None) == (h is None)
        if g is not None:
            np.testing.assert_allclose(h, g, atol=1e-11)


values = st.floats(-4, 4, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 6.0])
images = hnp.arrays(np.float32, (1, 2, 3, 4), elements=values)


@few
@given(images, images)
def test_nan_and_infinity_pass_through_rectifiers_and_joins(a, b):
    with np.errstate(invalid="ignore"):
        total = a + b
        for got, want in (
            (F.relu(a), np.where(np.isnan(a), a, np.maximum(a, 0))),
            (F.relu6(a), np.where(np.isnan(a), a, np.clip(a, 0, 6))),
            (F.add_relu(a, b), np.where(np.isnan(total), total, np.maximum(total, 0))),
        ):
            np.testing.assert_array_equal(got.data, want)


@few
@given(images)
def test_a_window_with_a_nan_has_no_maximum_and_no_mean(a):
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(F.max_pool2d(a, (3, 2)).data, definitions.max_pool2d(a, (3, 2)))
        np.testing.assert_array_equal(F.max_pool2d(a, 3, 2, 1).data, definitions.max_pool2d(a, 3, 2, 1))
        got, want = F.avg_pool2d(a, (3, 2)).data, definitions.avg_pool2d(a, (3, 2))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        finite = np.isfinite(want)
        np.testing.assert_allclose(got[finite], want[finite], rtol=1e-5, atol=1e-5)


@few
@given(hnp.arrays(np.float32, (2, 2, 2, 3), elements=values), st.booleans())
def test_a_channel_with_a_nan_is_nan_throughout_and_the_others_are_not(a, training):
    assume(np.isnan(a).any())
    with np.errstate(invalid="ignore"):
        y = F.batch_norm(a, np.zeros(2, np.float32), np.ones(2, np.float32), training=training).data
    for c in range(2):
        if not training:
            np.testing.assert_array_equal(np.isnan(y[:, c]), np.isnan(a[:, c]))
        elif np.isfinite(a[:, c]).all():
            assert np.isfinite(y[:, c]).all()
        else:
            assert np.isnan(y[:, c]).all() or not np.isnan(a[:, c]).any()


@few
@given(hnp.arrays(np.float32, (1, 1, 5, 5), elements=st.floats(-4, 4, width=32)), st.integers(0, 4), st.integers(0, 4))
def test_a_nan_in_an_image_reaches_exactly_the_windows_that_read_it(a, i, j):
    a[0, 0, i, j] = np.nan
    y = F.conv2d(a, np.ones((1, 1, 3, 3), np.float32), padding=1).data
    near = np.maximum(abs(np.arange(5)[:, None] - i), abs(np.arange(5) - j)) <= 1
    np.testing.assert_array_equal(np.isnan(y[0, 0]), near)


@few
@given(st.integers(1, 4), st.integers(1, 6), st.floats(0, 1), st.sampled_from([0.0, 1e3, -1e4]), st.integers(0, 9))
def test_cross_entropy_is_stable_for_any_shift_of_the_logits(n, k, smoothing, shift, seed):
    logits = draw(seed, n, k)
    labels = np.random.default_rng(seed).integers(0, k, n)
    x = tr.tensor(logits, requires_grad=True)
    F.cross_entropy(x, labels, label_smoothing=smoothing).backward()
    moved = tr.tensor(logits + shift, requires_grad=True)
    loss = F.cross_entropy(moved, labels, label_smoothing=smoothing)
    loss.backward()
    want = definitions.cross_entropy(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(loss.data, want, atol=1e-8 * max(1, abs(want)))
    np.testing.assert_allclose(moved.grad, x.grad, atol=1e-8)
    np.testing.assert_allclose(x.grad.sum(axis=1), 0, atol=1e-12)  # probabilities and targets both sum to one


def test_cross_entropy_of_huge_float32_logits_is_finite():
    logits = np.array([[1e38, 0, -1e38], [-1e38, -1e38, -1e38]], np.float32)
    x = tr.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(x, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(loss.data, [0, np.log(3)], **tolerance("float32", np.ones(1)))
    loss.backward(np.ones(2, np.float32))
    assert np.isfinite(x.grad).all()


@few
@given(st.integers(0, 99), st.floats(0.05, 0.95))
def test_dropout_keeps_the_expected_value(seed, p):
    x = np.ones(4000)
    y = F.dropout(x, p, generator=np.random.default_rng(seed)).data
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / (1 - p), rtol=1e-12)
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / 4000)
