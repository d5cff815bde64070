// Convolution on the tensor cores, and its gradient by the input. (By the weights: conv_tensor_weight.cu. Which REAL on
// which architecture: conv_tensor.cuh.)
//
// It is the matrix product y[m,f] = sum over k of columns[m,k] w[f,k] with a row m for each output pixel and k = (tap,
// channel), where the columns exist nowhere in memory: they are read from x as they are needed ("implicit GEMM").
//
// Costs: 2 M F K FLOPs; x, w and y are moved once. ResNet-20 at batch 128, one 3x3 layer, in float (half: half the bytes):
//
//     channels, map    rows M    depth K   GFLOP   x + y, MB   memory at 4.3 TB/s   TF32 at 310 TFLOP/s   reads of A, MB
//     16, 32x32        131072    144       0.60    16.8        3.9 us               1.9 us                75 (K M 4 bytes)
//     32, 16x16        32768     288       0.60    8.4         2.0 us               1.9 us                38
//     64, 8x8          8192      576       0.60    4.2         1.0 us               1.9 us                2 x 19
//
// (Estimates for an H200; mma.sync gets about 63 % of the peak.)  So the cores are not the limit here. What comes close to
// it is the way of the columns to the cores: each element of x is wanted by 9 taps. The L1 caches of 132 multiprocessors
// deliver 128 bytes per clock each: 75 MB are 2.6 us if each is moved ONCE from L1 to a register. The usual path, from L2 to
// shared memory (cp.async), then from there to registers (ldmatrix), moves all nine copies of x three times, and pays for
// barriers and addresses. Hence:
//
//   A    pixels go straight from L1 into the registers of the lane that multiplies them, 16 bytes at a time (conv_tensor.cuh
//        says why no shuffle is needed). The nine taps read the same lines, which stay in L1. While a warp multiplies one
//        chunk, its next one is on the way.
//   B    filters are wanted by all warps of a block, in another order than they lie in memory, and rounded: so they do go
//        through shared memory, in the order of the fragments, STAGE chunks of them at a time.
//   C    a warp's tile is 32 pixels x TILE_F filters. ``parts`` warps share one where there are few pixels: each takes
//        some of the chunks, and at the end they add up.  8x8 maps would else keep an eighth of the card busy.
//
// A chunk is one tap and DEPTH channels of it.
//
// Macros: TILE_F (16 or 32); WORDS, that a lane loads at once: 4, or 2 for half and bfloat16 with 16 channels.
#include "conv_tensor.cuh"

#ifndef TILE_F
#define TILE_F 32
#define WORDS 4
#endif

constexpr int EACH = WORDS * PER_WORD, DEPTH = 4 * EACH;  // elements of a lane and of a chunk
constexpr int COLUMNS = TILE_F / 8, OF_LANE = 2 * COLUMNS;   // tiles of 8 filters; filters of a lane at the end
constexpr int STAGE = TILE_F == 16 ? 9 : 18;                 // chunks: with 3x3 taps, a block of channels or two
constexpr int CHUNK = COLUMNS * 32 * WORDS + 4;              // words; 4 more, so that neighbouring taps use other banks
constexpr int WARPS = 8, THREADS = 32 * WARPS, SUMS = 2 * COLUMNS * 4;
constexpr int LOADERS = THREADS / (TILE_F / 16);             // threads that load 16 filters of the tile
constexpr int OUT = OF_LANE < PACK ? OF_LANE : PACK;         // elements of a lane that are written at once
constexpr int MOST_PARTS_WORDS = WARPS / 2 * 32 * SUMS, FILTER_WORDS = STAGE * CHUNK;
constexpr int SHARED_WORDS = FILTER_WORDS > MOST_PARTS_WORDS ? FILTER_WORDS : MOST_PARTS_WORDS;
constexpr int RESIDENT = TILE_F == 32 && sizeof(INDEX) == 8 ? 1 : 2;  // blocks, for which there must be registers
struct __align__(OUT * sizeof(REAL)) Out { REAL v[OUT]; };

// Both directions gather: an output place adds up input places, one for each tap. Along one axis, output place
// first + every i reads, for its tap number tap + tap_every u, input place scale i + origin + step u, if there is one.
//
//   forward  output i reads i s - p + a for all taps a: scale s, origin -p, step 1.
//   backward dx[h] collects dy[i] wherever i s - p + a = h, that is i = (h + p - a) / s where this is whole: the taps run
//            the other way ("flipped"), and which taps fit depends on h modulo s. So the places are dealt out to s phases,
//            h = phase + s i; within one, every s-th tap fits. No product with a zero in between is computed, and a phase
//            without a tap (1x1 filters, stride 2) gets its zeros.
struct Axis { int places, first, every, scale, origin, step, tap, tap_every, taps; };

