// Convolution as a matrix product, the first version to read: im2col, a product, and col2im.
//
// The formula, one filter f at one output pixel (n, i, j), with stride s, padding p and dilation d:
//
//     y[n,i,j,f] = sum over a, b, c of  x[n, i s - p + a d, j s - p + b d, c] * w[f,a,b,c]
//
// It has three indices in a sum, and a matrix product has one. Number them through: k = (a KW + b) C + c is one index, and
// m = (n OH + i) OW + j is another. Then with columns[m,k] = x[...], where padding reads as 0, the formula is
//
//     y[m,f] = sum over k of columns[m,k] * w[f,k]         y  = columns w^T      (M x K) (K x F)
//
// and the chain rule of a product gives both gradients:
//
//     dw[f,k] = sum over m of dy[m,f] * columns[m,k]       dw = dy^T columns     (F x M) (M x K)
//     dcolumns[m,k] = sum over f of dy[m,f] * w[f,k]       dcolumns = dy w       (M x F) (F x K)
//
// after which every pixel of dx collects all the places of the columns that it was copied to (col2im).
//
// Costs, with elements of e bytes: each product 2 M F K FLOPs. The columns are KH KW times as large as x (9 times, for a
// 3 x 3 filter); they are written once and read once for each 16 filters, so 2 M K e bytes and more: this is what limits it,
// and what the implicit products of conv_exact.cu and conv_tensor_forward.cu do without.
//
// Macros: LEFT, RIGHT and RESULT are the types of a product's three matrices; REAL that of activations.
#include "common.cuh"

#ifndef LEFT
#define LEFT REAL
#endif
#ifndef RIGHT
#define RIGHT REAL
#endif
#ifndef RESULT
#define RESULT REAL
#endif

// --- step 1: the columns. One thread per element: k runs fastest, and within it the channel, so that neighbouring threads
// read neighbouring channels of one pixel, and write neighbouring elements: both are whole lines of memory. ---

// x (N, H, W, C) -> columns (N OH OW, KH KW CG): of the CG channels from ``channel`` on (a group of a grouped convolution).
extern "C" __global__ void im2col(
    const REAL* __restrict__ x, REAL* __restrict__ columns, INDEX elements, INDEX channel, int CG, int H, int W, int C,
    int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w) {
    const int K = KH * KW * CG;
    for (INDEX e = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; e < elements; e += INDEX(gridDim.x) * blockDim.x) {
        const INDEX m = e / K, n = m / (OH * OW);
        const int k = e % K, c = k % CG, a = k / CG / KW, b = k / CG % KW;
        const int h = int(m / OW % OH) * stride_h - padding_h + a * dilation_h;
        const int w = int(m % OW) * stride_w - padding_w + b * dilation_w;
        REAL value;
        narrow(value, ACC(0));
        if (h >= 0 && h < H && w >= 0 && w < W) value = x[((n * H + h) * W + w) * C + channel + c];
        columns[e] = value;
    }
}

