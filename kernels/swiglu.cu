// SwiGLU, Shazeer, arXiv:2002.05202: act = silu(gate) up, with silu(g) = g sigmoid(g).
//
// Every array has `count` elements in f32 or bf16. Any grid: threads step by the size of the grid.
// CPU twin: src/ops/swiglu.rs. Tests: tests/suite/kernels.rs.
#include "row.cuh"

// 1 / (1 + inf) is 0, so a large negative x is no special case.
static __device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <typename T>
__device__ void forward(const T *__restrict__ gate, const T *__restrict__ up, T *__restrict__ act, unsigned long long count) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const float g = to_f32(gate[i]);
        put(act + i, g * sigmoid(g) * to_f32(up[i]));
    }
}

// Writes the forward's result again, because the next layer's weight gradient needs it, and
// dup = dact silu(gate), dgate = dact up silu'(gate) with silu'(g) = s (1 + g (1 - s)).
template <typename T>
__device__ void backward(const T *__restrict__ gate, const T *__restrict__ up, const T *__restrict__ dact, T *__restrict__ act,
                         T *__restrict__ dgate, T *__restrict__ dup, unsigned long long count) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const float g = to_f32(gate[i]), u = to_f32(up[i]), d = to_f32(dact[i]), s = sigmoid(g);
        put(act + i, g * s * u);
        put(dup + i, d * g * s);
        put(dgate + i, d * u * s * (1.f + g * (1.f - s)));
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
