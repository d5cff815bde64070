// Depthwise convolution: each channel has filters of its own, MULT of them, and is not mixed with the others.
//
//     y[n,i,j,f] = sum over a, b of  x[n, i s - p + a d, j s - p + b d, f / MULT] * w[f,a,b]
//
// No sum over channels, so no matrix product: 2 KH KW FLOPs for each element of y. With a 3 x 3 filter and e bytes an
// element that is 18 FLOPs for 2 e bytes, if every element of x comes from memory once and its other eight reads from the
// caches: memory limits it, and the kernels are made to read whole lines. Channels lie side by side; with one filter a
// channel a thread takes PACK of them, 16 bytes, else one. The filters are laid out (KH KW, F), to be read in the same way.
//
// Macros: REAL is the type of activations, PARAM that of filters. Sums are in ACC.
#include "common.cuh"

#ifndef PARAM
#define PARAM REAL
#endif

// V elements from ``source`` on, to compute with: one by one, or 16 bytes at a time where V is PACK
template <int V> struct Numbers { ACC v[V]; };

template <int V, class T> __device__ __forceinline__ Numbers<V> read(const T* source) {
    struct __align__(sizeof(T) * V > 16 ? 16 : sizeof(T) * V) Lot { T v[V]; };
    const Lot lot = *reinterpret_cast<const Lot*>(source);
    Numbers<V> result;
#pragma unroll
    for (int e = 0; e < V; e++) result.v[e] = widen(lot.v[e]);
    return result;
}

template <int V> __device__ __forceinline__ void write(REAL* target, const ACC (&sums)[V]) {
    struct __align__(sizeof(REAL) * V) Lot { REAL v[V]; } lot;
#pragma unroll
    for (int e = 0; e < V; e++) narrow(lot.v[e], sums[e]);
    *reinterpret_cast<Lot*>(target) = lot;
}

// --- the output: a thread makes RUN neighbours of a row, for which it reads a tap of the filter once ---

constexpr int RUN = 4;

