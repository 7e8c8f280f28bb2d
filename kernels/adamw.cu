// AdamW, Loshchilov and Hutter, arXiv:1711.05101, one pass: every operand is read once and written once.
//
//   g = gradient_scale gradient;  m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
//   w <- decay w - step_size m / (sqrt(v) inverse_sqrt_correction + eps)
//
// Weights: w32 f32; w16 bf16, either with f32 masters (which are what is updated; the weight is their rounding) or,
// where `master` is null, rounded stochastically: up with the probability that keeps the expected value.
// Moments: m32 f32; m8 one byte an element and one f32 scale for 256 elements, by block-wise dynamic quantisation
// (Dettmers et al., arXiv:2110.02861) with the code below. Gradients: f32 or bf16, by the last suffix.
// Bound by memory, bytes an element: w32 m32 f32 28; w16 m32 bf16 with masters 28, stochastic 22; w16 m8 bf16
// stochastic 10.
//
// The code: a magnitude c in 1 .. 2^(top + 1) - 1 with i = floor(log2 c) lies in decade [0.1, 1) 10^(i - top), cut into
// 2^i cells of equal width, at the middle of cell c - 2^i; 0 is zero. The first moment has top = 6 and bit 7 as
// its sign, the second top = 7. A block's scale is its largest magnitude over the largest code value, so that the
// largest is kept exactly. A second moment that is not 0 never becomes 0: the step divides by its root.
// CPU twin: src/ops/adamw/cpu.rs. Tests: tests/suite/kernels_adamw.rs.
#include "philox.cuh"
#include "wide.cuh"

#define BLOCK 256  // elements to a scale, 8 a lane

struct Numbers {
    float decay, step_size, inverse_sqrt_correction, eps, beta1, beta2, gradient_scale;
};

// The value of code c, for 1 <= c < 2^(top + 1).
static __device__ __forceinline__ float code_value(unsigned c, int top) {
    float cells = 1.f, decade = 1.f;
    for (int i = top; i > 0; --i) {
        if (c >> i) cells *= 2.f;
        else decade *= 0.1f;
    }
    return (0.1f + 0.9f * ((float)c - cells + 0.5f) / cells) * decade;
}
static __device__ __forceinline__ float largest_value(int top) { return 0.1f + 0.9f * (1.f - 0.5f / (float)(1 << top)); }

// The code of x in [0, 1).
template <int top>
__device__ __forceinline__ uint32_t code_of(float x) {
    float cells = (float)(1 << top);
#pragma unroll
    for (int i = 0; i < top; ++i) {
        const bool small = x < 0.1f;
        x *= small ? 10.f : 1.f;
        cells *= small ? 0.5f : 1.f;
    }
    if (x < 0.1f) return 0;
    const float cell = (x - 0.1f) * (cells * (1.f / 0.9f));
    return (uint32_t)cells + (uint32_t)fminf(cell, cells - 1.f);
}

// Codes 0 .. 255 of the first moment, and of the second.
struct Tables {
    float first[256], second[256];
};
static __device__ __forceinline__ Tables *tables() {
    __shared__ Tables both;
    return &both;
}
static __device__ void fill_tables() {
    for (unsigned c = threadIdx.x; c < 256; c += blockDim.x) {
        const unsigned magnitude = c & 127;
        const float value = magnitude ? code_value(magnitude, 6) : 0.f;
        tables()->first[c] = c >> 7 ? -value : value;
        tables()->second[c] = c ? code_value(c, 7) : 0.f;
    }
    __syncthreads();
}

