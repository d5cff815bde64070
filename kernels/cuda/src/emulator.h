// Runs CUDA C++ on the host: this file, then a .cu file, then EXPORT(kernel) for each of its kernels.
//
// Each CUDA thread of a block is a fiber.  A warp's lanes run one after the other, each until it waits at a barrier of the
// warp (__syncwarp, a shuffle, a tensor-core instruction), and all wait there for the last; a warp runs until all of its lanes
// wait at a barrier of the block.  Blocks run one after another, so `static` serves for __shared__.
//
// What is found: reads of shared memory, and of local variables, that nothing has written (they hold NaN, or a huge number);
// accesses outside an array (the launcher puts a page behind each that may not be touched); barriers that not all threads
// of a warp reach; and missing barriers, where the result depends on which thread runs first: `order` changes that.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define TINYRES_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("cuda_shared")))

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

extern char shared_begin[] __asm__("__start_cuda_shared") __attribute__((weak, visibility("hidden")));
extern char shared_end[] __asm__("__stop_cuda_shared") __attribute__((weak, visibility("hidden")));

namespace emulator {
enum Wait { RUNNING, AT_BLOCK, AT_WARP, DONE };
constexpr int MAX_THREADS = 1024, SLOT = 64;
constexpr size_t STACK = 64 * 1024, CANARY = 64;

struct Fiber {
#if defined(__x86_64__)
    void* stack;
#else
    ucontext_t context;
#endif
    dim3 index;
    int lane, warp;
    Wait wait;
    const char* what;  // the name of the barrier that it waits at
    unsigned exchanges;
};

struct Report {  // of a launch that failed
    uint64_t address;
    unsigned block[3], thread[3];
    char text[200];
};

static Fiber fibers[MAX_THREADS];
static Fiber* now;
static dim3 block_index, block_dim, grid_dim;
static char slots[2][MAX_THREADS / 32][32][SLOT];
static char* dynamic_shared;
static void (*body)(void**);
static void** arguments;
static Report report;
static sigjmp_buf escape;
static char* stacks;

// --- fibers ---

#if defined(__x86_64__)
static void* scheduler;
extern "C" __attribute__((visibility("hidden"))) void tinyres_switch(void** from, void* to);
__asm__(R"(
    .text
    .p2align 4
tinyres_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
inline void to_scheduler() { tinyres_switch(&now->stack, scheduler); }
inline void resume(Fiber& f) { tinyres_switch(&scheduler, f.stack); }
#else
static ucontext_t scheduler;
inline void to_scheduler() { swapcontext(&now->context, &scheduler); }
inline void resume(Fiber& f) { swapcontext(&scheduler, &f.context); }
#endif

static void live() {
    body(arguments);
    now->wait = DONE;
    to_scheduler();
}

inline void start(Fiber& f, char* stack) {
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK - 64);
    *top = reinterpret_cast<void*>(&live);
    f.stack = top - 6;  // where the six saved registers would lie
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, &live, 0);
#endif
}

[[noreturn]] inline void fail(const char* text, const char* one = "", const char* two = "") {
    std::snprintf(report.text, sizeof report.text, text, one, two);
    siglongjmp(escape, 1);
}

inline void wait_at(Wait kind, const char* what) {
    now->wait = kind;
    now->what = what;
    to_scheduler();
}

// Shows a value to the warp's other lanes: afterwards `shown(pointer, lane)` is that lane's.  Two sets of slots take turns:
// who fills one again has waited for all to leave the other.
template <class T> const char* exchange(const T& value, const char* what) {
    static_assert(sizeof(T) <= SLOT);
    char(*mine)[SLOT] = slots[now->exchanges++ & 1][now->warp];
    std::memcpy(mine[now->lane], &value, sizeof value);
    wait_at(AT_WARP, what);
    return mine[0];
}
template <class T> T shown(const char* from, int lane) {
    T value;
    std::memcpy(&value, from + SLOT * (lane & 31), sizeof value);
    return value;
}

// --- a launch ---

inline void run_warp(const std::vector<int>& order, int first, int size) {
    for (bool again = true; again;) {
        int at_warp = 0, at_block = 0, done = 0;
        const char* what = nullptr;
        for (int lane : order) {
            if (lane >= size) continue;
            Fiber& f = fibers[first + lane];
            if (f.wait == RUNNING || f.wait == AT_WARP) {
                now = &f;
                f.wait = RUNNING;
                resume(f);
            }
        }
        for (int lane = 0; lane < size; lane++) {
            Fiber& f = fibers[first + lane];
            at_warp += f.wait == AT_WARP; at_block += f.wait == AT_BLOCK; done += f.wait == DONE;
            if (f.wait != AT_WARP) continue;
            now = &f;
            if (what && std::strcmp(what, f.what)) fail("lanes of one warp wait at different things: %s and %s", what, f.what);
            what = f.what;
        }
        if (at_warp && (at_block || done)) fail("not all lanes of a warp reach %s", what);
        again = at_warp;
    }
}

