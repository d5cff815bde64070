"""Convolution on the tensor cores, emulated: against float64 on operands rounded as the hardware rounds them, so that what
is left is the rounding of float32 sums, and a wrong lane or a missing term cannot hide behind TF32.
"""

import ml_dtypes
import numpy as np
import pytest
from backends import BACKENDS, sweep
from layouts import LAYOUTS

from tinyres.kernels import reference
from tinyres.kernels.arrays import channels_first
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import conv_tensor

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

TYPES = {"float32": np.dtype("f4"), "float16": np.dtype("f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
every_type = pytest.mark.parametrize("name", ["float32", "float16", *sweep("bfloat16")])
ROUNDING = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of an element of an image, relative to it
SUMS = 2e-6  # the rounding of float32 sums, relative to the largest
SHAPES = [  # N, C, F, H, W, kernel, stride, padding
    (2, 3, 16, 8, 8, 3, 1, 1),
    (2, 16, 16, 9, 7, 3, 1, 1),
    (2, 16, 32, 8, 8, 3, 2, 1),
    (1, 17, 33, 7, 10, 3, 2, 1),
    (3, 8, 5, 6, 6, 1, 1, 0),
    (2, 64, 64, 4, 4, 3, 1, 1),
    (2, 4, 6, 9, 8, 1, 2, 0),
    (1, 2, 3, 11, 11, 5, 3, 2),
    (2, 32, 64, 8, 8, 1, 2, 0),
    (1, 1, 1, 1, 1, 3, 1, 1),
    (1, 48, 8, 5, 9, 3, 1, 1),
    (3, 12, 20, 12, 24, 3, 1, 1),
    (2, 3, 2, 5, 6, 1, 3, 1),
    (1, 20, 40, 3, 6, 3, 1, 2),
]


def rounded(a, name):
    """What the tensor cores multiply, in float64: for float32 TF32, 10 bits of mantissa, ties away from zero."""
    if name != "float32":
        return a.astype(TYPES[name]).astype(np.float64)
    bits = (a.astype("f4").view("u4") + np.uint32(0x1000)) & ~np.uint32(0x1FFF)
    return bits.view("f4").astype(np.float64)


def error(got, want):
    return np.abs(got.astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def drawn(shape, name):
    """x, w, the cotangent of y, and the geometry."""
    n, c, f, h, w, k, s, p = shape
    rng = np.random.default_rng(n + c + f)
    x, weight = rng.standard_normal((n, c, h, w)).astype(TYPES[name]), rng.standard_normal((f, c, k, k)).astype("f4")
    dy = rng.standard_normal((n, f, (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1)).astype(TYPES[name])
    return x, weight, dy, ((s, s), (p, p), (1, 1), 1)


def passes(module, x, w, dy, geometry):
    """y, dx, dx added to another array, dw."""
    values = np.arange(x.size) % 64 / 64 - 0.5  # exact in every type
    total = channels_first(values.reshape([x.shape[i] for i in (0, 2, 3, 1)]).astype(x.dtype))
    return (
        module.conv2d(x, w, *geometry),
        module.conv2d_backward_input(dy, w, x.shape, *geometry),
        module.conv2d_backward_input(dy, w, x.shape, *geometry, total),
        module.conv2d_backward_weight(dy, x, w.shape, *geometry),
    )


def check(shape, name):
    x, w, dy, geometry = drawn(shape, name)
    wanted = passes(reference, *(rounded(a, name) for a in (x, w, dy)), geometry)
    for got, want, dtype in zip(passes(conv_tensor, x, w, dy, geometry), wanted, (*[x.dtype] * 3, w.dtype), strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        allowed = SUMS * np.abs(want).max() + (ROUNDING[name] * np.abs(want) if dtype == x.dtype else 0)
        assert (np.abs(got.astype(np.float64) - want) <= allowed).all()  # (a NaN is no less either)


@every_type
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_passes_agree_with_the_reference_on_rounded_operands(shape, name):
    check(shape, name)


@pytest.mark.parametrize("enough, parts", [(1, 1), (5, 2), (999, 4)])
@every_type
def test_warps_that_share_a_sum_and_blocks_that_share_the_pixels_add_up(name, enough, parts, monkeypatch):
    monkeypatch.setattr(conv_tensor, "ENOUGH", enough)
    assert conv_tensor._parts(2 * 17 * 20, 1) == parts
    check((2, 16, 16, 17, 20, 3, 1, 1), name)
    check((2, 40, 36, 17, 20, 3, 2, 1), name)


@pytest.mark.parametrize("order", ["1", *sweep("2", "3")])
@every_type
def test_it_does_not_matter_which_threads_run_first(name, order, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
    check((2, 16, 16, 6, 5, 3, 1, 1), name)
    check((1, 17, 33, 7, 6, 3, 2, 1), name)


@every_type
def test_the_bits_do_not_depend_on_which_threads_run_first(name, monkeypatch):
    x, w, dy, geometry = drawn((2, 16, 32, 12, 12, 3, 1, 1), name)
    first = passes(conv_tensor, x, w, dy, geometry)
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", "2")
    for a, b in zip(first, passes(conv_tensor, x, w, dy, geometry), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "shape", [(2, 16, 16, 7, 7, 3, 1, 1), (2, 32, 32, 8, 8, 3, 1, 1), (2, 17, 5, 8, 9, 3, 2, 0)], ids=str
)
@every_type
def test_a_nan_reaches_the_windows_that_read_it_and_no_other(name, shape):
    x, w, dy, geometry = drawn(shape, name)
    x[0, 0, 2, -1] = dy[1, 1, 0, 0] = np.nan
    wanted = passes(reference, *(a.astype(np.float64) for a in (x, w, dy)), geometry)
    for got, want in zip(passes(conv_tensor, x, w, dy, geometry), wanted, strict=True):
        np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), np.isnan(want))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_whatever_the_memory_of_the_arguments_looks_like(layout):
    x, w, dy, geometry = drawn((2, 16, 16, 5, 8, 3, 1, 1), "float32")
    wanted, given = passes(conv_tensor, x, w, dy, geometry), [layout(a) for a in (x, w, dy)]
    for a in given:
        a.flags.writeable = False
    for got, want in zip(passes(conv_tensor, *given, geometry), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    assert all(a.transpose(0, 2, 3, 1).flags.c_contiguous for a in wanted[:2]), "images are channels-last"


def shifted(a):
    """The same values, channels-last, from an address on that is no multiple of 16."""
    memory = np.empty(a.size + 16, a.dtype)
    start = next(i for i in range(1, 16) if memory[i:].ctypes.data % 16 == a.itemsize)
    n, c, height, width = a.shape
    view = memory[start : start + a.size].reshape(n, height, width, c).transpose(0, 3, 1, 2)
    view[...] = a
    return view


@pytest.mark.parametrize("name", ["float16", *sweep("float32", "bfloat16")])
def test_arrays_that_do_not_start_at_a_multiple_of_16_bytes_are_read_one_by_one(name, monkeypatch):
    monkeypatch.delenv("TINYRES_EMULATOR")  # there, copies are aligned
    x, w, dy, geometry = drawn((2, 32, 32, 4, 4, 3, 1, 1), name)
    y, dx, _, dw = passes(conv_tensor, x, w, dy, geometry)
    for got, want in zip(passes(conv_tensor, shifted(x), w, shifted(dy), geometry), (y, dx), strict=False):
        np.testing.assert_array_equal(got, want)
    assert error(conv_tensor.conv2d_backward_weight(shifted(dy), shifted(x), w.shape, *geometry), dw) < SUMS


@pytest.mark.parametrize("shape", [(0, 3, 4, 6, 6, 3, 1, 1), (2, 4, 3, 8, 8, 3, 2, 1)], ids=["no images", "some"])
def test_no_images_give_no_output_and_no_gradient(shape):
    x, w, dy, geometry = drawn(shape, "float32")
    y, dx, _, dw = passes(conv_tensor, x, w, dy, geometry)
    assert y.shape == dy.shape and dx.shape == x.shape and dw.any() == bool(len(x))


def test_tf32_costs_three_digits_of_a_floats_seven():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 16, 8, 8)).astype("f4"), rng.standard_normal((16, 16, 3, 3)).astype("f4")
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    exact = reference.conv2d(x.astype(np.float64), w.astype(np.float64), *geometry)
    assert 1e-5 < error(conv_tensor.conv2d(x, w, *geometry), exact) < 1e-3


@pytest.mark.parametrize(
    ("geometry", "dtype"),
    [(((1, 1), (1, 1), (2, 2), 1), "f4"), (((1, 1), (1, 1), (1, 1), 2), "f4"), (((1, 1), (1, 1), (1, 1), 1), "f8")],
)
def test_dilation_groups_and_float64_are_left_to_others(geometry, dtype):
    x, w = np.ones((1, 4, 8, 8), dtype), np.ones((4, 4 // geometry[3], 3, 3), dtype)
    with pytest.raises(Unsupported):
        conv_tensor.conv2d(x, w, *geometry)