struct Codes {
    uint32_t low, high;  // 8 bytes, the first in the lowest bits
};
static __device__ __forceinline__ Codes load_codes(const uint8_t *from, unsigned count, bool wide) {
    if (wide && count >= 8) return {*reinterpret_cast<const uint32_t *>(from), *reinterpret_cast<const uint32_t *>(from + 4)};
    Codes codes = {0, 0};
    for (unsigned l = 0; l < 8; ++l)
        if (l < count) (l < 4 ? codes.low : codes.high) |= (uint32_t)from[l] << 8 * (l % 4);
    return codes;
}
static __device__ __forceinline__ void store_codes(uint8_t *to, unsigned count, bool wide, Codes codes) {
    if (wide && count >= 8) {
        *reinterpret_cast<uint32_t *>(to) = codes.low;
        *reinterpret_cast<uint32_t *>(to + 4) = codes.high;
        return;
    }
    for (unsigned l = 0; l < 8; ++l)
        if (l < count) to[l] = (uint8_t)((l < 4 ? codes.low : codes.high) >> 8 * (l % 4));
}

// Moments in f32: `Scaled` ones have codes and scales instead. The warp works on one block of 256 elements.
struct Full {
    float *values;

    __device__ __forceinline__ bool wide() const { return aligned(values); }
    __device__ __forceinline__ void load(size_t i, unsigned count, bool wide, float (&x)[8]) const {
        load_some(values + i, count, wide, x);
    }
    __device__ __forceinline__ void store(size_t i, unsigned count, bool wide, const float (&x)[8]) const {
        store_some(values + i, count, wide, x);
    }
};
template <int top>
struct Scaled {
    uint8_t *codes;
    float *scales;

    __device__ __forceinline__ bool wide() const { return aligned(codes); }
    __device__ __forceinline__ void load(size_t i, unsigned count, bool wide, float (&x)[8]) const {
        const float *table = top == 6 ? tables()->first : tables()->second;
        const Codes c = load_codes(codes + i, count, wide);
        const float scale = count ? scales[i / BLOCK] : 0.f;
#pragma unroll
        for (int l = 0; l < 8; ++l) x[l] = table[(l < 4 ? c.low : c.high) >> 8 * (l % 4) & 255] * scale;
    }
    __device__ __forceinline__ void store(size_t i, unsigned count, bool wide, const float (&x)[8]) const {
        float largest = 0.f;
#pragma unroll
        for (int l = 0; l < 8; ++l)
            if ((unsigned)l < count) largest = fmaxf(largest, fabsf(x[l]));
        for (int lanes = 16; lanes > 0; lanes >>= 1) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, lanes));
        const float scale = largest / largest_value(top);
        const float inverse = scale > 1e-37f ? 1.f / scale : 0.f;  // 1 over less is not finite
        if (threadIdx.x % 32 == 0) scales[i / BLOCK] = scale;
        Codes c = {0, 0};
#pragma unroll
        for (int l = 0; l < 8; ++l) {
            uint32_t code = code_of<top>(fabsf(x[l]) * inverse);
            if (top == 6) code |= x[l] < 0.f ? 128 : 0;
            else if (code == 0 && x[l] > 0.f) code = 1;
            (l < 4 ? c.low : c.high) |= code << 8 * (l % 4);
        }
        store_codes(codes + i, count, wide, c);
    }
};

static __device__ __forceinline__ void store_weights(float *to, unsigned count, bool wide, float (&w)[8], const Stream &, size_t) {
    store_some(to, count, wide, w);
}
// 16 random bits an element, the low half of a word before the high: 8 elements take one block of the stream.
static __device__ __forceinline__ void store_weights(__nv_bfloat16 *to, unsigned count, bool wide, float (&w)[8],
                                                     const Stream &stream, size_t i) {
    const Random128 random = stream_block(stream, (uint32_t)(i / 8));
    const uint32_t word[4] = {random.a, random.b, random.c, random.d};
#pragma unroll
    for (int l = 0; l < 8; ++l) {
        const uint32_t bits = bits_of_f32(w[l]), up = word[l / 2] >> 16 * (l % 2) & 0xffffu;
        if ((bits & 0x7f800000u) != 0x7f800000u) w[l] = f32_of_bits((bits + up) & 0xffff0000u);
    }
    store_some(to, count, wide, w);
}

