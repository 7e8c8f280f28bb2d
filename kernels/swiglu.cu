// SwiGLU, Shazeer, arXiv:2002.05202: act = silu(gate) up, with silu(g) = g sigmoid(g).
//
// gate_up [N, 2 width] has gate left and up right, as one product makes them; act and dact [N, width]; f32 or bf16.
// Grid: column packs, rows; threads step over rows. Bound by memory: forward 2 reads and 1 write an element of act,
// backward 3 and 3. The backward kernel writes the forward's result again, because the next layer's weight gradient
// needs it, and dup = dact silu(gate), dgate = dact up silu'(gate) with silu'(g) = s (1 + g (1 - s)).
// CPU twin: src/ops/swiglu/cpu.rs. Tests: tests/suite/kernels.rs.
#include "wide.cuh"

// 1 / (1 + inf) is 0, so a large negative x is no special case.
static __device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <typename T>
__device__ void forward(const T *__restrict__ gate_up, T *__restrict__ act, unsigned rows, unsigned width) {
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
__device__ void backward(const T *gate_up, const T *dact, T *act, T *dgate_up, unsigned rows, unsigned width) {
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

extern "C" __global__ void swiglu_forward_f32(const float *gate_up, float *act, unsigned rows, unsigned width) {
    forward(gate_up, act, rows, width);
}
extern "C" __global__ void swiglu_forward_bf16(const __nv_bfloat16 *gate_up, __nv_bfloat16 *act, unsigned rows, unsigned width) {
    forward(gate_up, act, rows, width);
}
extern "C" __global__ void swiglu_backward_f32(const float *gate_up, const float *dact, float *act, float *dgate_up, unsigned rows,
                                               unsigned width) {
    backward(gate_up, dact, act, dgate_up, rows, width);
}
extern "C" __global__ void swiglu_backward_bf16(const __nv_bfloat16 *gate_up, const __nv_bfloat16 *dact, __nv_bfloat16 *act,
                                                __nv_bfloat16 *dgate_up, unsigned rows, unsigned width) {
    backward(gate_up, dact, act, dgate_up, rows, width);
}
