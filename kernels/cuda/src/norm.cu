// Batch norm: z = weight * (x - mean) / sqrt(var + eps) + bias,  y = relu(z),  by channel over all pixels; and the join that
// may follow it, y = relu(z + residual), since what is added in the same pass costs no pass of its own.
//
// Maps are a matrix here: a row is a pixel, a column is WIDTH channels side by side, which a thread reads at once.
// About 8 operations per element are nothing to a GPU; what costs is memory, so every pass is one kernel that reads and
// writes each array once. Sums over all pixels need all blocks to meet, and they meet where one kernel ends and the next
// begins:
//
//     forward   statistics  reads x                     normalise      reads x (residual), writes y
//     backward  sums        reads dy, x (y; writes dz)  input gradient reads dz, x, writes dx
//
// The first kernel leaves a part of the sum for each block. A third launch to add them up would take longer (1.3 us) than
// the adding: every block of the second kernel does it for itself, from parts that lie in the cache.
//
// Threads: (threadIdx.x, threadIdx.y) is (column, row). A thread keeps to its column, so that what belongs to the channels
// stays in registers, and goes down the rows, GROUP of them at a time: that many reads are under way at once, which is what
// it takes to keep the memory busy. Columns beyond the block's width are other blocks' (blockIdx.y).
//
// Nothing depends on when a block runs: the same bits come out each time.
//
// Macros: WIDTH  channels that a thread reads at once: 16 bytes of them, or 1 where they do not fill packs
//         VECTOR what is kept by channel (parameters, statistics, their gradients): double for double, else float
#include "common.cuh"
#ifndef WIDTH
#define WIDTH PACK
#endif
#ifndef VECTOR
#define VECTOR float
#endif
#define THREADS 512  // of a block, at most

template <class T> struct __align__(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Several { T v[WIDTH]; };
typedef Several<REAL> Values;
typedef Several<VECTOR> Vectors;

__device__ __forceinline__ Values read(const REAL* x, INDEX row, int columns, int column) {
    return reinterpret_cast<const Values*>(x)[row * columns + column];
}

__device__ __forceinline__ void write(REAL* x, INDEX row, int columns, int column, const Values& values) {
    reinterpret_cast<Values*>(x)[row * columns + column] = values;
}

// The part of the sums of rows that block ``part`` left: two vectors of all channels, one behind the other.
__device__ __forceinline__ Vectors& part_of(VECTOR* parts, int part, int which, int columns, int column) {
    return reinterpret_cast<Vectors*>(parts)[(INDEX(part) * 2 + which) * columns + column];
}

__device__ __forceinline__ int column_of() { return blockIdx.y * blockDim.x + threadIdx.x; }

// Joins what the block's threads hold for one column, the rows' upper half with the lower one until one row is left: a tree
// of fixed shape. Every thread gets its column's.
template <class T> __device__ __forceinline__ T over_rows(const T& mine, T* shared) {
    const int x = threadIdx.x, y = threadIdx.y, width = blockDim.x;
    shared[y * width + x] = mine;
    for (int rows = blockDim.y; rows > 1;) {
        const int rest = (rows + 1) / 2;
        __syncthreads();  // what is read below has been written, above or in the step before
        if (y + rest < rows) {
            T one = shared[y * width + x];
            one.join(shared[(y + rest) * width + x]);
            shared[y * width + x] = one;
        }
        rows = rest;
    }
    __syncthreads();
    return shared[x];
}

// --- statistics ---
//
// The mean of squares less the square of the mean would lose the variance to rounding where the mean is large. So each
// thread takes two passes over a few rows that it holds in registers, and groups are joined by the formula of Chan, Golub
// and LeVeque (1983), with d the difference of the two means:
//
//     mean = mean_a + d n_b / n,      M = M_a + M_b + d^2 n_a n_b / n,      M = sum (x - mean)^2
struct Moments {
    ACC n, mean[WIDTH], m[WIDTH];
    __device__ void clear() {
        n = 0;
        for (int k = 0; k < WIDTH; k++) mean[k] = m[k] = 0;
    }
    __device__ void join(const Moments& other) {
        const ACC all = n + other.n, share = other.n > 0 ? other.n / all : ACC(0);
        for (int k = 0; k < WIDTH; k++) {
            const ACC d = other.mean[k] - mean[k];
            mean[k] += d * share;
            m[k] += other.m[k] + d * (n * share) * d;  // in this order: where n is 0, d * d may be infinite
        }
        n = all;
    }
};

// Block ``part`` takes ``share`` rows.
extern "C" __global__ void __launch_bounds__(THREADS, 1) batch_norm_statistics(
    const REAL* __restrict__ x, VECTOR* __restrict__ parts, INDEX rows, INDEX share, int columns) {
    const int GROUP = WIDTH > 4 ? 6 : 8;  // what fits into the registers
    DYNAMIC_SHARED(Moments, shared);
    const int column = column_of(), part = blockIdx.x;
    const INDEX begin = part * share, end = column < columns ? min(begin + share, rows) : 0;
    Moments sum;
    sum.clear();
    for (INDEX first = begin + threadIdx.y; first < end; first += GROUP * blockDim.y) {
        int there = 0;  // of the group's rows
        for (int i = 0; i < GROUP; i++) there += first + i * blockDim.y < end;
        Values values[GROUP];
        Moments group;
        group.clear();
#pragma unroll
        for (int i = 0; i < GROUP; i++)
            if (i < there) values[i] = read(x, first + i * blockDim.y, columns, column);
        group.n = there;
        const ACC inverse = 1 / group.n;
        for (int k = 0; k < WIDTH; k++) {
#pragma unroll
            for (int i = 0; i < GROUP; i++)
                if (i < there) group.mean[k] += widen(values[i].v[k]);
            group.mean[k] *= inverse;
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                const ACC d = i < there ? widen(values[i].v[k]) - group.mean[k] : ACC(0);
                group.m[k] += d * d;
            }
        }
        sum.join(group);
    }
    sum = over_rows(sum, shared);
    if (threadIdx.y || column >= columns) return;
    Vectors &mean = part_of(parts, part, 0, columns, column), &m = part_of(parts, part, 1, columns, column);
    for (int k = 0; k < WIDTH; k++) mean.v[k] = sum.mean[k], m.v[k] = sum.m[k];
}

