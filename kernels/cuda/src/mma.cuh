// The tensor cores' instruction, D = A B + C over one warp, behind a function for each type of operand.
//
// A is 16 x K, B is K x 8, D and C are 16 x 8 in float; every lane holds a few elements of each, in registers. With
// g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k8 / m16n8k16"):
//
//     d[0], d[1]  row g,     columns 2t, 2t + 1          d[2], d[3]  row g + 8, columns 2t, 2t + 1
//     TF32, K = 8, one element a register:
//       a[0] (g, t)   a[1] (g + 8, t)   a[2] (g, t + 4)   a[3] (g + 8, t + 4)        b[0] (t, g)   b[1] (t + 4, g)
//     half and bfloat16, K = 16, two elements a register, the first in the lower half:
//       a[0] (g, 2t)  a[1] (g + 8, 2t)  a[2] (g, 2t + 8)  a[3] (g + 8, 2t + 8)       b[0] (2t, g)  b[1] (2t + 8, g)
//
// In the host version every lane shows where its registers are, and the first lane puts A and B together from them and
// multiplies for all: a wrong lane or a wrong register gives the wrong result there as on the card.
#pragma once
#include "common.cuh"

#ifdef TINYRES_EMULATED
namespace emulator {
struct Registers { float* d; const uint32_t *a, *b; };
typedef float Row __attribute__((vector_size(32)));  // 8 floats at once, in as many instructions as the machine needs

// D += A B of all lanes' registers, which lie on their stacks.
template <int DEPTH, class Element> __attribute__((noinline)) static void multiply_warp(const char* warp, Element element) {
    constexpr int EACH = DEPTH / 8;  // elements of a register
    Registers registers[32];
    float rows[16][DEPTH];
    Row columns[DEPTH];
    for (int lane = 0; lane < 32; lane++) {
        uint32_t a[4], b[2];
        registers[lane] = shown<Registers>(warp, lane);
        std::memcpy(a, registers[lane].a, sizeof a);
        std::memcpy(b, registers[lane].b, sizeof b);
        for (int e = 0; e < EACH; e++) {
            const int k = lane % 4 * EACH + e, g = lane / 4;
            for (int i = 0; i < 4; i++) rows[g + i % 2 * 8][k + i / 2 * (DEPTH / 2)] = element(a[i], e);
            for (int i = 0; i < 2; i++) columns[k + i * (DEPTH / 2)][g] = element(b[i], e);
        }
    }
    for (int r = 0; r < 16; r++) {
        Row sums = {};
        for (int k = 0; k < DEPTH; k++) sums += rows[r][k] * columns[k];
        for (int t = 0; t < 4; t++) {
            float* target = registers[r % 8 * 4 + t].d + r / 8 * 2;
            float d[2];
            std::memcpy(d, target, sizeof d);
            for (int i = 0; i < 2; i++) d[i] += sums[2 * t + i];
            std::memcpy(target, d, sizeof d);
        }
    }
}

template <int DEPTH, class Element>
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
    const char* warp = exchange(Registers{d, a, b}, "mma");
    if (is_first()) multiply_warp<DEPTH>(warp, element);
}
}  // namespace emulator
#endif

// float -> the nearest TF32 number (10 bits of mantissa, ties away from zero), as the bits of a float
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if !defined(TINYRES_EMULATED) && __CUDA_ARCH__ >= 800
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#else
    const uint32_t u = __float_as_uint(x);
    return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & ~0x1fffu;
#endif
}

__device__ __forceinline__ uint32_t two(half low, half high) { return low.bits | uint32_t(high.bits) << 16; }
__device__ __forceinline__ uint32_t two(bfloat16 low, bfloat16 high) { return low.bits | uint32_t(high.bits) << 16; }

// D += A B with TF32 operands: 16 x 8 x 8. From sm_80 on.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef TINYRES_EMULATED
    emulator::mma<8>(d, a, b, [](uint32_t x, int) { return __uint_as_float(x & ~0x1fffu); });
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// D += A B with half operands: 16 x 8 x 16, or twice 16 x 8 x 8 on sm_75.
__device__ __forceinline__ void mma_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef TINYRES_EMULATED
    emulator::mma<16>(d, a, b, [](uint32_t x, int i) { return widen(half{uint16_t(x >> 16 * i)}); });
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int i = 0; i < 2; i++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

// D += A B with bfloat16 operands: 16 x 8 x 16. From sm_80 on.
__device__ __forceinline__ void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef TINYRES_EMULATED
    emulator::mma<16>(d, a, b, [](uint32_t x, int i) { return widen(bfloat16{uint16_t(x >> 16 * i)}); });
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
