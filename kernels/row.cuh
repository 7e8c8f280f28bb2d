// What every kernel here shares: element types and sums over a block.
//
// Elements are f32 or bf16; arithmetic is f32. A block has a multiple of 32 threads, at most 1024.
// The same files run on the CPU for the tests: see tests/doubles/kernel-shim/cuda_on_cpu.h.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <stdint.h>
#else
#include "cuda_on_cpu.h"
#endif

#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float *to, float x) { *to = x; }
__device__ __forceinline__ void put(__nv_bfloat16 *to, float x) { *to = __float2bfloat16(x); }

// One f32 a warp. Static, so that it is one array per kernel and no part of a template.
static __device__ __forceinline__ float *warp_results() {
    __shared__ float results[32];
    return results;
}

// Sum of `x` over the block, the same in every thread. The order of the additions is fixed.
static __device__ __forceinline__ float block_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    float *results = warp_results();
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) results[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? results[threadIdx.x % 32] : 0.f;
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}