__device__ __forceinline__ Axis axis(int backward, int phase, int places, int taps, int stride, int padding) {
    if (!backward) return {places, 0, 1, stride, -padding, 1, 0, 1, taps};
    const int tap = (phase + padding) % stride;
    return {ceil_div(places - phase, stride), phase, stride, 1, (phase + padding - tap) / stride, -1, tap, stride,
            tap < taps ? (taps - 1 - tap) / stride + 1 : 0};
}

struct Place { INDEX n; int y, x; };  // an output pixel of a phase

__device__ __forceinline__ void advance(Place& spot, int pixels, const Axis& v, const Axis& h) {
    for (spot.x += pixels; spot.x >= h.places; spot.x -= h.places)
        if (++spot.y == v.places) spot.y = 0, spot.n++;
}

struct Chunk { int channel, y, x; INDEX input, weight; };  // from where a window starts; from where a filter starts

// x (N, IH, IW, C), w, y (N, OH, OW, F). Forward, w is (F, C, KH, KW). Backward, dy, w and dx take their places, so w is
// (C, F, KH, KW). With ``add``, results are added to what y holds: where a block's input forks, two cotangents meet here.
// Grid: tiles of pixels, tiles of filters, phases.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) gather(
    const REAL* __restrict__ x, const float* __restrict__ w, REAL* __restrict__ y, int backward, int add, int parts, int N,
    int IH, int IW, int C, int OH, int OW, int F, int KH, int KW, int stride_h, int stride_w, int padding_h, int padding_w,
    int packed_in, int packed_out) {
    __shared__ Words<4> shared[SHARED_WORDS / 4];
    uint32_t* filters = reinterpret_cast<uint32_t*>(shared);
    __shared__ Chunk chunks[2][STAGE];
    const int phase_h = blockIdx.z / stride_w, phase_w = blockIdx.z % stride_w;
    const Axis v = axis(backward, phase_h, OH, KH, stride_h, padding_h);
    const Axis h = axis(backward, phase_w, OW, KW, stride_w, padding_w);
    const INDEX rows = INDEX(N) * v.places * h.places, first = INDEX(blockIdx.x) * (WARPS / parts * 32);
    if (first >= rows) return;  // a smaller phase than others; the whole block leaves
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32, part = warp % parts;
    const int f0 = blockIdx.y * TILE_F, taps = v.taps * h.taps, count = taps * ceil_div(C, DEPTH);

    // the windows of this lane's four pixels, which are rows g, g + 8, g + 16 and g + 24 of the tile
    const INDEX m = first + warp / parts * 32 + g;
    const INDEX line = m / h.places;
    Place spot = {line / v.places, int(line % v.places), int(m - line * h.places)};
    INDEX start[4];
    int top[4], left[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        left[r] = spot.x * h.scale + h.origin;
        top[r] = m + 8 * r < rows ? spot.y * v.scale + v.origin : -(1 << 28);  // outside of every image
        start[r] = ((spot.n * IH + spot.y * v.scale + v.origin) * IW + left[r]) * C + t * EACH;
        advance(spot, 8, v, h);
    }

    // Chunk q is tap q % taps of a block of channels. The divisions that say so are done once for a block of threads.
    const INDEX next_depth = INDEX(backward ? F : 1) * KH * KW, next_filter = INDEX(backward ? 1 : C) * KH * KW;
    auto describe = [&](Chunk* target, int q0) {
        const int q = q0 + threadIdx.x;
        if (threadIdx.x >= STAGE || q >= count) return;
        const int tap = q % taps, a = tap / h.taps, b = tap - a * h.taps, channel = q / taps * DEPTH;
        const int dy = a * v.step, dx = b * h.step;
        target[threadIdx.x] = {channel, dy, dx, (INDEX(dy) * IW + dx) * C + channel,
                           channel * next_depth + (v.tap + a * v.tap_every) * KW + h.tap + b * h.tap_every};
    };
    Words<WORDS> next[4];
    auto load = [&](const Chunk& chunk) {
        const int channels = C - chunk.channel - t * EACH;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const bool inside = unsigned(top[r] + chunk.y) < unsigned(IH) && unsigned(left[r] + chunk.x) < unsigned(IW);
            next[r] = read_words<WORDS>(x + (start[r] + chunk.input), inside ? channels : 0, packed_in);
        }
    };

    float sums[2][COLUMNS][4] = {};
    describe(chunks[0], 0);
    for (int q0 = 0, stage = 0; q0 < count; q0 += STAGE, stage ^= 1) {
        const int here = count - q0 < STAGE ? count - q0 : STAGE;
        int q = (part + parts - q0 % parts) % parts;  // this warp's chunks are part, part + parts, ...
        __syncthreads();                              // all have read the last filters; all chunks have been described
        if (q < here) load(chunks[stage][q]);
        // Taps lie side by side in memory, so the lane number runs along them first; a thread takes 16 filters, whose loads
        // are all on their way before the first arrives. Filter ``column`` of the tile is in that column of the fragments
        // which makes OF_LANE filters in a row fall to one lane at the end.
        const int c0 = threadIdx.x / LOADERS * 16;
#pragma unroll 1
        for (int e = threadIdx.x % LOADERS; e < STAGE * DEPTH; e += LOADERS) {
            const int s = e % STAGE, k = e / STAGE;
            if (s >= here) continue;
            const float* filter = w + (chunks[stage][s].weight + k * next_depth + (f0 + c0) * next_filter);
            const int left = chunks[stage][s].channel + k < C ? F - f0 - c0 : 0;
            float values[16];
#pragma unroll
            for (int i = 0; i < 16; i++, filter += next_filter) values[i] = i < left ? *filter : 0.f;
            uint32_t* target = filters + s * CHUNK + k / EACH * WORDS + k % EACH / PER_WORD;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const int column = c0 + i, row = column / OF_LANE * 2 + column % 2, tile = column % OF_LANE / 2;
                uint32_t* word = target + (tile * 32 + row * 4) * WORDS;
                if (sizeof(REAL) == 4) *word = to_tf32(values[i]);
                else narrow(reinterpret_cast<REAL*>(word)[k % PER_WORD], values[i]);
            }
        }
        describe(chunks[stage ^ 1], q0 + STAGE);
        __syncthreads();  // all have written the filters
        for (; q < here; q += parts) {
            uint32_t a[2][WORDS / 2][4];
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int i = 0; i < WORDS; i++) a[r / 2][i / 2][r % 2 + i % 2 * 2] = operand(next[r].v[i]);
            if (q + parts < here) load(chunks[stage][q + parts]);
            const Words<WORDS>* b = reinterpret_cast<const Words<WORDS>*>(filters + q * CHUNK) + lane;
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const Words<WORDS> words = b[32 * j];
#pragma unroll
                for (int k = 0; k < WORDS / 2; k++)
