// Philox 4x32-10, Salmon et al., SC 2011: 128 random bits as a function of a counter and a key.
//
// The numbers of src/rng.rs: a stream is a key (mixed on the host from seed and purpose) and three ids, and
// `stream_block` is its 128 bits at a position.
#pragma once
#include "row.cuh"

struct Random128 {
    uint32_t a, b, c, d;
};
struct Stream {
    uint32_t key0, key1, id0, id1, id2;
};

static __device__ __forceinline__ Random128 stream_block(const Stream &s, uint32_t index) {
    uint32_t c0 = index, c1 = s.id0, c2 = s.id1, c3 = s.id2, k0 = s.key0, k1 = s.key1;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c0, p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {c0, c1, c2, c3};
}

// Uniform in [0, 1) from the top 24 bits.
static __device__ __forceinline__ float unit_f32(uint32_t bits) { return (float)(bits >> 8) * (1.f / 16777216.f); }