// --- the forward pass, with statistics that are known ---

// NaN stays NaN, as in NumPy
__device__ __forceinline__ ACC relu_of(ACC z) { return z <= 0 ? ACC(0) : z; }

__device__ __forceinline__ void normalise(
    const REAL* x, const REAL* residual, REAL* y, const VECTOR* weight, const VECTOR* bias, const ACC* mean, const ACC* var,
    ACC eps, INDEX rows, int columns, int column, int relu) {
    const int GROUP = 4;
    ACC slope[WIDTH], shift[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        slope[k] = weight[column * WIDTH + k] / sqrt(var[k] + eps);
        shift[k] = bias[column * WIDTH + k];
    }
    const INDEX step = GROUP * blockDim.y;
    for (INDEX first = blockIdx.x * step + threadIdx.y; first < rows; first += gridDim.x * step) {
        Values values[GROUP], others[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const INDEX row = first + i * blockDim.y;
            if (row < rows) values[i] = read(x, row, columns, column);
            if (row < rows && residual) others[i] = read(residual, row, columns, column);
        }
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const INDEX row = first + i * blockDim.y;
            if (row >= rows) continue;
            for (int k = 0; k < WIDTH; k++) {
                ACC z = (widen(values[i].v[k]) - mean[k]) * slope[k] + shift[k];
                if (residual) z += widen(others[i].v[k]);
                narrow(values[i].v[k], relu ? relu_of(z) : z);
            }
            write(y, row, columns, column, values[i]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_inference(
    const REAL* __restrict__ x, const VECTOR* __restrict__ mean, const VECTOR* __restrict__ var,
    const VECTOR* __restrict__ weight, const VECTOR* __restrict__ bias, const REAL* __restrict__ residual,
    REAL* __restrict__ y, VECTOR eps, INDEX rows, int columns, int relu) {
    const int column = column_of();
    if (column < columns)
        normalise(x, residual, y, weight, bias, mean + column * WIDTH, var + column * WIDTH, eps, rows, columns, column,
            relu);
}

// --- the forward pass in training ---

// ``share`` is that of batch_norm_statistics, of whose blocks there were ``count``. The running statistics, if they are
// given, move by ``momentum`` towards the batch's, whose variance becomes the unbiased one.
extern "C" __global__ void __launch_bounds__(THREADS) batch_norm_normalise(
    const REAL* __restrict__ x, const VECTOR* __restrict__ parts, const VECTOR* __restrict__ weight,
    const VECTOR* __restrict__ bias, const REAL* __restrict__ residual, REAL* __restrict__ y, VECTOR* __restrict__ mean,
    VECTOR* __restrict__ var, VECTOR* __restrict__ running_mean, VECTOR* __restrict__ running_var, VECTOR momentum,
    VECTOR eps, INDEX rows, INDEX share, int count, int columns, int relu) {
    DYNAMIC_SHARED(Moments, shared);
    const int column = column_of();
    Moments all;
    all.clear();
#pragma unroll 4
    for (int part = threadIdx.y; part < count && column < columns; part += blockDim.y) {
        Moments one;
        one.n = min(share, rows - part * share);
        const Vectors means = part_of(const_cast<VECTOR*>(parts), part, 0, columns, column);
        const Vectors squares = part_of(const_cast<VECTOR*>(parts), part, 1, columns, column);
        for (int k = 0; k < WIDTH; k++) one.mean[k] = means.v[k], one.m[k] = squares.v[k];
        all.join(one);
    }
    all = over_rows(all, shared);
    if (column >= columns) return;
    for (int k = 0; k < WIDTH; k++) {
        const int channel = column * WIDTH + k;
        const bool writes = blockIdx.x == 0 && threadIdx.y == 0;
        if (writes && running_mean) {
            running_mean[channel] = (1 - momentum) * running_mean[channel] + momentum * all.mean[k];
            running_var[channel] = (1 - momentum) * running_var[channel] + momentum * (all.m[k] / (all.n - 1));
        }
        all.m[k] /= all.n;
        if (writes) mean[channel] = all.mean[k], var[channel] = all.m[k];
    }
    normalise(x, residual, y, weight, bias, all.mean, all.m, eps, rows, columns, column, relu);
}

// --- the backward pass ---
//
// With dz = dy, but 0 where y <= 0, xhat = (x - mean) / sqrt(var + eps) and m rows:
//
//     dbias = sum dz      dweight = sum dz xhat      dx = weight / sqrt(var + eps) (dz - (dbias + xhat dweight) / m)
struct Sums {
    ACC dz[WIDTH], product[WIDTH];  // sum dz, sum dz (x - mean)
    __device__ void clear() {
        for (int k = 0; k < WIDTH; k++) dz[k] = product[k] = 0;
    }
    __device__ void join(const Sums& other) {
        for (int k = 0; k < WIDTH; k++) dz[k] += other.dz[k], product[k] += other.product[k];
    }
};

// With a residual, whose cotangent is dz, that is written too: the next kernel then reads dz instead of dy and y.
extern "C" __global__ void __launch_bounds__(THREADS, 1) batch_norm_backward_sums(
    const REAL* __restrict__ dy, const REAL* __restrict__ x, const REAL* __restrict__ y, const VECTOR* __restrict__ mean,
    REAL* __restrict__ dz, VECTOR* __restrict__ parts, INDEX rows, INDEX share, int columns) {
    const int GROUP = WIDTH > 4 ? 2 : 4;  // three arrays at once: more would not fit into the registers
    DYNAMIC_SHARED(Sums, shared);
    const int column = column_of(), part = blockIdx.x;
    const INDEX begin = part * share, end = column < columns ? min(begin + share, rows) : 0;
    Sums sum;
    sum.clear();
    ACC centre[WIDTH];
    for (int k = 0; k < WIDTH && column < columns; k++) centre[k] = mean[column * WIDTH + k];
    for (INDEX first = begin + threadIdx.y; first < end; first += GROUP * blockDim.y) {
        Values d[GROUP], values[GROUP], results[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const INDEX row = first + i * blockDim.y;
            if (row >= end) continue;
            d[i] = read(dy, row, columns, column);
            values[i] = read(x, row, columns, column);
            if (y) results[i] = read(y, row, columns, column);
        }
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const INDEX row = first + i * blockDim.y;
            if (row >= end) continue;
            for (int k = 0; k < WIDTH; k++) {
                const ACC one = y && widen(results[i].v[k]) <= 0 ? ACC(0) : widen(d[i].v[k]);
                sum.dz[k] += one;
                sum.product[k] += one * (widen(values[i].v[k]) - centre[k]);
                narrow(d[i].v[k], one);
            }
            if (dz) write(dz, row, columns, column, d[i]);
        }
    }
    sum = over_rows(sum, shared);
    if (threadIdx.y || column >= columns) return;
    Vectors &sums = part_of(parts, part, 0, columns, column), &products = part_of(parts, part, 1, columns, column);
    for (int k = 0; k < WIDTH; k++) sums.v[k] = sum.dz[k], products.v[k] = sum.product[k];
}

// dx from the two sums, and dweight and dbias, which they are. Where y is not given, dy is dz already.
extern "C" __global__ void __launch_bounds__(THREADS, 1) batch_norm_backward_input(
    const REAL* __restrict__ dy, const REAL* __restrict__ x, const REAL* __restrict__ y, const VECTOR* __restrict__ parts,
    const VECTOR* __restrict__ weight, const VECTOR* __restrict__ mean, const VECTOR* __restrict__ var,
    REAL* __restrict__ dx, VECTOR* __restrict__ dweight, VECTOR* __restrict__ dbias, VECTOR eps, INDEX rows, int count,
    int columns, int training) {
    const int GROUP = WIDTH > 4 ? 2 : 4;  // three arrays at once: more would not fit into the registers
    DYNAMIC_SHARED(Sums, shared);
    const int column = column_of();
    Sums all;
    all.clear();
#pragma unroll 4
    for (int part = threadIdx.y; part < count && column < columns; part += blockDim.y) {
        Sums one;
        const Vectors sums = part_of(const_cast<VECTOR*>(parts), part, 0, columns, column);
        const Vectors products = part_of(const_cast<VECTOR*>(parts), part, 1, columns, column);
        for (int k = 0; k < WIDTH; k++) one.dz[k] = sums.v[k], one.product[k] = products.v[k];
        all.join(one);
    }
    all = over_rows(all, shared);
    if (column >= columns) return;
    // dx = slope * (dz - constant - (x - mean) * factor), the last two 0 where the statistics were given
    ACC centre[WIDTH], slope[WIDTH], constant[WIDTH], factor[WIDTH];
    for (int k = 0; k < WIDTH; k++) {
        const int channel = column * WIDTH + k;
        const ACC inverse = 1 / sqrt(ACC(var[channel]) + eps);
        centre[k] = mean[channel];
        slope[k] = weight[channel] * inverse;
        constant[k] = all.dz[k] / rows;
        factor[k] = all.product[k] * inverse / rows * inverse;
        if (blockIdx.x == 0 && threadIdx.y == 0) {
            dbias[channel] = all.dz[k];
            dweight[channel] = all.product[k] * inverse;
        }
    }
    const INDEX step = GROUP * blockDim.y;
    for (INDEX first = blockIdx.x * step + threadIdx.y; first < rows; first += gridDim.x * step) {
        Values d[GROUP], values[GROUP], results[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const INDEX row = first + i * blockDim.y;
            if (row >= rows) continue;
            d[i] = read(dy, row, columns, column);
            if (training) values[i] = read(x, row, columns, column);
            if (y) results[i] = read(y, row, columns, column);
        }
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            const INDEX row = first + i * blockDim.y;
            if (row >= rows) continue;
            for (int k = 0; k < WIDTH; k++) {
                ACC one = widen(d[i].v[k]);
                if (y && widen(results[i].v[k]) <= 0) one = 0;
                if (training) one -= constant[k] + (widen(values[i].v[k]) - centre[k]) * factor[k];
                narrow(d[i].v[k], one * slope[k]);
            }
            write(dx, row, columns, column, d[i]);
        }
    }
}
