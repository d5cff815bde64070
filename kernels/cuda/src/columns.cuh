// Arrays (N, H, W, C) by groups of WIDTH channels of one pixel, which a thread reads and writes at once: they lie side by
// side, 16 bytes of them, and so do their neighbours' in the next thread.
//
// Macros: WIDTH channels that a thread reads at once: 16 bytes of them, or 1 where they do not fill packs
#pragma once
#include "common.cuh"
#ifndef WIDTH
#define WIDTH PACK
#endif

template <class T> struct __align__(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Several { T v[WIDTH]; };
typedef Several<REAL> Values;

__device__ __forceinline__ Values read(const REAL* x, INDEX i) { return reinterpret_cast<const Values*>(x)[i]; }
__device__ __forceinline__ void write(REAL* x, INDEX i, const Values& values) { reinterpret_cast<Values*>(x)[i] = values; }

// The i-th group of WIDTH channels of an (n, h, w, columns * WIDTH) array: its image, row, column of pixels and of channels.
struct Spot {
    INDEX n;
    int row, pixel, column;
    __device__ Spot(INDEX i, int h, int w, int columns) {
        column = i % columns;
        i /= columns;
        pixel = i % w;
        i /= w;
        row = i % h;
        n = i / h;
    }
};

__device__ __forceinline__ INDEX index_of(INDEX n, int row, int pixel, int column, int h, int w, int columns) {
    return ((n * h + row) * w + pixel) * columns + column;
}
