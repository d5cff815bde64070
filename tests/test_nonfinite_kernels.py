"""What is cut off gets no gradient, however large the cotangent is there, and a NaN lets its cotangent pass."""

import numpy as np
import pytest
from backends import BACKENDS

import tinyres as tr
import tinyres.functional as F
from tinyres.kernels import dispatch, naive

BAD = (np.inf, -np.inf, np.nan)
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def in_use(backend):
    with tr.use_backend(backend), tr.strict():
        yield


def special():
    """Each cotangent beside each result: dy, y (81,)."""
    numbers = np.array([0, -0.0, 1, 3, 6, 7, *BAD], np.float32)
    dy, y = np.meshgrid(numbers, numbers)
    return np.ascontiguousarray(dy.ravel()), np.ascontiguousarray(y.ravel())


def test_a_rectifier_lets_through_what_it_did_not_cut_off():
    dy, y = special()
    kernels = dispatch.current()
    np.testing.assert_array_equal(kernels.relu_backward(dy, y), np.where(y <= 0, 0, dy))
    np.testing.assert_array_equal(kernels.relu6_backward(dy, y), np.where((y <= 0) | (y >= 6), 0, dy))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("training", [True, False])
def test_a_cotangent_that_a_fused_relu_cuts_off_reaches_nothing(bad, training):
    """The same numbers come out as with a 0 in its place."""
    rng = np.random.default_rng(0)
    x, residual, dz = (rng.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(3))
    weight, bias = np.ones(5, np.float32), np.zeros(5, np.float32)
    kernels = dispatch.current()
    y, mean, var = kernels.batch_norm(x, weight, bias, 1e-5, True)
    z, *_ = kernels.batch_norm_add_relu(x, residual, weight, bias, 1e-5)
    for result, backward in ((y, kernels.batch_norm_backward), (z, kernels.batch_norm_add_relu_backward)):
        place = tuple(np.argwhere(result == 0)[0])
        zero, spoilt = dz.copy(), dz.copy()
        zero[place], spoilt[place] = 0, bad
        with np.errstate(all="ignore"):
            got, want = (backward(d, x, result, weight, mean, var, 1e-5, training) for d in (spoilt, zero))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", BAD)
def test_an_infinite_cotangent_of_a_maximum_goes_to_its_place_alone(bad):
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    kernels = dispatch.current()
    y, index = kernels.max_pool2d(x, (2, 2), (2, 2), (0, 0))
    dx = kernels.max_pool2d_backward(np.full_like(y, bad), index, x.shape, (2, 2), (2, 2), (0, 0))
    want = np.zeros_like(x)
    want[0, 0, 1::2, 1::2] = bad
    np.testing.assert_array_equal(dx, want)


@pytest.mark.parametrize(
    ("start", "found", "end"), [(2.0**127, 0, 2.0**127), (2.0**126, 0, 2.0**127), (2.0**-126, 1, 2.0**-126)]
)
def test_the_loss_scale_stays_within_the_normal_numbers(start, found, end):
    scale, good = np.array(start, np.float32), np.array(4, np.int32)
    dispatch.current().update_scale(scale, good, np.array(found, np.int32), 2.0, 0.5, 5)
    assert scale == end and good == 0


def test_the_square_root_of_a_rectifier_has_pytorch_s_gradient():
    x = tr.tensor(np.array([-1.0, 0.0, 4.0], np.float32), requires_grad=True)
    with np.errstate(divide="ignore"):
        (F.relu(x) ** 0.5).backward(np.ones(3, np.float32))
    np.testing.assert_array_equal(x.grad, np.array([0, 0, 0.25], np.float32))


@pytest.mark.parametrize("size", [(2, 3, 3, 4), (1, 2, 2, 2)])
def test_a_window_of_minus_infinities_has_its_maximum_inside_the_image(size):
    """And so its cotangent reaches an element of x: the first that is real."""
    x = np.full(size, -np.inf, np.float32)
    x[0, 0, -1, -1] = 1
    kernels, window = dispatch.current(), ((2, 3), (2, 2), (1, 1))
    y, index = kernels.max_pool2d(x, *window)
    dx = kernels.max_pool2d_backward(np.ones_like(y), index, x.shape, *window)
    want, places = naive.max_pool2d(x, *window)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(index, places)
    assert dx.sum() == y.size


