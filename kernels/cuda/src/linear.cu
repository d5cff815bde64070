// The linear layer y = x w^T + b and its gradients, with x (N, I), w (O, I), y (N, O):
//
//     y[n,o] = b[o] + sum over i of x[n,i] w[o,i]     dx[n,i] = sum over o of dy[n,o] w[o,i]
//     dw[o,i] = sum over n of dy[n,o] x[n,i]          db[o]   = sum over n of dy[n,o]
//
// The first three are one matrix product, c[m,n] = sum over k of a[m,k] b[n,k], read with other strides. Each takes 2 N I O
// floating-point operations and moves N I + O I + N O elements. A ResNet's last layer, (128, 64) by (10, 64), has 82,000
// multiply-adds and 40 KB: what it costs is the launch and the wait for memory, so a block asks for as much of k as it can
// at once. Sums run in one fixed order: the same bits every time.
//
// REAL is float or double; x may be half or bfloat16 (macro INPUT) where REAL is float.
#include "common.cuh"
#ifndef INPUT
#define INPUT REAL
#endif

constexpr int TILE = 16;            // a block of 16 x 16 threads makes 16 x 16 elements of c
constexpr int DEPTH = 64;           // of which it adds 64 products at a time
constexpr int PITCH = DEPTH + 1;    // columns of a tile in shared memory: odd, so that 16 rows lie in 16 different banks
constexpr int THREADS = 256;        // TILE * TILE

// Rows ``row`` .. row + 15 and columns ``k`` .. k + 63 of a matrix of rows x depth elements, m[r * by_row + k * by_k], come
// into shared memory; what lies outside becomes 0 and adds nothing. Neighbouring threads read neighbouring addresses: the
// index that goes first is the one with stride 1.
template <class T> __device__ __forceinline__ void load(
    ACC* tile, const T* m, INDEX row, INDEX rows, INDEX k, INDEX depth, INDEX by_row, INDEX by_k) {
    const int thread = threadIdx.x + TILE * threadIdx.y;
    #pragma unroll
    for (int i = thread; i < TILE * DEPTH; i += THREADS) {
        const int r = by_k == 1 ? i / DEPTH : i % TILE, c = by_k == 1 ? i % DEPTH : i / TILE;
        const bool inside = row + r < rows && k + c < depth;
        tile[r * PITCH + c] = inside ? ACC(widen(m[(row + r) * by_row + (k + c) * by_k])) : ACC(0);
    }
}

// c (rows x columns) = a b^T + bias; blocks go over the tiles of c row by row, so that one dimension of the grid is enough.
template <class A, class B> __device__ __forceinline__ void product(
    ACC* left, ACC* right, const A* a, const B* b, const REAL* bias, REAL* c, INDEX rows, INDEX columns, INDEX depth,
    INDEX a_row, INDEX a_k, INDEX b_row, INDEX b_k) {
    const INDEX across = ceil_div(columns, TILE);
    const INDEX row = blockIdx.x / across * TILE, column = blockIdx.x % across * TILE;
    ACC sum = 0;
    for (INDEX k = 0; k < depth; k += DEPTH) {
        load(left, a, row, rows, k, depth, a_row, a_k);
        load(right, b, column, columns, k, depth, b_row, b_k);
        __syncthreads();  // the tiles are complete
        #pragma unroll 8
        for (int i = 0; i < DEPTH; i++) sum += left[threadIdx.y * PITCH + i] * right[threadIdx.x * PITCH + i];
        __syncthreads();  // nobody reads them any more
    }
    const INDEX m = row + threadIdx.y, n = column + threadIdx.x;
    if (m < rows && n < columns) c[m * columns + n] = bias ? sum + bias[n] : sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) linear(
    const INPUT* __restrict__ x, const REAL* __restrict__ w, const REAL* __restrict__ b, REAL* __restrict__ y,
    INDEX n, INDEX inputs, INDEX outputs) {
    __shared__ ACC left[TILE * PITCH], right[TILE * PITCH];
    product(left, right, x, w, b, y, n, outputs, inputs, inputs, 1, inputs, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS) linear_backward_input(
    const REAL* __restrict__ dy, const REAL* __restrict__ w, REAL* __restrict__ dx, INDEX n, INDEX inputs, INDEX outputs) {
    __shared__ ACC left[TILE * PITCH], right[TILE * PITCH];
    product(left, right, dy, w, static_cast<const REAL*>(nullptr), dx, n, inputs, outputs,
            outputs, 1, 1, inputs);
}

extern "C" __global__ void __launch_bounds__(THREADS) linear_backward_weight(
    const REAL* __restrict__ dy, const INPUT* __restrict__ x, REAL* __restrict__ dw, INDEX n, INDEX inputs, INDEX outputs) {
    __shared__ ACC left[TILE * PITCH], right[TILE * PITCH];
    product(left, right, dy, x, static_cast<const REAL*>(nullptr), dw, outputs, inputs, n,
            1, outputs, 1, inputs);
}

// A block of 32 x 32 threads sums 32 columns: thread (x, y) the rows y, y + 32, ... of column x, so that a warp reads 32
// neighbours. Through shared memory the 32 sums of a column come to one warp, which adds them up.
extern "C" __global__ void __launch_bounds__(1024) linear_backward_bias(
    const REAL* __restrict__ dy, REAL* __restrict__ db, INDEX n, INDEX outputs) {
    __shared__ ACC sums[32][33];
    INDEX column = (INDEX)blockIdx.x * 32 + threadIdx.x;
    ACC sum = 0;
    if (column < outputs) {
        #pragma unroll 4
        for (INDEX row = threadIdx.y; row < n; row += 32) sum += dy[row * outputs + column];
    }
    sums[threadIdx.x][threadIdx.y] = sum;
    __syncthreads();
    sum = sums[threadIdx.y][threadIdx.x];
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    column = (INDEX)blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && column < outputs) db[column] = sum;
}