template <int V> __device__ __forceinline__ void forward_of(
    const REAL* __restrict__ x, const PARAM* __restrict__ w, REAL* __restrict__ y, INDEX runs, int H, int W, int MULT, int F,
    int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w) {
    const int C = F / MULT, lots = F / V, in_row = ceil_div(OW, RUN);
    for (INDEX lot = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; lot < runs * lots;
         lot += INDEX(gridDim.x) * blockDim.x) {
        const int f = lot % lots * V, c = f / MULT, j = lot / lots % in_row * RUN;
        const INDEX row = lot / lots / in_row, n = row / OH;
        const int top = int(row % OH) * stride_h - padding_h, left = j * stride_w - padding_w;
        ACC sums[RUN][V] = {};
        for (int a = 0; a < KH; a++) {
            const int h = top + a * dilation_h;
            if (h < 0 || h >= H) continue;
            const REAL* line = x + (n * H + h) * W * C + c;
            for (int b = 0; b < KW; b++) {
                const Numbers<V> weight = read<V>(w + (a * KW + b) * F + f);
#pragma unroll
                for (int i = 0; i < RUN; i++) {
                    const int place = left + i * stride_w + b * dilation_w;
                    if (place < 0 || place >= W) continue;
                    const Numbers<V> pixel = read<V>(line + INDEX(place) * C);
#pragma unroll
                    for (int e = 0; e < V; e++) sums[i][e] += pixel.v[e] * weight.v[e];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < RUN; i++)
            if (j + i < OW) write<V>(y + (row * OW + j + i) * F + f, sums[i]);
    }
}

// x (N, H, W, C), w (KH, KW, F) -> y (N, OH, OW, F). ``runs`` is N OH ceil(OW / RUN); ``packed``: PACK channels per thread.
extern "C" __global__ void __launch_bounds__(256, 2) depthwise(
    const REAL* __restrict__ x, const PARAM* __restrict__ w, REAL* __restrict__ y, INDEX runs, int packed, int H, int W,
    int MULT, int F, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w) {
    if (packed) forward_of<PACK>(x, w, y, runs, H, W, MULT, F, KH, KW, OH, OW, stride_h, stride_w, padding_h, padding_w,
                                 dilation_h, dilation_w);
    else forward_of<1>(x, w, y, runs, H, W, MULT, F, KH, KW, OH, OW, stride_h, stride_w, padding_h, padding_w, dilation_h,
                       dilation_w);
}

// --- the gradient by the input: each pixel collects from the windows that covered it, as in col2im (im2col.cu) ---

template <int V> __device__ __forceinline__ void backward_input_of(
    const REAL* __restrict__ dy, const PARAM* __restrict__ w, REAL* __restrict__ dx, INDEX pixels, int H, int W, int MULT,
    int F, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w) {
    const int C = F / MULT, lots = C / V;
    for (INDEX lot = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; lot < pixels * lots;
         lot += INDEX(gridDim.x) * blockDim.x) {
        const int c = lot % lots * V;
        const INDEX pixel = lot / lots, n = pixel / W / H;
        const int h = pixel / W % H, column = pixel % W;
        ACC sums[V] = {};
        for (int a = 0; a < KH; a++) {
            const int i = h + padding_h - a * dilation_h;
            if (i < 0 || i % stride_h || i / stride_h >= OH) continue;
            const REAL* line = dy + (n * OH + i / stride_h) * OW * F;
            for (int b = 0; b < KW; b++) {
                const int j = column + padding_w - b * dilation_w;
                if (j < 0 || j % stride_w || j / stride_w >= OW) continue;
                for (int f = c * MULT; f < c * MULT + MULT; f++) {  // (V is 1 where there are several)
                    const Numbers<V> cotangent = read<V>(line + INDEX(j / stride_w) * F + f);
                    const Numbers<V> weight = read<V>(w + (a * KW + b) * F + f);
#pragma unroll
                    for (int e = 0; e < V; e++) sums[e] += cotangent.v[e] * weight.v[e];
                }
            }
        }
        write<V>(dx + pixel * C + c, sums);
    }
}

// dy (N, OH, OW, F), w (KH, KW, F) -> dx (N, H, W, C). ``pixels`` is N H W.
extern "C" __global__ void __launch_bounds__(256, 2) depthwise_backward_input(
    const REAL* __restrict__ dy, const PARAM* __restrict__ w, REAL* __restrict__ dx, INDEX pixels, int packed, int H, int W,
    int MULT, int F, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w) {
    if (packed) backward_input_of<PACK>(dy, w, dx, pixels, H, W, MULT, F, KH, KW, OH, OW, stride_h, stride_w, padding_h,
                                        padding_w, dilation_h, dilation_w);
    else backward_input_of<1>(dy, w, dx, pixels, H, W, MULT, F, KH, KW, OH, OW, stride_h, stride_w, padding_h, padding_w,
                              dilation_h, dilation_w);
}

// --- the gradient by the weights: dw[f,tap] = sum over pixels of dy[m,f] x[its window's tap] ---
//
// Few results of long sums, in two stages without atomics. Here, block (x, y, z) takes 32 filters, the y-th part of the
// pixels, and TAPS taps. A warp reads 32 neighbouring channels; the block's 8 rows of threads take every eighth pixel. A
// thread keeps a sum for each tap, so that it reads dy once for all of them. The 8 rows' sums meet in shared memory, in
// order; add_parts (im2col.cu) then adds the parts, in order.

constexpr int TAPS = 9;

// parts (gridDim.y, KH KW, F); ``pixels`` is N OH OW, ``per_part`` how many of them a part takes.
extern "C" __global__ void __launch_bounds__(256, 2) depthwise_backward_weight(
    const REAL* __restrict__ dy, const REAL* __restrict__ x, PARAM* __restrict__ parts, INDEX pixels, INDEX per_part, int H,
    int W, int MULT, int F, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w) {
    __shared__ ACC of_rows[8][32];
    const int lane = threadIdx.x, row = threadIdx.y, C = F / MULT, first = blockIdx.z * TAPS;
    const int f = blockIdx.x * 32 + lane, c = f / MULT;
    const INDEX begin = blockIdx.y * per_part, end = begin + per_part < pixels ? begin + per_part : pixels;
    int down[TAPS], right[TAPS];  // of the taps, in the window
    ACC sums[TAPS] = {};
#pragma unroll
    for (int i = 0; i < TAPS; i++) {
        down[i] = first + i < KH * KW ? (first + i) / KW * dilation_h : 1 << 28;  // a row that no image has: not read
        right[i] = (first + i) % KW * dilation_w;
    }
    for (INDEX m = begin + row; m < end && f < F; m += 8) {
        const INDEX line = m / OW, n = line / OH;
        const int top = int(line % OH) * stride_h - padding_h, left = int(m % OW) * stride_w - padding_w;
        const REAL* image = x + n * H * W * C + c;
        const ACC cotangent = widen(dy[m * F + f]);
#pragma unroll
        for (int i = 0; i < TAPS; i++) {
            const int h = top + down[i], w = left + right[i];
            const bool inside = h >= 0 && h < H && w >= 0 && w < W;
            sums[i] += cotangent * (inside ? widen(image[(INDEX(h) * W + w) * C]) : ACC(0));  // (NaN times 0 is NaN)
        }
    }
#pragma unroll
    for (int i = 0; i < TAPS; i++) {
        __syncthreads();  // all have read the rows before
        of_rows[row][lane] = sums[i];
        __syncthreads();
        if (row || f >= F || first + i >= KH * KW) continue;
        ACC sum = 0;
        for (int r = 0; r < 8; r++) sum += of_rows[r][lane];
        narrow(parts[(INDEX(blockIdx.y) * KH * KW + first + i) * F + f], sum);
    }
}
