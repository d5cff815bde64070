"""The emulation finds what would go wrong on a GPU, and says where."""

import ml_dtypes
import numpy as np
import pytest
from backends import BACKENDS
from cuda_sources import SOURCE, sources

from tinyres.kernels.cuda.launch import kernel
from tinyres.kernels.cuda.sources import KernelFault

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected


@pytest.fixture(autouse=True)
def own_source():
    with sources({"own.cu": SOURCE}):
        yield


@pytest.fixture(params=["0", "1", "2", "3"])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", request.param)
    return request.param


# --- what it finds ---------------------------------------------------------------------------------------------------


def nan_or_order(name, threads, monkeypatch):
    """Whether a kernel's result holds NaN, or depends on which thread runs first."""
    results = []
    for order in "0123":
        monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
        y = np.zeros(threads, "f4")
        kernel("own", name)(1, threads, y)
        results.append(y)
    return any(np.isnan(y).any() or (y != results[0]).any() for y in results)


@pytest.mark.parametrize(("name", "threads"), [("no_syncthreads", 64), ("no_syncwarp", 32), ("overwritten", 64)])
def test_a_missing_barrier_shows_in_the_result(name, threads, monkeypatch):
    assert nan_or_order(name, threads, monkeypatch)


FAULTS = {
    "half_a_warp_waits": ((), r"not all lanes of a warp reach __syncwarp"),
    "apart": ((), r"lanes of one warp wait at different things: __sync\w+ and __sh\w+|__shfl_sync and __syncwarp"),
    "outside_of_a_tile": ((1, 8), r"an index is outside of its array, own.cu:\d+"),
    "divides": ((0,), r"an integer is divided by zero, own.cu:\d+"),
    "overflows": ((4,), r"a product of integers overflows, own.cu:\d+"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_with_its_thread(name):
    args, message = FAULTS[name]
    y = np.zeros(64, "i4" if name in ("divides", "overflows") else "f4")
    with pytest.raises(KernelFault, match=rf"^{name}, block \(0, 0, 0\), thread \(\d+, 0, 0\): {message}"):
        kernel("own", name)(1, 32, y, *args)
    x, y = np.arange(5, dtype="i4"), np.empty(5, "i4")
    kernel("own", "turn")(1, 5, x, y, 1)  # and what comes next runs, undisturbed by threads that were left waiting
    np.testing.assert_array_equal(y, np.roll(x, -1))


def test_an_index_outside_of_an_inner_axis_or_a_local_array_is_found_too():
    kernel("own", "outside_of_a_tile")(1, 1, np.zeros(1, "f4"), 3, 7)
    for row, column in ((0, -1), (4, 0), (2, 12)):
        with pytest.raises(KernelFault, match="an index is outside of its array"):
            kernel("own", "outside_of_a_tile")(1, 1, np.zeros(1, "f4"), row, column)


@pytest.mark.parametrize(("size", "at"), [(4, 4), (4, 100), (1000, 1000), (4, -1021), (4, -1), (4, -3), (1024, -1)])
def test_a_read_outside_of_an_array_names_it_and_the_index(size, at, monkeypatch):
    """Behind it always, before it in order 1."""
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", str(int(at < 0)))
    x, y = np.zeros(size, "f4"), np.zeros(2000, "f4")
    with pytest.raises(KernelFault, match=rf"beyond, .* touches x\[{at}\], which has {size} elements$"):
        kernel("own", "beyond")(1, 1, x, y, at)


@pytest.mark.parametrize("size", [1, 3, 1023, 1024, 1025])
def test_a_write_right_behind_or_before_an_array_of_any_size_is_found(size, checked):
    for at in (size, size + 1, -1, -2):
        with pytest.raises(KernelFault, match=rf"writes(, .*thread \(3, 0, 0\): touches y\[{at}\]| outside y)"):
            kernel("own", "writes")(1, 4, np.zeros(size, "f4"), np.zeros(9, "f4"), at)


def test_a_fault_in_an_array_that_is_passed_twice_names_both(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    both = np.zeros(8, "f4")
    with pytest.raises(KernelFault, match=r"touches y\[8\], which has 8 elements = x\[8\], which has 8 elements"):
        kernel("own", "writes")(1, 4, both, both, 8)
    with pytest.raises(KernelFault, match=r"writes outside y$"):
        kernel("own", "writes")(1, 4, both[:8], both, -1)


def test_arrays_that_share_memory_share_it_in_checked_launches(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    memory = np.arange(10, dtype="f4")
    kernel("own", "through")(1, 1, memory[2:6], memory[:4], 2)
    assert memory.tolist() == [0, 1, -5, -5, 4, 5, 6, 7, 8, 9]


def test_what_is_written_arrives_and_inputs_stay(checked):
    x, y = np.arange(5, dtype="f4"), np.zeros(5, "f4")
    kernel("own", "writes")(1, 4, y, x, 2)
    assert y.tolist() == [0, 0, 1, 0, 0] and x.tolist() == [0, 1, 2, 3, 4]


def test_a_write_outside_of_dynamic_shared_memory_is_found():
    kernel("own", "writes_shared")(1, 1, np.zeros(1, "f4"), 9, shared=40)
    for at in (10, -1):
        with pytest.raises(KernelFault, match="writes outside its dynamic shared memory"):
            kernel("own", "writes_shared")(1, 1, np.zeros(1, "f4"), at, shared=40)


@pytest.mark.parametrize("mode", ["", "checked"])
@pytest.mark.parametrize(("real", "dtype"), [("float", "f4"), ("half", "f2")])
def test_a_pack_that_does_not_start_at_a_multiple_of_16_bytes_is_found(mode, real, dtype, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", mode)
    memory, out = np.zeros(64, dtype), np.zeros(64, dtype)
    first, to = (-a.ctypes.data % 16 // a.itemsize for a in (memory, out))
    run, out = kernel("own", "packs", REAL=real), out[to:]
    run(1, 1, memory[first:], out)
    with pytest.raises(KernelFault, match=r"packs, .*: an address is not aligned, own.cu:\d+"):
        run(1, 1, memory[first + 1 :], out)


def test_a_sum_that_starts_from_nothing_is_not_zero():
    y = np.zeros(1, "f4")
    kernel("own", "unset")(1, 1, y, 3)
    assert not abs(y[0]) < 1e3


def test_outputs_hold_nan_until_they_are_written(monkeypatch):
    from tinyres.kernels.cuda import common

    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    for dtype in ("f4", "f8", "f2", ml_dtypes.bfloat16):
        assert np.isnan(common.empty(np.ones(1), (3, 2), dtype).astype("f8")).all()
