"""The emulation: it computes what a GPU computes, and finds what would go wrong there."""

import faulthandler
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cuda_sources import NEEDS_COMPILER, sources

import tinyres as tr
from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.launch import KernelFault, kernel

pytestmark = NEEDS_COMPILER

SOURCE = """
#include "mma.cuh"
extern "C" __global__ void widen_all(const REAL* x, ACC* y) { const int i = blockIdx.x * blockDim.x + threadIdx.x; y[i] = widen(x[i]); }
extern "C" __global__ void narrow_all(const ACC* x, REAL* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) narrow(y[i], x[i]);
}
extern "C" __global__ void tf32_all(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __uint_as_float(to_tf32(x[i]));
}
// a and b hold the registers of each lane as the tests' table says
extern "C" __global__ void product(const uint32_t* a, const uint32_t* b, float* d, int kind) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x;
    uint32_t of_a[4], of_b[2];
    float sum[4];
    for (int i = 0; i < 4; i++) of_a[i] = a[4 * lane + i], sum[i] = d[4 * lane + i];
    for (int i = 0; i < 2; i++) of_b[i] = b[2 * lane + i];
    for (int i = 0; i <= warp; i++) {  // each warp as often as it pleases
        if (kind == 0) mma_tf32(sum, of_a, of_b);
        if (kind == 1) mma_half(sum, of_a, of_b);
        if (kind == 2) mma_bfloat16(sum, of_a, of_b);
    }
    for (int i = 0; i < 4; i++) d[4 * lane + i] = sum[i];
}
extern "C" __global__ void shuffles(const int* x, int* y) {
    const int i = threadIdx.x;
    y[4 * i] = __shfl_sync(0xffffffffu, x[i], (i + 5) % 32);
    y[4 * i + 1] = __shfl_xor_sync(0xffffffffu, x[i], 3);
    y[4 * i + 2] = __shfl_down_sync(0xffffffffu, x[i], 7);
    y[4 * i + 3] = int(__shfl_xor_sync(0xffffffffu, double(x[i]), 16));
}
extern "C" __global__ void turn(const int* x, int* y, int n) {  // each thread takes over from its neighbour, n times
    __shared__ int s[2][1024];
    const int i = threadIdx.x + blockDim.x * threadIdx.y, threads = blockDim.x * blockDim.y;
    s[0][i] = x[i];
    for (int k = 0; k < n; k++) {
        __syncthreads();
        s[(k + 1) % 2][i] = s[k % 2][(i + 1) % threads];
    }
    y[i] = s[n % 2][i];
}
extern "C" __global__ void sums(const REAL* x, ACC* y) {
    __shared__ ACC of_warp[32];
    const int i = threadIdx.x + blockDim.x * threadIdx.y;
    const ACC sum = block_sum(widen(x[i + blockDim.x * blockDim.y * blockIdx.x]), of_warp);
    const ACC twice = block_sum(ACC(2) * widen(x[i + blockDim.x * blockDim.y * blockIdx.x]), of_warp);
    y[2 * (i + blockDim.x * blockDim.y * blockIdx.x)] = sum;
    y[2 * (i + blockDim.x * blockDim.y * blockIdx.x) + 1] = twice;
}

extern "C" __global__ void turns(int* y) { __shared__ int next; y[threadIdx.x] = ++next; }  // (0xff.. is -1)

// --- what is wrong ---

extern "C" __global__ void no_syncthreads(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[(threadIdx.x + 32) % 64];
}
extern "C" __global__ void no_syncwarp(float* y) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void overwritten(float* y) {  // nobody waits until all have read
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    const float other = s[63 - threadIdx.x];
    s[threadIdx.x] = other;
    y[threadIdx.x] = other;
}
extern "C" __global__ void half_a_warp_waits(float* y) { if (threadIdx.x < 16) __syncwarp(); y[threadIdx.x] = 1; }
extern "C" __global__ void apart(float* y) {
    if (threadIdx.x < 16) __syncwarp();
    else y[0] = __shfl_sync(0xffffffffu, 1.f, 0);
}
extern "C" __global__ void beyond(const float* x, float* y, int at) { y[0] = x[at]; }
extern "C" __global__ void writes(float* y, const float* x, int at) { if (threadIdx.x == 3) y[at] = 1; }
extern "C" __global__ void through(float* y, const float* x, int at) { y[0] = -5; y[1] = x[at]; }
extern "C" __global__ void writes_shared(float* y, int at) {
    DYNAMIC_SHARED(float, s);
    s[at] = 1;
    y[0] = s[at];
}
extern "C" __global__ void outside_of_a_tile(float* y, int row, int column) {
    __shared__ float tile[4][8];
    float mine[2] = {1, 2};
    tile[row][column] = 1;
    y[0] = tile[0][0] + mine[row / 2];
}
extern "C" __global__ void packs(const REAL* x, REAL* y) {
    reinterpret_cast<Pack*>(y)[0] = reinterpret_cast<const Pack*>(x)[0];
}
extern "C" __global__ void divides(int* y, int by) { y[0] = 7 / by; }
extern "C" __global__ void overflows(int* y, int by) { y[0] = 1 << 30; y[1] = y[0] * by; }
extern "C" __global__ void unset(float* y, int n) {
    float sum;
    for (int i = 0; i < n; i++) sum += i;
    y[0] = sum;
}
"""  # noqa: E501


