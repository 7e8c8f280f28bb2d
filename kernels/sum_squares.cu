// Sum of squares of many arrays in two stages, the same number on every run and every device: for the norm of
// all gradients, with 8 bytes copied to the host at the end.
//
// Stage 1, per array: block b sums x[b S .. (b + 1) S] with S = 65,536 into partial[b], f64. Grid: ceil(count / S)
// blocks of any size; the partials of several arrays lie one after another. Stage 2: one block adds `count`
// partials into total[0]. NaN and infinity in x show in the total. Bound by memory: one read of x.
// CPU twin: sum_squares in src/ops/elementwise/cpu.rs. Tests: tests/suite/kernels_state.rs.
#include "wide.cuh"

#define SHARE 65536u

static __device__ __forceinline__ double *double_per_warp() {
    __shared__ double sums[32];
    return sums;
}

// Right in thread 0 only; the order of the additions is fixed.
static __device__ __forceinline__ double block_sum(double x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    double *sums = double_per_warp();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.;
    if (threadIdx.x == 0)
        for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) x += sums[warp];
    return x;
}

template <typename T>
__device__ void sum_squares(const T *__restrict__ x, double *__restrict__ partial, unsigned long long count) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = aligned(x);
    const size_t start = (size_t)blockIdx.x * SHARE;
    const unsigned share = count - start < SHARE ? (unsigned)(count - start) : SHARE;
    double sum = 0.;
#pragma unroll 4
    for (unsigned i = threadIdx.x * lanes; i < share; i += blockDim.x * lanes) {
        float v[lanes];
        load_some(x + start + i, share - i, wide, v);
        float squares = 0.f;  // of 4 or 8: the long sum is in f64
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) squares += v[l] * v[l];
        sum += squares;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void sum_squares_f32(const float *x, double *partial, unsigned long long count) {
    sum_squares(x, partial, count);
}
extern "C" __global__ void sum_squares_bf16(const __nv_bfloat16 *x, double *partial, unsigned long long count) {
    sum_squares(x, partial, count);
}

extern "C" __global__ void sum_squares_total(const double *partial, double *total, unsigned count) {
    double sum = 0.;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[0] = sum;
}
