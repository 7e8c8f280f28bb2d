// RMSNorm, Zhang and Sennrich, arXiv:1910.07467: y = x r w with r = 1 / sqrt(mean(x^2) + eps), row by row.
//
// x, y, dy, dx [N, H] and w [H] in f32 or bf16; inverse_rms [N], dw [H] and partial [C, H] in f32.
// Bound by memory. Elements moved through device memory, per element of x: forward 2 (with a residual 4),
// backward_input 4, backward_weight 2; second reads of a row hit the caches.
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

// Grid: N blocks. With g = dy w: dx += r g - x r^3 mean(g x). Adds, because the residual's gradient is there.
template <typename T>
__device__ void backward_input(const T *__restrict__ x, const T *__restrict__ w, const float *__restrict__ inverse_rms,
                               const T *__restrict__ dy, T *__restrict__ dx, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const size_t row = (size_t)blockIdx.x * width;
    const bool wide = width % lanes == 0 && aligned(x) && aligned(w) && aligned(dy) && aligned(dx);
    const unsigned first = threadIdx.x * lanes, step = blockDim.x * lanes;
    const float r = inverse_rms[blockIdx.x];
    float along = 0.f, g[lanes], v[lanes];
    const auto load = [&](unsigned i) {
        float scale[lanes];
        load_some(dy + row + i, width - i, wide, g);
        load_some(x + row + i, width - i, wide, v);
        load_some(w + i, width - i, wide, scale);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) g[l] *= scale[l];
    };
    for (unsigned i = first; i < width; i += step) {
        load(i);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) along += g[l] * v[l];
    }
    const float pull = block_sum(along) / width * r * r * r;
    for (unsigned i = first; i < width; i += step) {
        float d[lanes];
        if (width > step) load(i);
        load_some(dx + row + i, width - i, wide, d);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) d[l] += r * g[l] - v[l] * pull;
        store_some(dx + row + i, width - i, wide, d);
    }
}

// Grid: (ceil(H / (threads lanes)), C) blocks with lanes 4 for f32 and 8 for bf16; block row c sums rows
// [c R, (c + 1) R) of dy x r into partial[c]. No atomics: the same numbers on every run.
template <typename T>
__device__ void backward_weight(const T *__restrict__ x, const float *__restrict__ inverse_rms, const T *__restrict__ dy,
                                float *__restrict__ partial, unsigned rows, unsigned width, unsigned rows_per_chunk) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const unsigned column = (blockIdx.x * blockDim.x + threadIdx.x) * lanes;
    if (column >= width) return;
    const bool wide = width % lanes == 0 && aligned(x) && aligned(dy) && aligned(partial);
    const unsigned first = blockIdx.y * rows_per_chunk;
    const unsigned end = first + rows_per_chunk < rows ? first + rows_per_chunk : rows;
    float total[lanes] = {};
#pragma unroll 4
    for (unsigned row = first; row < end; ++row) {
        const size_t i = (size_t)row * width + column;
        float g[lanes], v[lanes];
        load_some(dy + i, width - column, wide, g);
        load_some(x + i, width - column, wide, v);
        const float r = inverse_rms[row];
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) total[l] += g[l] * v[l] * r;
    }
    store_some(partial + (size_t)blockIdx.y * width + column, width - column, wide, total);
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
extern "C" __global__ void rms_norm_backward_input_f32(const float *x, const float *w, const float *inverse_rms, const float *dy,
                                                       float *dx, unsigned width) {
    backward_input(x, w, inverse_rms, dy, dx, width);
}
extern "C" __global__ void rms_norm_backward_input_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *w, const float *inverse_rms,
                                                        const __nv_bfloat16 *dy, __nv_bfloat16 *dx, unsigned width) {
    backward_input(x, w, inverse_rms, dy, dx, width);
}
extern "C" __global__ void rms_norm_backward_weight_f32(const float *x, const float *inverse_rms, const float *dy, float *partial,
                                                        unsigned rows, unsigned width, unsigned rows_per_chunk) {
    backward_weight(x, inverse_rms, dy, partial, rows, width, rows_per_chunk);
}
extern "C" __global__ void rms_norm_backward_weight_bf16(const __nv_bfloat16 *x, const float *inverse_rms,
                                                         const __nv_bfloat16 *dy, float *partial, unsigned rows, unsigned width,
                                                         unsigned rows_per_chunk) {
    backward_weight(x, inverse_rms, dy, partial, rows, width, rows_per_chunk);
}

// Grid: ceil(H / threads) blocks. dw += partial[0] + partial[1] + ..., in that order.
extern "C" __global__ void rms_norm_add_partials(const float *__restrict__ partial, float *__restrict__ dw, unsigned chunks,
                                                 unsigned width) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float total = 0.f;
    for (unsigned c = 0; c < chunks; ++c) total += partial[(size_t)c * width + column];
    dw[column] += total;
}
