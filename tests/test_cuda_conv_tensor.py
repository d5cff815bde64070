"""Convolution on the tensor cores, emulated: against float64 on operands rounded as the hardware rounds them, so that what
is left is the rounding of float32 sums, and a wrong lane or a missing term cannot hide behind TF32."""

import ml_dtypes
import numpy as np
import pytest
from backends import require

from tinyres.kernels import reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import conv_tensor

TYPES = {"float32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
RESULT = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}  # the rounding of an image's elements, by their type
SHAPES = [  # N, C, F, H, W, kernel, stride, padding
    (2, 3, 16, 8, 8, 3, 1, 1), (2, 16, 16, 9, 7, 3, 1, 1), (2, 16, 32, 8, 8, 3, 2, 1), (1, 17, 33, 7, 10, 3, 2, 1),
    (3, 8, 5, 6, 6, 1, 1, 0), (2, 64, 64, 4, 4, 3, 1, 1), (2, 4, 6, 9, 8, 1, 2, 0), (1, 2, 3, 11, 11, 5, 3, 2),
    (2, 32, 64, 8, 8, 1, 2, 0), (1, 1, 1, 1, 1, 3, 1, 1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def emulated():
    require("cuda-emulated")


def rounded(a, name):
    """What the tensor cores multiply, in float64: for float32 TF32, 10 bits of mantissa, ties away from zero."""
    if name != "float32":
        return a.astype(TYPES[name]).astype(np.float64)
    bits = (a.astype("f4").view("u4") + np.uint32(0x1000)) & ~np.uint32(0x1FFF)
    return bits.view("f4").astype(np.float64)


def error(got, want):
    return np.abs(got.astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def check(shape, name):
    n, c, f, h, w, k, s, p = shape
    rng = np.random.default_rng(n + c + f)
    geometry = ((s, s), (p, p), (1, 1), 1)
    x, weight = rng.standard_normal((n, c, h, w)).astype(TYPES[name]), rng.standard_normal((f, c, k, k)).astype("f4")
    exact_x, exact_w = rounded(x, name), rounded(weight, name)
    y = reference.conv2d(exact_x, exact_w, *geometry)
    dy = rng.standard_normal(y.shape).astype(TYPES[name])
    exact_dy = rounded(dy, name)
    for got, want, of_image in (
        (conv_tensor.conv2d(x, weight, *geometry), y, True),
        (conv_tensor.conv2d_backward_input(dy, weight, x.shape, *geometry),
         reference.conv2d_backward_input(exact_dy, exact_w, x.shape, *geometry), True),
        (conv_tensor.conv2d_backward_weight(dy, x, weight.shape, *geometry),
         reference.conv2d_backward_weight(exact_dy, exact_x, weight.shape, *geometry), False),
    ):  # fmt: skip
        assert got.shape == want.shape and got.dtype == (TYPES[name] if of_image else np.float32)
        assert error(got, want) < (RESULT[name] if of_image else 1e-5)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_passes_agree_with_the_reference_on_rounded_operands(shape, name):
    check(shape, name)


@pytest.mark.parametrize("order", ["1", "2", "3"])
@pytest.mark.parametrize("name", TYPES)
def test_it_does_not_matter_which_threads_run_first(name, order, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
    check((2, 16, 16, 6, 5, 3, 1, 1), name)
    check((1, 17, 33, 7, 6, 3, 2, 1), name)


def test_tf32_costs_three_digits_of_a_floats_seven():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 16, 8, 8)).astype("f4"), rng.standard_normal((16, 16, 3, 3)).astype("f4")
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    exact = reference.conv2d(x.astype(np.float64), w.astype(np.float64), *geometry)
    assert 1e-5 < error(conv_tensor.conv2d(x, w, *geometry), exact) < 1e-3


@pytest.mark.parametrize(("geometry", "dtype"), [
    (((1, 1), (1, 1), (2, 2), 1), "f4"), (((1, 1), (1, 1), (1, 1), 2), "f4"), (((1, 1), (1, 1), (1, 1), 1), "f8"),
])  # fmt: skip
def test_dilation_groups_and_float64_are_left_to_others(geometry, dtype):
    x, w = np.ones((1, 4, 8, 8), dtype), np.ones((4, 4 // geometry[3], 3, 3), dtype)
    with pytest.raises(Unsupported):
        conv_tensor.conv2d(x, w, *geometry)
