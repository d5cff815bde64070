// Runs CUDA C++ on the host: this file, then a .cu file, then EXPORT(kernel) for each of its kernels.
//
// Each CUDA thread of a block is a fiber. A warp's lanes run one after the other, each until it waits at a barrier of the
// warp (__syncwarp, a shuffle, a tensor-core instruction), and all wait there for the last; a warp runs until all of its
// lanes wait at a barrier of the block. Blocks run one after another, so `static` serves for __shared__.
//
// What is found: reads of shared memory, and of local variables, that nothing has written (they hold NaN, or a huge number);
// accesses outside an array (the launcher puts a page behind each that may not be touched); barriers that not all threads
// of a warp reach; and missing barriers, where the result depends on which thread runs first: `order` changes that. Where
// the compiler is asked for checks of undefined behaviour, also an index outside of a shared or local array, a pack that
// does not start at a multiple of its size, and an int that overflows.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <csignal>
#include <pthread.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#if !defined(__x86_64__)
#define TINYRES_UCONTEXT 1
#endif
#if defined(TINYRES_UCONTEXT)
#include <ucontext.h>
#endif

#define TINYRES_EMULATED 1
#define __global__ __attribute__((visibility("hidden")))  // of two functions of one name, the C library's would run
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("cuda_shared")))
#define OURS __attribute__((no_sanitize("undefined"), always_inline)) static  // at every barrier; only kernels are checked

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

extern char shared_begin[] __asm__("__start_cuda_shared") __attribute__((weak, visibility("hidden")));
extern char shared_end[] __asm__("__stop_cuda_shared") __attribute__((weak, visibility("hidden")));

