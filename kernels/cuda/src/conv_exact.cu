// Convolution without a column matrix ("implicit GEMM"), in float or double on the ordinary cores, and its two gradients.
//
// It is the product of im2col.cu, y = columns w^T with k = (tap, channel), but a block makes the piece of the columns that
// it needs just now, in shared memory, straight from x. Costs: 2 M F K FLOPs for each of the three; memory is read about
// once per tile, so e (M K / KH KW + F K + M F) bytes at best. With 16 channels that is 36 FLOPs per byte in float: the
// cores limit it, and beside them the reads of shared memory. Hence three levels of tiles:
//
//   block   TILE_M pixels x TILE_F filters: a number that was loaded is used TILE_F or TILE_M times
//   thread  EACH pixels x 4 filters, in registers: a number that was read from shared memory is used 4 or EACH times
//   depth   16 terms at a time. While the threads compute with these, the next 16 are on their way into registers: the
//           wait for memory is behind the arithmetic.
//
// A thread's pixels lie DOWN rows apart, and rows of the pixels' tile are 16 + 4 numbers long, so the 16-byte reads of a
// warp fall into different banks, or are the same address, which costs nothing.
//
// Macros: TILE_M, TILE_F (16, 32 or 64) and EACH. REAL is float or double.
#include "common.cuh"

#ifndef TILE_M
#define TILE_M 64
#define TILE_F 64
#define EACH 8
#endif

constexpr int DEPTH = 16, ROW = DEPTH / 4 + 1;  // terms of a tile, and how many fours a row of pixels' tiles is long
constexpr int ACROSS = TILE_F / 4, DOWN = TILE_M / EACH, THREADS = ACROSS * DOWN;
constexpr int RESIDENT = sizeof(REAL) == 4 ? 3 : 1;  // blocks that a multiprocessor must have registers for
struct __align__(16) Four { REAL v[4]; };

__device__ __forceinline__ const Four& four(const REAL* source) { return *reinterpret_cast<const Four*>(source); }
__device__ __forceinline__ Four& four(REAL* target) { return *reinterpret_cast<Four*>(target); }

// Four numbers of a row of ``length``, from ``first`` on; zeros behind its end. ``packed``: each ``first`` is a multiple of
// four.
__device__ __forceinline__ Four read(const REAL* row, int first, int length, int packed) {
    if (packed && first < length) return four(row + first);
    Four result;
#pragma unroll
    for (int e = 0; e < 4; e++) result.v[e] = first + e < length ? row[first + e] : REAL(0);
    return result;
}

// --- the output and its gradient by the input ---
//
// Both gather: an output place adds up input places, one for each tap. Along one axis, output place first + every i reads,
// for its tap number tap + tap_every u, input place scale i + origin + step u, if there is one.
//
//   forward  output i reads i s - p + a d for all taps a: scale s, origin -p, step d.
//   backward dx[h] collects dy[i] wherever i s - p + a d = h, that is i = (h + p - a d) / s where this is whole: the taps
//            run the other way ("flipped"), and which taps fit depends on h modulo s. So the places are dealt out to s
//            phases, h = phase + s i. Within one, the first tap that fits is ``tap``, the next ones follow in steps of
//            s / gcd(s, d), and i = (phase + p - tap d) / s at the first. No product with a zero in between is computed,
//            and a phase with no tap at all (1 x 1 filters, stride 2) gets its zeros.
struct Axis { int places, first, every, scale, origin, step, tap, tap_every, taps; };

__device__ Axis forward_axis(int places, int taps, int stride, int padding, int dilation) {
    return {places, 0, 1, stride, -padding, dilation, 0, 1, taps};
}

__device__ Axis backward_axis(int phase, int size, int taps, int stride, int padding, int dilation) {
    int tap = 0, every = 1;
    while (tap < taps && (phase + padding - tap * dilation) % stride) tap++;
    while (every * dilation % stride) every++;
    return {ceil_div(size - phase, stride), phase, stride, 1, (phase + padding - tap * dilation) / stride,
            -(every * dilation / stride), tap, every, tap < taps ? (taps - 1 - tap) / every + 1 : 0};
}

struct Sizes { int N, IH, IW, C, OH, OW, F, KW; };  // input and output maps: for the input's gradient, those of dy and dx

// Four terms k of one pixel: the pixel's window starts at (y, x) of an image.
__device__ __forceinline__ Four window(
    const REAL* image, int y, int x, int k, const Axis& v, const Axis& h, const Sizes& sizes, int packed) {
    Four result = {};
    const int K = v.taps * h.taps * sizes.C;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int tap = (k + e) / sizes.C, c = k + e - tap * sizes.C, a = tap / h.taps, b = tap - a * h.taps;
        const int row = y + a * v.step, column = x + b * h.step;
        const bool inside = k + e < K && row >= 0 && row < sizes.IH && column >= 0 && column < sizes.IW;
        const REAL* source = image + (INDEX(row) * sizes.IW + column) * sizes.C + c;
        if (packed) return inside ? four(source) : result;  // all four are of one tap
        if (inside) result.v[e] = *source;
    }
    return result;
}

