// What a training step does besides mathematics, so that a captured graph goes on by itself: one thread each.
//
// Whatever changes from step to step lies in device memory: the number of the step in its epoch, the learning rate of every
// step of the epoch, and the sums that the host reads now and then.
#include "common.cuh"

// lr = that of this step.
extern "C" __global__ void begin_step(const float* __restrict__ lrs, const int* __restrict__ step, float* __restrict__ lr) {
    if (threadIdx.x == 0) lr[0] = lrs[step[0]];
}

// Remembers that a gradient was not finite: from there on no update happens, until the host has looked.
extern "C" __global__ void note(const int* __restrict__ found, int* __restrict__ bad) {
    if (threadIdx.x == 0 && found[0]) bad[0] = 1;
}

// Adds the loss of ``rows`` images to the epoch's and goes on to the next step. After a step that may not be followed by
// another (``bad``), nothing changes: the counter still points at it.
extern "C" __global__ void end_step(
    const float* __restrict__ loss, const int* __restrict__ bad, int rows, double* __restrict__ total,
    int* __restrict__ step) {
    if (threadIdx.x || bad[0]) return;
    if (loss[0] - loss[0] == 0) total[0] += double(loss[0]) * rows;  // (of an infinity or a NaN, it is not)
    step[0] += 1;
}
