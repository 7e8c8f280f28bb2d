// Rotary position embedding in HF's rotate-half layout, Su et al., arXiv:2104.09864; in place.
//
// x [N, heads, 2 half] in f32 or bf16; cos, sin [positions, half] f32; position [N] u32, each below the
// tables' length. Pair j of a head is (x[j], x[half + j]). sign 1 rotates; -1 is the transpose, for the
// backward pass. Grid: N blocks.
// CPU twin: src/ops/rope.rs. Tests: tests/suite/kernels.rs.
#include "row.cuh"

template <typename T>
__device__ void rotate(T *__restrict__ x, const float *__restrict__ cos, const float *__restrict__ sin,
                       const unsigned *__restrict__ position, unsigned heads, unsigned half, float sign) {
    T *row = x + (size_t)blockIdx.x * heads * 2 * half;
    const size_t angles = (size_t)position[blockIdx.x] * half;
    for (unsigned i = threadIdx.x; i < heads * half; i += blockDim.x) {
        const unsigned j = i % half;
        T *first = row + (size_t)(i / half) * 2 * half + j;
        T *second = first + half;
        const float a = to_f32(*first), b = to_f32(*second), c = cos[angles + j], s = sin[angles + j] * sign;
        put(first, a * c - b * s);
        put(second, b * c + a * s);
    }
}

extern "C" __global__ void rope_f32(float *x, const float *cos, const float *sin, const unsigned *position, unsigned heads,
                                    unsigned half, float sign) {
    rotate(x, cos, sin, position, heads, half, sign);
}
extern "C" __global__ void rope_bf16(__nv_bfloat16 *x, const float *cos, const float *sin, const unsigned *position,
                                     unsigned heads, unsigned half, float sign) {
    rotate(x, cos, sin, position, heads, half, sign);
}