// The same, tuned. Above, an element of 4 bytes takes some 8 divisions, and a division of integers some 20 instructions: a
// multiprocessor does 128 per clock, and 132 write about 0.6 TB/s, where memory takes 4.3. A thread here divides once:
// it keeps its place k in the window, PACK channels of one tap, which it moves 16 bytes at a time, and goes on from pixel to
// pixel, where counting is enough. Neighbouring threads have neighbouring packs of the columns.
//
// The columns are written once, and that is what takes the time: x is KH KW times smaller and comes from the caches.
//
// Where packs fit: CG, C and ``channel`` are multiples of PACK, and both arrays begin at multiples of 16 bytes. A block
// takes ``share`` pixels, of ``pixels`` = N OH OW; its threads are (places in the window, pixels).
extern "C" __global__ void __launch_bounds__(256) im2col_packed(
    const REAL* __restrict__ x, REAL* __restrict__ columns, INDEX pixels, INDEX share, INDEX channel, int CG, int H, int W,
    int C, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w) {
    constexpr int GROUP = 4;  // pixels whose loads are under way at once
    const int of_tap = CG / PACK, packs = KH * KW * of_tap, k = blockIdx.y * blockDim.x + threadIdx.x;
    const INDEX begin = blockIdx.x * share, end = begin + share < pixels ? begin + share : pixels;
    INDEX m = begin + threadIdx.y;
    if (k >= packs || m >= end) return;
    const int tap = k / of_tap, down = tap / KW * dilation_h - padding_h, right = tap % KW * dilation_w - padding_w;
    const REAL* source = x + channel + k % of_tap * PACK;
    Pack* target = reinterpret_cast<Pack*>(columns) + k;
    INDEX n = m / OW / OH;
    int i = int(m / OW % OH), j = int(m % OW);
    while (m < end) {
        Pack values[GROUP] = {};  // zeros, where a window reaches into the padding
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            const int h = i * stride_h + down, w = j * stride_w + right;
            if (m + g * INDEX(blockDim.y) < end && unsigned(h) < unsigned(H) && unsigned(w) < unsigned(W))
                values[g] = *reinterpret_cast<const Pack*>(source + ((n * H + h) * W + w) * C);
            for (j += blockDim.y; j >= OW; j -= OW)
                if (++i == OH) i = 0, n++;
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++, m += blockDim.y)
            if (m < end) target[m * packs] = values[g];
    }
}

// --- step 2: the product C = A B, or several sums of parts of it ---
//
// A transposed matrix is the same memory with its two strides exchanged, so there is one kernel for all three products:
// A[i,k] is a[i a_i + k a_k], B[k,j] is b[k b_k + j b_j], and C[i,j] is c[i c_i + j].
//
// The weight gradient is a small matrix (K x F, turned round) of long sums over M pixels: few blocks, each with much to do.
// So the depth is cut into ``gridDim.z`` parts of ``per_part`` terms, part z goes to the z-th matrix of C, and add_parts
// adds them.

constexpr int T = 16;  // a block is T x T threads, for T x T elements of C

// Straight from the formula. Each thread reads 2 numbers for each 2 FLOPs: in all 2 m n depth numbers.
extern "C" __global__ void __launch_bounds__(T* T) matmul_naive(
    const LEFT* __restrict__ a, const RIGHT* __restrict__ b, RESULT* __restrict__ c, INDEX m, INDEX n, INDEX depth,
    INDEX per_part, INDEX a_i, INDEX a_k, INDEX b_k, INDEX b_j, INDEX c_i, INDEX a_first, INDEX b_first, INDEX c_first) {
    const INDEX i = INDEX(blockIdx.x) * T + threadIdx.y, j = INDEX(blockIdx.y) * T + threadIdx.x;
    const INDEX begin = blockIdx.z * per_part, end = begin + per_part < depth ? begin + per_part : depth;
    if (i >= m || j >= n) return;
    ACC sum = 0;
    for (INDEX k = begin; k < end; k++)
        sum += ACC(widen(a[a_first + i * a_i + k * a_k])) * ACC(widen(b[b_first + k * b_k + j * b_j]));
    narrow(c[c_first + (blockIdx.z * m + i) * c_i + j], sum);
}