namespace emulator {
enum Wait { FRESH, RUNNING, AT_BLOCK, AT_WARP, DONE };
constexpr int MAX_THREADS = 1024, SLOT = 32;
// Stacks do not lie a power of two apart: the lanes of a warp would fight for the same few lines of the caches.
constexpr size_t STACK = 64 * 1024 + 17 * 64, CANARY = 64;

struct Fiber {
#if !defined(TINYRES_UCONTEXT)
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
static void (*body)(const char*);
static const char* arguments;
static Report report;
static sigjmp_buf escape;
static char* stacks;

// --- fibers ---

#if !defined(TINYRES_UCONTEXT)
static void* scheduler;
extern "C" __attribute__((visibility("hidden"))) void tinyres_switch(void** saved, void* next);
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
OURS inline void from_scheduler(Fiber& next) { tinyres_switch(&scheduler, next.stack); }
OURS inline void to_scheduler(Fiber& fiber) { tinyres_switch(&fiber.stack, scheduler); }
OURS inline void from_to(Fiber& fiber, Fiber& next) { tinyres_switch(&fiber.stack, next.stack); }
#else
static ucontext_t scheduler;
OURS inline void from_scheduler(Fiber& next) { swapcontext(&scheduler, &next.context); }
OURS inline void to_scheduler(Fiber& fiber) { swapcontext(&fiber.context, &scheduler); }
OURS inline void from_to(Fiber& fiber, Fiber& next) { swapcontext(&fiber.context, &next.context); }
#endif

// The warp that runs: its lanes in the order of their turns, and how many of them have had theirs.
static int order_of_lanes[32], lanes, turn;
static Fiber* warp;

// The next lane that can go on, or null when all have had their turn.
OURS inline Fiber* next_lane() {
    while (turn < lanes) {
        Fiber& f = warp[order_of_lanes[turn++]];
        if (f.wait == FRESH || f.wait == RUNNING) return &f;
    }
    return nullptr;
}

static void live();

inline void start(Fiber& f) {
    char* stack = stacks + STACK * (&f - fibers);
    f.wait = RUNNING;
#if !defined(TINYRES_UCONTEXT)
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

// What a fiber does. A thread that ends leaves its stack to the next: without barriers, one is enough for all.
static void live() {
    for (;;) {
        body(arguments);
        Fiber& ended = *now;
        ended.wait = DONE;
        Fiber* next = next_lane();
        if (!next) to_scheduler(ended);
        else if (next->wait == FRESH) next->wait = RUNNING, now = next;
        else now = next, from_to(ended, *next);
    }
}

[[noreturn]] inline void fail(const char* text, const char* one = "", const char* two = "") {
    std::snprintf(report.text, sizeof report.text, text, one, two);
    siglongjmp(escape, 1);
}

// The thread waits; the next lane has its turn.
OURS inline void wait_at(Wait kind, const char* what) {
    Fiber& waiting = *now;
    waiting.wait = kind;
    waiting.what = what;
    Fiber* next = next_lane();
    if (!next) return to_scheduler(waiting);
    if (next->wait == FRESH) start(*next);
    now = next;
    from_to(waiting, *next);
}

// Shows a value to the warp's other lanes: afterwards `shown(pointer, lane)` is that lane's. Two sets of slots take turns:
// who fills one again has waited for all to leave the other.
template <class T> OURS inline const char* exchange(const T& value, const char* what) {
    static_assert(sizeof(T) <= SLOT);
    char(*mine)[SLOT] = slots[now->exchanges++ & 1][now->warp];
    std::memcpy(mine[now->lane], &value, sizeof value);
    wait_at(AT_WARP, what);
    return mine[0];
}
template <class T> T shown(const char* slots, int lane) {
    T value;
    std::memcpy(&value, slots + SLOT * (lane & 31), sizeof value);
    return value;
}
// Whether this lane is the first of its warp after a barrier, and can prepare something for the others.
inline bool is_first() { return turn == 1; }

// --- a launch ---

inline void run_warp(int first, int size) {
    warp = fibers + first;
    for (;;) {
        turn = 0;
        if (Fiber* f = next_lane()) {
            if (f->wait == FRESH) start(*f);
            now = f;
            from_scheduler(*f);
        }
        int at_warp = 0;
        const char* what = nullptr;
        for (int lane = 0; lane < size; lane++) {
            Fiber& f = warp[lane];
            if (f.wait != AT_WARP) continue;
            at_warp++;
            now = &f;
            if (what && what != f.what && std::strcmp(what, f.what))
                fail("lanes of one warp wait at different things: %s and %s", what, f.what);
            what = f.what;
            f.wait = RUNNING;
        }
        if (!at_warp) return;
        if (at_warp < size) fail("not all lanes of a warp reach %s", what);
    }
}

#if defined(__SANITIZE_ADDRESS__)  // shared arrays then have red zones between them, over which this goes, too
__attribute__((no_sanitize_address)) static void poison(volatile char* begin, char* end) {
    while (begin < end) *begin++ = char(0xff);
}
#else
static void poison(char* begin, char* end) { std::memset(begin, 0xff, end - begin); }
#endif

static void run_grid(dim3 grid, dim3 block, size_t dynamic, unsigned order) {
    static char* memory;
    static size_t capacity;
    static int warps_in_order[MAX_THREADS / 32];
    const int threads = block.x * block.y * block.z, warps = (threads + 31) / 32;
    if (!stacks) stacks = static_cast<char*>(std::aligned_alloc(64, STACK * MAX_THREADS));
    if (capacity < dynamic + 2 * CANARY) {
        std::free(memory);
        capacity = (dynamic + 2 * CANARY + 63) / 64 * 64;
        memory = static_cast<char*>(std::aligned_alloc(64, capacity));
    }
    dynamic_shared = memory + CANARY;
    std::iota(order_of_lanes, order_of_lanes + 32, 0);
    std::iota(warps_in_order, warps_in_order + warps, 0);
    if (order == 1) {
        std::reverse(order_of_lanes, order_of_lanes + 32);
        std::reverse(warps_in_order, warps_in_order + warps);
    }
    std::mt19937 random(order);
    grid_dim = grid; block_dim = block;
    for (unsigned bz = 0; bz < grid.z; bz++)
    for (unsigned by = 0; by < grid.y; by++)
    for (unsigned bx = 0; bx < grid.x; bx++) {
        block_index = {bx, by, bz};
        poison(shared_begin, shared_end);
        poison(memory, memory + dynamic + 2 * CANARY);
        if (order > 1) {
            std::shuffle(order_of_lanes, order_of_lanes + 32, random);
            std::shuffle(warps_in_order, warps_in_order + warps, random);
        }
        for (unsigned i = 0; i < unsigned(threads); i++) {
            Fiber& f = fibers[i];
            f.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
            f.lane = i % 32; f.warp = i / 32; f.wait = FRESH; f.exchanges = 0;
        }
        for (bool unfinished = true; unfinished;) {
            for (int w = 0; w < warps; w++) {
                const int first = 32 * warps_in_order[w], size = std::min(32, threads - first);
                for (int i = size; i < 32; i++) fibers[first + i].wait = DONE;  // the last warp may be short
                lanes = 32;
                run_warp(first, size);
            }
            unfinished = false;
            for (int i = 0; i < threads; i++)
                if (fibers[i].wait == AT_BLOCK) { unfinished = true; fibers[i].wait = RUNNING; }
        }
        for (size_t i = 0; i < CANARY; i++)
            if (dynamic_shared[-1 - int(i)] != char(0xff) || dynamic_shared[dynamic + i] != char(0xff))
                fail("it writes outside its dynamic shared memory");
    }
}

// The signals of a thread that does what it may not. Other threads of the process keep the handlers that they had.
constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
static struct sigaction before[3];
static pthread_t runner;

static void on_signal(int signal, siginfo_t* info, void*) {
    if (!pthread_equal(pthread_self(), runner)) {  // the instruction runs again, and then with the handler that was there
        for (int i = 0; i < 3; i++) if (SIGNALS[i] == signal) sigaction(signal, &before[i], nullptr);
        return;
    }
    report.address = reinterpret_cast<uint64_t>(info->si_addr);
    if (signal == SIGFPE) fail("it divides an integer by zero");
    siglongjmp(escape, 2);
}

// Returns 0, or 1 for an error with a text, or 2 for an access to memory that may not be touched.
static int launch(void (*kernel)(const char*), dim3 grid, dim3 block, size_t shared, unsigned order, const char* args) {
    struct sigaction ours = {};
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    runner = pthread_self();
    body = kernel; arguments = args; report = Report{}; now = nullptr;
    for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &ours, &before[i]);
    const int status = sigsetjmp(escape, 1);
    if (!status) run_grid(grid, block, shared, order);
    for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &before[i], nullptr);
    const dim3 thread = now ? now->index : dim3{0, 0, 0};
    const unsigned position[6] = {block_index.x, block_index.y, block_index.z, thread.x, thread.y, thread.z};
    std::memcpy(report.block, position, sizeof position);
    return status;
}

// The arguments of a kernel lie one behind the other, each in 8 bytes.
template <class T> T argument(const char* source) {
    T value;
    std::memcpy(&value, source, sizeof value);
    return value;
}
template <class... A, size_t... I> void call(void (*kernel)(A...), const char* args, std::index_sequence<I...>) {
    kernel(argument<std::remove_const_t<A>>(args + 8 * I)...);
}
template <class... A> void call(void (*kernel)(A...), const char* args) {
    call(kernel, args, std::index_sequence_for<A...>{});
}
}  // namespace emulator

