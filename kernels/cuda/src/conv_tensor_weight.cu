// A convolution's gradient by the weights, on the tensor cores. (Which REAL on which architecture: conv_tensor.cuh.)
//
// dw[f, tap, c] = sum over output pixels m of dy[m,f] * x[pixel that m reads for this tap, c]: 2 M F K FLOPs as forward, for
// a small matrix of very long sums; x and dy are read once. What limits it: as in conv_tensor_forward.cu, neither the cores
// nor the memory, but the way from the L1 cache to registers. So operands go it directly here as well, and few times:
//
//   tile     a warp has TILE filters x TILE channels x TAPS taps in a row of the window, in registers
//   pixels   a lane loads TILE / 8 channels of 4 pixels that are neighbours in a row. A warp's 16 pixels are one step of
//            half and bfloat16, or two of TF32. Memory has channels side by side where a fragment of 16-bit numbers has
//            pixels: a byte permutation takes the same channel from the words of two pixels.
//   TAPS     3, at stride 1: the windows of 4 neighbours cover 6 pixels, which serve all 12 products of a pixel and a tap.
//            1: for every other geometry; the other taps are other blocks' work.
//   parts    blocks share out the pixels, and their warps, too. The warps of one add up in a fixed order; the blocks write
//            to ``parts``, and add_parts (im2col.cu) adds those, in order. How many there are follows from the shapes.
//
// Where OW is not a multiple of 4, the last four of a row are not all pixels: zeros stand for the others.
//
// Macros: TILE (16, or 32 where rows of x and dy can be read in whole pieces), TAPS (1 or 3).
#include "conv_tensor.cuh"

#ifndef TILE
#define TILE 32
#define TAPS 3
#endif

constexpr int EACH = TILE / 8, WORDS = EACH / PER_WORD;  // channels of a lane, and their words
constexpr int WINDOW = TAPS + 3;                         // pixels that a lane loads for its 4 output pixels
constexpr int STEPS = 3 - PER_WORD;                      // products over 16 pixels
constexpr int WARPS = 4, THREADS = 32 * WARPS, SUMS = TAPS * (EACH / 2) * EACH * 4;
constexpr int RESIDENT = TILE == 16 ? 5 : sizeof(INDEX) == 8 ? 2 : 3;  // blocks, for which there must be registers
typedef Words<WORDS> Piece;

// The register of a fragment for element e of the lane's channels. A TF32 register holds one pixel: 2 step + upper. A
// register of two elements holds pixels 2 upper and 2 upper + 1.
__device__ __forceinline__ uint32_t fragment(
    const Piece& p0, const Piece& p1, const Piece& p2, const Piece& p3, int step, int upper, int e) {
    if (sizeof(REAL) == 4) return (step ? upper ? p3 : p2 : upper ? p1 : p0).v[e];
    const uint32_t low = (upper ? p2 : p0).v[e / 2], high = (upper ? p3 : p1).v[e / 2];
    return e % 2 ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16;
}

__device__ __forceinline__ Piece read_piece(const REAL* start, int left, int packed) {
    Piece piece = read_words<WORDS>(start, left, TILE == 32 || packed);
#pragma unroll
    for (int i = 0; i < WORDS; i++) piece.v[i] = operand(piece.v[i]);
    return piece;
}

