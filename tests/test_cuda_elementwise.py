"""The elementwise CUDA kernels, emulated in checked mode, against NumPy: every type, size, alignment, layout and order."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from backends import BACKENDS, sweep
from layouts import LAYOUTS

from tinyres.kernels import contract, cuda
from tinyres.kernels.cuda.launch import kernel

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SIZES = (1, 7, 8, 9, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025)
# by name: how many arrays it takes, and the definition, in the type that sums are computed in
DEFINITIONS = {
    "relu": (1, lambda x: np.maximum(x, 0)),
    "relu6": (1, lambda x: np.minimum(np.maximum(x, 0), 6)),
    "add": (2, lambda x, y: x + y),
    "add_relu": (2, lambda x, y: np.maximum(x + y, 0)),
    "relu_backward": (2, lambda dy, y: np.where(y <= 0, 0, dy)),
    "relu6_backward": (2, lambda dy, y: np.where((y <= 0) | (y >= 6), 0, dy)),
    "accumulate": (2, lambda total, x: total + x),
}
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 6.0, -6.0, 5.9375, 1.0])
rng = np.random.default_rng(17)


@pytest.fixture(autouse=True, params=[0, *sweep(1, 2)])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", str(request.param))


def check(name, *given):
    """A kernel on these arrays against its definition, bit for bit; what it does not write to stays."""
    dtype, wide = given[0].dtype, "f8" if given[0].dtype == np.float64 else "f4"
    with np.errstate(invalid="ignore", over="ignore"):
        want = DEFINITIONS[name][1](*(a.astype(wide) for a in given)).astype(dtype)
    copies = [a.copy() for a in given]
    got = getattr(cuda, name)(*given)
    if name == "accumulate":
        assert got is None
        got, given, copies = given[0], given[1:], copies[1:]
    assert got.shape == want.shape and got.dtype == dtype
    np.testing.assert_array_equal(got.astype("f8"), want.astype("f8"))
    for a, before in zip(given, copies, strict=True):
        np.testing.assert_array_equal(a.astype("f8"), before.astype("f8"))


def draw(shape, dtype="float32"):
    return (4 * rng.standard_normal(shape)).astype(DTYPES[dtype])


def check_sizes(name, dtype="float32"):
    for size in SIZES:
        check(name, *(draw(size, dtype) for _ in range(DEFINITIONS[name][0])))


def check_unaligned(name, dtype="float32"):
    """Arrays that start 0 to 3 elements behind a multiple of 16 bytes, each its own way."""
    for starts in itertools.product((0, 1, 3), repeat=DEFINITIONS[name][0]):
        check(name, *(draw(40, dtype)[start : start + 33] for start in starts))


def check_special(name, dtype="float32"):
    """NaN stays NaN, what is cut off is 0: every pair of special numbers, in packs and behind them."""
    pairs = np.array(list(itertools.product(SPECIAL, SPECIAL))).T.astype(DTYPES[dtype])
    check(name, *(np.ascontiguousarray(a) for a in pairs[: DEFINITIONS[name][0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_size_around_the_edges_of_packs_warps_and_blocks(name, dtype):
    check_sizes(name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_arrays_that_do_not_start_at_a_pack(name, dtype):
    check_unaligned(name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_nan_and_infinities(name, dtype):
    check_special(name, dtype)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_more_elements_than_the_grid_has_threads(name, monkeypatch):
    monkeypatch.setattr(cuda.common, "MAX_BLOCKS", 2)
    monkeypatch.setattr(cuda.elementwise, "BLOCK", 32)
    check(name, *(draw(1025) for _ in range(DEFINITIONS[name][0])))


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 17), (1, 1, 1, 1), (4,), ()])
def test_every_layout_of_every_argument(name, shape):
    count = DEFINITIONS[name][0]
    for layouts in itertools.product(LAYOUTS.values(), repeat=count) if shape else [(np.array,) * count]:
        check(name, *(layout(draw(shape)) for layout in layouts))


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3, 3), (0, 5)])
def test_empty_arrays(name, shape):
    check(name, *(draw(shape) for _ in range(DEFINITIONS[name][0])))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_images_are_channels_last_in_memory(name):
    if name != "accumulate":
        y = getattr(cuda, name)(*(draw((2, 3, 4, 5)) for _ in range(DEFINITIONS[name][0])))
        assert y.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("name", DEFINITIONS)
def test_read_only_arguments_are_read(name):
    given = [draw(33) for _ in range(DEFINITIONS[name][0])]
    given[-1].flags.writeable = False
    check(name, *given)


def test_a_total_that_is_added_to_itself_doubles():
    total = draw(1025)
    want = 2 * total
    cuda.accumulate(total, total)
    np.testing.assert_array_equal(total, want)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_other_types_and_two_types_at_once_are_unsupported(name):
    count = DEFINITIONS[name][0]
    with pytest.raises(contract.Unsupported, match="of dtype int32"):
        getattr(cuda, name)(*(np.ones(4, "i4") for _ in range(count)))
    if count == 2:
        with pytest.raises(contract.Unsupported, match="of dtype float16 and float32"):
            getattr(cuda, name)(np.ones(4, "f4"), np.ones(4, "f2"))


@pytest.mark.parametrize("real", ["float", "half"])
def test_wide_indices_compute_the_same(real):
    x, y = draw(1025, "float32" if real == "float" else "float16"), None
    y = np.empty_like(x)
    kernel("elementwise", "relu", REAL=real, INDEX="long long")(2, 64, x, y, 1025, 0)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
