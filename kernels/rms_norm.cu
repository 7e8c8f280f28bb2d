// RMSNorm, Zhang and Sennrich, arXiv:1910.07467: y = x r w with r = 1 / sqrt(mean(x^2) + eps), row by row.
//
// x, y, dy, dx [N, H] and w [H] in f32 or bf16; inverse_rms [N], dw [H] and partial [C, H] in f32.
// Bound by memory. Elements moved through device memory, per element of x: forward 2 (with a residual 4), backward 4;
// second reads of a row hit the caches.
// CPU twin: src/ops/rms_norm/cpu.rs. Tests: tests/suite/kernels.rs.
#include "wide.cuh"

// Grid: N blocks. With `residual` [N, H], `x + residual` is normed instead and kept in `sum` (as rounded
// to the element type, so that the backward pass sees what was normed); both may be null together.
template <typename T>
__device__ void forward(const T *x, const T *__restrict__ residual, const T *__restrict__ w, T *sum,
                        T *__restrict__ y, float *__restrict__ inverse_rms, unsigned width, float eps) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const size_t row = (size_t)blockIdx.x * width;
    const bool wide = width % lanes == 0 && aligned(x) && aligned(y) && aligned(w) && aligned(sum) && aligned(residual);
    const unsigned first = threadIdx.x * lanes, step = blockDim.x * lanes;
    const T *normed = residual ? sum : x;
    float squares = 0.f, v[lanes];
    for (unsigned i = first; i < width; i += step) {
        load_some(x + row + i, width - i, wide, v);
        if (residual) {
            float r[lanes];
            load_some(residual + row + i, width - i, wide, r);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l) v[l] = rounded<T>(v[l] + r[l]);
            store_some(sum + row + i, width - i, wide, v);
        }
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) squares += v[l] * v[l];
    }
    const float r = 1.f / sqrtf(block_sum(squares) / width + eps);
    if (threadIdx.x == 0) inverse_rms[blockIdx.x] = r;
    // One round is the common case and needs no second read; else each thread reads back what it wrote itself.
    for (unsigned i = first; i < width; i += step) {
        float scale[lanes];
        if (width > step) load_some(normed + row + i, width - i, wide, v);
        load_some(w + i, width - i, wide, scale);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) v[l] *= r * scale[l];
        store_some(y + row + i, width - i, wide, v);
    }
}

struct Two {
    float a, b;
};

// Sums over the block, the same in every thread, in a fixed order; the room that they go through takes turns.
static __device__ __forceinline__ Two block_sums(Two x, unsigned turn) {
    __shared__ Two results[2][32];
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        x.a += __shfl_xor_sync(ALL_LANES, x.a, lanes);
        x.b += __shfl_xor_sync(ALL_LANES, x.b, lanes);
    }
    if (blockDim.x == 32) return x;
    if (threadIdx.x % 32 == 0) results[turn % 2][threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? results[turn % 2][threadIdx.x % 32] : Two{0.f, 0.f};
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        x.a += __shfl_xor_sync(ALL_LANES, x.a, lanes);
        x.b += __shfl_xor_sync(ALL_LANES, x.b, lanes);
    }
    return x;
}

// With g = dy w: dx += r g - x r^3 mean(g x). Adds, because the residual's gradient is there. r is worked out again:
// the row is read anyway. Where `partial` is not null, block c sums rows [c R, (c + 1) R) of dy x r into partial[c]:
// no atomics, the same numbers on every run.
// Grid: C blocks of which each thread holds ROUNDS times 16 bytes of a row; H up to ROUNDS threads lanes.
template <int ROUNDS, typename T>
__device__ void backward(const T *__restrict__ x, const T *__restrict__ w, const T *__restrict__ dy, T *__restrict__ dx,
                         float *__restrict__ partial, unsigned rows, unsigned width, unsigned rows_per_block, float eps) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = width % lanes == 0 && aligned(x) && aligned(w) && aligned(dy) && aligned(dx) && aligned(partial);
    const unsigned start = blockIdx.x * rows_per_block, end = min(start + rows_per_block, rows);
    const unsigned mine = threadIdx.x * lanes, step = blockDim.x * lanes;
    float total[ROUNDS][lanes] = {};
    for (unsigned row = start; row < end; ++row) {
        const size_t at = (size_t)row * width;
        // Of several rounds only the sums are kept; rows are read back from the cache.
        float v[lanes], g[lanes], d[lanes], scale[lanes];
        const auto load = [&](unsigned i) {
            load_some(x + at + i, width - i, wide, v);
            load_some(dy + at + i, width - i, wide, g);
            load_some(dx + at + i, width - i, wide, d);
            load_some(w + i, width - i, wide, scale);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l) scale[l] *= g[l];
        };
        Two sums = {0.f, 0.f};
#pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            if (mine + k * step >= width) break;
            load(mine + k * step);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l) {
                sums.a += v[l] * v[l];
                sums.b += scale[l] * v[l];
            }
        }
        sums = block_sums(sums, row);
        const float r = 1.f / sqrtf(sums.a / width + eps), pull = sums.b / width * r * r * r;
#pragma unroll
        for (int k = 0; k < ROUNDS; ++k) {
            const unsigned i = mine + k * step;
            if (i >= width) break;
            if (ROUNDS > 1) load(i);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l) {
                d[l] += r * scale[l] - v[l] * pull;
                total[k][l] += g[l] * v[l] * r;
            }
            store_some(dx + at + i, width - i, wide, d);
        }
    }
    if (!partial) return;
#pragma unroll
    for (int k = 0; k < ROUNDS; ++k) {
        const unsigned i = mine + k * step;
        if (i < width) store_some(partial + (size_t)blockIdx.x * width + i, width - i, wide, total[k]);
    }
}

extern "C" __global__ void rms_norm_forward_f32(const float *x, const float *residual, const float *w, float *sum, float *y,
                                                float *inverse_rms, unsigned width, float eps) {
    forward(x, residual, w, sum, y, inverse_rms, width, eps);
}
extern "C" __global__ void rms_norm_forward_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *residual, const __nv_bfloat16 *w,
                                                 __nv_bfloat16 *sum, __nv_bfloat16 *y, float *inverse_rms, unsigned width,
                                                 float eps) {
    forward(x, residual, w, sum, y, inverse_rms, width, eps);
}
extern "C" __global__ void __launch_bounds__(1024)
rms_norm_backward_f32(const float *x, const float *w, const float *dy, float *dx, float *partial, unsigned rows, unsigned width,
                      unsigned rows_per_block, float eps) {
    backward<1>(x, w, dy, dx, partial, rows, width, rows_per_block, eps);
}
extern "C" __global__ void __launch_bounds__(1024)
rms_norm_backward_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *w, const __nv_bfloat16 *dy, __nv_bfloat16 *dx, float *partial,
                       unsigned rows, unsigned width, unsigned rows_per_block, float eps) {
    backward<1>(x, w, dy, dx, partial, rows, width, rows_per_block, eps);
}
// Rows wider than 1024 threads hold: up to 16384 elements.
extern "C" __global__ void __launch_bounds__(512)
rms_norm_backward_wide_f32(const float *x, const float *w, const float *dy, float *dx, float *partial, unsigned rows, unsigned width,
                           unsigned rows_per_block, float eps) {
    backward<8>(x, w, dy, dx, partial, rows, width, rows_per_block, eps);
}
extern "C" __global__ void __launch_bounds__(512)
rms_norm_backward_wide_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *w, const __nv_bfloat16 *dy, __nv_bfloat16 *dx, float *partial,
                            unsigned rows, unsigned width, unsigned rows_per_block, float eps) {
    backward<4>(x, w, dy, dx, partial, rows, width, rows_per_block, eps);
}

// dw += the sum over all chunks: thread (c, group) takes every `groups`th chunk of column c, and the groups are summed
// in order. Grid: ceil(H / 32) blocks of 32 groups threads.
extern "C" __global__ void __launch_bounds__(1024)
rms_norm_add_partials(const float *__restrict__ partial, float *__restrict__ dw, unsigned chunks, unsigned width) {
    __shared__ float of_groups[32][33];
    const unsigned lane = threadIdx.x % 32, group = threadIdx.x / 32, groups = blockDim.x / 32, column = blockIdx.x * 32 + lane;
    float total = 0.f;
    if (column < width) {
#pragma unroll 4
        for (unsigned c = group; c < chunks; c += groups) total += partial[(size_t)c * width + column];
    }
    of_groups[group][lane] = total;
    __syncthreads();
    if (group != 0 || column >= width) return;
    for (unsigned g = 1; g < groups; ++g) total += of_groups[g][lane];
    dw[column] += total;
}