@pytest.mark.parametrize("large", [1e19, 1e25, 1e30])
@pytest.mark.parametrize("relu", [False, True])
def test_a_variance_too_large_for_the_dtype_is_infinite_and_nothing_is_nan(large, relu):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5, 6, 7)).astype(np.float32)
    x[:, :2] *= np.float32(large)
    dy, residual = (rng.standard_normal(x.shape).astype(np.float32) for _ in range(2))
    weight, bias = np.linspace(1, 2, 5, dtype=np.float32), np.linspace(-1, 1, 5, dtype=np.float32)
    running = np.zeros(5, np.float32), np.ones(5, np.float32)
    kernels = dispatch.current()
    with np.errstate(over="ignore"):
        y, mean, var = kernels.batch_norm(x, weight, bias, 1e-5, relu, (*running, 0.1))
        z, *_ = kernels.batch_norm_add_relu(x, residual, weight, bias, 1e-5)
        dx, dweight, dbias = kernels.batch_norm_backward(dy, x, y if relu else None, weight, mean, var, 1e-5, True)
    assert np.isinf(var[:2]).all() and np.isfinite(var[2:]).all() and np.isfinite(mean).all()
    shift = np.broadcast_to(bias[:2, None, None], x[:, :2].shape)
    np.testing.assert_array_equal(y[:, :2], np.maximum(shift, 0) if relu else shift)
    np.testing.assert_array_equal(z[:, :2], np.maximum(shift + residual[:, :2], 0))
    assert not dx[:, :2].any() and not dweight[:2].any() and np.isfinite(dbias).all()
    assert np.isinf(running[1][:2]).all() and np.isfinite(running[1][2:]).all() and np.isfinite(running[0]).all()
    for values in (y, z, dx, dweight):
        assert np.isfinite(values).all()


def test_a_momentum_of_one_makes_the_running_statistics_those_of_the_batch():
    x = np.array([[1e-4], [-1e-4], [2e-4]], np.float32)[:, :, None, None]
    running = np.full(1, 3, np.float32), np.ones(1, np.float32)
    *_, mean, var = dispatch.current().batch_norm(
        x, np.ones(1, np.float32), np.zeros(1, np.float32), 1e-5, False, (*running, 1.0)
    )
    np.testing.assert_allclose(running[0], mean, rtol=1e-6)
    np.testing.assert_allclose(running[1], var * 1.5, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mean", [False, True])
def test_an_impossible_class_costs_nothing_where_it_is_not_wanted(smoothing, mean):
    """Logits of minus infinity, and of the size of the largest numbers."""
    logits = np.array([[0, -np.inf, 1], [-3e38, 0, 3e38], [1e38, 1e38, -np.inf]], np.float32)
    labels, kernels = np.array([2, 2, 0]), dispatch.current()
    run, back = (getattr(kernels, f"cross_entropy{'_mean' * mean}{end}") for end in ("", "_backward"))
    with np.errstate(all="ignore"):
        loss, log_probs = run(logits, labels, smoothing)
        d = back(np.ones(() if mean else 3, np.float32), log_probs, labels, smoothing)
        want = naive.cross_entropy(logits, labels, smoothing)[0]
    np.testing.assert_allclose(loss, want.mean() if mean else want, rtol=1e-6)
    p = np.array([[1 / (1 + np.e), 0, np.e / (1 + np.e)], [0, 0, 1], [0.5, 0.5, 0]])
    q = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    np.testing.assert_allclose(d, (p - q) / (3 if mean else 1), atol=1e-6)
    assert np.isfinite(loss).all() if not smoothing else np.isposinf(loss).all()


def test_what_is_dropped_is_0_whatever_it_was_and_an_exponent_of_0_has_no_slope():
    bad = np.tile(np.array([*BAD, 1.0], np.float32), 50)
    x = tr.tensor(bad, requires_grad=True)
    for f in (lambda x: F.dropout(x, 0.5, generator=np.random.default_rng(0)), lambda x: x**0):
        y, x.grad = f(x), None
        with np.errstate(invalid="ignore"):
            y.backward(bad[::-1].copy())
        dropped = (
            np.random.default_rng(0).random(bad.shape, np.float32) < 0.5 if y.data[0] != 1 else np.full(bad.shape, True)
        )
        assert not x.grad[dropped].any() and (y.data[dropped] == (y.data[0] == 1)).all()
        np.testing.assert_array_equal(x.grad[~dropped], 2 * bad[::-1][~dropped])


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_the_gradient_of_a_small_or_large_divisor_is_as_large_as_it_is(size):
    a, b = (tr.tensor(np.float32(v * size), requires_grad=True) for v in (3, 2))
    (a / b).backward()
    np.testing.assert_allclose([a.grad, b.grad], np.array([0.5, -0.75]) / size, rtol=1e-6)


@pytest.mark.parametrize("bad", BAD)
def test_a_window_without_it_knows_nothing_of_an_infinity(bad):
    x = np.ones((1, 1, 5, 7), np.float32)
    x[0, 0, 0, 0] = bad
    for pool in (
        lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    ):
        t = tr.tensor(x, requires_grad=True)
        y = pool(t)
        np.testing.assert_allclose(y.data.ravel()[1:], 1, rtol=1e-6)
        dy = np.ones(y.shape, np.float32)
        dy[0, 0, 0, 0] = bad
        y.backward(dy)
        assert np.isfinite(t.grad[0, 0, 2:]).all()


def test_a_row_that_is_ignored_may_hold_anything():
    x = tr.tensor(np.array([[1, 2, 3], [np.nan, np.inf, -np.inf]], np.float32), requires_grad=True)
    with np.errstate(invalid="ignore"):
        loss = F.cross_entropy(x, np.array([1, -100]))
        loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(x.grad).all() and not x.grad[1].any()