// dy (N, OH, OW, F), x (N, H, W, C) -> parts (gridDim.x, KH KW C, F). Grid: parts of ``per_part`` times 16 pixels, tiles of
// filters times tiles of channels, rows of taps or taps.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) backward_weight(
    const REAL* __restrict__ dy, const REAL* __restrict__ x, float* __restrict__ parts, INDEX per_part, int N, int H, int W,
    int C, int OH, int OW, int F, int KH, int KW, int stride_h, int stride_w, int padding_h, int padding_w, int packed_x,
    int packed_dy) {
    __shared__ float shared[WARPS / 2 * 32 * SUMS];
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    const int channel_tiles = ceil_div(C, TILE);
    const int f = blockIdx.y / channel_tiles * TILE + g * EACH, c = blockIdx.y % channel_tiles * TILE + g * EACH;
    const int a = TAPS == 3 ? blockIdx.z : blockIdx.z / KW, b = TAPS == 3 ? 0 : blockIdx.z % KW;
    const int in_row = ceil_div(OW, 4);                          // fours of pixels
    const INDEX fours = INDEX(N) * OH * in_row;
    const INDEX begin = blockIdx.x * per_part, whole = ceil_div(fours, 4);
    const INDEX end = begin + per_part < whole ? begin + per_part : whole;

    float sums[TAPS][EACH / 2][EACH][4] = {};
    for (INDEX four = begin + warp; four < end; four += WARPS) {
        const INDEX place = 4 * four + t, line = place / in_row, n = line / OH;
        const int j = int(place - line * in_row) * 4, column = j * stride_w - padding_w + b;
        const int row = int(line - n * OH) * stride_h - padding_h + a;
        const int pixels = place < fours ? OW - j : 0;  // of this lane, if less than 4
        const bool inside = unsigned(row) < unsigned(H);
        Piece of_dy[4], of_x[WINDOW];
#pragma unroll
        for (int i = 0; i < 4; i++)
            of_dy[i] = read_piece(dy + (line * OW + j + i) * F + f, i < pixels ? F - f : 0, packed_dy);
        const INDEX start = ((n * H + row) * W + column) * C + c;
#pragma unroll
        for (int i = 0; i < WINDOW; i++) {
            const int step = TAPS == 3 ? i : i * stride_w;
            const bool read = inside && (TAPS == 3 ? pixels > 0 : i < pixels) && unsigned(column + step) < unsigned(W);
            of_x[i] = read_piece(x + (start + step * C), read ? C - c : 0, packed_x);
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32_t left[EACH / 2][4];
#pragma unroll
            for (int p = 0; p < EACH / 2; p++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    left[p][i] = fragment(of_dy[0], of_dy[1], of_dy[2], of_dy[3], step, i / 2, 2 * p + i % 2);
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++)
#pragma unroll
                for (int q = 0; q < EACH; q++) {
                    uint32_t right[2];
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        right[i] = fragment(of_x[tap], of_x[tap + 1], of_x[tap + 2], of_x[tap + 3], step, i, q);
#pragma unroll
                    for (int p = 0; p < EACH / 2; p++) multiply(sums[tap][p][q], left[p], right, REAL());
                }
        }
    }
    sum_of_warps<SUMS>(&sums[0][0][0][0], shared, 0, warp, WARPS);
    if (warp == 0)
#pragma unroll
        for (int i = 0; i < SUMS; i++) shared[32 * i + lane] = (&sums[0][0][0][0])[i];
    __syncthreads();
    // Now all threads write, filters side by side. Rows g and g + 8 of a product are filters 2p and 2p + 1 of lanes with
    // this g; columns 2t and 2t + 1 are channel q of the lanes that loaded it as g = 2t and 2t + 1.
    const int f0 = blockIdx.y / channel_tiles * TILE, c0 = blockIdx.y % channel_tiles * TILE;
    for (int e = threadIdx.x; e < TAPS * TILE * TILE; e += THREADS) {
        const int filter = e % TILE, channel = e / TILE % TILE, tap = e / (TILE * TILE), column = channel / EACH;
        const int product = (tap * (EACH / 2) + filter % EACH / 2) * EACH + channel % EACH;
        const float sum = shared[(4 * product + filter % 2 * 2 + column % 2) * 32 + filter / EACH * 4 + column / 2];
        const INDEX k = (INDEX(blockIdx.x) * KH * KW + a * KW + b + tap) * C + c0 + channel;
        if (f0 + filter < F && c0 + channel < C) parts[k * F + f0 + filter] = sum;
    }
}
