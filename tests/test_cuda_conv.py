"""The CUDA convolutions on the ordinary cores, emulated: columns, implicit products, depthwise.

Launches are checked: results start as NaN, each array ends where a page begins that may not be touched, and a block's
threads run forwards, backwards and in random order.
"""

import itertools

import numpy as np
import pytest
from backends import BACKENDS, sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

from tinyres.kernels import naive, reference
from tinyres.kernels.arrays import output_size
from tinyres.kernels.contract import Unsupported
from tinyres.kernels.cuda import conv_depthwise, conv_exact, im2col
from tinyres.kernels.cuda.launch import kernel
from tinyres.kernels.cuda.sources import KernelFault

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

MODULES = {"im2col": im2col, "exact": conv_exact, "depthwise": conv_depthwise}


def geometry(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return x, w, (stride, padding, dilation, groups)


PLAIN = [
    geometry((1, 1, 1, 1), (1, 1, 1, 1)),
    geometry((1, 1, 1, 1), (1, 1, 3, 3), (3, 3), (1, 1)),
    geometry((2, 3, 9, 8), (16, 3, 3, 3), (1, 1), (1, 1)),  # a network's first layer
    geometry((3, 16, 7, 7), (16, 16, 3, 3), (1, 1), (1, 1)),  # 147 pixels: a full tile and an edge
    geometry((2, 16, 9, 8), (32, 16, 3, 3), (2, 2), (1, 1)),
    geometry((2, 17, 4, 5), (33, 17, 1, 1), (2, 2)),  # phases of the input that no tap reads
    geometry((1, 20, 6, 5), (68, 20, 3, 3), (1, 1), (1, 1)),
    geometry((2, 2, 7, 9), (3, 2, 5, 5), (3, 2), (2, 1)),
    geometry((2, 3, 9, 8), (2, 3, 2, 3), (3, 2), (1, 0), (2, 1)),
    geometry((2, 4, 10, 11), (4, 4, 3, 3), (2, 3), (2, 3), (2, 2)),  # strides and dilations with and without common factors
    geometry((1, 2, 3, 3), (2, 2, 1, 1), (5, 4), (2, 0)),  # strides beyond the image
]
GROUPED = [
    geometry((2, 4, 6, 7), (6, 2, 3, 3), (2, 2), (1, 1), (1, 1), 2),
    geometry((2, 6, 5, 5), (3, 2, 1, 1), (1, 1), (0, 0), (1, 1), 3),
    geometry((1, 4, 9, 8), (2, 2, 3, 2), (1, 2), (3, 1), (2, 1), 2),
    geometry((2, 16, 6, 7), (4, 8, 3, 3), (2, 1), (1, 1), (1, 1), 2),  # packs of 16 bytes in each group
]
DEPTHWISE = [
    geometry((2, 16, 6, 7), (16, 1, 3, 3), (1, 1), (1, 1), (1, 1), 16),  # 16 bytes at a time
    geometry((2, 8, 7, 9), (8, 1, 3, 3), (2, 2), (1, 1), (1, 1), 8),
    geometry((2, 35, 5, 4), (35, 1, 3, 3), (1, 2), (1, 0), (1, 1), 35),  # a second block of channels
    geometry((2, 3, 7, 6), (6, 1, 5, 5), (3, 3), (2, 2), (1, 1), 3),  # two filters each, three passes over the taps
    geometry((1, 4, 9, 10), (8, 1, 2, 3), (2, 1), (3, 1), (2, 3), 4),
    geometry((3, 1, 10, 9), (1, 1, 3, 3), (1, 1), (1, 1), (1, 1), 1),  # 270 pixels: several parts of the sum
]
ALL = {"im2col": PLAIN + GROUPED + DEPTHWISE[1:5], "exact": PLAIN, "depthwise": DEPTHWISE}
EVERY = [(name, one) for name, several in ALL.items() for one in several]
NAMES = [f"{name}-{x}-{w}-{rest}".replace(" ", "") for name, (x, w, rest) in EVERY]
every_geometry = pytest.mark.parametrize("name, shapes", EVERY, ids=NAMES)
rng = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")


def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: NumPy has no bfloat16").bfloat16)


def drawn(shapes, dtype, weights=None):
    """x, w and the cotangent of y."""
    x_shape, w_shape, rest = shapes
    size = (output_size(x_shape[i + 2], w_shape[i + 2], *(pair[i] for pair in rest[:3])) for i in (0, 1))
    made = [rng.standard_normal(s) for s in (x_shape, w_shape, (x_shape[0], w_shape[0], *size))]
    return [a.astype(d) for a, d in zip(made, (dtype, weights or dtype, dtype), strict=True)]


def run(module, x, w, dy, rest):
    """y, dx, dw."""
    return (
        module.conv2d(x, w, *rest),
        module.conv2d_backward_input(dy, w, x.shape, *rest),
        module.conv2d_backward_weight(dy, x, w.shape, *rest),
    )


def loops(x, w, dy, rest):
    return run(naive, *(a.astype(np.float64) for a in (x, w, dy)), rest)


def close(got, want, eps):
    assert got.shape == want.shape
    difference = np.abs(got.astype(np.float64) - want).max(initial=0)
    assert difference <= eps * max(0.1, np.abs(want).max(initial=0)), f"off by {difference}"  # (a NaN is no less either)


@every_geometry
@pytest.mark.parametrize("order", [0, *sweep(1, 2)])
def test_outputs_and_gradients_are_those_of_the_loops_in_any_order_of_threads(name, shapes, order, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", str(order))
    x, w, dy = drawn(shapes, np.float64 if order == 2 else np.float32)
    for got, want in zip(run(MODULES[name], x, w, dy, shapes[2]), loops(x, w, dy, shapes[2]), strict=True):
        assert got.dtype == x.dtype
        close(got, want, 1e-12 if order == 2 else 5e-6)


@pytest.mark.parametrize(
    "name, shapes",
    [("im2col", PLAIN[4]), ("im2col", GROUPED[0]), ("depthwise", DEPTHWISE[0]), ("depthwise", DEPTHWISE[3])],
    ids=["columns", "groups", "each", "two-each"],
)
@pytest.mark.parametrize(
    "images, weights",
    [
        ("float16", "float32"),
        *(pytest.param(*types, marks=pytest.mark.kernels) for types in (("bfloat16", "float32"), ("float16", "float16"))),
    ],
)
def test_in_mixed_precision_images_are_rounded_once_and_gradients_of_weights_stay_float32(name, shapes, images, weights):
    dtype = bfloat16() if images == "bfloat16" else np.dtype(images)
    x, w, dy = drawn(shapes, dtype, weights)
    y, dx, dw = run(MODULES[name], x, w, dy, shapes[2])
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, np.float32)
    eps = 2.0**-8 if images == "bfloat16" else 2.0**-11
    for got, want, allowed in zip((y, dx, dw), loops(x, w, dy, shapes[2]), (eps, eps, 2e-6), strict=True):
        close(got, want, allowed)


@pytest.mark.parametrize("name, shapes", [("im2col", GROUPED[0]), ("exact", PLAIN[3]), ("depthwise", DEPTHWISE[0])])
def test_whatever_the_memory_of_the_arguments_looks_like(name, shapes):
    x, w, dy = drawn(shapes, np.float32)
    want = loops(x, w, dy, shapes[2])
    for layout in LAYOUTS.values():
        given = [layout(a) for a in (x, w, dy)]
        for a in given:
            a.flags.writeable = False
        got = run(MODULES[name], *given, shapes[2])
        for a, b in zip(got, want, strict=True):
            close(a, b, 5e-6)
        assert all(a.transpose(0, 2, 3, 1).flags.c_contiguous for a in got[:2]), "images are channels-last"
        assert got[2].flags.c_contiguous


@pytest.mark.kernels
@pytest.mark.parametrize("name, shapes", [("exact", PLAIN[3]), ("depthwise", DEPTHWISE[0])])
def test_arrays_that_do_not_start_at_a_multiple_of_16_bytes_are_read_one_by_one(name, shapes, monkeypatch):
    monkeypatch.delenv("TINYRES_EMULATOR")  # there, copies are aligned
    x, w, dy = drawn(shapes, np.float32)

    def shifted(a):
        memory = np.empty(a.size + 4, a.dtype)
        start = next(i for i in range(4) if memory[i:].ctypes.data % 16 == 4)
        n, c, height, width = a.shape
        view = memory[start : start + a.size].reshape(n, height, width, c).transpose(0, 3, 1, 2)
        view[...] = a
        return view

    launched = []
    module = MODULES[name]
    packed = module._packed
    monkeypatch.setattr(module, "_packed", lambda *args: launched.append(packed(*args)) or launched[-1])
    aligned = run(module, x, w, dy, shapes[2])
    assert any(launched)
    launched.clear()
    for got, want in zip(run(module, shifted(x), w, shifted(dy), shapes[2]), aligned, strict=True):
        np.testing.assert_array_equal(got, want)
    assert not all(launched)


@pytest.mark.parametrize("name, shapes", [("im2col", PLAIN[3]), ("exact", PLAIN[3]), ("depthwise", DEPTHWISE[5])])
def test_the_bits_do_not_depend_on_which_thread_runs_first(name, shapes, monkeypatch):
    x, w, dy = drawn(shapes, np.float32)
    results = []
    for order in "0123":
        monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
        results.append(run(MODULES[name], x, w, dy, shapes[2]))
    for one, other in itertools.product(results[:1], results[1:]):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name, shapes", [("im2col", PLAIN[3]), ("im2col", GROUPED[0]), ("exact", PLAIN[4]), ("depthwise", DEPTHWISE[0])]
)
def test_no_images_give_no_output_and_no_gradient(name, shapes):
    x, w, rest = shapes
    x, w, dy = drawn(((0, *x[1:]), w, rest), np.float32)
    y, dx, dw = run(MODULES[name], x, w, dy, rest)
    assert y.shape == dy.shape and dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros(w.shape))


