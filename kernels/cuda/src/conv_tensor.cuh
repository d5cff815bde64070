// What the convolutions on tensor cores share: operands as they lie in registers, for each of the three precisions.
//
//   REAL = float              products of TF32 numbers (10 bits of mantissa), mma m16n8k8          sm_80 and later
//   REAL = bfloat16           mma m16n8k16                                                         sm_80 and later
//   REAL = half               mma m16n8k16, or two m16n8k8                                         sm_75 and later
//
// A lane of a warp loads neighbouring channels of one pixel at once, up to 16 bytes: as they come, these 32-bit words are
// its fragments. That takes two liberties. The order of the terms of a sum is free, as long as A and B agree on it, so a
// lane's "k = t and t + 4" may be channels 4t and 4t + 1. And a row or a column of the product may stand for any pixel or
// filter, as long as the end of the kernel knows which.
#pragma once
#include "mma.cuh"

constexpr int PER_WORD = 4 / sizeof(REAL);  // elements of a word

// Words that a lane loads at once.
template <int SIZE> struct __align__(4 * SIZE) Words { uint32_t v[SIZE]; };

__device__ __forceinline__ uint32_t bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint32_t bits(half x) { return x.bits; }
__device__ __forceinline__ uint32_t bits(bfloat16 x) { return x.bits; }

// The words from ``source`` on, where ``left`` more elements belong to the row: zeros for the others. ``packed``: a row is a
// whole number of them and starts at a multiple of their size.
template <int SIZE> __device__ __forceinline__ Words<SIZE> read_words(const REAL* source, int left, int packed) {
    Words<SIZE> words = {};
    if (packed) {
        if (left > 0) words = *reinterpret_cast<const Words<SIZE>*>(source);
    } else {
#pragma unroll
        for (int e = 0; e < SIZE * PER_WORD; e++)
            if (e < left) words.v[e / PER_WORD] |= bits(source[e]) << e % PER_WORD * 16;
    }
    return words;
}

// A word in memory -> a word of a fragment. TF32: rounded, since the cores would cut off what is too much.
__device__ __forceinline__ uint32_t operand(uint32_t word) {
    return sizeof(REAL) == 4 ? to_tf32(__uint_as_float(word)) : word;
}

typedef const uint32_t (&A)[4], (&B)[2];
__device__ __forceinline__ void multiply(float (&d)[4], A a, B b, float) { mma_tf32(d, a, b); }
__device__ __forceinline__ void multiply(float (&d)[4], A a, B b, half) { mma_half(d, a, b); }
__device__ __forceinline__ void multiply(float (&d)[4], A a, B b, bfloat16) { mma_bfloat16(d, a, b); }

// The sum of the warps' ``sum``s of COUNT numbers a lane, in warp 0 of each group of ``members``, a power of two: half of
// them show theirs, the other half adds, and again with the rest. So the order is fixed. ``shared``: 32 COUNT numbers for
// half of the block's warps. All threads must call it; nobody may still use ``shared``.
template <int COUNT>
__device__ __forceinline__ void sum_of_warps(float* sum, float* shared, int group, int member, int members) {
    for (int half = members / 2; half; half /= 2) {
        float* slot = shared + (group * half + member % half) * 32 * COUNT + threadIdx.x % 32;
        if (member >= half && member < 2 * half)
#pragma unroll
            for (int i = 0; i < COUNT; i++) slot[32 * i] = sum[i];
        __syncthreads();
        if (member < half)
#pragma unroll
            for (int i = 0; i < COUNT; i++) sum[i] += slot[32 * i];
        __syncthreads();
    }
}
