// RMSNorm, Zhang and Sennrich, arXiv:1910.07467: y = x r w with r = 1 / sqrt(mean(x^2) + eps), row by row.
//
// x, y, dy, dx [N, H] and w [H] in f32 or bf16; inverse_rms [N], dw [H] and partial [C, H] in f32.
// CPU twin: src/ops/rms_norm.rs. Tests: tests/suite/kernels.rs.
#include "row.cuh"

// Grid: N blocks. With `residual` [N, H], `x + residual` is normed instead and kept in `sum` (as rounded
// to the element type, so that the backward pass sees what was normed); both may be null together.
template <typename T>
__device__ void forward(const T *x, const T *__restrict__ residual, const T *__restrict__ w, T *sum,
                        T *__restrict__ y, float *__restrict__ inverse_rms, unsigned width, float eps) {
    const size_t row = (size_t)blockIdx.x * width;
    const T *normed = residual ? sum : x;
    float squares = 0.f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        if (residual) put(sum + row + i, to_f32(x[row + i]) + to_f32(residual[row + i]));
        const float v = to_f32(normed[row + i]);
        squares += v * v;
    }
    const float r = 1.f / sqrtf(block_sum(squares) / width + eps);
    if (threadIdx.x == 0) inverse_rms[blockIdx.x] = r;
    // Each thread reads back only what it wrote itself.
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) put(y + row + i, to_f32(normed[row + i]) * r * to_f32(w[i]));
}

// Grid: N blocks. With g = dy w: dx += r g - x r^3 mean(g x). Adds, because the residual's gradient is there.
template <typename T>
__device__ void backward_input(const T *__restrict__ x, const T *__restrict__ w, const float *__restrict__ inverse_rms,
                               const T *__restrict__ dy, T *__restrict__ dx, unsigned width) {
    const size_t row = (size_t)blockIdx.x * width;
    const float r = inverse_rms[blockIdx.x];
    float along = 0.f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        along += to_f32(dy[row + i]) * to_f32(w[i]) * to_f32(x[row + i]);
    const float pull = block_sum(along) / width * r * r * r;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float d = r * to_f32(dy[row + i]) * to_f32(w[i]) - to_f32(x[row + i]) * pull;
        put(dx + row + i, to_f32(dx[row + i]) + d);
    }
}

// Grid: (ceil(H / threads), C) blocks; block row c sums rows [c R, (c + 1) R) of dy x r into partial[c].
// No atomics: the same numbers on every run.
template <typename T>
__device__ void backward_weight(const T *__restrict__ x, const float *__restrict__ inverse_rms, const T *__restrict__ dy,
                                float *__restrict__ partial, unsigned rows, unsigned width, unsigned rows_per_chunk) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const unsigned first = blockIdx.y * rows_per_chunk;
    const unsigned end = first + rows_per_chunk < rows ? first + rows_per_chunk : rows;
    float total = 0.f;
    for (unsigned row = first; row < end; ++row) {
        const size_t i = (size_t)row * width + column;
        total += to_f32(dy[i]) * to_f32(x[i]) * inverse_rms[row];
    }
    partial[(size_t)blockIdx.y * width + column] = total;
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
