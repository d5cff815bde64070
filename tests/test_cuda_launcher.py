"""The launcher: every launch is checked against the kernel's signature before it runs."""

import re
import threading

import numpy as np
import pytest
from backends import BACKENDS
from cuda_sources import sources

from tinyres.kernels.cuda import emulator, launch
from tinyres.kernels.cuda.launch import kernel
from tinyres.kernels.cuda.sources import LaunchError

__test__ = "cuda-emulated" in BACKENDS  # else none of these tests is collected

SOURCE = """
#include "common.cuh"  // the types
extern "C" __global__ void __launch_bounds__(256, 2) scale(
    const REAL* __restrict__ x,  // read (only)
    REAL* __restrict__ y, ACC factor, INDEX n) {
    const INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) narrow(y[i], factor * widen(x[i]));
}
extern "C" __global__ void width(int* y, INDEX n) { if (threadIdx.x == 0) { y[0] = sizeof(INDEX); y[1] = n >> 4; } }
extern "C" __global__ void numbers(double* y, float a, double b, int c, unsigned d, long long e, uint64_t f) {
    y[0] = a; y[1] = b; y[2] = c; y[3] = d; y[4] = e; y[5] = f;
}
extern "C" __global__ void kinds(uint8_t* a, signed char* b, uint32_t* c, long long* d, const half* e, int* f) {
    if (f) f[0] = a[0] + b[0] + c[0] + d[0] + e[0].bits;
}
extern "C" __global__ void place(int* y) {
    const int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int j = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    y[i + blockDim.x * blockDim.y * blockDim.z * j] += 1 + i + 1000 * j;
}
extern "C" __global__ void dynamic(float* y, int n) {
    DYNAMIC_SHARED(float, s);
    for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = i;
    __syncthreads();
    if (threadIdx.x == 0) y[0] = s[n - 1] + (reinterpret_cast<uint64_t>(s) % 16 ? 0.5f : 0);
}
"""


@pytest.fixture(autouse=True)
def own_source():
    with sources({"own.cu": SOURCE, "odd.cu": 'extern "C" __global__ void odd(short* x) {}\n'}):
        yield


x, y = np.arange(5, dtype="f4"), np.zeros(5, "f4")


def test_the_signature_is_read_from_the_source_whatever_its_comments():
    parameters = kernel("own", "scale", REAL="half").parameters
    assert [(p.name, p.dtype, p.is_array, p.is_const) for p in parameters] == [
        ("x", "f2", True, True),
        ("y", "f2", True, False),
        ("factor", "f4", False, False),
        ("n", "i4", False, False),
    ]
    assert [p.dtype for p in kernel("own", "scale", REAL="double", INDEX="long long").parameters] == ["f8", "f8", "f8", "i8"]


def test_a_kernel_is_made_once_for_each_set_of_macros():
    assert kernel("own", "scale", REAL="half") is kernel("own", "scale", REAL="half")
    assert kernel("own", "scale", A=True).macros == kernel("own", "scale", A=1).macros == (("A", "1"),)


@pytest.mark.parametrize(("real", "dtype"), [("float", "f4"), ("double", "f8"), ("half", "f2")])
def test_a_launch_runs_the_kernel_over_all_elements(real, dtype):
    a, b = np.arange(300, dtype=dtype), np.empty(300, dtype)
    kernel("own", "scale", REAL=real)(2, 256, a, b, 0.5, 300)
    np.testing.assert_array_equal(b, a / 2)


def test_numbers_of_every_type_arrive():
    got = np.empty(6)
    kernel("own", "numbers")(1, 1, got, 0.1, 0.1, -7, 2**32 - 1, np.int64(-(2**40)), 2**63)
    assert got.tolist() == [np.float32(0.1), 0.1, -7, 2**32 - 1, -(2**40), 2**63]


def test_arrays_of_every_type_arrive_and_none_is_a_null_pointer():
    arrays = [np.array([v], t) for v, t in ((200, "u1"), (-3, "i1"), (5, "u4"), (-7, "i8"), (0, "f2"))]
    got = np.zeros(1, "i4")
    kernel("own", "kinds")(1, 1, *arrays, got)
    kernel("own", "kinds")(1, 1, *arrays, None)
    assert got[0] == 195


def test_grid_and_block_have_up_to_three_sizes():
    got = np.zeros((2, 3, 2, 4, 2, 3), "i4")
    kernel("own", "place")((2, 3, 2), (3, 2, np.int64(4)), got)
    want = 1 + np.arange(24)[None] + 1000 * np.arange(12)[:, None]
    np.testing.assert_array_equal(got.reshape(12, 24), want)


