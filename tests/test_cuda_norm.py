"""The CUDA batch norm, emulated, against the reference in float64.

Launches are checked: results start as NaN, each array ends where a page begins that may not be touched, and a block's
threads run forwards, backwards and in random order.
"""

import itertools

import numpy as np
import pytest
from backends import BACKENDS, sweep
from layouts import LAYOUTS

from tinyres.kernels import cuda, reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import norm

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

rng = np.random.default_rng(4)
EPS = 1e-5
SHAPES = [
    (1, 1, 1, 2),
    (2, 3, 5, 7),
    (3, 16, 3, 5),  # a pack in each of few columns
    (1, 17, 2, 3),  # no packs
    (2, 64, 3, 3),
    (5, 40, 1, 1),
    (2, 264, 2, 3),  # more columns than a block's, and the last block of columns is not full
    (3, 35, 20, 20),  # more rows than a block's, two blocks of columns
    (3, 1, 67, 61),  # several parts of a sum, the last one short
]


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")


@pytest.fixture
def launches(monkeypatch):
    """A list of the kernels that were launched, and their macros."""
    made, original = [], norm.kernel
    monkeypatch.setattr(norm, "kernel", lambda file, name, **m: made.append((name, m)) or original(file, name, **m))
    return made


def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: NumPy has no bfloat16").bfloat16)


def drawn(shape, dtype="float32", offset=0.0):
    """x, residual, dy and weight, bias."""
    x, residual, dy = (rng.standard_normal(shape) for _ in range(3))
    vector = "float64" if dtype == "float64" else "float32"
    weight, bias = (1 + 0.3 * rng.standard_normal((2, shape[1]))).astype(vector)
    return (x + offset).astype(dtype), residual.astype(dtype), dy.astype(dtype), weight, bias


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def tolerances(dtype):
    """Of what is stored as images, and of sums."""
    image = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[str(dtype)]
    return image, min(image, 1e-5)


def close(got, want, tolerance, dtype):
    assert got.dtype == np.dtype(dtype) and got.shape == want.shape
    np.testing.assert_allclose(got.astype(float), want, rtol=0, atol=tolerance * max(1, np.abs(want).max(initial=0)))


def forward(kernels, kind, x, other, weight, bias):
    if kind == "join":
        return kernels.batch_norm_add_relu(x, other, weight, bias, EPS)
    return kernels.batch_norm(x, weight, bias, EPS, kind == "relu")


def inference(kernels, kind, x, other, *vectors):
    if kind == "join":
        return kernels.batch_norm_add_relu_inference(x, other, *vectors, EPS)
    return kernels.batch_norm_inference(x, *vectors, EPS, kind == "relu")


def backward(kernels, kind, dy, x, y, weight, mean, var, training):
    if kind == "join":
        return kernels.batch_norm_add_relu_backward(dy, x, y, weight, mean, var, EPS, training)
    return kernels.batch_norm_backward(dy, x, y if kind == "relu" else None, weight, mean, var, EPS, training)


def check(shape, dtype="float32", training=True, kind="join", offset=0.0):
    x, other, dy, weight, bias = drawn(shape, dtype, offset)
    image, vector = tolerances(dtype)
    if training:
        y, mean, var = forward(cuda, kind, x, other, weight, bias)
        exact, *statistics = forward(reference, kind, *wide(x, other, weight, bias))
        close(mean, statistics[0], vector, weight.dtype)
        close(var, statistics[1], vector, weight.dtype)
    else:
        mean, var = rng.standard_normal((2, shape[1])).astype(weight.dtype)
        var = np.exp(var)
        y = inference(cuda, kind, x, other, weight, bias, mean, var)
        exact = inference(reference, kind, *wide(x, other, weight, bias, mean, var))
    close(y, exact, image, dtype)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    got = backward(cuda, kind, dy, x, y, weight, mean, var, training)
    want = backward(reference, kind, *wide(dy, x, y, weight, mean, var), training)
    close(got[0], want[0], 4 * image, dtype)
    close(got[1], want[1], 4 * vector, weight.dtype)
    close(got[2], want[2], 4 * vector, weight.dtype)
    if kind == "join":
        close(got[3], want[3], 0, dtype)
    return y, mean, var, *got[:3]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_norm_with_all_its_parts_agrees_with_the_reference(shape):
    check(shape)


@pytest.mark.parametrize("training, kind", [*itertools.product([True, False], ["plain", "relu", "join"])])
def test_each_of_its_parts_is_optional(training, kind):
    for shape in ((2, 8, 3, 5), (2, 5, 3, 3)):
        check(shape, training=training, kind=kind)


@pytest.mark.parametrize("order", ["1", *sweep("2", "3")])
@pytest.mark.parametrize("shape", [(3, 16, 3, 5), (3, 35, 20, 20)], ids=str)
def test_it_does_not_matter_which_threads_run_first(shape, order, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
    check(shape)


@pytest.mark.parametrize("dtype", ["float16", *sweep("float64", "bfloat16")])
def test_images_of_other_types(dtype):
    for shape, training in (((3, 16, 3, 5), True), ((2, 3, 5, 7), True), ((3, 16, 3, 5), False)):
        check(shape, bfloat16() if dtype == "bfloat16" else dtype, training)


@pytest.mark.parametrize("offset", [1e3, -1e4])
def test_a_large_mean_does_not_lose_the_variance(offset):
    x, _, _, weight, bias = drawn((3, 4, 30, 31), offset=offset)
    y, mean, var = cuda.batch_norm(x, weight, 0 * bias, EPS, False)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3), dtype=float), rtol=1e-6)
    np.testing.assert_allclose(var, x.var(axis=(0, 2, 3), dtype=float), rtol=1e-4)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3), dtype=float), np.square(weight), rtol=1e-3)