#pragma unroll
                    for (int i = 0; i < 2; i++) multiply(sums[i][j], a[i][k], {words.v[2 * k], words.v[2 * k + 1]}, REAL());
            }
        }
    }
    if (parts > 1) {
        __syncthreads();  // all have read the filters
        sum_of_warps<SUMS>(&sums[0][0][0], reinterpret_cast<float*>(filters), warp / parts, part, parts);
        if (part) return;
    }
    const int f = f0 + t * OF_LANE;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const INDEX place = m + 8 * r;
        if (place >= rows) break;
        INDEX pixel = place;
        if (gridDim.z > 1) {  // phases
            const INDEX row = place / h.places;
            const INDEX line = row / v.places * OH + v.first + row % v.places * v.every;
            pixel = line * OW + h.first + (place - row * h.places) * h.every;
        }
        REAL* target = y + pixel * F + f;
#pragma unroll
        for (int e = 0; e < OF_LANE; e += OUT) {
            Out out = {};
            if (add && packed_out) {
                if (f + e < F) out = *reinterpret_cast<const Out*>(target + e);
            } else if (add) {
#pragma unroll
                for (int i = 0; i < OUT; i++)
                    if (f + e + i < F) out.v[i] = target[e + i];
            }
#pragma unroll
            for (int i = 0; i < OUT; i++)
                narrow(out.v[i], widen(out.v[i]) + sums[r / 2][(e + i) / 2][r % 2 * 2 + (e + i) % 2]);
            if (packed_out) {
                if (f + e < F) *reinterpret_cast<Out*>(target + e) = out;
            } else {
#pragma unroll
                for (int i = 0; i < OUT; i++)
                    if (f + e + i < F) target[e + i] = out.v[i];
            }
        }
    }
}