WRONG = {
    "one argument too few": ("scale", (x, y, 1.0), "takes 4 arguments, got 3"),
    "one too many": ("scale", (x, y, 1.0, 5, 5), "takes 4 arguments, got 5"),
    "another type": ("scale", (x.astype("f8"), y, 1.0, 5), "x: an array of float32 is expected, got an array of float64"),
    "a list": ("scale", ([1.0], y, 1.0, 5), "argument x: an array of float32 is expected, got list"),
    "a number for an array": ("scale", (np.float32(1), y, 1.0, 5), "x: an array of float32 is expected, got float32"),
    "every second element": ("scale", (np.ones(10, "f4")[::2], y, 1.0, 5), "argument x: must be contiguous"),
    "read-only output": ("scale", (x, np.broadcast_to(y, (5,)), 1.0, 5), "y: is written to, and the array is read-only"),
    "an array for a number": ("scale", (x, y, 1.0, np.array([5])), r"n: a number is expected, got ndarray of shape \(1,\)"),
    "an array of shape ()": ("scale", (x, y, np.array(1.0), 5), r"factor: a number is expected, got ndarray of shape \(\)"),
    "nothing for a number": ("scale", (x, y, None, 5), "factor: a number is expected, got NoneType"),
    "text for a number": ("scale", (x, y, "1", 5), "factor: a number is expected, got str"),
    "half an element": ("scale", (x, y, 1.0, 4.5), "n: a whole number is expected, got 4.5"),
    "NaN elements": ("scale", (x, y, 1.0, float("nan")), "n: a whole number is expected, got nan"),
    "too many for unsigned": ("numbers", (np.zeros(6), 0, 0, 0, 2**32, 0, 0), f"d: {2**32} does not fit into uint32"),
    "negative for unsigned": ("numbers", (np.zeros(6), 0, 0, 0, -1, 0, 0), "d: -1 does not fit into uint32"),
    "too large for int": ("numbers", (np.zeros(6), 0, 0, 2**31, 0, 0, 0), f"c: {2**31} does not fit into int32"),
    "no array at all": ("width", (None, 5), "no array says where to run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_do_not_fit_the_signature_are_refused(case):
    name, args, message = WRONG[case]
    with pytest.raises(LaunchError, match=message):
        kernel("own", name)(1, 32, *args)


def test_a_read_only_input_is_taken():
    given = x.copy()
    given.flags.writeable = False
    kernel("own", "scale")(1, 32, given, y, 2.0, 5)
    np.testing.assert_array_equal(y, 2 * x)


SIZES = [
    (0, 32),
    (1, 0),
    (1, 1025),
    (1, (32, 33)),
    ((1, 65536), 32),
    ((1, 1, 65536), 32),
    (1 << 31, 32),
    (1, (1, 1, 65)),
    ((1, 1, 1, 1), 32),
    ((-1, -1), 32),
]


@pytest.mark.parametrize(("grid", "block"), SIZES)
def test_sizes_that_no_card_takes_are_refused(grid, block):
    with pytest.raises(LaunchError, match="cannot be launched"):
        kernel("own", "scale")(grid, block, x, y, 1.0, 0)


def test_dynamic_shared_memory_is_as_large_as_asked_for_and_no_larger_than_the_largest_card_has():
    got, n = np.zeros(1, "f4"), launch.LARGEST_SHARED // 4
    kernel("own", "dynamic")(1, 64, got, n, shared=4 * n)
    assert got[0] == n - 1
    for bytes_ in (4 * n + 4, -4):
        with pytest.raises(LaunchError, match="shared memory"):
            kernel("own", "dynamic")(1, 64, got, n, shared=bytes_)


def test_unknown_kernels_and_types_are_named():
    with pytest.raises(LaunchError, match=r"no kernel 'scales'; there are scale, width, numbers"):
        kernel("own", "scales")
    with pytest.raises(LaunchError, match=re.escape("odd: the launcher does not know the type of 'short* x'")):
        kernel("odd", "odd")


def test_indices_become_long_long_where_a_count_or_an_array_is_too_large_for_int(monkeypatch):
    got, run = np.zeros(2, "i4"), kernel("own", "width")
    run(1, 1, got, launch.WIDE - 1)
    assert got.tolist() == [4, (launch.WIDE - 1) >> 4]
    run(1, 1, got, launch.WIDE)
    assert got.tolist() == [8, launch.WIDE >> 4]
    monkeypatch.setattr(launch, "WIDE", 1000)
    for size, width in ((999, 4), (1000, 8)):
        large = np.zeros(size, "i4")
        run(1, 1, large, 5)
        assert large[0] == width
        kernel("own", "width", INDEX="long long")(1, 1, large, 5)
        assert large[0] == 8


def test_all_arrays_must_be_on_one_device():
    class Elsewhere:
        """What a CuPy array shows of itself."""

        dtype, shape, size, strides, device = np.dtype("f4"), (5,), 5, (4,), type("Device", (), {"id": 1})()
        flags = type("Flags", (), {"c_contiguous": True})()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "array_module", lambda a: type("cupy", (), {"__name__": "cupy"})())
        with pytest.raises(LaunchError, match=r"one device, got \['cupy:1', 'the host'\]"):
            kernel("own", "scale")(1, 32, x, Elsewhere(), 1.0, 5)


def test_threads_launch_at_the_same_time():
    run, wrong = kernel("own", "scale"), []

    def work(factor):
        a, b = np.full(3000, factor, "f4"), np.empty(3000, "f4")
        for _ in range(30):
            run(12, 256, a, b, factor, 3000)
            if not (b == factor * factor).all():
                wrong.append(factor)

    workers = [threading.Thread(target=work, args=(float(i),)) for i in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_arrays_of_numpy_run_in_the_emulation():
    assert launch.device(np) is emulator