// Grid: any; each warp takes blocks of 256 elements. Threads a block: a multiple of 32.
template <typename W, typename G, typename First, typename Second>
__device__ void update(W *weight, float *master, const G *gradient, First first, Second second, Numbers n, Stream stream,
                       unsigned long long count) {
    const bool wide = aligned(weight) && aligned(master) && aligned(gradient) && first.wide() && second.wide();
    const size_t warps = (size_t)gridDim.x * (blockDim.x / 32);
    for (size_t block = (size_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; block * BLOCK < count; block += warps) {
        const size_t i = block * BLOCK + threadIdx.x % 32 * 8;
        const unsigned here = i >= count ? 0 : count - i < 8 ? (unsigned)(count - i) : 8;
        float w[8], g[8], m[8], v[8];
        load_some(gradient + i, here, wide, g);
        if (master) load_some(master + i, here, wide, w);
        else load_some(weight + i, here, wide, w);
        first.load(i, here, wide, m);
        second.load(i, here, wide, v);
#pragma unroll
        for (int l = 0; l < 8; ++l) {
            const float scaled = g[l] * n.gradient_scale;
            m[l] = n.beta1 * m[l] + (1.f - n.beta1) * scaled;
            v[l] = n.beta2 * v[l] + (1.f - n.beta2) * scaled * scaled;
            w[l] = n.decay * w[l] - n.step_size * m[l] / (sqrtf(v[l]) * n.inverse_sqrt_correction + n.eps);
        }
        first.store(i, here, wide, m);
        second.store(i, here, wide, v);
        if (master) {
            store_some(master + i, here, wide, w);
            store_some(weight + i, here, wide, w);
        } else {
            store_weights(weight + i, here, wide, w, stream, i);
        }
    }
}

#define NUMBERS                                                                                                           \
    float decay, float step_size, float inverse_sqrt_correction, float eps, float beta1, float beta2, float gradient_scale, \
        unsigned key0, unsigned key1, unsigned id0, unsigned id1, unsigned id2, unsigned long long count
#define GIVEN {decay, step_size, inverse_sqrt_correction, eps, beta1, beta2, gradient_scale}, {key0, key1, id0, id1, id2}, count
#define MOMENTS_32 float *first, float *second
#define MOMENTS_8 uint8_t *first, float *first_scale, uint8_t *second, float *second_scale
#define UPDATE_32 update(weight, master, gradient, Full{first}, Full{second}, GIVEN)
#define UPDATE_8    \
    fill_tables();  \
    update(weight, master, gradient, Scaled<6>{first, first_scale}, Scaled<7>{second, second_scale}, GIVEN)

extern "C" __global__ void adamw_w32_m32_f32(float *weight, float *master, const float *gradient, MOMENTS_32, NUMBERS) {
    UPDATE_32;
}
extern "C" __global__ void adamw_w32_m32_bf16(float *weight, float *master, const __nv_bfloat16 *gradient, MOMENTS_32, NUMBERS) {
    UPDATE_32;
}
extern "C" __global__ void adamw_w16_m32_f32(__nv_bfloat16 *weight, float *master, const float *gradient, MOMENTS_32, NUMBERS) {
    UPDATE_32;
}
extern "C" __global__ void adamw_w16_m32_bf16(__nv_bfloat16 *weight, float *master, const __nv_bfloat16 *gradient, MOMENTS_32,
                                              NUMBERS) {
    UPDATE_32;
}
extern "C" __global__ void adamw_w32_m8_f32(float *weight, float *master, const float *gradient, MOMENTS_8, NUMBERS) {
    UPDATE_8;
}
extern "C" __global__ void adamw_w32_m8_bf16(float *weight, float *master, const __nv_bfloat16 *gradient, MOMENTS_8, NUMBERS) {
    UPDATE_8;
}
extern "C" __global__ void adamw_w16_m8_f32(__nv_bfloat16 *weight, float *master, const float *gradient, MOMENTS_8, NUMBERS) {
    UPDATE_8;
}
extern "C" __global__ void adamw_w16_m8_bf16(__nv_bfloat16 *weight, float *master, const __nv_bfloat16 *gradient, MOMENTS_8,
                                             NUMBERS) {
    UPDATE_8;
}
