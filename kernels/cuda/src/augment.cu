// Random crop and flip (He et al. 2015, section 4.2), from bytes to normalised numbers, laid in a border of ``pad`` zeros:
//
//     y[h,w] = (image[h + down - pad, w' + right - pad] / 255 - mean) * scale,  0 outside;  w' = w, or W - 1 - w if mirrored
//
// 5 bytes cross the bus for an element of float32, and 5 operations are made with it: memory limits it. A batch of 128
// images of CIFAR has 2 MB.
//
// `next_batch` does all that a loader does, on the device: so a captured graph of a training step goes through the data by
// itself. It asks nothing of the host, since where it stands (``step``, ``epoch``) and the order of the images lie in
// device memory, and random numbers come from a generator without a state: Philox4x32-10 (Salmon et al. 2011, "Parallel
// random numbers: as easy as 1, 2, 3") turns a counter and a key into 128 random bits. The counter is (place in the epoch,
// epoch), the key the seed. So what happens to an image depends on nothing else: not on the batch size, not on the thread.
#include "common.cuh"

struct Words { unsigned v[4]; };

// Ten rounds of multiplications whose upper and lower halves are exchanged and mixed with the key, which goes on each round.
__device__ __forceinline__ Words philox(Words c, unsigned key0, unsigned key1) {
    #pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(0xD2511F53u, c.v[0]), low0 = 0xD2511F53u * c.v[0];
        const unsigned high1 = __umulhi(0xCD9E8D57u, c.v[2]), low1 = 0xCD9E8D57u * c.v[2];
        c = {{high1 ^ c.v[1] ^ key0, low1, high0 ^ c.v[3] ^ key1, low0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

// The generator alone: its authors have published what it must give. One thread per counter of four words.
extern "C" __global__ void __launch_bounds__(256) philox_words(
    const unsigned* __restrict__ counters, const unsigned* __restrict__ key, unsigned* __restrict__ words, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Words c;
    for (int j = 0; j < 4; j++) c.v[j] = counters[4 * i + j];
    c = philox(c, key[0], key[1]);
    for (int j = 0; j < 4; j++) words[4 * i + j] = c.v[j];
}

// v / 255 for v = 0 .. 255, correctly rounded (a test tries them all): a product, and what is left of v divided as well. A
// division would be twenty instructions and a branch.
__device__ __forceinline__ float by_255(float v) {
    const float quotient = v * (1 / 255.0f);
    return fmaf(fmaf(-255.0f, quotient, v), 1 / 255.0f, quotient);
}

// An element of y: of the plane of bytes, mean and scale that it comes from, as above.
__device__ __forceinline__ float element(
    const uint8_t* plane, const float* mean, const float* scale, int row, int column, int height, int width) {
    if (row < 0 || row >= height || column < 0 || column >= width) return 0;  // in the border
    const int offset = row * width + column;
    return (by_255(plane[offset]) - mean[offset]) * scale[offset];
}

// images (N, C, H, W), offsets (N, 2), flips (N,), mean and scale (C, H, W) -> y (N, C, H, W). One thread per element, and
// ``blocks`` blocks per image, so that positions within it are small numbers.
extern "C" __global__ void __launch_bounds__(256) crop_flip(
    const uint8_t* __restrict__ images, const long long* __restrict__ offsets, const uint8_t* __restrict__ flips,
    const float* __restrict__ mean, const float* __restrict__ scale, float* __restrict__ y,
    int blocks, int channels, int height, int width, int pad) {
    const int n = blockIdx.x / blocks, i = blockIdx.x % blocks * blockDim.x + threadIdx.x, pixels = height * width;
    if (i >= channels * pixels) return;
    const int c = i / pixels, h = i % pixels / width, w = i % width;
    const int row = h + int(offsets[2 * n]) - pad, column = (flips[n] ? width - 1 - w : w) + int(offsets[2 * n + 1]) - pad;
    const INDEX first = (INDEX)n * channels * pixels;
    y[first + i] = element(images + first + c * pixels, mean + c * pixels, scale + c * pixels, row, column, height, width);
}

// Batch step[0] of the images (count, C, H, W) in this order -> x (batch, H, W, C) and y (batch,). One thread per pixel with
// all its channels: neighbouring threads read neighbours of each plane, and write side by side. Each thread draws its
// image's numbers again: 40 multiplications are cheaper than to meet at a barrier for them. With ``pad`` 0 nothing is
// drawn, and images come as they are. Behind the last image the first one follows.
extern "C" __global__ void __launch_bounds__(256) next_batch(
    const uint8_t* __restrict__ images, const long long* __restrict__ labels, const int* __restrict__ order,
    const int* __restrict__ step, const int* __restrict__ epoch, const float* __restrict__ mean,
    const float* __restrict__ scale, REAL* __restrict__ x, long long* __restrict__ y,
    int blocks, int batch, int count, int channels, int height, int width, int pad, uint64_t seed) {
    const int n = blockIdx.x / blocks, pixel = blockIdx.x % blocks * blockDim.x + threadIdx.x, pixels = height * width;
    if (pixel >= pixels) return;
    const unsigned place = unsigned(step[0]) * batch + n;
    const int image = order[place % count];
    int row = pixel / width, column = pixel % width;
    if (pad) {
        const Words counter = {{place, unsigned(epoch[0]), 0u, 0u}};
        const Words random = philox(counter, unsigned(seed), unsigned(seed >> 32));
        if (random.v[2] >> 31) column = width - 1 - column;
        row += int(__umulhi(random.v[0], 2u * pad + 1)) - pad;  // of 0 .. 2 pad, each as often but for one part in 2^28
        column += int(__umulhi(random.v[1], 2u * pad + 1)) - pad;
    }
    const uint8_t* source = images + (INDEX)image * channels * pixels;
    REAL* target = x + ((INDEX)n * pixels + pixel) * channels;
    for (int c = 0; c < channels; c++, source += pixels, mean += pixels, scale += pixels)
        narrow(target[c], element(source, mean, scale, row, column, height, width));
    if (pixel == 0) y[n] = labels[image];
}
