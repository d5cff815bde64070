"""What is cut off gets no gradient, however large the cotangent is there, and a NaN lets its cotangent pass."""

import numpy as np
import pytest
from backends import BACKENDS

import tinyres as tr
import tinyres.functional as F
from tinyres.kernels import dispatch

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
