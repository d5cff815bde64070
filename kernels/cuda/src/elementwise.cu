// One thread a pack of 16 bytes, then one thread an element for what is left: each array crosses the memory bus once.
//
// n elements, of which the first ``packs`` packs are read as such: 0 where an array does not start at a multiple of 16
// bytes. NaN stays NaN, as in NumPy: `x > 0 ? x : 0` and fmaxf(x, 0) would both turn it into 0.
#include "common.cuh"

__device__ __forceinline__ ACC relu_of(ACC x) { return x <= 0 ? ACC(0) : x; }
__device__ __forceinline__ ACC relu6_of(ACC x) { return x <= 0 ? ACC(0) : x >= 6 ? ACC(6) : x; }

struct Relu { __device__ ACC operator()(ACC x) const { return relu_of(x); } };
struct Relu6 { __device__ ACC operator()(ACC x) const { return relu6_of(x); } };
struct AddRelu { __device__ ACC operator()(ACC x, ACC y) const { return relu_of(x + y); } };
struct Add { __device__ ACC operator()(ACC x, ACC y) const { return x + y; } };
struct ReluBackward { __device__ ACC operator()(ACC dy, ACC y) const { return dy * ACC(y > 0); } };
struct Relu6Backward { __device__ ACC operator()(ACC dy, ACC y) const { return dy * ACC(y > 0 && y < 6); } };

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

extern "C" __global__ void relu(const REAL* __restrict__ x, REAL* __restrict__ y, INDEX n, INDEX packs) {
    map(Relu(), x, y, n, packs);
}

extern "C" __global__ void relu6(const REAL* __restrict__ x, REAL* __restrict__ y, INDEX n, INDEX packs) {
    map(Relu6(), x, y, n, packs);
}

extern "C" __global__ void relu_backward(
    const REAL* __restrict__ dy, const REAL* __restrict__ y, REAL* __restrict__ dx, INDEX n, INDEX packs) {
    map(ReluBackward(), dy, y, dx, n, packs);
}

extern "C" __global__ void relu6_backward(
    const REAL* __restrict__ dy, const REAL* __restrict__ y, REAL* __restrict__ dx, INDEX n, INDEX packs) {
    map(Relu6Backward(), dy, y, dx, n, packs);
}

// The join that ends a residual block. As two kernels, x + y and then relu, 5 n elements cross the bus; here 3 n.
extern "C" __global__ void add_relu(
    const REAL* __restrict__ x, const REAL* __restrict__ y, REAL* __restrict__ z, INDEX n, INDEX packs) {
    map(AddRelu(), x, y, z, n, packs);
}

// total += x: where the cotangents of a block's two branches meet.
extern "C" __global__ void accumulate(const REAL* __restrict__ x, REAL* total, INDEX n, INDEX packs) {
    map(Add(), total, x, total, n, packs);
}
