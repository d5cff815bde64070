"""Other ``.cu`` sources than the package's own, for a test: kernels that are made to fail, and known-wrong versions."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyres.kernels.cuda import launch
from tinyres.kernels.cuda import sources as texts

# kernels to test the emulation with: right ones, then wrong ones
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

extern "C" __global__ void neighbours(float* y) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
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


@contextlib.contextmanager
def sources(new: dict[str, str] | None = None, replace: tuple[str, str, str] | None = None) -> Iterator[None]:
    """Kernels come from the package's sources with ``new`` files beside them ({name: text}), and with a text of one file
    replaced: (name, old, new), where old must stand there exactly once.
    """
    original = texts.SOURCES
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        changed = Path(folder) / "src"
        shutil.copytree(original, changed)
        for name, text in (new or {}).items():
            (changed / name).write_text(text, "utf-8")
        if replace:
            name, old, text = replace
            whole = (changed / name).read_text("utf-8")
            assert whole.count(old) == 1, f"{name} has this {whole.count(old)} times: {old}"
            (changed / name).write_text(whole.replace(old, text), "utf-8")
        patch.setattr(texts, "SOURCES", changed)
        _forget()
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    texts.source.cache_clear()
    launch.kernel.cache_clear()
