// 16 bytes of a row a thread and access: what memory-bound kernels need to fill the bus.
//
// `Wide<T>::lanes` elements (4 f32 or 8 bf16) go between memory and f32 registers. Kernels take arrays of any
// alignment: `aligned` says whether 16-byte accesses may be used, and the scalar loop does the same otherwise.
#pragma once
#include "row.cuh"

struct alignas(16) Bytes16 {
    uint32_t a, b, c, d;
};

template <typename T>
struct Wide;
template <>
struct Wide<float> {
    static constexpr unsigned lanes = 4;
};
template <>
struct Wide<__nv_bfloat16> {
    static constexpr unsigned lanes = 8;
};

static __device__ __forceinline__ bool aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

static __device__ __forceinline__ float f32_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static __device__ __forceinline__ uint32_t bits_of_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static __device__ __forceinline__ void load_wide(const float *from, float (&x)[4]) {
    const Bytes16 raw = *reinterpret_cast<const Bytes16 *>(from);
    x[0] = f32_of_bits(raw.a), x[1] = f32_of_bits(raw.b), x[2] = f32_of_bits(raw.c), x[3] = f32_of_bits(raw.d);
}
static __device__ __forceinline__ void load_wide(const __nv_bfloat16 *from, float (&x)[8]) {
    const Bytes16 raw = *reinterpret_cast<const Bytes16 *>(from);
    const uint32_t word[4] = {raw.a, raw.b, raw.c, raw.d};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = f32_of_bits(word[i] << 16);
        x[2 * i + 1] = f32_of_bits(word[i] & 0xffff0000u);
    }
}
static __device__ __forceinline__ void store_wide(float *to, const float (&x)[4]) {
    *reinterpret_cast<Bytes16 *>(to) = {bits_of_f32(x[0]), bits_of_f32(x[1]), bits_of_f32(x[2]), bits_of_f32(x[3])};
}
static __device__ __forceinline__ uint32_t bf16_bits(float x) {
    const __nv_bfloat16 rounded = __float2bfloat16(x);
    uint16_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    return bits;
}
static __device__ __forceinline__ void store_wide(__nv_bfloat16 *to, const float (&x)[8]) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = bf16_bits(x[2 * i]) | bf16_bits(x[2 * i + 1]) << 16;
    *reinterpret_cast<Bytes16 *>(to) = {word[0], word[1], word[2], word[3]};
}

// `count` elements from `from`, by 16 bytes where `wide` says so; the rest of `x` is `fill`.
template <unsigned lanes, typename T>
__device__ __forceinline__ void load_some(const T *from, unsigned count, bool wide, float (&x)[lanes], float fill = 0.f) {
    if (wide && count >= lanes) {
        if constexpr (lanes == Wide<T>::lanes) {
            load_wide(from, x);
        } else {
            static_assert(lanes == 2 * Wide<T>::lanes, "one or two accesses");
            float low[lanes / 2], high[lanes / 2];
            load_wide(from, low);
            load_wide(from + lanes / 2, high);
#pragma unroll
            for (unsigned i = 0; i < lanes / 2; ++i) x[i] = low[i], x[lanes / 2 + i] = high[i];
        }
        return;
    }
#pragma unroll
    for (unsigned i = 0; i < lanes; ++i) x[i] = i < count ? to_f32(from[i]) : fill;
}
template <unsigned lanes, typename T>
__device__ __forceinline__ void store_some(T *to, unsigned count, bool wide, const float (&x)[lanes]) {
    if (wide && count >= lanes) {
        if constexpr (lanes == Wide<T>::lanes) {
            store_wide(to, x);
        } else {
            static_assert(lanes == 2 * Wide<T>::lanes, "one or two accesses");
            float low[lanes / 2], high[lanes / 2];
#pragma unroll
            for (unsigned i = 0; i < lanes / 2; ++i) low[i] = x[i], high[i] = x[lanes / 2 + i];
            store_wide(to, low);
            store_wide(to + lanes / 2, high);
        }
        return;
    }
#pragma unroll
    for (unsigned i = 0; i < lanes; ++i)
        if (i < count) put(to + i, x[i]);
}

// `x` as it reads back after a store in type T.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
    T kept;
    put(&kept, x);
    return to_f32(kept);
}
