"""The CUDA cross-entropy, emulated, against the reference in float64, and the count of wrong answers against NumPy's argmax.

Launches are checked: results start as NaN, each array ends where a page begins that may not be touched, and a block's
threads run forwards, backwards and in random order.
"""

import itertools

import numpy as np
import pytest
from backends import BACKENDS, sweep

from tinyres.kernels import reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import loss

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

rng = np.random.default_rng(9)
SIZES = [(1, 1), (1, 31), (33, 10), (3, 32), (5, 33), (2, 129)]  # around a warp's columns and a block's rows


@pytest.fixture(autouse=True, params=["0", *sweep("1", "2")])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", request.param)


def close(got, want, dtype="float32"):
    assert isinstance(got, np.ndarray) and got.dtype == np.dtype(dtype) and got.shape == np.shape(want)
    tolerance = 1e-14 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * tolerance * max(1, np.abs(want).max(initial=0)))


def check_loss(n, k, smoothing, dtype="float32", labels="int64"):
    """Forward and backward, of each row and of the mean."""
    x, y = (4 * rng.standard_normal((n, k))).astype(dtype), rng.integers(0, k, n).astype(labels)
    d, exact = rng.standard_normal(n).astype(dtype), x.astype(float)
    losses, log_probs = reference.cross_entropy(exact, y, smoothing)
    for got, want in zip(loss.cross_entropy(x, y, smoothing), (losses, log_probs), strict=True):
        close(got, want, dtype)
    for got, want in zip(loss.cross_entropy_mean(x, y, smoothing), (losses.mean(), log_probs), strict=True):
        close(got, want, dtype)
    kept = log_probs.astype(dtype)
    close(
        loss.cross_entropy_backward(d, kept, y, smoothing),
        reference.cross_entropy_backward(d, log_probs, y, smoothing),
        dtype,
    )
    one = np.array(-2.5, dtype)
    close(
        loss.cross_entropy_mean_backward(one, kept, y, smoothing),
        reference.cross_entropy_mean_backward(one, log_probs, y, smoothing),
        dtype,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_loss_and_its_gradient_are_the_reference_s(sizes, smoothing):
    check_loss(*sizes, smoothing)


def test_float64_and_labels_of_32_bits():
    check_loss(5, 33, 0.1, "float64", "int32")


def test_a_mean_over_more_rows_than_one_block_takes_is_the_same(monkeypatch):
    monkeypatch.setattr(loss, "ONE_BLOCK", 8)
    check_loss(9, 3, 0.1)
    check_loss(530, 2, 0.0)


def test_no_rows_have_no_losses():
    x, y = np.zeros((0, 3), "f4"), np.zeros(0, "i8")
    assert [a.shape for a in loss.cross_entropy(x, y, 0.0)] == [(0,), (0, 3)]
    assert loss.cross_entropy_mean_backward(np.ones((), "f4"), x, y, 0.0).shape == (0, 3)
    assert np.isnan(loss.cross_entropy_mean(x, y, 0.0)[0])


def check_special():
    """NaN and infinities, as NumPy's arithmetic has them."""
    x = np.array([[1e30, -1e30, 0], [np.nan, 1, 2], [1, np.nan, 2], [np.inf, 0, 1], [-np.inf, 0, 1], [-np.inf] * 3], "f4")
    with np.errstate(all="ignore"):
        for column in range(3):
            for smoothing in (0.0, 0.1):
                y = np.full(len(x), column)
                want = reference.cross_entropy(x, y, smoothing)
                for a, b in zip(loss.cross_entropy(x, y, smoothing), want, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_special_numbers_give_what_numpy_gives():
    check_special()


@pytest.mark.parametrize("label", [-1, 3, 1 << 40])
def test_a_label_that_is_no_column_makes_a_nan_and_reads_nothing(label):
    x, y = np.ones((2, 3), "f4"), np.array([0, label])
    losses, log_probs = loss.cross_entropy(x, y, 0.0)
    assert np.isfinite(losses[0]) and np.isnan(losses[1]) and np.isfinite(log_probs).all()
    total = np.zeros((), "i4")
    loss.count_wrong(x, y, total)
    assert total == 1


def check_count(x, y):
    """Twice into the same total."""
    total, wrong = np.array(7, "i4"), (x.argmax(axis=1) != y).sum()
    for times in (1, 2):
        loss.count_wrong(x, y, total)
        assert total == 7 + times * wrong


def check_count_of_any_row():
    """All rows of three values out of 0, 1, infinity and NaN, with each label."""
    x = np.array(list(itertools.product((0, 1, np.inf, np.nan), repeat=3)), "f4")
    for label in range(3):
        check_count(x, np.full(len(x), label))
        for one in x:  # alone, as errors may cancel
            check_count(one[None], np.array([label]))


def test_wrong_answers_are_counted_by_the_first_maximum_and_nan_is_one():
    check_count_of_any_row()


@pytest.mark.parametrize(("sizes", "dtype", "kind"), [((1, 1), "f4", "i8"), ((40, 10), "f4", "i8"), ((9, 65), "f8", "i4")])
def test_wrong_answers_are_counted_over_many_rows_and_columns(sizes, dtype, kind):
    x = rng.standard_normal(sizes).astype(dtype)
    y = rng.integers(0, sizes[1], sizes[0]).astype(kind)
    y[::2] = x.argmax(axis=1)[::2]
    check_count(x, y)


def test_strided_logits_and_labels_are_read_as_they_are_seen():
    x, y = rng.standard_normal((10, 9)).astype("f4").T, np.repeat(rng.integers(0, 10, 9), 2)[::2]
    close(loss.cross_entropy_mean(x, y, 0.0)[0], reference.cross_entropy(x.astype(float), y, 0.0)[0].mean())
    dlosses = np.broadcast_to(np.float32(0.5), 9)
    log_probs = reference.cross_entropy(x, y, 0.0)[1]
    close(
        loss.cross_entropy_backward(dlosses, log_probs, y, 0.0),
        reference.cross_entropy_backward(dlosses, log_probs.astype(float), y, 0.0),
    )


def test_what_the_kernels_do_not_take_is_refused():
    x, y = np.ones((2, 3), "f4"), np.zeros(2, "i8")
    for logits, labels in ((x.astype("f2"), y), (x, y.astype("u1")), (np.ones((2, 0), "f4"), y)):
        with pytest.raises(Unsupported):
            loss.cross_entropy(logits, labels, 0.0)