// w holds the filters as (tap, C, F).
__device__ __forceinline__ void gather(
    const REAL* __restrict__ in, const REAL* __restrict__ w, REAL* __restrict__ out, const Axis& v, const Axis& h,
    const Sizes& sizes, int packed_in, int packed_out, Four (*pixels)[ROW], Four (*filters)[ACROSS]) {
    constexpr int LOAD_M = TILE_M * DEPTH / 4 / THREADS, LOAD_F = ceil_div(DEPTH * ACROSS, THREADS);
    const INDEX rows = INDEX(sizes.N) * v.places * h.places, first = INDEX(blockIdx.x) * TILE_M;
    if (first >= rows) return;  // a smaller phase than others; the whole block leaves
    const int t = threadIdx.x, across = t % ACROSS, down = t / ACROSS, f0 = blockIdx.y * TILE_F;
    const int K = v.taps * h.taps * sizes.C;

    // the pixels that this thread loads, and their windows
    const REAL* image[LOAD_M];
    int y[LOAD_M], x[LOAD_M];
#pragma unroll
    for (int i = 0; i < LOAD_M; i++) {
        const INDEX m = first + t / 4 + THREADS / 4 * i, line = m / h.places;
        x[i] = int(m - line * h.places) * h.scale + h.origin;
        y[i] = m < rows ? int(line % v.places) * v.scale + v.origin : -(1 << 28);  // outside of every image
        image[i] = in + (m < rows ? line / v.places * sizes.IH * sizes.IW * sizes.C : INDEX(0));
    }
    Four next_pixels[LOAD_M], next_filters[LOAD_F];
    auto load = [&](int k0) {
#pragma unroll
        for (int i = 0; i < LOAD_M; i++)
            next_pixels[i] = window(image[i], y[i], x[i], k0 + 4 * (t % 4), v, h, sizes, packed_in);
#pragma unroll
        for (int i = 0; i < LOAD_F; i++) {
            const int q = t + THREADS * i, k = k0 + q / ACROSS, tap = k / sizes.C;
            next_filters[i] = {};
            if (q >= DEPTH * ACROSS || k >= K) continue;
            const int a = v.tap + tap / h.taps * v.tap_every, b = h.tap + tap % h.taps * h.tap_every;
            const INDEX row = INDEX(a * sizes.KW + b) * sizes.C + k - tap * sizes.C;
            next_filters[i] = read(w + row * sizes.F, f0 + q % ACROSS * 4, sizes.F, packed_out);
        }
    };
    REAL sums[EACH][4] = {};
    if (K) load(0);
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        __syncthreads();  // all have read the tiles before
#pragma unroll
        for (int i = 0; i < LOAD_M; i++) pixels[t / 4 + THREADS / 4 * i][t % 4] = next_pixels[i];
#pragma unroll
        for (int i = 0; i < LOAD_F; i++) {
            const int q = t + THREADS * i;
            if (q < DEPTH * ACROSS) filters[q / ACROSS][q % ACROSS] = next_filters[i];
        }
        __syncthreads();  // all have written these
        if (k0 + DEPTH < K) load(k0 + DEPTH);
#pragma unroll
        for (int k = 0; k < DEPTH; k += 4) {
            Four p[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) p[i] = pixels[down + DOWN * i][k / 4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const Four q = filters[k + e][across];
#pragma unroll
                for (int i = 0; i < EACH; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[i][j] += p[i].v[e] * q.v[j];
            }
        }
    }
    const int f = f0 + 4 * across;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const INDEX m = first + down + DOWN * i, line = m / h.places;
        if (m >= rows) continue;
        const INDEX row = line / v.places * sizes.OH + v.first + line % v.places * v.every;
        REAL* target = out + (row * sizes.OW + h.first + (m - line * h.places) * h.every) * sizes.F;
        if (packed_out && f < sizes.F) four(target + f) = Four{sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        else
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (f + j < sizes.F) target[f + j] = sums[i][j];
    }
}

// y (N, OH, OW, F) from x (N, H, W, C) and w (KH, KW, C, F). Grid: tiles of pixels, tiles of filters.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) forward(
    const REAL* __restrict__ x, const REAL* __restrict__ w, REAL* __restrict__ y, int N, int H, int W, int C, int OH, int OW,
    int F, int KH, int KW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w,
    int packed_in, int packed_out) {
    __shared__ Four pixels[TILE_M][ROW], filters[DEPTH][ACROSS];
    const Axis v = forward_axis(OH, KH, stride_h, padding_h, dilation_h);
    const Axis h = forward_axis(OW, KW, stride_w, padding_w, dilation_w);
    gather(x, w, y, v, h, {N, H, W, C, OH, OW, F, KW}, packed_in, packed_out, pixels, filters);
}