def test_parts_whose_means_are_far_apart_join_to_one_variance():
    """Images that differ from each other more than within: the variance is that between the parts."""
    x = (np.arange(12).reshape(12, 1, 1, 1) * 10 + rng.standard_normal((12, 4, 20, 20))).astype(np.float32)
    one = np.ones(4, np.float32)
    _, mean, var = cuda.batch_norm(x, one, one, EPS, False)
    close(mean, x.mean(axis=(0, 2, 3), dtype=float), 1e-6, "float32")
    close(var, x.var(axis=(0, 2, 3), dtype=float), 1e-6, "float32")


def test_two_runs_give_the_same_bits():
    x, other, dy, weight, bias = drawn((3, 35, 20, 20))
    results = []
    for _ in range(2):
        y, mean, var = cuda.batch_norm_add_relu(x, other, weight, bias, EPS)
        results.append((y, mean, var, *cuda.batch_norm_add_relu_backward(dy, x, y, weight, mean, var, EPS, True)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_may_lie_in_memory_in_any_way(layout):
    x, other, dy, weight, bias = (LAYOUTS[layout](a) for a in drawn((2, 8, 3, 5)))
    y, mean, var = cuda.batch_norm_add_relu(x, other, weight, bias, EPS)
    close(y, reference.batch_norm_add_relu(*wide(x, other, weight, bias), EPS)[0], 1e-5, "float32")
    got = cuda.batch_norm_add_relu_backward(dy, x, y, weight, mean, var, EPS, True)
    want = reference.batch_norm_add_relu_backward(*wide(dy, x, y, weight, mean, var), EPS, True)
    close(got[0], want[0], 4e-5, "float32")


def test_images_that_do_not_begin_at_a_whole_pack_are_read_one_by_one(launches):
    flat = rng.standard_normal(2 * 3 * 5 * 8 + 1).astype(np.float32)
    x = flat[1:].reshape(2, 3, 5, 8).transpose(0, 3, 1, 2)
    one = np.ones(8, np.float32)
    y, _, _ = cuda.batch_norm(x, one, one, EPS, False)
    assert [macros["WIDTH"] for _, macros in launches] == [1, 1]
    close(y, reference.batch_norm(*wide(x, one, one), EPS, False)[0], 1e-5, "float32")


def test_a_nan_stays_in_its_channel_and_is_not_hidden_by_the_relu():
    x, other, dy, weight, bias = drawn((2, 8, 3, 5))
    x[1, 3, 2, 2] = other[0, 5, 0, 0] = np.nan
    y, mean, _ = cuda.batch_norm_add_relu(x, other, weight, bias, EPS)
    want = reference.batch_norm_add_relu(x, other, weight, bias, EPS)[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    assert np.isnan(y[:, 3]).all() and np.isnan(mean[3]) and np.isfinite(np.delete(mean, 3)).all()
    y = np.zeros_like(dy)
    dy[0, 2, 1, 1] = np.inf  # what is cut off is 0, whatever it was
    got = cuda.batch_norm_add_relu_backward(dy, other, y, weight, 0 * bias, bias * bias, EPS, True)
    assert got[3][0, 2, 1, 1] == 0 and np.isfinite(got[0][:, 2]).all() and np.isfinite(got[2][2])


def test_forward_and_backward_are_two_launches_each(launches):
    x, other, dy, weight, bias = drawn((2, 16, 8, 8))
    y, mean, var = cuda.batch_norm_add_relu(x, other, weight, bias, EPS)
    cuda.batch_norm_add_relu_backward(dy, x, y, weight, mean, var, EPS, True)
    assert [name for name, _ in launches] == [
        "batch_norm_statistics",
        "batch_norm_normalise",
        "batch_norm_backward_sums",
        "batch_norm_backward_input",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("channels", [1, 64, 257])
def test_the_running_statistics_move_in_place(channels, dtype):
    x, _, _, weight, bias = drawn((3, channels, 2, 2), dtype)
    running = rng.standard_normal((2, channels)).astype(weight.dtype)
    want = [a.astype(float) for a in running]
    reference.batch_norm(*wide(x, weight, bias), EPS, True, (*want, 0.1))
    cuda.batch_norm(x, weight, bias, EPS, True, (*running, 0.1))
    for a, b in zip(running, want, strict=True):
        close(a, b, 1e-6 if dtype != "float64" else 1e-14, weight.dtype)


def test_an_empty_batch_can_be_normalised():
    one = np.ones(8, np.float32)
    x = np.zeros((0, 8, 3, 3), np.float32)
    assert cuda.batch_norm_inference(x, one, one, one, one, EPS, True).shape == x.shape
    dx, dweight, dbias = cuda.batch_norm_backward(x, x, None, one, one, one, EPS, False)
    assert dx.shape == x.shape and not dweight.any() and not dbias.any()


def test_types_that_do_not_go_together_are_refused():
    x, _, _, weight, bias = drawn((2, 4, 3, 3))
    wide_weight, wide_bias = wide(weight, bias)
    for wrong in ((x, wide_weight, wide_bias), (x, weight, wide_bias), (x.astype(int), weight, bias)):
        with pytest.raises(Unsupported):
            cuda.batch_norm(*wrong, EPS, False)
    with pytest.raises(Unsupported):
        cuda.batch_norm_add_relu(x.astype(np.float16), x, weight, bias, EPS)
    with pytest.raises(Unsupported):
        cuda.batch_norm(x, weight, bias, EPS, False, (*np.zeros((2, 8), np.float32)[:, ::2], 0.1))
