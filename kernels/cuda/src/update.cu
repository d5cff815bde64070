// Stochastic gradient descent over all parameters in one launch, AdamW, and what mixed precision adds to it:
//
//     g = grad + decay p;   v = momentum v + g;   p -= lr v,  or with Nesterov's momentum  p -= lr (g + momentum v)
//
// 6 floating-point operations per element for 5 elements moved: memory limits it. A ResNet-20 has 272,000 parameters in 65
// arrays, most of them of 16 to 64 elements: 5 MB to move take 2 us, 65 launches would take 100.
//
// So the host writes a list of the work, and each block does one line of it: where its piece of p, of grad and of v begins,
// and how many elements it has. The list lies in device memory and is written once, since the arrays stay where they are.
// ``p``, ``grad`` and ``v`` are added to the addresses in it: they are null, and the list holds whole addresses, or they are
// one parameter's arrays, and the list holds distances in bytes (for launches whose arrays are watched over).
//
// AdamW's list has a column more, since it has two arrays for a parameter.
//
// lr, skip: read from device memory, so that a captured graph goes on as they change.
#include "common.cuh"

constexpr int LINE = 4;  // numbers of a line: p, grad, v, elements

__device__ __forceinline__ REAL* at(const REAL* base, uint64_t address) {
    return reinterpret_cast<REAL*>(reinterpret_cast<uint64_t>(base) + address);
}

// Where all of a piece's arrays begin at multiples of 16 bytes, it is read in packs.
__device__ __forceinline__ int packs_of(uint64_t addresses, int count) { return addresses % 16 ? 0 : count / PACK; }

struct Options { ACC lr, momentum, decay; bool buffered, nesterov; };

__device__ __forceinline__ void update(const Options& o, REAL& p, REAL grad, REAL& v) {
    ACC g = grad;
    if (o.decay != 0) g += o.decay * p;
    if (o.buffered) {
        const ACC velocity = o.momentum * v + g;
        v = velocity;
        g = o.nesterov ? g + o.momentum * velocity : velocity;
    }
    p -= o.lr * g;
}

// ``lr_at`` or, where it is null, ``lr``. Without momentum there is no v. Nothing happens where skip[0] is not 0.
extern "C" __global__ void __launch_bounds__(256) sgd(
    REAL* p_base, const REAL* grad_base, REAL* v_base, const uint64_t* __restrict__ lines, const float* __restrict__ lr_at,
    double lr, double momentum, double decay, int nesterov, const int* __restrict__ skip) {
    if (skip && skip[0]) return;
    const uint64_t* line = lines + LINE * (long long)blockIdx.x;
    REAL *p = at(p_base, line[0]), *v = at(v_base, line[2]);
    const REAL* grad = at(grad_base, line[1]);
    const int count = int(line[3]);
    const Options o = {lr_at ? ACC(lr_at[0]) : ACC(lr), ACC(momentum), ACC(decay), momentum != 0, nesterov != 0};
    const uint64_t all = reinterpret_cast<uint64_t>(p) | reinterpret_cast<uint64_t>(grad) | reinterpret_cast<uint64_t>(v);
    const int packs = packs_of(all, count);
    for (int i = threadIdx.x; i < packs; i += blockDim.x) {
        Pack a = reinterpret_cast<Pack*>(p)[i], c;
        const Pack b = reinterpret_cast<const Pack*>(grad)[i];
        if (o.buffered) c = reinterpret_cast<Pack*>(v)[i];
        #pragma unroll
        for (int j = 0; j < PACK; j++) update(o, a.v[j], b.v[j], c.v[j]);
        reinterpret_cast<Pack*>(p)[i] = a;
        if (o.buffered) reinterpret_cast<Pack*>(v)[i] = c;
    }
    REAL none = 0;
    for (int i = packs * PACK + threadIdx.x; i < count; i += blockDim.x) update(o, p[i], grad[i], o.buffered ? v[i] : none);
}

// With the constants of step t, rate = lr / (1 - beta1^t), root = sqrt(1 - beta2^t) and kept = 1 - lr decay:
//
//     m = beta1 m + (1 - beta1) grad;   v = beta2 v + (1 - beta2) grad^2;   p = kept p - rate m / (sqrt(v) / root + eps)
//
// 7 elements moved for each of p.
extern "C" __global__ void __launch_bounds__(256) adamw(
    REAL* p_base, const REAL* grad_base, REAL* m_base, REAL* v_base, const uint64_t* __restrict__ lines, double rate, double root,
    double kept, double beta1, double beta2, double eps) {
    const uint64_t* line = lines + (LINE + 1) * (long long)blockIdx.x;
    REAL *p = at(p_base, line[0]), *m = at(m_base, line[2]), *v = at(v_base, line[3]);
    const REAL* grad = at(grad_base, line[1]);
    const int count = int(line[LINE]);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const ACC g = grad[i], mean = m[i] + ACC(1 - beta1) * (g - m[i]), square = ACC(beta2) * v[i] + ACC(1 - beta2) * g * g;
        m[i] = mean;
        v[i] = square;
        p[i] = ACC(kept) * p[i] - ACC(rate) * mean / (sqrt(square) / ACC(root) + ACC(eps));
    }
}

// grad /= scale, over a list as above (of its columns, only grad's and the count are used); found = 1 if a quotient is not
// finite. Every thread that finds one writes the same 1; `clear` has put the 0 there.
extern "C" __global__ void __launch_bounds__(256) unscale(
    REAL* grad_base, const uint64_t* __restrict__ lines, const float* __restrict__ scale, int* __restrict__ found) {
    const uint64_t* line = lines + LINE * (long long)blockIdx.x;
    REAL* grad = at(grad_base, line[1]);
    const int count = int(line[3]), packs = packs_of(reinterpret_cast<uint64_t>(grad), count);
    const ACC divisor = scale[0];
    bool bad = false;
    for (int i = threadIdx.x; i < packs; i += blockDim.x) {
        Pack a = reinterpret_cast<Pack*>(grad)[i];
        #pragma unroll
        for (int j = 0; j < PACK; j++) {
            a.v[j] /= divisor;
            bad |= !(a.v[j] - a.v[j] == 0);  // infinity - infinity is NaN
        }
        reinterpret_cast<Pack*>(grad)[i] = a;
    }
    for (int i = packs * PACK + threadIdx.x; i < count; i += blockDim.x) {
        grad[i] /= divisor;
        bad |= !(grad[i] - grad[i] == 0);
    }
    if (bad) found[0] = 1;
}

extern "C" __global__ void clear(int* __restrict__ found) {
    if (threadIdx.x == 0) found[0] = 0;
}

// Dynamic loss scaling: smaller after an overflow, larger after ``interval`` steps without one, as long as that is a normal
// number.
extern "C" __global__ void update_scale(
    float* __restrict__ scale, int* __restrict__ good_steps, const int* __restrict__ found, double growth, double backoff,
    int interval) {
    if (threadIdx.x) return;
    const bool smaller = found[0], larger = !smaller && ++good_steps[0] == interval;
    if (!smaller && !larger) return;
    good_steps[0] = 0;
    const double next = scale[0] * (smaller ? backoff : growth);
    if (next >= 1.1754943508222875e-38 && next <= 3.4028234663852886e38) scale[0] = float(next);
}
