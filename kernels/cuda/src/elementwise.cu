// ReLU, ReLU6, their gradients, and the sum of cotangents.
#include "map.cuh"

__device__ __forceinline__ ACC relu6_of(ACC x) { return x <= 0 ? ACC(0) : x >= 6 ? ACC(6) : x; }

struct Relu { __device__ ACC operator()(ACC x) const { return relu_of(x); } };
struct Relu6 { __device__ ACC operator()(ACC x) const { return relu6_of(x); } };
struct Add { __device__ ACC operator()(ACC x, ACC y) const { return x + y; } };
struct ReluBackward { __device__ ACC operator()(ACC dy, ACC y) const { return y <= 0 ? ACC(0) : dy; } };
struct Relu6Backward { __device__ ACC operator()(ACC dy, ACC y) const { return y <= 0 || y >= 6 ? ACC(0) : dy; } };

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

extern "C" __global__ void add(
    const REAL* __restrict__ x, const REAL* __restrict__ y, REAL* __restrict__ z, INDEX n, INDEX packs) {
    map(Add(), x, y, z, n, packs);
}

// total += x: where the cotangents of a block's two branches meet.
extern "C" __global__ void accumulate(const REAL* __restrict__ x, REAL* total, INDEX n, INDEX packs) {
    map(Add(), total, x, total, n, packs);
}
