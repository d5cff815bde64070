// Pooling. All of it moves memory and computes next to nothing. A thread makes WIDTH channels of one pixel of the result.
// Windows that overlap are read again, but from the cache.
//
// Backward is written the other way round from the formula, which sends every cotangent to the pixels of its window: two
// windows that overlap would meet in one pixel. Here each pixel of dx looks up the windows that it is in, and adds up what
// they send to it: nothing collides, and the order of the sum is fixed.
//
// Macros: WIDTH as in columns.cuh
//         PLACE the type of an index into a window: as small as the window allows
#include "columns.cuh"
#ifndef PLACE
#define PLACE uint8_t
#endif

typedef Several<PLACE> Places;
struct Sums { ACC v[WIDTH]; };

// The first and the last window that pixel ``i`` of an axis is in: windows start at o * stride - padding. Empty where the
// first is behind the last.
struct Windows {
    int first, last;
    __device__ Windows(int i, int kernel, int stride, int padding, int out) {
        const int before = i + padding - kernel + 1;
        first = before > 0 ? ceil_div(before, stride) : 0;
        last = min((i + padding) / stride, out - 1);
    }
};

// (h, w) is x's map, (oh, ow) is y's; n counts groups of channels of the result.
extern "C" __global__ void max_pool2d(
    const REAL* __restrict__ x, REAL* __restrict__ y, PLACE* __restrict__ index, INDEX n, int h, int w, int columns, int oh,
    int ow, int kh, int kw, int sh, int sw, int ph, int pw) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const Spot spot(i, oh, ow, columns);
        Sums best;
        Places places;
        // minus infinity, at the first place inside the map: the answer where nothing is larger
        const int inside = max(ph - spot.row * sh, 0) * kw + max(pw - spot.pixel * sw, 0);
        for (int k = 0; k < WIDTH; k++) best.v[k] = __uint_as_float(0xff800000), places.v[k] = inside;
        for (int a = 0; a < kh; a++) {
            const int row = spot.row * sh - ph + a;
            if (row < 0 || row >= h) continue;
            for (int b = 0; b < kw; b++) {
                const int pixel = spot.pixel * sw - pw + b;
                if (pixel < 0 || pixel >= w) continue;
                const Values values = read(x, index_of(spot.n, row, pixel, spot.column, h, w, columns));
                for (int k = 0; k < WIDTH; k++) {
                    const ACC value = widen(values.v[k]);
                    // the first of equals stays, and a NaN wins over a number
                    if (value > best.v[k] || (value != value && best.v[k] == best.v[k]))
                        best.v[k] = value, places.v[k] = a * kw + b;
                }
            }
        }
        Values result;
        for (int k = 0; k < WIDTH; k++) narrow(result.v[k], best.v[k]);
        write(y, i, result);
        reinterpret_cast<Places*>(index)[i] = places;
    }
}

extern "C" __global__ void max_pool2d_backward(
    const REAL* __restrict__ dy, const PLACE* __restrict__ index, REAL* __restrict__ dx, INDEX n, int h, int w, int columns,
    int oh, int ow, int kh, int kw, int sh, int sw, int ph, int pw) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const Spot spot(i, h, w, columns);
        const Windows rows(spot.row, kh, sh, ph, oh), pixels(spot.pixel, kw, sw, pw, ow);
        Sums sum;
        for (int k = 0; k < WIDTH; k++) sum.v[k] = 0;
        for (int row = rows.first; row <= rows.last; row++)
            for (int pixel = pixels.first; pixel <= pixels.last; pixel++) {
                // which of the window's places this pixel is
                const int place = (spot.row + ph - row * sh) * kw + spot.pixel + pw - pixel * sw;
                const INDEX source = index_of(spot.n, row, pixel, spot.column, oh, ow, columns);
                const Values values = read(dy, source);
                const Places places = reinterpret_cast<const Places*>(index)[source];
                for (int k = 0; k < WIDTH; k++)
                    if (places.v[k] == place) sum.v[k] += widen(values.v[k]);
            }
        Values result;
        for (int k = 0; k < WIDTH; k++) narrow(result.v[k], sum.v[k]);
        write(dx, i, result);
    }
}

