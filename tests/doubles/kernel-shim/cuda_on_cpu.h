// Runs CUDA kernels on the CPU, for tests: correctness only, no speed and no memory model.
//
// Every CUDA thread is a fiber; the fibers of a block take turns on one CPU thread, and a barrier is a
// turn given up until the others have come. So that mistakes show: shared memory is filled with NaN
// before each block, the order of the turns changes all the time, and a barrier that some threads never
// reach, or a shuffle that names a thread that has left, ends the program with a message.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) alignas(bytes)
// All shared variables lie together, so that they can be filled before each block.
#define __shared__ static __attribute__((section("cuda_shared")))

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t wide = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &wide, sizeof f);
    return f;
}
// Round to nearest, ties to even; a NaN stays one.
inline __nv_bfloat16 __float2bfloat16(float f) {
    if (std::isnan(f)) return {0x7fff};
    uint32_t wide;
    std::memcpy(&wide, &f, sizeof f);
    return {uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

namespace on_cpu {

struct Index {
    unsigned x = 1, y = 1, z = 1;
};

enum class Waits { nothing, warp, block, left };

struct Copy {
    uintptr_t to;
    const void *from;
    size_t bytes;
    bool inside;
};

struct Thread {
    ucontext_t context;
    jmp_buf left_off;
    bool started = false;
    std::unique_ptr<char[]> stack;
    Waits waits = Waits::nothing;
    unsigned lanes = 0;     // of its warp, that a warp barrier waits for
    uint64_t offered = 0;   // to the other lanes in a shuffle
    // What the thread gives to its warp's matrix instructions; two sets, so that one barrier is enough.
    uint64_t operands[2][6] = {};
    unsigned turn = 0;
    std::vector<Copy> copies;  // started, not waited for
    Index index;
};

// The running block. One at a time, so plain globals are enough.
inline std::vector<Thread> threads;
inline size_t running;
inline jmp_buf scheduler;
inline Index block_index, block_size, grid_size;
inline std::function<void()> kernel;
inline std::vector<char> dynamic_shared;  // and a margin that nothing may touch
inline const size_t shared_margin = 1024;

extern "C" char __attribute__((weak)) __start_cuda_shared[];
extern "C" char __attribute__((weak)) __stop_cuda_shared[];

[[noreturn]] inline void fail(const char *what) {
    std::fprintf(stderr, "block (%u, %u, %u), thread %zu: %s\n", block_index.x, block_index.y, block_index.z, running, what);
    std::exit(3);
}

// A fiber is entered by its context. From then on turns change hands by jumps, which make no system calls.
inline void take_turn() {
    Thread &thread = threads[running];
    if (_setjmp(scheduler)) return;
    if (thread.started) _longjmp(thread.left_off, 1);
    thread.started = true;
    setcontext(&thread.context);
}

inline void give_up_turn(Waits waits) {
    threads[running].waits = waits;
    if (!_setjmp(threads[running].left_off)) _longjmp(scheduler, 1);
}

inline void sync_warp(unsigned lanes) {
    if (!(lanes >> running % 32 & 1)) fail("a warp barrier whose mask leaves out the thread that calls it");
    threads[running].lanes = lanes;
    give_up_turn(Waits::warp);
}

template <class T>
T shuffle(unsigned lanes, T value, unsigned from_lane) {
    static_assert(sizeof value <= sizeof(uint64_t));
    Thread &me = threads[running];
    std::memcpy(&me.offered, &value, sizeof value);
    sync_warp(lanes);
    const size_t from = running / 32 * 32 + from_lane % 32;
    if (!(lanes >> from % 32 & 1)) fail("a shuffle from a lane outside its mask");
    std::memcpy(&value, &threads[from].offered, sizeof value);
    sync_warp(lanes);
    return value;
}

// All lanes offer `count` values; returns the set that holds them.
inline unsigned offer(const uint64_t *values, size_t count) {
    Thread &me = threads[running];
    const unsigned set = me.turn++ % 2;
    std::copy(values, values + count, me.operands[set]);
    sync_warp(0xffffffffu);
    return set;
}

inline const uint64_t *offered(unsigned set, size_t lane) { return threads[running / 32 * 32 + lane].operands[set]; }

// cp.async: nothing arrives before it is waited for.
inline void copy_async(uintptr_t to, const void *from, size_t bytes, bool inside) {
    if (to % bytes || uintptr_t(from) % bytes) fail("an asynchronous copy from or to an unaligned address");
    threads[running].copies.push_back({to, from, bytes, inside});
}
inline void copies_done() {
    for (const Copy &c : threads[running].copies) {
        if (c.inside) std::memcpy((void *)c.to, c.from, c.bytes);
        else std::memset((void *)c.to, 0, c.bytes);
    }
    threads[running].copies.clear();
}

// ldmatrix.x4: lane l names row l % 8 of matrix l / 8.
inline void ldmatrix(unsigned (&r)[4], uintptr_t row, bool transposed) {
    if (row % 16) fail("a matrix row at an unaligned address");
    const uint64_t mine = row;
    const unsigned set = offer(&mine, 1);
    const size_t g = running % 32 / 4, t = running % 4;
    for (size_t matrix = 0; matrix < 4; matrix++) {
        uint16_t pair[2];
        for (size_t i = 0; i < 2; i++) {
            const size_t from = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
            std::memcpy(&pair[i], (const char *)*offered(set, matrix * 8 + from) + column * 2, 2);
        }
        r[matrix] = pair[0] | unsigned(pair[1]) << 16;
    }
}

// movmatrix.trans: lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
inline unsigned transposed(unsigned matrix) {
    const uint64_t mine = matrix;
    const unsigned set = offer(&mine, 1);
    const size_t row = running % 32 / 4, t = running % 4;
    const auto element = [&](size_t of_row, size_t column) { return unsigned(*offered(set, of_row * 4 + column / 2) >> 16 * (column % 2)) & 0xffffu; };
    return element(2 * t, row) | element(2 * t + 1, row) << 16;
}

// mma.m16n8k16, bf16 in, f32 out: c += a b.
inline void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const uint64_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const unsigned set = offer(mine, 6);
    const size_t g = running % 32 / 4, t = running % 4;
    const auto half = [](uint64_t pair, size_t i) { return __bfloat162float({uint16_t(pair >> 16 * i)}); };
    for (size_t k = 0; k < 16; k++) {
        const size_t owner = k % 8 / 2, upper = k / 8, i = k % 2;
        for (size_t e = 0; e < 4; e++) {
            const float left = half(offered(set, g * 4 + owner)[e / 2 + 2 * upper], i);
            const float right = half(offered(set, (2 * t + e % 2) * 4 + owner)[4 + upper], i);
            c[e] += left * right;
        }
    }
}

inline void enter() {
    kernel();
    give_up_turn(Waits::left);
}

// Lets go on every warp whose named lanes have all come to a warp barrier.
inline bool release_warps() {
    bool any = false;
    for (size_t t = 0; t < threads.size(); t++) {
        if (threads[t].waits != Waits::warp) continue;
        const size_t warp = t / 32 * 32;
        const unsigned lanes = threads[t].lanes;
        bool all = true;
        for (size_t lane = 0; lane < 32; lane++) {
            if (!(lanes >> lane & 1)) continue;
            running = warp + lane;
            if (running >= threads.size() || threads[running].waits == Waits::left) fail("a warp barrier names this thread, which has left the kernel or never was");
            all &= threads[running].waits == Waits::warp && threads[running].lanes == lanes;
        }
        if (!all) continue;
        for (size_t lane = 0; lane < 32; lane++)
            if (lanes >> lane & 1) threads[warp + lane].waits = Waits::nothing;
        any = true;
    }
    return any;
}

// Lets the block go on when every thread that has not left waits for it.
inline bool release_block() {
    const auto passed = [](const Thread &t) { return t.waits == Waits::block || t.waits == Waits::left; };
    if (!std::all_of(threads.begin(), threads.end(), passed)) return false;
    for (auto &t : threads)
        if (t.waits == Waits::block) t.waits = Waits::nothing;
    return true;
}

inline void run_block(uint32_t &order_seed) {
    const size_t stack_bytes = 64 << 10;
    const size_t shared_bytes = __stop_cuda_shared - __start_cuda_shared;  // 0 where no kernel has any
    if (shared_bytes) std::memset(__start_cuda_shared, 0xff, shared_bytes);
    std::fill(dynamic_shared.begin(), dynamic_shared.end(), char(0xff));
    std::vector<size_t> order(threads.size());
    std::iota(order.begin(), order.end(), 0);
    for (size_t t = 0; t < threads.size(); t++) {
        Thread &thread = threads[t];
        if (!thread.stack) thread.stack.reset(new char[stack_bytes]);
        thread.waits = Waits::nothing;
        thread.started = false;
        thread.copies.clear();
        thread.turn = 0;
        thread.index = {unsigned(t % block_size.x), unsigned(t / block_size.x % block_size.y), unsigned(t / block_size.x / block_size.y)};
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = stack_bytes;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
    }
    const auto left = [](const Thread &t) { return t.waits == Waits::left; };
    while (!std::all_of(threads.begin(), threads.end(), left)) {
        order_seed = order_seed * 1664525u + 1013904223u;
        std::rotate(order.begin(), order.begin() + (order_seed >> 8) % order.size(), order.end());
        if (order_seed >> 31) std::reverse(order.begin(), order.end());
        for (size_t t : order) {
            running = t;
            if (threads[t].waits == Waits::nothing) take_turn();
        }
        const bool warps = release_warps();
        if (!release_block() && !warps && !std::all_of(threads.begin(), threads.end(), left)) fail("threads wait at barriers that the others never reach");
    }
    if (std::any_of(dynamic_shared.end() - shared_margin, dynamic_shared.end(), [](char c) { return c != char(0xff); })) fail("a write past the end of dynamic shared memory");
}

inline void launch(Index grid, Index block, size_t shared_bytes, std::function<void()> body) {
    grid_size = grid;
    block_size = block;
    kernel = std::move(body);
    threads.resize(size_t(block.x) * block.y * block.z);
    dynamic_shared.resize(shared_bytes + shared_margin);
    uint32_t order_seed = 1;
    // Last block first: nothing may rest on the blocks' order.
    for (size_t b = size_t(grid.x) * grid.y * grid.z; b-- > 0;) {
        block_index = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block(order_seed);
    }
}

}  // namespace on_cpu

#define threadIdx (on_cpu::threads[on_cpu::running].index)
#define blockIdx (on_cpu::block_index)
#define blockDim (on_cpu::block_size)
#define gridDim (on_cpu::grid_size)
#define __syncthreads() on_cpu::give_up_turn(on_cpu::Waits::block)
#define __syncwarp() on_cpu::sync_warp(0xffffffffu)
#define __shfl_sync(lanes, value, lane) on_cpu::shuffle(lanes, value, lane)
#define __shfl_xor_sync(lanes, value, mask) on_cpu::shuffle(lanes, value, unsigned(on_cpu::running % 32) ^ (mask))