@pytest.fixture(autouse=True)
def own_source():
    with sources({"own.cu": SOURCE}):
        yield


@pytest.fixture(params=["0", "1", "2", "3"])
def checked(request, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    monkeypatch.setenv("TINYRES_EMULATOR_ORDER", request.param)
    return request.param


rng = np.random.default_rng(3)
HALVES = {"half": np.float16, "bfloat16": ml_dtypes.bfloat16}


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", HALVES)
def test_every_number_of_16_bits_widens_to_itself(real):
    x = np.arange(1 << 16, dtype="u2").view(HALVES[real])
    y = np.empty(1 << 16, "f4")
    kernel("own", "widen_all", REAL=real)(256, 256, x, y)
    np.testing.assert_array_equal(y, x.astype("f4"))  # NaN as NaN
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


def bits_of_floats(dtype):
    """Floats between and on all numbers of 16 bits: themselves, halfway to the next, and to both sides of that."""
    finite = np.arange(1 << 16, dtype="u2").view(dtype).astype("f4")
    finite = np.sort(finite[np.isfinite(finite)])
    halfway = ((finite[1:].astype("f8") + finite[:-1]) / 2).astype("f4")
    with np.errstate(over="ignore"):
        beside = [np.nextafter(halfway, np.float32(to)) for to in (-np.inf, np.inf)]
    limits = [np.inf, -np.inf, np.nan, 0.0, -0.0, 65504, 65519.996, 65520, 65536, 3.4e38, -3.4e38, 1e-45, -1e-45, 2.0**-25]
    drawn = rng.integers(0, 1 << 32, 100_000, dtype="u4").view("f4")
    return np.concatenate([finite, halfway, *beside, np.array(limits, "f4"), drawn])


@pytest.mark.parametrize("real", HALVES)
def test_floats_round_to_the_nearest_number_of_16_bits_ties_to_even(real):
    x = bits_of_floats(HALVES[real])
    got = np.empty(len(x), HALVES[real])
    kernel("own", "narrow_all", REAL=real)(-(-len(x) // 256), 256, x, got, len(x))
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(HALVES[real])
    nan = np.isnan(x)
    assert np.isnan(got[nan]).all()
    np.testing.assert_array_equal(got[~nan].view("u2"), want[~nan].view("u2"))


def test_tf32_keeps_ten_bits_ties_away_from_zero():
    x = np.concatenate([rng.integers(0, 1 << 32, 50_000, dtype="u4").view("f4"), np.array([1 + 2**-11, -1 - 2**-11], "f4")])
    x = x[np.abs(x) < 1e38]
    got = np.empty_like(x)
    kernel("own", "tf32_all")(-(-len(x) // 256), 256, x, got, len(x))
    _, exponent = np.frexp(x.astype("f8"))
    exponent = np.maximum(exponent, -125)  # of subnormal numbers
    steps = x.astype("f8") / 2.0 ** (exponent - 11)
    want = np.trunc(steps + np.copysign(0.5, steps)) * 2.0 ** (exponent - 11)
    np.testing.assert_array_equal(got, want.astype("f4"))
    assert got[-2:].tolist() == [1 + 2**-10, -1 - 2**-10]


# --- tensor cores ----------------------------------------------------------------------------------------------------

# PTX ISA, "Matrix Fragments for mma.m16n8k8" (.tf32) and "mma.m16n8k16" (.f16, .bf16), with groupID = lane >> 2 and
# threadID_in_group = lane % 4; i counts the elements that a lane holds.


def place_in_a(kind, lane, i):
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def place_in_b(kind, lane, i):
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return (thread if i == 0 else thread + 4), group
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def place_in_d(lane, i):
    return (lane >> 2 if i < 2 else (lane >> 2) + 8), (lane % 4) * 2 + (i & 1)


KINDS = {"tf32": (0, np.float32, 8), "half": (1, np.float16, 16), "bfloat16": (2, ml_dtypes.bfloat16, 16)}


def check_product(kind, warps=2):
    number, dtype, depth = KINDS[kind]
    a, b = rng.integers(-8, 9, (warps, 16, depth)) / 4, rng.integers(-8, 9, (warps, depth, 8)) / 4  # exact in every type
    c = rng.integers(-8, 9, (warps, 16, 8)) / 4
    per_a, per_b = (4, 2) if kind == "tf32" else (8, 4)
    lanes = range(32)
    of_a = [[[a[w][place_in_a(kind, lane, i)] for i in range(per_a)] for lane in lanes] for w in range(warps)]
    of_b = [[[b[w][place_in_b(kind, lane, i)] for i in range(per_b)] for lane in lanes] for w in range(warps)]
    of_d = np.array([[[c[w][place_in_d(lane, i)] for i in range(4)] for lane in lanes] for w in range(warps)], "f4")
    kernel("own", "product")(1, 32 * warps, np.array(of_a, dtype).view("u4"), np.array(of_b, dtype).view("u4"), of_d, number)
    for w in range(warps):
        want = c[w] + (w + 1) * (a[w] @ b[w])
        got = np.full((16, 8), np.nan)
        for lane in lanes:
            for i in range(4):
                got[place_in_d(lane, i)] = of_d[w, lane, i]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_core_multiplies_the_matrices_that_its_fragments_hold(kind, checked):
    check_product(kind)


# --- warps and blocks ------------------------------------------------------------------------------------------------


def test_shuffles_show_another_lanes_value(checked):
    x, y, lane = np.arange(100, 196, dtype="i4"), np.empty((96, 4), "i4"), np.arange(96)
    kernel("own", "shuffles")(1, 96, x, y)
    first = lane // 32 * 32
    down = np.where(lane % 32 < 25, lane % 32 + 7, lane % 32)
    for i, other in enumerate(((lane + 5) % 32, lane % 32 ^ 3, down, lane % 32 ^ 16)):
        np.testing.assert_array_equal(y[:, i], x[first + other])


@pytest.mark.parametrize("block", [(64, 1), (33, 1), (1, 1), (31, 7), (1024, 1)])
def test_a_block_waits_for_all_its_threads(block, checked):
    threads = block[0] * block[1]
    x, y = rng.permutation(threads).astype("i4"), np.empty(threads, "i4")
    kernel("own", "turn")(1, block, x, y, 7)
    np.testing.assert_array_equal(y, np.roll(x, -7))


def check_block_sum(real="float", block=(64, 2)):
    dtype = {"float": "f4", "double": "f8", "half": "f2"}[real]
    threads = block[0] * block[1]
    x, y = rng.integers(-9, 9, (3, threads)).astype(dtype), np.empty((3, threads, 2), "f8" if real == "double" else "f4")
    kernel("own", "sums", REAL=real)(3, block, x, y)
    for i in (0, 1):
        np.testing.assert_array_equal(y[..., i], np.broadcast_to((i + 1.0) * x.sum(axis=1, keepdims=True), (3, threads)))


def test_threads_run_forward_backward_or_in_a_random_order(monkeypatch):
    orders = []
    for order in "0123":
        monkeypatch.setenv("TINYRES_EMULATOR_ORDER", order)
        orders.append(np.zeros(70, "i4"))
        kernel("own", "turns")(1, 70, orders[-1])
        assert sorted(orders[-1]) == list(range(70))
    assert (orders[0] == np.arange(70)).all() and (orders[1] == np.arange(70)[::-1]).all()
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("real", ["float", "double", "half"])
@pytest.mark.parametrize("block", [(32, 1), (256, 1), (16, 6), (1024, 1)])
def test_block_sum_is_the_sum_in_every_thread_of_any_block(real, block, checked):
    check_block_sum(real, block)


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


# --- the process -----------------------------------------------------------------------------------------------------


def fault():
    with pytest.raises(KernelFault, match="touches"):
        kernel("own", "beyond")(1, 1, np.zeros(4, "f4"), np.zeros(4, "f4"), 4)


def test_faults_are_found_beside_pythons_fault_handler_which_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    was = faulthandler.is_enabled()
    with open(tmp_path / "crashes", "w+") as file:
        faulthandler.enable(file)
        try:
            fault()
        finally:
            faulthandler.disable()
            if was:
                faulthandler.enable()
        assert file.read() == ""


CRASH = """
import ctypes, faulthandler, sys, threading
import numpy as np
from tinyres.kernels.cuda import elementwise
faulthandler.enable()
x = np.ones(1 << 24, np.float32)  # so that nearly all of the time is spent in the kernel
elementwise.relu(x)
threading.Thread(target=lambda: [elementwise.relu(x) for _ in range(10000)], daemon=True).start()
import time; time.sleep(0.05)
ctypes.string_at(8)
"""


def run_python(code, **environment):
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True
    )


def test_a_crash_elsewhere_while_a_kernel_runs_is_that_threads_own():
    done = run_python(CRASH)
    assert done.returncode < 0 and "Segmentation fault" in done.stderr and "string_at" in done.stderr


def test_threads_find_faults_of_their_own(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    wrong = []

    def work():
        try:
            for _ in range(10):
                fault()
                check_block_sum()
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def child(results):
    with sources({"own.cu": SOURCE}):
        y = np.zeros(3, "f4")
        kernel("own", "writes")(1, 4, y, y, 1)
        results.put(y.tolist())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_launches_although_its_parents_thread_held_the_lock(monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", "checked")
    check_block_sum()
    context, held, go_on = multiprocessing.get_context("fork"), threading.Event(), threading.Event()

    def hold():
        with emulator._lock:
            held.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    results = context.Queue()
    process = context.Process(target=child, args=(results,))
    process.start()
    try:
        assert results.get(timeout=30) == [0, 1, 0]
    finally:
        go_on.set()
        holder.join()
        process.kill()
        process.join()


def test_a_forked_process_has_guarded_memory_of_its_own():
    mapping = emulator._Mapping(emulator.PAGE)
    mapping.inside[0] = 7
    child = os.fork()
    if not child:
        mapping.inside[0] = 9
        os._exit(0)
    os.waitpid(child, 0)
    assert mapping.inside[0] == 7


# --- the compiler ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """As if nothing had been compiled, in this process or before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    emulator._cache.cache_clear()
    emulator._library.cache_clear()
    yield tmp_path / "tinyres" / "cuda-emulated"
    emulator._cache.cache_clear()
    emulator._library.cache_clear()


def test_an_error_in_a_source_is_one_line_with_its_place(no_cache):
    text = '#include "common.cuh"\n\nextern "C" __global__ void bad(int* x) { *x = nothing; y = 1; }\n'
    with sources({"bad.cu": text}), pytest.raises(RuntimeError) as raised:
        kernel("bad", "bad")(1, 1, np.zeros(1, "i4"))
    assert "bad.cu:3:" in str(raised.value) and "nothing" in str(raised.value) and "\n" not in str(raised.value)


def test_a_kernel_with_the_name_of_a_c_function_is_an_error_if_declared_and_else_runs(no_cache):
    text = 'extern "C" __global__ void {}(int* x) {{ *x = 5; }}\n'
    with sources({"taken.cu": text.format("exp"), "hidden.cu": text.format("setgrent")}):
        with pytest.raises(RuntimeError, match="a kernel cannot have the name of a C function"):
            kernel("taken", "exp")(1, 1, np.zeros(1, "i4"))
        x = np.zeros(1, "i4")
        kernel("hidden", "setgrent")(1, 1, x)
        assert x[0] == 5


def test_what_is_compiled_stays_for_later_processes(no_cache, monkeypatch):
    check_block_sum()
    kept = list(no_cache.iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".so"
    emulator._library.cache_clear()
    monkeypatch.setattr(emulator, "_compile", lambda command: "error: it compiles again")
    with sources({"own.cu": SOURCE}):
        check_block_sum()


def test_two_processes_compile_at_the_same_time(no_cache):
    code = "import numpy as np\nfrom tinyres.kernels.cuda import relu\nprint(relu(np.array([-1, 2], 'f4')).tolist())"
    with_cache = {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    results = []
    workers = [threading.Thread(target=lambda: results.append(run_python(code, **with_cache))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [r.stdout for r in results] == ["[0.0, 2.0]\n"] * 2, results
    assert [path.suffix for path in no_cache.iterdir()] == [".so"]


def test_without_a_writable_cache_it_works_for_this_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    done = run_python("from tinyres.kernels.cuda import relu; import numpy as np; print(relu(np.ones(2, 'f4')).tolist())")
    assert done.stdout == "[1.0, 1.0]\n", done.stderr


def test_a_compiler_that_is_missing_or_fails_is_one_clear_error(tmp_path):
    code = (
        "import tinyres as tr\ntry: tr.use_backend('cuda-emulated')\n"
        "except tr.kernels.dispatch.BackendError as error: print(error)\n"
    )
    code = code.replace("import tinyres as tr\n", "import tinyres as tr\nimport tinyres.kernels.dispatch\n")
    done = run_python(code, PATH=str(tmp_path), CXX="", XDG_CACHE_HOME=str(tmp_path))
    assert "backend 'cuda-emulated' cannot run here: it needs a C++ compiler" in done.stdout, done.stderr
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'cc1plus: fatal error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = run_python(code, CXX=str(broken), XDG_CACHE_HOME=str(tmp_path))
    assert f"cannot run here: {broken} failed: cc1plus: fatal error: no such thing" in done.stdout, done.stderr


def test_an_older_compiler_does_without_poisoned_locals(no_cache, tmp_path, monkeypatch):
    older = tmp_path / "g++"
    real = shutil.which("g++") or emulator.compiler()
    older.write_text(
        f'#!/bin/sh\nfor a in "$@"; do [ "$a" = {emulator.POISON} ] && '
        f"{{ echo 'error: unrecognized option {emulator.POISON}' >&2; exit 1; }}; done\nexec {real} \"$@\"\n"
    )
    older.chmod(0o755)
    monkeypatch.setenv("CXX", str(older))
    check_block_sum()


def test_fibers_that_the_c_library_makes_do_as_well_where_there_are_no_others():
    macros = {"TINYRES_UCONTEXT": 1}
    x, y = rng.permutation(96).astype("i4"), np.empty(96, "i4")
    kernel("own", "turn", **macros)(1, 96, x, y, 7)
    np.testing.assert_array_equal(y, np.roll(x, -7))
    with pytest.raises(KernelFault, match="not all lanes"):
        kernel("own", "half_a_warp_waits", **macros)(1, 32, np.zeros(32, "f4"))


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["", "checked"])
def test_a_graph_records_without_running_and_replays_with_the_arrays_as_they_are_then(mode, monkeypatch):
    monkeypatch.setenv("TINYRES_EMULATOR", mode)
    from tinyres.kernels.cuda import accumulate, add_relu, relu

    x, total = np.array([1.0, -2.0, 3.0], "f4"), np.zeros(3, "f4")
    graph = emulator.Graph()
    with graph.memory():
        relu(x)
    with graph.capture():
        y = add_relu(relu(x), x)
        accumulate(total, y)
        kept = y.ctypes.data
        del y
    assert total.tolist() == [0, 0, 0] and len(graph.launches) == 3
    garbage = [np.full(3, 99, "f4") for _ in range(50)]  # nobody gets the memory of what the graph still uses
    assert kept not in {g.ctypes.data for g in garbage}
    graph.replay()
    assert total.tolist() == [2, 0, 6]
    x[:] = [0, 5, -7]
    graph.replay()
    assert total.tolist() == [2, 10, 6]


def test_a_graph_makes_the_copies_of_other_layouts_again():
    from tinyres.kernels.cuda import accumulate

    x, total = np.ones((1, 2, 3, 3), "f4"), np.zeros((1, 2, 3, 3), "f4")
    graph = emulator.Graph()
    with graph.capture():
        accumulate(total, x)
    for i in (1, 3):
        x[...] = i
        graph.replay()
    assert (total == 4).all()


def test_other_threads_launches_are_not_recorded_and_a_capture_that_fails_leaves_the_graph():
    from tinyres.kernels.cuda import relu

    graph, results = emulator.Graph(), []
    with graph.capture():
        relu(np.ones(3, "f4"))
        worker = threading.Thread(target=lambda: results.append(relu(np.array([-1, 2], "f4")).tolist()))
        worker.start()
        worker.join()
    assert results == [[0, 2]] and len(graph.launches) == 1
    with pytest.raises(ZeroDivisionError), graph.capture():
        relu(np.ones(3, "f4"))
        raise ZeroDivisionError
    assert len(graph.launches) == 1
    assert relu(np.array([-1.0, 2.0], "f4")).tolist() == [0, 2]


# --- with AddressSanitizer -------------------------------------------------------------------------------------------


def address_sanitizer():
    """Its library, or "" if the compiler has none."""
    cxx = emulator.compiler()
    path = subprocess.run([cxx, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip() if cxx else ""
    return path if os.path.isabs(path) and os.path.exists(path) else ""


ASAN = f"""
import sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
from cuda_sources import sources
from tinyres.kernels.cuda.launch import kernel
TEXT = '''
extern "C" __global__ void shared(float* y, int at) {{
    __shared__ float first[8], second[8];
    float* p = first;
    p[at] = 1;
    second[0] = 2;
    __syncthreads();
    y[threadIdx.x] = p[at];
}}
'''
with sources({{"asan.cu": TEXT}}):
    for at in map(int, sys.argv[1:] or [7, 8]):
        kernel("asan", "shared")(2, 64, np.zeros(64, "f4"), at)
        print("ran", at, flush=True)
"""


def test_address_sanitizer_finds_an_access_between_two_shared_arrays():
    library = address_sanitizer()
    if not library:
        pytest.skip("the compiler has no AddressSanitizer (libasan)")
    done = run_python(
        ASAN, LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        TINYRES_EMULATOR_OPTIONS="-fsanitize=address -fsanitize-sections=cuda_shared",
    )  # fmt: skip
    assert done.stdout == "ran 7\n" and "AddressSanitizer: global-buffer-overflow" in done.stderr, done.stderr[-2000:]


def test_the_backend_says_that_it_can_run():
    assert tr.available_backends()["cuda-emulated"] == ""
