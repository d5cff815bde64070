"""The CUDA pooling kernels and the parameter-free shortcut, emulated, against the reference in float64.

Launches are checked: results start as NaN, each array ends where a page begins that may not be touched, and a block's
threads run forwards, backwards and in random order.
"""

import numpy as np
import pytest
from backends import BACKENDS, sweep
from layouts import LAYOUTS

from tinyres.kernels import cuda, reference
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import pool

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

rng = np.random.default_rng(6)
WINDOWS = [  # kernel, stride, padding
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1)),  # a residual network's for ImageNet: windows overlap
    ((3, 2), (1, 2), (1, 0)),
    ((2, 3), (3, 4), (0, 1)),  # pixels that no window reads, between windows and at the end
    ((1, 1), (1, 1), (0, 0)),
]
MAPS = [(1, 1, 3, 3), (2, 3, 5, 6), (2, 8, 7, 4), (1, 17, 4, 5), (3, 40, 6, 7)]


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")


def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: NumPy has no bfloat16").bfloat16)


def draw(*shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


def close(got, want, dtype="float32"):
    assert got.dtype == np.dtype(dtype) and got.shape == want.shape
    assert got.ndim != 4 or got.transpose(0, 2, 3, 1).flags.c_contiguous
    tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[np.dtype(dtype).name]
    np.testing.assert_allclose(got.astype(float), want, rtol=0, atol=tolerance * max(1, np.abs(want).max(initial=0)))


def check_windows(x, geometry):
    exact, dtype = x.astype(float), x.dtype
    y, index = pool.max_pool2d(x, *geometry)
    want, places = reference.max_pool2d(exact, *geometry)
    np.testing.assert_array_equal(y.astype(float), want)  # NaN too
    np.testing.assert_array_equal(index, places)
    dy = draw(*y.shape, dtype=dtype)
    close(
        pool.max_pool2d_backward(dy, index, x.shape, *geometry),
        reference.max_pool2d_backward(dy.astype(float), places, x.shape, *geometry),
        dtype,
    )
    close(pool.avg_pool2d(x, *geometry), reference.avg_pool2d(exact, *geometry), dtype)
    close(
        pool.avg_pool2d_backward(dy, x.shape, *geometry),
        reference.avg_pool2d_backward(dy.astype(float), x.shape, *geometry),
        dtype,
    )


def check_maps(x):
    dy = draw(*x.shape[:2], dtype=x.dtype)
    close(pool.global_avg_pool2d(x), reference.global_avg_pool2d(x.astype(float)), x.dtype)
    want = reference.global_avg_pool2d_backward(dy.astype(float), x.shape)
    close(pool.global_avg_pool2d_backward(dy, x.shape), want, x.dtype)


def check_shortcut(x, out_channels, stride):
    y, exact = cuda.subsample_pad(x, out_channels, stride), x.astype(float)
    np.testing.assert_array_equal(y.astype(float), reference.subsample_pad(exact, out_channels, stride))
    dy = draw(*y.shape, dtype=x.dtype)
    dx = cuda.subsample_pad_backward(dy, x.shape, stride)
    np.testing.assert_array_equal(dx.astype(float), reference.subsample_pad_backward(dy.astype(float), x.shape, stride))
    assert y.dtype == dx.dtype == x.dtype


@pytest.mark.parametrize("geometry", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_windows_agree_with_the_reference(shape, geometry):
    check_windows(draw(*shape), geometry)


@pytest.mark.parametrize("shape", [*MAPS, (2, 64, 8, 8), (1, 264, 3, 3), (2, 132, 1, 2), (1, 1, 31, 37)], ids=str)
def test_means_of_maps_agree_with_the_reference(shape):
    check_maps(draw(*shape))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("out_channels", [0, 1, 8, 24])
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_the_shortcut_agrees_with_the_reference(shape, out_channels, stride):
    check_shortcut(draw(*shape), shape[1] + out_channels, stride)


@pytest.mark.parametrize("dtype", ["float16", *sweep("float64", "bfloat16")])
def test_images_of_other_types(dtype):
    for shape in ((2, 16, 7, 5), (2, 3, 5, 6)):
        x = draw(*shape, dtype=bfloat16() if dtype == "bfloat16" else dtype)
        check_windows(x, WINDOWS[1])
        check_maps(x)
        check_shortcut(x, 2 * shape[1], 2)


@pytest.mark.parametrize("order", ["1", *sweep("2", "3")])
def test_it_does_not_matter_which_threads_run_first(order, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
    check_maps(draw(2, 40, 9, 11))
    check_windows(draw(2, 8, 7, 4), WINDOWS[1])


def test_the_first_of_equal_elements_holds_the_maximum():
    check_windows(np.round(draw(2, 4, 9, 9)), WINDOWS[1])


def test_a_nan_wins_and_minus_infinity_is_a_number_like_others():
    x = np.round(draw(2, 4, 9, 9))
    x[0, :, 4, 4], x[1, 0], x[1, 1, 3:6, 3:6] = np.nan, -np.inf, np.nan
    for geometry in WINDOWS:
        y, index = pool.max_pool2d(x, *geometry)
        want, places = reference.max_pool2d(x, *geometry)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(index, places)
        np.testing.assert_array_equal(np.isnan(pool.avg_pool2d(x, *geometry)), np.isnan(reference.avg_pool2d(x, *geometry)))
    x[1, 0] = 0
    np.testing.assert_array_equal(np.isnan(pool.global_avg_pool2d(x)), [[True] * 4, [False, True, False, False]])


def test_a_cotangent_goes_only_to_the_place_that_held_the_maximum():
    x, geometry = draw(1, 4, 6, 6), WINDOWS[0]
    y, index = pool.max_pool2d(x, *geometry)
    dx = pool.max_pool2d_backward(np.full_like(y, np.nan), index, x.shape, *geometry)
    assert np.isnan(dx).sum() == y.size and (dx[~np.isnan(dx)] == 0).all()


def test_a_window_of_more_places_than_a_byte_holds():
    check_windows(draw(1, 4, 20, 19), ((17, 17), (2, 3), (1, 0)))
    check_windows(draw(1, 4, 16, 16), ((16, 16), (1, 1), (0, 0)))


def test_places_of_another_backend_serve_as_well():
    x, geometry = draw(2, 8, 6, 5), WINDOWS[1]
    y, index = reference.max_pool2d(x, *geometry)
    dy = draw(*y.shape)
    close(
        pool.max_pool2d_backward(dy, index, x.shape, *geometry),
        reference.max_pool2d_backward(dy.astype(float), index, x.shape, *geometry),
    )
    with pytest.raises(Unsupported):
        pool.max_pool2d_backward(dy, index.astype(float), x.shape, *geometry)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_may_lie_in_memory_in_any_way(layout):
    x = LAYOUTS[layout](draw(2, 8, 6, 5))
    check_windows(x, WINDOWS[1])
    check_maps(x)
    check_shortcut(x, 16, 2)


def test_images_that_do_not_begin_at_a_whole_pack_are_read_one_by_one():
    x = draw(2 * 6 * 5 * 8 + 1)[1:].reshape(2, 6, 5, 8).transpose(0, 3, 1, 2)
    check_windows(x, WINDOWS[1])
    check_maps(x)
    check_shortcut(x, 16, 2)


def test_empty_batches_and_maps_without_windows_have_empty_results():
    x = draw(0, 8, 4, 4)
    check_windows(x, WINDOWS[0])
    check_shortcut(x, 16, 2)
    assert pool.global_avg_pool2d(x).shape == (0, 8)
    y, _ = pool.max_pool2d(draw(2, 8, 1, 4), *WINDOWS[0])
    assert y.shape == (2, 8, 0, 2)
    assert not pool.max_pool2d_backward(y, y.astype(np.uint8), (2, 8, 1, 4), *WINDOWS[0]).any()


def test_two_runs_give_the_same_bits():
    x = draw(2, 40, 9, 11)
    np.testing.assert_array_equal(pool.global_avg_pool2d(x), pool.global_avg_pool2d(x))


def test_other_dtypes_are_refused():
    x = np.zeros((1, 4, 4, 4), np.int32)
    for kernel, arguments in ((pool.avg_pool2d, WINDOWS[0]), (pool.global_avg_pool2d, ()), (cuda.subsample_pad, (8, 2))):
        with pytest.raises(Unsupported):
            kernel(x, *arguments)
