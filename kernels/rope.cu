// Rotary position embedding in HF's rotate-half layout, Su et al., arXiv:2104.09864; in place.
//
// x [N, heads, 2 half] in f32 or bf16; cos, sin [positions, half] f32; position [N] u32, each below the
// tables' length. Pair j of a head is (x[j], x[half + j]). sign 1 rotates; -1 is the transpose, for the
// backward pass. Grid: N blocks. Bound by memory: one read and one write of x; the tables stay in the cache.
// CPU twin: src/ops/rope/cpu.rs. Tests: tests/suite/kernels.rs.
#include "wide.cuh"

template <typename T>
__device__ void rotate(T *__restrict__ x, const float *__restrict__ cos, const float *__restrict__ sin,
                       const unsigned *__restrict__ position, unsigned heads, unsigned half, float sign) {
    constexpr unsigned lanes = Wide<T>::lanes;
    T *row = x + (size_t)blockIdx.x * heads * 2 * half;
    const size_t angles = (size_t)position[blockIdx.x] * half;
    const bool wide = half % lanes == 0 && aligned(x) && aligned(cos) && aligned(sin);
    const unsigned packs = (half + lanes - 1) / lanes;  // of a half head; a thread turns one at a time
    for (unsigned i = threadIdx.x; i < heads * packs; i += blockDim.x) {
        const unsigned j = i % packs * lanes, count = half - j;
        T *first = row + (size_t)(i / packs) * 2 * half + j;
        T *second = first + half;
        float a[lanes], b[lanes], c[lanes], s[lanes];
        load_some(first, count, wide, a);
        load_some(second, count, wide, b);
        load_some(cos + angles + j, count, wide, c);
        load_some(sin + angles + j, count, wide, s);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) {
            const float from = a[l], to = b[l], turn = s[l] * sign;
            a[l] = from * c[l] - to * turn;
            b[l] = to * c[l] + from * turn;
        }
        store_some(first, count, wide, a);
        store_some(second, count, wide, b);
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