// dx (N, H, W, C) from dy (N, OH, OW, F) and w (KH, KW, F, C). Grid: tiles of pixels, tiles of channels, phases.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) backward_input(
    const REAL* __restrict__ dy, const REAL* __restrict__ w, REAL* __restrict__ dx, int N, int H, int W, int C, int OH,
    int OW, int F, int KH, int KW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w,
    int packed_in, int packed_out) {
    __shared__ Four pixels[TILE_M][ROW], filters[DEPTH][ACROSS];
    const Axis v = backward_axis(blockIdx.z / stride_w, H, KH, stride_h, padding_h, dilation_h);
    const Axis h = backward_axis(blockIdx.z % stride_w, W, KW, stride_w, padding_w, dilation_w);
    gather(dy, w, dx, v, h, {N, OH, OW, F, H, W, C, KW}, packed_in, packed_out, pixels, filters);
}

// --- the gradient by the weights ---
//
// dw[k,f] = sum over m of columns[m,k] * dy[m,f]: a small matrix of sums over all pixels. One block for each of its tiles
// would leave the card empty, so block z takes ``per_part`` pixels and writes sums of its own; add_parts (im2col.cu) adds
// them in order. The tiles lie as they come from memory, 16 pixels long; rows of them are what the threads multiply.
// parts (gridDim.z, KH KW C, F). Grid: tiles of k, tiles of filters, parts.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) backward_weight(
    const REAL* __restrict__ dy, const REAL* __restrict__ x, REAL* __restrict__ parts, INDEX per_part, int N, int H, int W,
    int C, int OH, int OW, int F, int KH, int KW, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h,
    int dilation_w, int packed_in, int packed_out) {
    constexpr int QUADS = TILE_M / 4, LOAD_M = DEPTH * QUADS / THREADS, LOAD_F = ceil_div(DEPTH * ACROSS, THREADS);
    __shared__ Four columns[DEPTH][QUADS], cotangents[DEPTH][ACROSS];
    const Axis v = forward_axis(OH, KH, stride_h, padding_h, dilation_h);
    const Axis h = forward_axis(OW, KW, stride_w, padding_w, dilation_w);
    const Sizes sizes = {N, H, W, C, OH, OW, F, KW};
    const int t = threadIdx.x, across = t % ACROSS, down = t / ACROSS, K = KH * KW * C;
    const int k0 = blockIdx.x * TILE_M, f0 = blockIdx.y * TILE_F;
    const INDEX rows = INDEX(N) * OH * OW, begin = blockIdx.z * per_part;
    const INDEX end = begin + per_part < rows ? begin + per_part : rows;
    Four next_columns[LOAD_M], next_cotangents[LOAD_F];
    auto load = [&](INDEX m0) {
#pragma unroll
        for (int i = 0; i < LOAD_M; i++) {
            const INDEX m = m0 + t / QUADS + THREADS / QUADS * i, line = m / OW, n = line / OH;
            next_columns[i] = {};
            if (m >= end) continue;
            const int top = int(line - n * OH) * stride_h - padding_h, left = int(m - line * OW) * stride_w - padding_w;
            next_columns[i] = window(x + n * H * W * C, top, left, k0 + t % QUADS * 4, v, h, sizes, packed_in);
        }
#pragma unroll
        for (int i = 0; i < LOAD_F; i++) {
            const int q = t + THREADS * i;
            const INDEX m = m0 + q / ACROSS;
            next_cotangents[i] = {};
            if (q < DEPTH * ACROSS && m < end) next_cotangents[i] = read(dy + m * F, f0 + q % ACROSS * 4, F, packed_out);
        }
    };
    REAL sums[EACH][4] = {};
    load(begin);
    for (INDEX m0 = begin; m0 < end; m0 += DEPTH) {
        __syncthreads();  // all have read the tiles before
#pragma unroll
        for (int i = 0; i < LOAD_M; i++) columns[t / QUADS + THREADS / QUADS * i][t % QUADS] = next_columns[i];
#pragma unroll
        for (int i = 0; i < LOAD_F; i++) {
            const int q = t + THREADS * i;
            if (q < DEPTH * ACROSS) cotangents[q / ACROSS][q % ACROSS] = next_cotangents[i];
        }
        __syncthreads();  // all have written these
        if (m0 + DEPTH < end) load(m0 + DEPTH);
#pragma unroll
        for (int m = 0; m < DEPTH; m++) {
            const Four q = cotangents[m][across];
#pragma unroll
            for (int i = 0; i < EACH; i += 4) {
                const Four p = columns[m][down + DOWN / 4 * i];
#pragma unroll
                for (int e = 0; e < 4; e++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[i + e][j] += p.v[e] * q.v[j];
            }
        }
    }
    const int f = f0 + 4 * across;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int k = k0 + 4 * down + DOWN * (i / 4 * 4) + i % 4;
        REAL* target = parts + (INDEX(blockIdx.z) * K + k) * F;
        if (k >= K) continue;
        if (packed_out && f < F) four(target + f) = Four{sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        else
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (f + j < F) target[f + j] = sums[i][j];
    }
}
