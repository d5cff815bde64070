"""The CUDA linear layer, emulated, against the reference in float64.

Launches are checked: results start as NaN, each array ends where a page begins that may not be touched, shared memory is NaN
until it is written, and a block's threads run forwards, backwards and in random order.
"""

import importlib

import numpy as np
import pytest
from backends import BACKENDS, sweep

from tinyres.kernels import reference
from tinyres.kernels.contract import Unsupported

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

linear = importlib.import_module("tinyres.kernels.cuda.linear")  # (the package has a function of this name)
rng = np.random.default_rng(8)
SIZES = [(1, 1, 1), (17, 15, 33), (16, 64, 16), (31, 65, 10), (33, 130, 17)]  # around tiles of 16 x 16, and 64 deep


@pytest.fixture(autouse=True, params=["0", *sweep("1", "2")])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", request.param)


def draw(*shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


def close(got, want, dtype="float32"):
    assert got.dtype == np.dtype(dtype) and got.shape == want.shape and got.flags.c_contiguous
    tolerance = 1e-14 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * tolerance * max(1, np.abs(want).max(initial=0)))


def check_linear(n, inputs, outputs, dtype="float32", stored=None):
    """Of the layer and its three gradients; x may have another dtype than the parameters."""
    x, w = draw(n, inputs, dtype=dtype).astype(stored or dtype), draw(outputs, inputs, dtype=dtype)
    b, dy = draw(outputs, dtype=dtype), draw(n, outputs, dtype=dtype)
    exact, w64, dy64 = x.astype(float), w.astype(float), dy.astype(float)
    close(linear.linear(x, w, None), reference.linear(exact, w64, None), dtype)
    close(linear.linear(x, w, b), reference.linear(exact, w64, b.astype(float)), dtype)
    close(linear.linear_backward_input(dy, w), reference.linear_backward_input(dy64, w64), dtype)
    close(linear.linear_backward_weight(dy, x), reference.linear_backward_weight(dy64, exact), dtype)
    close(linear.linear_backward_bias(dy), dy64.sum(axis=0), dtype)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_layer_and_its_gradients_are_the_reference_s_at_the_edges_of_tiles(sizes):
    check_linear(*sizes)


def test_a_network_s_last_layer_is_the_reference_s():
    check_linear(128, 64, 10)


def test_float64_is_computed_in_float64():
    check_linear(18, 70, 5, "float64")


def test_an_input_of_16_bits_is_widened_and_the_rest_stays_float32():
    check_linear(18, 70, 5, stored="float16")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: NumPy has no bfloat16")
    check_linear(18, 70, 5, stored=ml_dtypes.bfloat16)


def test_empty_sums_are_zero_and_empty_results_are_empty():
    none, w = draw(0, 5), draw(3, 5)
    assert linear.linear(none, w, draw(3)).shape == (0, 3)
    assert linear.linear_backward_input(draw(0, 3), w).shape == (0, 5)
    np.testing.assert_array_equal(linear.linear_backward_weight(draw(0, 3), none), np.zeros((3, 5)))
    np.testing.assert_array_equal(linear.linear_backward_bias(draw(0, 3)), np.zeros(3))
    np.testing.assert_array_equal(linear.linear(draw(2, 0), draw(3, 0), np.ones(3, "f4")), np.ones((2, 3)))


def test_transposed_and_strided_arrays_are_read_as_they_are_seen():
    x, w, dy = draw(20, 2 * 18)[:, ::2], draw(18, 7).T, draw(7, 20).T
    close(linear.linear(x, w, None), x.astype(float) @ w.T.astype(float))
    close(linear.linear_backward_weight(dy, x), dy.T.astype(float) @ x.astype(float))
    close(linear.linear_backward_bias(dy), dy.astype(float).sum(axis=0))


def test_a_nan_stays_in_its_row_and_an_infinity_beside_the_edge_of_a_tile_does_not_become_one():
    x, w = draw(18, 70), draw(5, 70)
    x[3, 2], x[17, 69] = np.nan, np.inf
    y = linear.linear(x, w, None)
    assert np.isnan(y[3]).all() and np.isinf(y[17]).all() and np.isfinite(np.delete(y, (3, 17), axis=0)).all()


def test_the_order_of_the_threads_does_not_change_a_bit(monkeypatch):
    x, dy = draw(40, 33), draw(40, 17)
    got = []
    for order in "012":
        monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
        got.append((linear.linear_backward_weight(dy, x), linear.linear_backward_bias(dy)))
    for other in got[1:]:
        for a, b in zip(got[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_mixtures_of_dtypes_are_refused():
    for x, w in (("float64", "float32"), ("float32", "float64"), ("float16", "float64"), ("float32", "float16")):
        with pytest.raises(Unsupported, match="dtype"):
            linear.linear(draw(2, 3, dtype=x), draw(4, 3, dtype=w), None)
