// What every kernel here is written with: the types that arrays hold, and how they become numbers to compute with.
//
// Macros, set by the launcher: REAL  what an array's elements are: float, double, half or bfloat16
//                               INDEX int, or long long where an array has 2^31 elements or more
#pragma once
#ifndef TINYRES_EMULATED
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define DYNAMIC_SHARED(type, name)                          \
    extern __shared__ __align__(16) char dynamic_shared[];  \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#else
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)
#endif

struct half { uint16_t bits; };      // IEEE 754 binary16
struct bfloat16 { uint16_t bits; };  // the upper half of a float

#ifndef REAL
#define REAL float
#endif
#ifndef INDEX
#define INDEX int
#endif
typedef INDEX Index;
#undef INDEX
#define INDEX Index  // one word, so that INDEX(x) is a conversion

// a / b, rounded up: how many pieces of b it takes to hold a
template <class A, class B> __device__ constexpr A ceil_div(A a, B b) { return (a + b - 1) / b; }

// --- widen(x): the number to compute with.  narrow(y, x): y gets x, rounded to nearest even ---

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(half x) {
#ifndef TINYRES_EMULATED
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity, NaN
    const float y = __uint_as_float(rest << 13) * __uint_as_float(0x77800000);              // times 2^112
    return __uint_as_float(__float_as_uint(y) | sign);
#endif
}

__device__ __forceinline__ void narrow(float& y, float x) { y = x; }
__device__ __forceinline__ void narrow(double& y, double x) { y = x; }
__device__ __forceinline__ void narrow(bfloat16& y, float x) {
    const uint32_t u = __float_as_uint(x);
    y.bits = uint16_t(x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
__device__ __forceinline__ void narrow(half& y, float x) {
#ifndef TINYRES_EMULATED
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000) y.bits = uint16_t(sign | 0x7e00);
    else if (rest >= 0x477ff000) y.bits = uint16_t(sign | 0x7c00);
    else if (rest < 0x38800000)  // below 2^-14: counted in steps of 2^-24, by adding a number whose own step that is
        y.bits = uint16_t(sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000));
    else y.bits = uint16_t(sign | ((rest + 0xfff + (rest >> 13 & 1)) >> 13) - 0x1c000);
#endif
}

template <class T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };
typedef Wide<REAL>::type ACC;  // what sums are computed in

template <class T> __device__ __forceinline__ T narrow(ACC x) { T y; narrow(y, x); return y; }

// 16 bytes of an array, which a thread reads or writes at once
constexpr int PACK = 16 / sizeof(REAL);
struct __align__(16) Pack { REAL v[PACK]; };

// A sum over the block, the same in every thread. ``of_warp``: shared memory, one number per warp; the tree is fixed, so
// the bits are. All threads of the block must call it, in whole warps.
template <class T> __device__ __forceinline__ T block_sum(T sum, T* of_warp) {
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    const int thread = threadIdx.x + blockDim.x * threadIdx.y, warps = blockDim.x * blockDim.y / 32;
    __syncthreads();
    if (thread % 32 == 0) of_warp[thread / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < warps; w++) sum += of_warp[w];
    return sum;
}
