"""The kernels of a step that needs no host, on every backend, against the definitions."""

import ml_dtypes
import numpy as np
import pytest
from backends import BACKENDS, running

from tinyres.kernels import dispatch, naive

rng = np.random.default_rng(4)


@pytest.fixture(params=[backend for backend in BACKENDS if backend != "naive"])
def kernels(request):
    with running(request.param):
        yield dispatch.current()


class Data:
    """A data set of 7 images, a batch of 3, and the counters."""

    def __init__(self, dtype=np.float32, batch=3):
        self.images, self.labels = rng.integers(0, 256, (7, 3, 4, 5), np.uint8), rng.integers(0, 10, 7)
        self.order = rng.permutation(7).astype("i4")
        self.mean, self.scale = rng.random((3, 1, 1), np.float32), rng.random((3, 4, 5), np.float32) + 1
        self.step, self.epoch = np.zeros((), "i4"), np.zeros((), "i4")
        self.x, self.y = np.full((batch, 4, 5, 3), 7, dtype).transpose(0, 3, 1, 2), np.full(batch, 77)

    def next(self, kernels, pad, seed):
        """x and y, and nothing else is written to."""
        given = [self.images, self.labels, self.order, self.step, self.epoch, self.mean, self.scale]
        before = [a.copy() for a in given]
        self.x[...], self.y[...] = 7, 77
        assert kernels.next_batch(*given[:5], self.x, self.y, *given[5:], pad, seed) is None
        for a, b in zip(given, before, strict=True):
            np.testing.assert_array_equal(a, b)
        return self.x.copy(), self.y.copy()


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("seed", [0, 0xFEDCBA9876543210])
def test_a_batch_is_the_definitions_with_the_same_random_numbers(kernels, seed, pad):
    data = Data()
    for step, epoch in ((0, 0), (2, 0), (1, 5)):  # images 6 to 8 of 7: the first two follow the last
        data.step[...], data.epoch[...] = step, epoch
        x, y = data.next(kernels, pad, seed)
        want, labels = data.next(naive, pad, seed)
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("dtype", ["float64", "float16", ml_dtypes.bfloat16])
def test_a_batch_is_rounded_to_the_dtype_asked_for(kernels, dtype):
    data, twin = Data(), Data(dtype)
    for name in ("images", "labels", "order", "mean", "scale"):
        setattr(twin, name, getattr(data, name))
    want, got = data.next(kernels, 1, 3)[0], twin.next(kernels, 1, 3)[0]
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, want.astype(dtype))


def test_a_step_finds_its_learning_rate(kernels):
    lrs, lr = rng.random(5).astype("f4"), np.zeros((), "f4")
    for step in (0, 4, 2):
        kernels.begin_step(lrs, np.array(step, "i4"), lr)
        assert lr == lrs[step]


def test_what_is_not_finite_is_noted_and_stays_noted(kernels):
    bad = np.zeros((), "i4")
    for found, want in ((0, 0), (1, 1), (0, 1)):
        kernels.note(np.array(found, "i4"), bad)
        assert bad == want


@pytest.mark.parametrize(
    ("loss", "bad", "total", "step"),
    [(0.25, 0, 101.25, 4), (np.nan, 0, 100, 4), (-np.inf, 0, 100, 4), (0.25, 1, 100, 3), (np.nan, 1, 100, 3)],
)
def test_the_end_of_a_step_adds_its_loss_and_counts_on_unless_it_failed(kernels, loss, bad, total, step):
    sums = np.array(100, "f8"), np.array(3, "i4")
    assert kernels.end_step(np.array(loss, "f4"), np.array(bad, "i4"), 5, *sums) is None
    assert (sums[0], sums[1]) == (total, step)


def test_wrong_answers_are_counted_on(kernels):
    logits, labels, total = rng.standard_normal((9, 4)).astype("f4"), rng.integers(0, 4, 9), np.array(7, "i4")
    logits[0, 2] = logits[1, 1] = np.nan
    logits[2] = 0
    want = total.copy()
    naive.count_wrong(logits, labels, want)
    assert kernels.count_wrong(logits, labels, total) is None
    assert total == want > 7 and total.dtype == np.int32