extern "C" __global__ void avg_pool2d(
    const REAL* __restrict__ x, REAL* __restrict__ y, INDEX n, int h, int w, int columns, int oh, int ow, int kh, int kw,
    int sh, int sw, int ph, int pw) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const Spot spot(i, oh, ow, columns);
        Sums sum;
        for (int k = 0; k < WIDTH; k++) sum.v[k] = 0;
        for (int a = 0; a < kh; a++) {
            const int row = spot.row * sh - ph + a;
            if (row < 0 || row >= h) continue;
            for (int b = 0; b < kw; b++) {
                const int pixel = spot.pixel * sw - pw + b;
                if (pixel < 0 || pixel >= w) continue;
                const Values values = read(x, index_of(spot.n, row, pixel, spot.column, h, w, columns));
                for (int k = 0; k < WIDTH; k++) sum.v[k] += widen(values.v[k]);
            }
        }
        Values result;
        for (int k = 0; k < WIDTH; k++) narrow(result.v[k], sum.v[k] / (kh * kw));
        write(y, i, result);
    }
}

extern "C" __global__ void avg_pool2d_backward(
    const REAL* __restrict__ dy, REAL* __restrict__ dx, INDEX n, int h, int w, int columns, int oh, int ow, int kh, int kw,
    int sh, int sw, int ph, int pw) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const Spot spot(i, h, w, columns);
        const Windows rows(spot.row, kh, sh, ph, oh), pixels(spot.pixel, kw, sw, pw, ow);
        Sums sum;
        for (int k = 0; k < WIDTH; k++) sum.v[k] = 0;
        for (int row = rows.first; row <= rows.last; row++)
            for (int pixel = pixels.first; pixel <= pixels.last; pixel++) {
                const Values values = read(dy, index_of(spot.n, row, pixel, spot.column, oh, ow, columns));
                for (int k = 0; k < WIDTH; k++) sum.v[k] += widen(values.v[k]);
            }
        Values result;
        for (int k = 0; k < WIDTH; k++) narrow(result.v[k], sum.v[k] / (kh * kw));
        write(dx, i, result);
    }
}

// The mean of each map, a block for an image and blockDim.x columns of channels: threads of one column share its pixels, and
// then a tree of fixed shape adds up what they have.
extern "C" __global__ void global_avg_pool2d(const REAL* __restrict__ x, REAL* __restrict__ y, int pixels, int columns) {
    DYNAMIC_SHARED(Sums, shared);
    const int column = blockIdx.y * blockDim.x + threadIdx.x, width = blockDim.x, row = threadIdx.y;
    Sums sum;
    for (int k = 0; k < WIDTH; k++) sum.v[k] = 0;
#pragma unroll 4
    for (int pixel = row; pixel < pixels && column < columns; pixel += blockDim.y) {
        const Values values = read(x, (INDEX(blockIdx.x) * pixels + pixel) * columns + column);
        for (int k = 0; k < WIDTH; k++) sum.v[k] += widen(values.v[k]);
    }
    shared[row * width + threadIdx.x] = sum;
    for (int rows = blockDim.y; rows > 1;) {
        const int rest = (rows + 1) / 2;
        __syncthreads();  // what is read below has been written, above or in the step before
        if (row + rest < rows)
            for (int k = 0; k < WIDTH; k++)
                shared[row * width + threadIdx.x].v[k] += shared[(row + rest) * width + threadIdx.x].v[k];
        rows = rest;
    }
    if (row || column >= columns) return;  // row 0 has the sum, which its own thread wrote last
    Values result;
    for (int k = 0; k < WIDTH; k++) narrow(result.v[k], shared[threadIdx.x].v[k] / pixels);
    write(y, INDEX(blockIdx.x) * columns + column, result);
}

extern "C" __global__ void global_avg_pool2d_backward(
    const REAL* __restrict__ dy, REAL* __restrict__ dx, INDEX n, int pixels, int columns) {
    for (INDEX i = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += INDEX(gridDim.x) * blockDim.x) {
        const INDEX pixel = i / columns;
        Values values = read(dy, pixel / pixels * columns + (i - pixel * columns));
        for (int k = 0; k < WIDTH; k++) narrow(values.v[k], widen(values.v[k]) / pixels);
        write(dx, i, values);
    }
}