extern "C" const emulator::Report* tinyres_report() { return &emulator::report; }
#define EXPORT(kernel)                                                                                              \
    extern "C" int tinyres_##kernel(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,    \
                                    size_t shared, unsigned order, const char* args) {                              \
        return emulator::launch([](const char* a) { emulator::call(::kernel, a); }, {gx, gy, gz}, {bx, by, bz}, shared, \
                                order, args);                                                                       \
    }

// What the compiler's checks of undefined behaviour call; each passes first where in the source it happened.
#define FOUND(what, ...)                                                                                       \
    extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##what(__VA_ARGS__)
namespace emulator {
struct Place { const char* file; uint32_t line, column; };
[[noreturn]] inline void undefined(const char* what, const Place* place) {
    char where[100];
    std::snprintf(where, sizeof where, "%s:%u", place->file, place->line);
    fail("%s, %s", what, where);
}
}  // namespace emulator
FOUND(out_of_bounds, emulator::Place* p, void*) { emulator::undefined("an index is outside of its array", p); }
FOUND(type_mismatch_v1, emulator::Place* p, void*) { emulator::undefined("an address is not aligned", p); }
FOUND(add_overflow, emulator::Place* p, void*, void*) { emulator::undefined("a sum of integers overflows", p); }
FOUND(sub_overflow, emulator::Place* p, void*, void*) { emulator::undefined("a difference of integers overflows", p); }
FOUND(mul_overflow, emulator::Place* p, void*, void*) { emulator::undefined("a product of integers overflows", p); }
FOUND(negate_overflow, emulator::Place* p, void*) { emulator::undefined("the negative of an integer overflows", p); }
FOUND(divrem_overflow, emulator::Place* p, void*, void*) { emulator::undefined("an integer is divided by zero", p); }
FOUND(shift_out_of_bounds, emulator::Place* p, void*, void*) { emulator::undefined("a shift is too far", p); }

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
#define SMALLER_AND_LARGER(type, smaller, larger)                    \
    inline type min(type a, type b) { return smaller; }              \
    inline type max(type a, type b) { return larger; }
SMALLER_AND_LARGER(int, a < b ? a : b, a < b ? b : a)
SMALLER_AND_LARGER(unsigned, a < b ? a : b, a < b ? b : a)
SMALLER_AND_LARGER(long long, a < b ? a : b, a < b ? b : a)
SMALLER_AND_LARGER(float, std::fmin(a, b), std::fmax(a, b))
SMALLER_AND_LARGER(double, std::fmin(a, b), std::fmax(a, b))
inline float __frcp_rn(float x) { return 1 / x; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float x) { unsigned u; std::memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; std::memcpy(&x, &u, 4); return x; }
