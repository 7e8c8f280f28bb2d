// What the attention kernels without tensor cores share: f32, and bf16 of head dims other than 64 and 128.
//
// Tiles of 32 vectors lie in shared memory in f32, `pitch` apart; a block has 256 threads, 16 x 16. Thread (y, x)
// works out scores of rows 2 y + {0, 1} with columns x + {0, 16}, and sums of rows 2 y + {0, 1} at elements
// 4 x + 64 i + {0..3}. Head dims: multiples of 8 up to 256.
#pragma once
#include "attention.cuh"

namespace plain {

static constexpr unsigned tile = 32, threads = 256, weight_pitch = tile + 1;

typedef float Sums[2][4][4];

// Four floats off a multiple of 128 bytes: neighbouring vectors start in different banks.
static __device__ __forceinline__ unsigned pitch(unsigned dim) { return dim + 4; }
static __device__ __forceinline__ unsigned x() { return threadIdx.x % 16; }
static __device__ __forceinline__ unsigned y() { return threadIdx.x / 16; }

static __device__ __forceinline__ float4 four(const float *from) { return *(const float4 *)from; }
static __device__ __forceinline__ float4 four(const bf16 *from) {
    const float2 raw = *(const float2 *)from;
    bf16 e[4];
    memcpy(e, &raw, sizeof e);
    return make_float4(to_f32(e[0]), to_f32(e[1]), to_f32(e[2]), to_f32(e[3]));
}

// A tile of vectors: number i from element at(i), or zeros where inside(i) is false.
template <typename T, typename At, typename Inside>
static __device__ __forceinline__ void load(float *to, const T *from, unsigned dim, At at, Inside inside) {
    const unsigned i = threadIdx.x / 8;
    const bool valid = inside(i);
    const T *vector = valid ? from + at(i) : from;
    for (unsigned c = threadIdx.x % 8 * 4; c < dim; c += 32)
        *(float4 *)(to + i * pitch(dim) + c) = valid ? four(vector + c) : make_float4(0.f, 0.f, 0.f, 0.f);
}

// s[a][b] = rows[2 y + a] . columns[x + 16 b]
static __device__ __forceinline__ void scores(float (&s)[2][2], const float *rows, const float *columns, unsigned dim) {
    s[0][0] = s[0][1] = s[1][0] = s[1][1] = 0.f;
    for (unsigned c = 0; c < dim; c += 4) {
        float4 l[2], r[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            l[i] = four(rows + (2 * y() + i) * pitch(dim) + c);
            r[i] = four(columns + (x() + 16 * i) * pitch(dim) + c);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) s[i / 2][i % 2] += l[i / 2].x * r[i % 2].x + l[i / 2].y * r[i % 2].y + l[i / 2].z * r[i % 2].z + l[i / 2].w * r[i % 2].w;
    }
}

// sums[a] += sum over j of weights[(2 y + a) row + j step] vectors[j]
static __device__ __forceinline__ void weigh(Sums &sums, const float *weights, unsigned row, unsigned step, const float *vectors, unsigned dim) {
    for (unsigned j = 0; j < tile; j++) {
        const float w[2] = {weights[2 * y() * row + j * step], weights[(2 * y() + 1) * row + j * step]};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned c = 4 * x() + 64 * i;
            if (c >= dim) break;
            const float4 v = four(vectors + j * pitch(dim) + c);
#pragma unroll
            for (int a = 0; a < 2; a++) {
                sums[a][i][0] += w[a] * v.x;
                sums[a][i][1] += w[a] * v.y;
                sums[a][i][2] += w[a] * v.z;
                sums[a][i][3] += w[a] * v.w;
            }
        }
    }
}

template <typename T>
static __device__ __forceinline__ void put_sums(T *to, const Sums &sums, int a, float scale, unsigned dim) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned c = 4 * x() + 64 * i;
        if (c >= dim) break;
#pragma unroll
        for (int j = 0; j < 4; j++) put(to + c + j, sums[a][i][j] * scale);
    }
}

// Over the 16 threads of one y.
static __device__ __forceinline__ float row_max(float v) {
    for (int lanes = 8; lanes > 0; lanes >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, lanes));
    return v;
}
static __device__ __forceinline__ float row_sum(float v) {
    for (int lanes = 8; lanes > 0; lanes >>= 1) v += __shfl_xor_sync(ALL_LANES, v, lanes);
    return v;
}

// What rows 2 y + {0, 1} have gathered.
struct Attended {
    Sums out = {};
    float max[2] = {-INFINITY, -INFINITY};  // of the unscaled scores
    float sum[2] = {0.f, 0.f};
};

// A tile of queries over `total` keys: query(i), key(j) are the elements where vectors start, visible(i) > 0 the
// keys that query i sees. Dynamic shared memory: 3 tiles of vectors and 32 x 33 weights, in f32.
template <typename T, typename Query, typename Key, typename Visible>
static __device__ __forceinline__ void attend(Attended &result, const T *q, const T *k, const T *v, unsigned dim, float scale, unsigned count,
                                              unsigned total, Query query, Key key, Visible visible) {
    float *queries = (float *)dynamic_shared(), *keys = queries + tile * pitch(dim), *values = keys + tile * pitch(dim);
    float *weights = values + tile * pitch(dim);
    load(queries, q, dim, query, [&](unsigned i) { return i < count; });
    const unsigned limit[2] = {visible(min(2 * y(), count - 1)), visible(min(2 * y() + 1, count - 1))};
    for (unsigned first = 0; first < total; first += tile) {
        __syncthreads();  // the tile before is still being read
        const auto inside = [&](unsigned j) { return first + j < total; };
        load(keys, k, dim, [&](unsigned j) { return key(first + j); }, inside);
        load(values, v, dim, [&](unsigned j) { return key(first + j); }, inside);
        __syncthreads();
        float s[2][2];
        scores(s, queries, keys, dim);
#pragma unroll
        for (int a = 0; a < 2; a++) {
            if (first + x() >= limit[a]) s[a][0] = -INFINITY;
            if (first + x() + 16 >= limit[a]) s[a][1] = -INFINITY;
            const float top = fmaxf(result.max[a], row_max(fmaxf(s[a][0], s[a][1])));
            const float shrink = expf((result.max[a] - top) * scale);
            const float p[2] = {expf((s[a][0] - top) * scale), expf((s[a][1] - top) * scale)};
            result.max[a] = top;
            result.sum[a] = result.sum[a] * shrink + row_sum(p[0] + p[1]);
#pragma unroll
            for (int i = 0; i < 16; i++) result.out[a][i / 4][i % 4] *= shrink;
            weights[(2 * y() + a) * weight_pitch + x()] = p[0];
            weights[(2 * y() + a) * weight_pitch + x() + 16] = p[1];
        }
        __syncwarp();  // rows 2 y + {0, 1} of the weights are this half warp's own
        weigh(result.out, weights, weight_pitch, 1, values, dim);
    }
}

}  // namespace plain
