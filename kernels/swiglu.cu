// SwiGLU, Shazeer, arXiv:2002.05202: act = silu(gate) up, with silu(g) = g sigmoid(g).
//
// Every array has `count` elements in f32 or bf16. Any grid: threads step by the size of the grid. The kernels of
// halves take gate and up (and their gradients) as the left and right half of rows [N, 2 width], which one product
// makes; grid: column packs, rows.
// Bound by memory: forward 2 reads and 1 write an element, backward 3 and 3. An output may be the array of an
// input (dact's, say), since every thread reads its elements before it writes them.
// CPU twin: src/ops/swiglu/cpu.rs. Tests: tests/suite/kernels.rs.
#include "wide.cuh"

// 1 / (1 + inf) is 0, so a large negative x is no special case.
static __device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <typename T>
__device__ void forward(const T *__restrict__ gate, const T *__restrict__ up, T *__restrict__ act, unsigned long long count) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(gate) && aligned(up) && aligned(act);
    const size_t step = (size_t)gridDim.x * blockDim.x * lanes;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * lanes; i < count; i += step) {
        const unsigned here = count - i < lanes ? (unsigned)(count - i) : lanes;
        float g[lanes], u[lanes];
        load_some(gate + i, here, wide, g);
        load_some(up + i, here, wide, u);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) u[l] *= g[l] * sigmoid(g[l]);
        store_some(act + i, here, wide, u);
    }
}

// Writes the forward's result again, because the next layer's weight gradient needs it, and
// dup = dact silu(gate), dgate = dact up silu'(gate) with silu'(g) = s (1 + g (1 - s)).
template <typename T>
__device__ void backward(const T *gate, const T *up, const T *dact, T *act, T *dgate, T *dup, unsigned long long count) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(gate) && aligned(up) && aligned(dact) && aligned(act) && aligned(dgate) && aligned(dup);
    const size_t step = (size_t)gridDim.x * blockDim.x * lanes;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * lanes; i < count; i += step) {
        const unsigned here = count - i < lanes ? (unsigned)(count - i) : lanes;
        float g[lanes], u[lanes], d[lanes];
        load_some(gate + i, here, wide, g);
        load_some(up + i, here, wide, u);
        load_some(dact + i, here, wide, d);
        float a[lanes], dg[lanes], du[lanes];
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) {
            const float s = sigmoid(g[l]), silu = g[l] * s;
            a[l] = silu * u[l];
            du[l] = d[l] * silu;
            dg[l] = d[l] * u[l] * s * (1.f + g[l] * (1.f - s));
        }
        store_some(act + i, here, wide, a);
        store_some(dgate + i, here, wide, dg);
        store_some(dup + i, here, wide, du);
    }
}

extern "C" __global__ void swiglu_forward_f32(const float *gate, const float *up, float *act, unsigned long long count) {
    forward(gate, up, act, count);
}
extern "C" __global__ void swiglu_forward_bf16(const __nv_bfloat16 *gate, const __nv_bfloat16 *up, __nv_bfloat16 *act,
                                               unsigned long long count) {
    forward(gate, up, act, count);
}
extern "C" __global__ void swiglu_backward_f32(const float *gate, const float *up, const float *dact, float *act, float *dgate,
                                               float *dup, unsigned long long count) {
    backward(gate, up, dact, act, dgate, dup, count);
}
extern "C" __global__ void swiglu_backward_bf16(const __nv_bfloat16 *gate, const __nv_bfloat16 *up, const __nv_bfloat16 *dact,
                                                __nv_bfloat16 *act, __nv_bfloat16 *dgate, __nv_bfloat16 *dup,
                                                unsigned long long count) {
    backward(gate, up, dact, act, dgate, dup, count);
}

template <typename T>
__device__ void forward_halves(const T *__restrict__ gate_up, T *__restrict__ act, unsigned rows, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(gate_up) && aligned(act) && width % lanes == 0;
    const unsigned j = (blockIdx.x * blockDim.x + threadIdx.x) * lanes;
    if (j >= width) return;
    const unsigned here = width - j < lanes ? width - j : lanes;
    for (size_t n = blockIdx.y; n < rows; n += gridDim.y) {
        float g[lanes], u[lanes];
        load_some(gate_up + n * 2 * width + j, here, wide, g);
        load_some(gate_up + n * 2 * width + width + j, here, wide, u);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) u[l] *= g[l] * sigmoid(g[l]);
        store_some(act + n * width + j, here, wide, u);
    }
}

// dgate_up may be gate_up's array: a thread reads its elements before it writes them.
template <typename T>
__device__ void backward_halves(const T *gate_up, const T *dact, T *act, T *dgate_up, unsigned rows, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(gate_up) && aligned(dact) && aligned(act) && aligned(dgate_up) && width % lanes == 0;
    const unsigned j = (blockIdx.x * blockDim.x + threadIdx.x) * lanes;
    if (j >= width) return;
    const unsigned here = width - j < lanes ? width - j : lanes;
    for (size_t n = blockIdx.y; n < rows; n += gridDim.y) {
        const size_t left = n * 2 * width + j, alone = n * width + j;
        float g[lanes], u[lanes], d[lanes];
        load_some(gate_up + left, here, wide, g);
        load_some(gate_up + left + width, here, wide, u);
        load_some(dact + alone, here, wide, d);
        float a[lanes], dg[lanes], du[lanes];
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) {
            const float s = sigmoid(g[l]), silu = g[l] * s;
            a[l] = silu * u[l];
            du[l] = d[l] * silu;
            dg[l] = d[l] * u[l] * s * (1.f + g[l] * (1.f - s));
        }
        store_some(act + alone, here, wide, a);
        store_some(dgate_up + left, here, wide, dg);
        store_some(dgate_up + left + width, here, wide, du);
    }
}

extern "C" __global__ void swiglu_halves_forward_f32(const float *gate_up, float *act, unsigned rows, unsigned width) {
    forward_halves(gate_up, act, rows, width);
}
extern "C" __global__ void swiglu_halves_backward_f32(const float *gate_up, const float *dact, float *act, float *dgate_up, unsigned rows,
                                                      unsigned width) {
    backward_halves(gate_up, dact, act, dgate_up, rows, width);
}
extern "C" __global__ void swiglu_halves_forward_bf16(const __nv_bfloat16 *gate_up, __nv_bfloat16 *act, unsigned rows, unsigned width) {
    forward_halves(gate_up, act, rows, width);
}
extern "C" __global__ void swiglu_halves_backward_bf16(const __nv_bfloat16 *gate_up, const __nv_bfloat16 *dact, __nv_bfloat16 *act, __nv_bfloat16 *dgate_up, unsigned rows,
                                                      unsigned width) {
    backward_halves(gate_up, dact, act, dgate_up, rows, width);
}
