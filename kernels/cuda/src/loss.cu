// Cross-entropy of logits x (N, K) and labels (N,): with q = (1 - s) one_hot(label) + s / K,
//
//     log p[n,k] = x[n,k] - max - log(sum over j of exp(x[n,j] - max))      loss[n] = -sum over k of q[n,k] log p[n,k]
//     dx[n,k]    = (p[n,k] - q[n,k]) dloss[n]
//
// and of the mean over n, and how many rows are classified wrongly.  2 N K elements cross the bus, and an exponential is
// computed for each: for 128 rows of 10 that is nothing, so the mean is taken by the kernel that has the losses at hand, in
// one block, instead of by a second launch.
//
// A warp takes a row, its lanes take every 32nd column. Sums are trees in a fixed order. LABEL is int or long long.
#include "common.cuh"
#ifndef LABEL
#define LABEL long long
#endif

constexpr int THREADS = 512;   // of the kernels that do all in one block
constexpr unsigned ALL = 0xffffffffu;

// The loss of a row, the same in every lane; log p is written. A label outside 0 .. K - 1 makes a NaN.
//
// The comparison passes over a NaN, but the sum does not: it makes all of the row NaN, as NumPy's maximum does.
__device__ __forceinline__ ACC loss_of(const REAL* x, LABEL label, REAL* log_p, int k, ACC smoothing) {
    const int lane = threadIdx.x % 32;
    ACC most = x[0], sum = 0;
    for (int i = lane; i < k; i += 32) most = x[i] > most ? x[i] : most;
    for (int mask = 16; mask; mask >>= 1) {
        const ACC other = __shfl_xor_sync(ALL, most, mask);
        most = other > most ? other : most;
    }
    for (int i = lane; i < k; i += 32) sum += exp(x[i] - most);
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(ALL, sum, mask);
    const ACC log_sum = log(sum);
    sum = 0;
    for (int i = lane; i < k; i += 32) {
        const ACC one = x[i] - most - log_sum;
        log_p[i] = one;
        sum += one;
    }
    if (label < 0 || label >= k) return __uint_as_float(0x7fc00000);
    const ACC loss = most - x[label] + log_sum;
    if (smoothing == 0) return loss;  // (0 times infinity is NaN)
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(ALL, sum, mask);
    return (1 - smoothing) * loss - smoothing * (sum / k);
}

extern "C" __global__ void __launch_bounds__(256) cross_entropy(
    const REAL* __restrict__ x, const LABEL* __restrict__ labels, REAL* __restrict__ losses, REAL* __restrict__ log_p,
    int n, int k, double smoothing) {
    const int warps = blockDim.x / 32;
    const int row = blockIdx.x * warps + threadIdx.x / 32;
    if (row >= n) return;  // all lanes of a warp at once
    const ACC loss = loss_of(x + row * k, labels[row], log_p + row * k, k, ACC(smoothing));
    if (threadIdx.x % 32 == 0) losses[row] = loss;
}

// loss = the mean of the rows' losses. In one block: the others could not be waited for.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_mean(
    const REAL* __restrict__ x, const LABEL* __restrict__ labels, REAL* __restrict__ loss, REAL* __restrict__ log_p,
    int n, int k, double smoothing) {
    __shared__ ACC of_warp[32];
    ACC sum = 0;
    for (int row = threadIdx.x / 32; row < n; row += blockDim.x / 32) {
        const ACC one = loss_of(x + row * k, labels[row], log_p + row * k, k, ACC(smoothing));
        if (threadIdx.x % 32 == 0) sum += one;
    }
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) loss[0] = sum / n;
}

// The same of losses that many blocks have computed.
extern "C" __global__ void __launch_bounds__(THREADS) mean(const REAL* __restrict__ losses, REAL* __restrict__ loss, int n) {
    __shared__ ACC of_warp[32];
    ACC sum = 0;
    for (int row = threadIdx.x; row < n; row += blockDim.x) sum += losses[row];
    sum = block_sum(sum, of_warp);
    if (threadIdx.x == 0) loss[0] = sum / n;
}

// One thread per element. ``per_row`` is 1 where each row has its dloss, 0 where all share one, of their mean.
extern "C" __global__ void __launch_bounds__(256) cross_entropy_backward(
    const REAL* __restrict__ dloss, const REAL* __restrict__ log_p, const LABEL* __restrict__ labels, REAL* __restrict__ dx,
    int n, int k, int per_row, double smoothing) {
    const int size = n * k, stride = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += stride) {
        const int row = i / k;
        ACC d = exp(log_p[i]);
        if (smoothing) d -= ACC(smoothing / k);
        if (i - row * k == labels[row]) d -= ACC(1 - smoothing);
        dx[i] = d * (per_row ? dloss[row] : dloss[0] / n);
    }
}

// total += how many rows have their first maximum elsewhere than at the label, where NaN is more than any number, as in
// NumPy's argmax. So a column before the label must be less than it, and one behind it must not be more.
extern "C" __global__ void __launch_bounds__(THREADS) count_wrong(
    const REAL* __restrict__ x, const LABEL* __restrict__ labels, int* __restrict__ total, int n, int k) {
    __shared__ int of_warp[32];
    int count = 0;
    for (int row = threadIdx.x / 32; row < n; row += blockDim.x / 32) {
        const LABEL label = labels[row];
        int wrong = label < 0 || label >= k;
        if (!wrong) {
            const REAL at_label = x[row * k + label];
            const bool nan = at_label != at_label;
            for (int i = threadIdx.x % 32; i < k; i += 32) {
                const REAL one = x[row * k + i];
                if (i < label) wrong |= nan ? one != one : !(one < at_label);
                if (i > label) wrong |= !nan && !(one <= at_label);
            }
        }
        for (int mask = 16; mask; mask >>= 1) wrong |= __shfl_xor_sync(ALL, wrong, mask);
        if (threadIdx.x % 32 == 0) count += wrong;
    }
    count = block_sum(count, of_warp);
    if (threadIdx.x == 0) total[0] += count;
}
