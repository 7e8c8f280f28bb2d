// Rotary position embedding in HF's rotate-half layout, Su et al., arXiv:2104.09864; in place.
//
// x [N, heads, 2 half] in f32 or bf16; cos, sin [positions, half] f32; position [N] u32, each below the
// tables' length. Pair j of a head is (x[j], x[half + j]). sign 1 rotates; -1 is the transpose, for the
// backward pass. Grid: N blocks. Bound by memory: one read and one write of x; the tables stay in the cache.
//
// qkv_split and qkv_join rotate on the way between the rows of one product, qkv [N, (heads + 2 kv_heads) 2 half], and
// q [N, heads, 2 half], k and v [N, kv_heads, 2 half]; without cos nothing is turned. Row n of k and v is slot[n] where
// there are slots, which is how a decode step's keys and values join their cache. Grid: N blocks; each number is read
// and written once.
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

template <bool JOIN, typename T>
__device__ void between(T *__restrict__ qkv, const float *__restrict__ cos, const float *__restrict__ sin,
                        const unsigned *__restrict__ position, const unsigned *__restrict__ slot, T *__restrict__ q, T *__restrict__ k,
                        T *__restrict__ v, unsigned heads, unsigned kv_heads, unsigned half) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const size_t n = blockIdx.x, to = slot ? slot[n] : n, dim = 2 * half;
    T *row = qkv + n * (heads + 2 * kv_heads) * dim;
    const size_t angles = cos ? (size_t)position[n] * half : 0;
    const bool wide = half % lanes == 0 && aligned(qkv) && aligned(q) && aligned(k) && aligned(v) && aligned(cos) && aligned(sin);
    const unsigned packs = (half + lanes - 1) / lanes;
    for (unsigned i = threadIdx.x; i < (heads + 2 * kv_heads) * packs; i += blockDim.x) {
        const unsigned head = i / packs, j = i % packs * lanes, count = half - j;
        T *together = row + head * dim + j;
        T *apart = head < heads              ? q + (n * heads + head) * dim + j
                   : head < heads + kv_heads ? k + (to * kv_heads + head - heads) * dim + j
                                             : v + (to * kv_heads + head - heads - kv_heads) * dim + j;
        T *from = JOIN ? apart : together, *into = JOIN ? together : apart;
        float a[lanes], b[lanes];
        load_some(from, count, wide, a);
        load_some(from + half, count, wide, b);
        if (cos && head < heads + kv_heads) {
            float c[lanes], s[lanes];
            load_some(cos + angles + j, count, wide, c);
            load_some(sin + angles + j, count, wide, s);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l) {
                const float first = a[l], second = b[l], turn = JOIN ? -s[l] : s[l];
                a[l] = first * c[l] - second * turn;
                b[l] = second * c[l] + first * turn;
            }
        }
        store_some(into, count, wide, a);
        store_some(into + half, count, wide, b);
    }
}

extern "C" __global__ void qkv_split_f32(float *qkv, const float *cos, const float *sin, const unsigned *position, const unsigned *slot, float *q,
                                         float *k, float *v, unsigned heads, unsigned kv_heads, unsigned half) {
    between<false>(qkv, cos, sin, position, slot, q, k, v, heads, kv_heads, half);
}
extern "C" __global__ void qkv_split_bf16(__nv_bfloat16 *qkv, const float *cos, const float *sin, const unsigned *position, const unsigned *slot, __nv_bfloat16 *q,
                                          __nv_bfloat16 *k, __nv_bfloat16 *v, unsigned heads, unsigned kv_heads, unsigned half) {
    between<false>(qkv, cos, sin, position, slot, q, k, v, heads, kv_heads, half);
}
extern "C" __global__ void qkv_join_f32(float *qkv, const float *cos, const float *sin, const unsigned *position, const unsigned *slot, float *q,
                                        float *k, float *v, unsigned heads, unsigned kv_heads, unsigned half) {
    between<true>(qkv, cos, sin, position, slot, q, k, v, heads, kv_heads, half);
}
extern "C" __global__ void qkv_join_bf16(__nv_bfloat16 *qkv, const float *cos, const float *sin, const unsigned *position, const unsigned *slot, __nv_bfloat16 *q,
                                         __nv_bfloat16 *k, __nv_bfloat16 *v, unsigned heads, unsigned kv_heads, unsigned half) {
    between<true>(qkv, cos, sin, position, slot, q, k, v, heads, kv_heads, half);
}
