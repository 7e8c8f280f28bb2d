// Sums, fills, casts and random weights, element by element.
//
// Any grid: threads step by the size of the grid. Bound by memory, each operand read or written once:
// add_assign 12 bytes an element in f32 and 6 in bf16, scale 8, fill 4 or 2, casts 6; normal is bound by f64 arithmetic.
// CPU twins: src/ops/elementwise/cpu.rs, src/ops/memory/cpu.rs. Tests: tests/suite/kernels_state.rs.
#include "philox.cuh"
#include "wide.cuh"

// sum += term. A bf16 term may go into an f32 sum.
template <typename S, typename T>
__device__ void add_assign(S *__restrict__ sum, const T *__restrict__ term, unsigned long long count) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(sum) && aligned(term);
    const size_t step = (size_t)gridDim.x * blockDim.x * lanes;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * lanes; i < count; i += step) {
        const unsigned here = count - i < lanes ? (unsigned)(count - i) : lanes;
        float s[lanes], t[lanes];
        load_some(sum + i, here, wide, s);
        load_some(term + i, here, wide, t);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) s[l] += t[l];
        store_some(sum + i, here, wide, s);
    }
}

template <typename T>
__device__ void fill(T *__restrict__ to, float value, unsigned long long count) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(to);
    const size_t step = (size_t)gridDim.x * blockDim.x * lanes;
    float x[lanes];
#pragma unroll
    for (unsigned l = 0; l < lanes; ++l) x[l] = value;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * lanes; i < count; i += step)
        store_some(to + i, count - i < lanes ? (unsigned)(count - i) : lanes, wide, x);
}

template <typename From, typename To>
__device__ void cast(const From *__restrict__ from, To *__restrict__ to, unsigned long long count) {
    constexpr unsigned lanes = 8;
    const bool wide = aligned(from) && aligned(to);
    const size_t step = (size_t)gridDim.x * blockDim.x * lanes;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * lanes; i < count; i += step) {
        const unsigned here = count - i < lanes ? (unsigned)(count - i) : lanes;
        float x[lanes];
        load_some(from + i, here, wide, x);
        store_some(to + i, here, wide, x);
    }
}

// to[i] = scale * the stream's standard normal at position i (Box-Muller in f64, as on the host). count < 2^32.
template <typename T>
__device__ void normal(T *__restrict__ to, float scale, Stream stream, unsigned long long count) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const Random128 bits = stream_block(stream, (uint32_t)i);
        // 1 - u lies in (0, 1], so the logarithm is finite.
        const double radius = sqrt(-2.0 * log(1.0 - (double)unit_f32(bits.a)));
        put(to + i, scale * (float)(radius * cos(6.283185307179586 * (double)unit_f32(bits.b))));
    }
}

extern "C" __global__ void add_assign_f32(float *sum, const float *term, unsigned long long count) {
    add_assign(sum, term, count);
}
extern "C" __global__ void add_assign_bf16(__nv_bfloat16 *sum, const __nv_bfloat16 *term, unsigned long long count) {
    add_assign(sum, term, count);
}
extern "C" __global__ void add_assign_to_f32_bf16(float *sum, const __nv_bfloat16 *term, unsigned long long count) {
    add_assign(sum, term, count);
}
extern "C" __global__ void scale_f32(float *values, float factor, unsigned long long count) {
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) values[i] *= factor;
}
extern "C" __global__ void fill_f32(float *to, float value, unsigned long long count) { fill(to, value, count); }
extern "C" __global__ void fill_bf16(__nv_bfloat16 *to, float value, unsigned long long count) { fill(to, value, count); }
// Columns first .. first + count of rows of `width`. Grid: a block a row.
extern "C" __global__ void fill_columns_f32(float *to, float value, unsigned width, unsigned first, unsigned count) {
    float *row = to + (size_t)blockIdx.x * width + first;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) row[i] = value;
}
extern "C" __global__ void cast_to_bf16(const float *from, __nv_bfloat16 *to, unsigned long long count) { cast(from, to, count); }
extern "C" __global__ void cast_to_f32(const __nv_bfloat16 *from, float *to, unsigned long long count) { cast(from, to, count); }
extern "C" __global__ void normal_f32(float *to, float scale, unsigned key0, unsigned key1, unsigned id0, unsigned id1,
                                      unsigned id2, unsigned long long count) {
    normal(to, scale, {key0, key1, id0, id1, id2}, count);
}
extern "C" __global__ void normal_bf16(__nv_bfloat16 *to, float scale, unsigned key0, unsigned key1, unsigned id0, unsigned id1,
                                       unsigned id2, unsigned long long count) {
    normal(to, scale, {key0, key1, id0, id1, id2}, count);
}