@pytest.mark.parametrize(
    "name, shapes", [("im2col", PLAIN[2]), ("exact", PLAIN[2]), ("exact", PLAIN[3]), ("depthwise", DEPTHWISE[0])]
)
def test_a_nan_reaches_the_windows_that_read_it_and_no_other(name, shapes):
    x, w, dy = drawn(shapes, np.float32)
    x[0, 0, 2, 3] = dy[0, 1, 0, 0] = np.nan
    for got, want in zip(run(MODULES[name], x, w, dy, shapes[2]), loops(x, w, dy, shapes[2]), strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize("shapes", [PLAIN[3], GROUPED[0]])
def test_columns_of_few_images_at_a_time_give_the_same_output(shapes, monkeypatch):
    x, w, rest = shapes
    x, w, dy = drawn(((5, *x[1:]), w, rest), np.float32)
    whole = run(im2col, x, w, dy, rest)
    monkeypatch.setattr(im2col, "COLUMNS", 2 * 7 * 7 * 16 * 9 * 8)  # two images, or more of the smaller
    monkeypatch.setattr(im2col, "SPLIT", 40)
    blocks = run(im2col, x, w, dy, rest)
    np.testing.assert_array_equal(blocks[0], whole[0])
    np.testing.assert_array_equal(blocks[1], whole[1])
    close(blocks[2], loops(x, w, dy, rest)[2], 5e-6)


@pytest.mark.parametrize("m, n, depth", [(1, 1, 1), (15, 16, 17), (16, 16, 16), (33, 1, 5), (2, 40, 31), (3, 4, 0)])
@pytest.mark.parametrize("kind", ["matmul_naive", "matmul_tiled"])
def test_the_product_of_any_matrices_transposed_or_not_and_in_parts(kind, m, n, depth):
    a, b = rng.standard_normal((m, depth)), rng.standard_normal((depth, n))
    macros = {"REAL": "double", "LEFT": "double", "RIGHT": "double", "RESULT": "double"}
    for a_turned, b_turned, parts in itertools.product((False, True), (False, True), (1, 3)):
        left, a_strides = (a.T.copy(), (1, m)) if a_turned else (a, (depth, 1))
        right, b_strides = (b.T.copy(), (1, depth)) if b_turned else (b, (n, 1))
        c = np.full((parts, m, n), np.nan)
        im2col.matmul(left, right, c, (m, n, depth), a_strides, b_strides, n, (0, 0, 0), macros, parts, kind)
        close(c.sum(axis=0), a @ b, 1e-13)


def test_partial_sums_are_added_and_laid_out_as_weights():
    for count in (0, 1, 7, 8, 19):
        parts = rng.standard_normal((count, 3 * 2 * 5, 4))
        dw = np.full((4, 5, 3, 2), np.nan)
        im2col.add_parts(parts, dw)
        close(dw, parts.sum(axis=0).reshape(3, 2, 5, 4).transpose(3, 2, 0, 1), 1e-13)


@pytest.mark.parametrize("filters, pixels", [(16, 1), (32, 1), (32, 40_000), (64, 1), (64, 40_000)])
def test_every_tile_computes_a_convolution(filters, pixels, monkeypatch):
    """The tile is chosen by the size of the layer; here each meets a small one."""
    tile = conv_exact._tile(pixels, filters)
    monkeypatch.setattr(conv_exact, "_tile", lambda *_: tile)
    shapes = geometry((2, 8, 9, 8), (filters + 4, 8, 3, 3), (2, 1), (1, 1))
    x, w, dy = drawn(shapes, np.float32)
    for got, want in zip(run(conv_exact, x, w, dy, shapes[2]), loops(x, w, dy, shapes[2]), strict=True):
        close(got, want, 5e-6)


def test_what_is_not_done_is_refused_before_anything_is_computed():
    x, w, dy = drawn(PLAIN[3], np.float32)
    rest = PLAIN[3][2]
    half = [a.astype(np.float16) for a in (x, w, dy)]
    for a, b, c, how in ((*half, rest), (x, w, dy, (*rest[:3], 2)), (x, w.astype(float), dy.astype(float), rest)):
        for call in (
            lambda a=a, b=b, how=how: conv_exact.conv2d(a, b, *how),
            lambda a=a, b=b, c=c, how=how: conv_exact.conv2d_backward_input(c, b.astype(a.dtype), a.shape, *how),
            lambda a=a, b=b, c=c, how=how: conv_exact.conv2d_backward_weight(c, a, b.shape, *how),
        )[: 3 if how is not rest or a is not x else 1]:
            with pytest.raises(Unsupported):
                call()
    for module, groups in ((conv_depthwise, 1), (im2col, 1)):
        with pytest.raises(Unsupported):
            module.conv2d(x, w.astype(np.float64), *rest[:3], groups)
    with pytest.raises(Unsupported):
        conv_depthwise.conv2d_backward_weight(dy, x, w.shape, *rest)


def test_an_array_that_is_too_small_is_found_by_the_guard():
    """The check of the checks: a launch that says there are more pixels than there are."""
    x, columns = np.zeros(8, np.float32), np.zeros(64, np.float32)
    with pytest.raises(KernelFault, match="touches x"):
        kernel("im2col", "im2col", REAL="float", LEFT="float", RIGHT="float", RESULT="float")(
            1, 64, x, columns, 64, 0, 1, 8, 8, 1, 1, 1, 8, 8, 1, 1, 0, 0, 1, 1
        )


@st.composite
def convolutions(draw):
    kernel, stride, padding, dilation = (draw(st.tuples(*[st.integers(low, 3)] * 2)) for low in (1, 1, 0, 1))
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel, strict=True))
    groups, channels, filters = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = (draw(st.integers(1, 3)), groups * channels, *size)
    return geometry(x, (groups * filters, channels, *kernel), stride, padding, dilation, groups)