static void run_grid(dim3 grid, dim3 block, size_t dynamic, unsigned order) {
    const int threads = block.x * block.y * block.z, warps = (threads + 31) / 32;
    if (!stacks) stacks = static_cast<char*>(std::aligned_alloc(64, STACK * MAX_THREADS));
    std::vector<char> shared(dynamic + 64 + 2 * CANARY);
    char* begin = shared.data() + CANARY;
    dynamic_shared = begin + (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64;
    std::vector<int> lanes(32), all(warps);
    std::iota(lanes.begin(), lanes.end(), 0);
    std::iota(all.begin(), all.end(), 0);
    std::mt19937 random(order);
    grid_dim = grid; block_dim = block;
    for (unsigned bz = 0; bz < grid.z; bz++) for (unsigned by = 0; by < grid.y; by++) for (unsigned bx = 0; bx < grid.x; bx++) {
        block_index = {bx, by, bz};
        std::memset(shared_begin, 0xff, shared_end - shared_begin);
        std::memset(shared.data(), 0xff, shared.size());
        if (order == 1) std::reverse(lanes.begin(), lanes.end()), std::reverse(all.begin(), all.end());
        if (order > 1) std::shuffle(lanes.begin(), lanes.end(), random), std::shuffle(all.begin(), all.end(), random);
        for (unsigned i = 0; i < unsigned(threads); i++) {
            Fiber& f = fibers[i];
            f.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
            f.lane = i % 32; f.warp = i / 32; f.wait = RUNNING; f.exchanges = 0;
            start(f, stacks + STACK * i);
        }
        for (bool unfinished = true; unfinished;) {
            for (int w : all) run_warp(lanes, 32 * w, std::min(32, threads - 32 * w));
            unfinished = false;
            for (int i = 0; i < threads; i++)
                if (fibers[i].wait == AT_BLOCK) { unfinished = true; fibers[i].wait = RUNNING; }
        }
        for (size_t i = 0; i < CANARY; i++)
            if (dynamic_shared[-1 - int(i)] != char(0xff) || dynamic_shared[dynamic + i] != char(0xff))
                fail("it writes outside its dynamic shared memory");
        if (order == 1) std::reverse(lanes.begin(), lanes.end()), std::reverse(all.begin(), all.end());
    }
}

static void on_signal(int, siginfo_t* info, void*) {
    report.address = reinterpret_cast<uint64_t>(info->si_addr);
    siglongjmp(escape, 2);
}

// Returns 0, or 1 for an error with a text, or 2 for an access to memory that may not be touched.
static int launch(void (*kernel)(void**), const unsigned* grid, const unsigned* block, size_t shared, unsigned order, void** args) {
    struct sigaction ours = {}, segv, bus;
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &ours, &segv);
    sigaction(SIGBUS, &ours, &bus);
    body = kernel; arguments = args; report = Report{}; now = nullptr;
    const int status = sigsetjmp(escape, 1);
    if (!status) run_grid({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, order);
    sigaction(SIGSEGV, &segv, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    const dim3 thread = now ? now->index : dim3{0, 0, 0};
    const unsigned at[6] = {block_index.x, block_index.y, block_index.z, thread.x, thread.y, thread.z};
    std::memcpy(report.block, at, sizeof at);
    return status;
}

template <class... A, size_t... I> void unpack(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <class... A> void unpack(void (*kernel)(A...), void** args) { unpack(kernel, args, std::index_sequence_for<A...>{}); }
}  // namespace emulator

extern "C" const emulator::Report* tinyres_report() { return &emulator::report; }
#define EXPORT(kernel)                                                                                                \
    extern "C" int tinyres_##kernel(unsigned* grid, unsigned* block, size_t shared, unsigned order, void** args) {    \
        return emulator::launch([](void** a) { emulator::unpack(kernel, a); }, grid, block, shared, order, args);     \
    }

// --- what kernels are written with ---

#define threadIdx (emulator::now->index)
#define blockIdx emulator::block_index
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim

inline void __syncthreads() { emulator::wait_at(emulator::AT_BLOCK, "__syncthreads"); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait_at(emulator::AT_WARP, "__syncwarp"); }
template <class T> T __shfl_sync(unsigned, T value, int lane) {
    return emulator::shown<T>(emulator::exchange(value, "__shfl_sync"), lane);
}
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    const int lane = emulator::now->lane ^ mask;
    return emulator::shown<T>(emulator::exchange(value, "__shfl_xor_sync"), lane);
}
template <class T> T __shfl_down_sync(unsigned, T value, int delta) {
    const int lane = emulator::now->lane + delta < 32 ? emulator::now->lane + delta : emulator::now->lane;
    return emulator::shown<T>(emulator::exchange(value, "__shfl_down_sync"), lane);
}
template <class T> T __ldg(const T* pointer) { return *pointer; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; std::memcpy(&x, &u, 4); return x; }
