// What an elementwise kernel is made of: a function of one element, or of two, over whole arrays.
//
// One thread per pack of 16 bytes, then one thread per element for what is left: each array crosses the memory bus once.
//
// n elements, of which the first ``packs`` packs are read as such: 0 where an array does not start at a multiple of 16
// bytes. NaN stays NaN, as in NumPy: `x > 0 ? x : 0` and fmaxf(x, 0) would both turn it into 0.
#pragma once
#include "common.cuh"

// max(x, 0)
__device__ __forceinline__ ACC relu_of(ACC x) { return x <= 0 ? ACC(0) : x; }

template <class F> __device__ __forceinline__ void map(F f, const REAL* x, REAL* z, INDEX n, INDEX packs) {
    const INDEX first = INDEX(blockIdx.x) * blockDim.x + threadIdx.x, stride = INDEX(gridDim.x) * blockDim.x;
    for (INDEX i = first; i < packs; i += stride) {
        const Pack a = reinterpret_cast<const Pack*>(x)[i];
        Pack c;
        for (int k = 0; k < PACK; k++) narrow(c.v[k], f(widen(a.v[k])));
        reinterpret_cast<Pack*>(z)[i] = c;
    }
    for (INDEX i = packs * PACK + first; i < n; i += stride) narrow(z[i], f(widen(x[i])));
}

template <class F> __device__ __forceinline__ void map(F f, const REAL* x, const REAL* y, REAL* z, INDEX n, INDEX packs) {
    const INDEX first = INDEX(blockIdx.x) * blockDim.x + threadIdx.x, stride = INDEX(gridDim.x) * blockDim.x;
    for (INDEX i = first; i < packs; i += stride) {
        const Pack a = reinterpret_cast<const Pack*>(x)[i], b = reinterpret_cast<const Pack*>(y)[i];
        Pack c;
        for (int k = 0; k < PACK; k++) narrow(c.v[k], f(widen(a.v[k]), widen(b.v[k])));
        reinterpret_cast<Pack*>(z)[i] = c;
    }
    for (INDEX i = packs * PACK + first; i < n; i += stride) narrow(z[i], f(widen(x[i]), widen(y[i])));
}