// The same with tiles. The T threads of a row of the block all need the same row of A, and the T of a column one column of
// B. So the block first brings a T x T tile of each into shared memory, every thread one element of both, and then each
// thread takes 2 T numbers from there: a number that was loaded once is used T times, and memory is read T times less.
//
// The first barrier: nobody may read a tile before all have written it. The second: nobody may write the next before all
// have read this one. The lane number runs along whichever axis of a matrix lies side by side in memory, which makes the
// loads whole lines; the odd row length puts the elements of a column, too, into different banks of shared memory.
extern "C" __global__ void __launch_bounds__(T* T) matmul_tiled(
    const LEFT* __restrict__ a, const RIGHT* __restrict__ b, RESULT* __restrict__ c, INDEX m, INDEX n, INDEX depth,
    INDEX per_part, INDEX a_i, INDEX a_k, INDEX b_k, INDEX b_j, INDEX c_i, INDEX a_first, INDEX b_first, INDEX c_first) {
    __shared__ ACC tile_a[T][T + 1], tile_b[T][T + 1];
    const int x = threadIdx.x, y = threadIdx.y;
    const int ai = a_k == 1 ? y : x, ak = a_k == 1 ? x : y, bk = b_j == 1 ? y : x, bj = b_j == 1 ? x : y;
    const INDEX i0 = INDEX(blockIdx.x) * T, j0 = INDEX(blockIdx.y) * T;
    const INDEX begin = blockIdx.z * per_part, end = begin + per_part < depth ? begin + per_part : depth;
    ACC sum = 0;
    for (INDEX k0 = begin; k0 < end; k0 += T) {
        // beyond the edges the tiles hold zeros, which add nothing
        const bool in_a = i0 + ai < m && k0 + ak < end, in_b = k0 + bk < end && j0 + bj < n;
        tile_a[ai][ak] = in_a ? ACC(widen(a[a_first + (i0 + ai) * a_i + (k0 + ak) * a_k])) : ACC(0);
        tile_b[bk][bj] = in_b ? ACC(widen(b[b_first + (k0 + bk) * b_k + (j0 + bj) * b_j])) : ACC(0);
        __syncthreads();
        for (int k = 0; k < T; k++) sum += tile_a[y][k] * tile_b[k][x];
        __syncthreads();
    }
    if (i0 + y < m && j0 + x < n) narrow(c[c_first + (blockIdx.z * m + i0 + y) * c_i + j0 + x], sum);
}

// --- step 3: col2im ---

// dcolumns -> dx, as a gather. As a scatter, where every element of the columns is added to its pixel, several threads
// would meet at one pixel: that takes atomic additions, in an order that changes from run to run. Here each pixel asks
// which windows covered it: tap a saw row h from output row i if h = i s - p + a d, so i = (h + p - a d) / s, if that is
// whole and there is such a row. A pixel that no window reached gets zero.
extern "C" __global__ void col2im(
    const RESULT* __restrict__ columns, REAL* __restrict__ dx, INDEX elements, INDEX channel, int CG, int H, int W, int C,
    int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w) {
    const INDEX K = INDEX(KH) * KW * CG;
    for (INDEX e = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; e < elements; e += INDEX(gridDim.x) * blockDim.x) {
        const INDEX pixel = e / CG, n = pixel / (H * W);
        const int c = e % CG, h = pixel / W % H, w = pixel % W;
        ACC sum = 0;
        for (int a = 0; a < KH; a++) {
            const int i = h + padding_h - a * dilation_h;
            if (i < 0 || i % stride_h || i / stride_h >= OH) continue;
            for (int b = 0; b < KW; b++) {
                const int j = w + padding_w - b * dilation_w;
                if (j < 0 || j % stride_w || j / stride_w >= OW) continue;
                sum += widen(columns[((n * OH + i / stride_h) * OW + j / stride_w) * K + (a * KW + b) * CG + c]);
            }
        }
        narrow(dx[pixel * C + channel + c], sum);
    }
}

// --- the end of a weight gradient: its partial sums ---

// parts (count, TAPS C, F) -> dw (F, C, TAPS). Eight threads share an element: thread y adds the parts y, y + 8, ... and
// the first adds up the eight. Who adds what depends on nothing but ``count``, so the bits are the same in every run.
extern "C" __global__ void __launch_bounds__(256) add_parts(
    const RESULT* __restrict__ parts, RESULT* __restrict__ dw, int count, int TAPS, int C, int F) {
    __shared__ ACC sums[8][32];
    const INDEX elements = INDEX(TAPS) * C * F, element = INDEX(blockIdx.x) * 32 + threadIdx.x;
    ACC sum = 0;
    if (element < elements)
        for (int part = threadIdx.y; part < count; part += 8) sum += widen(parts[part * elements + element]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || element >= elements) return;
    for (int y = 1; y < 8; y++) sum += sums[y][threadIdx.x];
    const INDEX f = element % F, c = element / F % C, tap = element / F / C;
    narrow(dw[(f * C + c) * TAPS + tap], sum);
}