@settings(deadline=None, max_examples=25)
@given(shapes=convolutions())
def test_any_geometry_is_computed_by_whichever_does_it(shapes):
    x, w, dy = drawn(shapes, np.float64)
    want = run(reference, x, w, dy, shapes[2])
    done = 0
    for module in MODULES.values():
        try:
            got = run(module, x, w, dy, shapes[2])
        except Unsupported:
            continue
        done += 1
        for a, b in zip(got, want, strict=True):
            close(a, b, 1e-12)
    assert done >= (1 if shapes[2][3] > 1 and w.shape[1] > 1 else 2)


@pytest.mark.parametrize("most", [1, 5, 1000])
@pytest.mark.parametrize("size", [(3, 4, 15, 13), (2, 116, 3, 2), (1, 8, 1, 70)], ids=str)
def test_columns_in_packs_are_those_one_by_one(size, most, monkeypatch):
    """A block may have many pixels, of several images, or few; 116 channels fill more than a block's threads."""
    monkeypatch.setattr(im2col, "MAX_BLOCKS", most)
    n, c, h, w = size
    x, macros = rng.standard_normal((n, h, w, c)), dict.fromkeys(("REAL", "LEFT", "RIGHT", "RESULT"), "double")
    oh, ow = (h + 4 - 5) // 1 + 1, (w + 2 - 3) // 2 + 1
    shape = (h, w, c, 3, 3, oh, ow, 1, 2, 2, 1, 2, 1)
    results = []
    for aligned in (True, False):
        memory = np.full(n * oh * ow * 9 * c + 2, np.nan)
        start = next(i for i in (0, 1) if memory[i:].ctypes.data % 16 == (0 if aligned else 8))
        results.append(memory[start : start + n * oh * ow * 9 * c].reshape(n * oh * ow, 9 * c))
        im2col._im2col(x, results[-1], 0, c, shape, macros)
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).all() and results[0].any()
