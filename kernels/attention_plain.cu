// Packed shared-prefix attention without tensor cores, forward and backward: any head dim that is a multiple of 8
// up to 256, in f32 or bf16. The maths and the determinism are those of attention_forward.cu and
// attention_backward.cu, which take over for bf16 of head dims 64 and 128.
//
// q, out, dout, dq [T, query heads, dim], k, v, dk, dv [T, kv heads, dim]; lse, delta [T, query heads] f32.
// Grid: (tiles of 32 m or 32 keys, kv heads), 256 threads. Dynamic shared memory, in floats, with p = dim + 4:
// forward 96 p + 1056, query_gradient 128 p + 1056, key_gradients 128 p + 2176.
// CPU twin: src/ops/attention/cpu.rs. Tests: tests/suite/kernels_attention.rs.
#include "attention_plain.cuh"

struct Shape {
    unsigned kv_heads, share, dim;
    float scale;
};

template <typename T>
static __device__ __forceinline__ void forward(const T *__restrict__ q, const T *__restrict__ k, const T *__restrict__ v, T *__restrict__ out,
                                               float *__restrict__ lse, const RowTile *__restrict__ tiles, Shape shape) {
    const RowTile tile = tiles[blockIdx.x];
    const unsigned kv_head = blockIdx.y, dim = shape.dim;
    const Queries queries(shape.share, shape.kv_heads, kv_head, tile.own_start);
    plain::Attended result;
    plain::attend(
        result, q, k, v, dim, shape.scale, tile.count, tile.prefix_len + queries.row(tile.first + tile.count - 1) + 1,
        [&](unsigned i) { return queries.at(tile.first + i) * dim; },
        [&](unsigned j) { return ((size_t)tile.token(j) * shape.kv_heads + kv_head) * dim; },
        [&](unsigned i) { return tile.prefix_len + queries.row(tile.first + i) + 1; });
#pragma unroll
    for (int a = 0; a < 2; a++) {
        const unsigned i = 2 * plain::y() + a;
        if (i >= tile.count) continue;
        const size_t at = queries.at(tile.first + i);
        plain::put_sums(out + at * dim, result.out, a, 1.f / result.sum[a], dim);
        if (plain::x() == 0) lse[at] = result.max[a] * shape.scale + logf(result.sum[a]);
    }
}

template <typename T>
static __device__ __forceinline__ void query_gradient(const T *__restrict__ q, const T *__restrict__ k, const T *__restrict__ v,
                                                      const T *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                                                      T *__restrict__ dq, const RowTile *__restrict__ tiles, Shape shape) {
    const RowTile tile = tiles[blockIdx.x];
    const unsigned kv_head = blockIdx.y, dim = shape.dim, size = plain::tile * plain::pitch(dim);
    const Queries queries(shape.share, shape.kv_heads, kv_head, tile.own_start);
    float *rows = (float *)dynamic_shared(), *gradients = rows + size, *keys = gradients + size, *values = keys + size, *weights = values + size;
    const auto query = [&](unsigned i) { return queries.at(tile.first + i) * dim; };
    const auto in_tile = [&](unsigned i) { return i < tile.count; };
    plain::load(rows, q, dim, query, in_tile);
    plain::load(gradients, dout, dim, query, in_tile);
    size_t at[2];
    unsigned visible[2];
    float log_sum[2], offset[2];
#pragma unroll
    for (int a = 0; a < 2; a++) {
        const unsigned m = tile.first + min(2 * plain::y() + a, tile.count - 1);
        at[a] = queries.at(m);
        visible[a] = tile.prefix_len + queries.row(m) + 1;
        log_sum[a] = lse[at[a]];
        offset[a] = delta[at[a]];
    }
    plain::Sums sums = {};
    const unsigned total = tile.prefix_len + queries.row(tile.first + tile.count - 1) + 1;
    for (unsigned first = 0; first < total; first += plain::tile) {
        __syncthreads();  // the tile before is still being read
        const auto key = [&](unsigned j) { return ((size_t)tile.token(first + j) * shape.kv_heads + kv_head) * dim; };
        const auto inside = [&](unsigned j) { return first + j < total; };
        plain::load(keys, k, dim, key, inside);
        plain::load(values, v, dim, key, inside);
        __syncthreads();
        float s[2][2], ds[2][2];
        plain::scores(s, rows, keys, dim);
        plain::scores(ds, gradients, values, dim);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned a = i / 2, j = plain::x() + i % 2 * 16;
            const float p = expf(s[a][i % 2] * shape.scale - log_sum[a]);
            weights[(2 * plain::y() + a) * plain::weight_pitch + j] = first + j < visible[a] ? p * (ds[a][i % 2] - offset[a]) : 0.f;
        }
        __syncwarp();
        plain::weigh(sums, weights, plain::weight_pitch, 1, keys, dim);
    }
#pragma unroll
    for (int a = 0; a < 2; a++)
        if (2 * plain::y() + a < tile.count) plain::put_sums(dq + at[a] * dim, sums, a, shape.scale, dim);
}

template <typename T>
static __device__ __forceinline__ void key_gradients(const T *__restrict__ q, const T *__restrict__ k, const T *__restrict__ v,
                                                     const T *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                                                     T *__restrict__ dk, T *__restrict__ dv, const KeyTile *__restrict__ tiles, Shape shape) {
    const KeyTile tile = tiles[blockIdx.x];
    const unsigned kv_head = blockIdx.y, dim = shape.dim, size = plain::tile * plain::pitch(dim);
    const Queries queries(shape.share, shape.kv_heads, kv_head, tile.start);
    const unsigned total = (tile.rows_end - tile.start) * shape.share;
    float *rows = (float *)dynamic_shared(), *gradients = rows + size, *keys = gradients + size, *values = keys + size;
    float *p = values + size, *ds = p + plain::tile * plain::weight_pitch, *row_lse = ds + plain::tile * plain::weight_pitch, *row_delta = row_lse + plain::tile;
    const auto key = [&](unsigned i) { return ((size_t)(tile.start + i) * shape.kv_heads + kv_head) * dim; };
    const auto in_tile = [&](unsigned i) { return i < tile.count; };
    plain::load(keys, k, dim, key, in_tile);
    plain::load(values, v, dim, key, in_tile);
    plain::Sums key_sums = {}, value_sums = {};
    for (unsigned first = 0; first < total; first += plain::tile) {
        __syncthreads();  // the tile before is still being read
        const auto query = [&](unsigned i) { return queries.at(first + i) * dim; };
        const auto inside = [&](unsigned i) { return first + i < total; };
        plain::load(rows, q, dim, query, inside);
        plain::load(gradients, dout, dim, query, inside);
        if (threadIdx.x < plain::tile) {
            const bool valid = inside(threadIdx.x);
            const size_t at = valid ? queries.at(first + threadIdx.x) : 0;
            row_lse[threadIdx.x] = valid ? lse[at] : 0.f;
            row_delta[threadIdx.x] = valid ? delta[at] : 0.f;
        }
        __syncthreads();
        float s[2][2], gradient[2][2];
        plain::scores(s, rows, keys, dim);
        plain::scores(gradient, gradients, values, dim);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned m = 2 * plain::y() + i / 2, j = plain::x() + i % 2 * 16;
            const bool sees = j < tile.count && inside(m) && queries.row(first + m) >= j;
            const float weight = sees ? expf(s[i / 2][i % 2] * shape.scale - row_lse[m]) : 0.f;
            p[m * plain::weight_pitch + j] = weight;
            ds[m * plain::weight_pitch + j] = weight * (gradient[i / 2][i % 2] - row_delta[m]);
        }
        __syncthreads();
        plain::weigh(value_sums, p, 1, plain::weight_pitch, gradients, dim);
        plain::weigh(key_sums, ds, 1, plain::weight_pitch, rows, dim);
    }
#pragma unroll
    for (int a = 0; a < 2; a++) {
        const unsigned j = 2 * plain::y() + a;
        if (j >= tile.count) continue;
        plain::put_sums(dk + key(j), key_sums, a, shape.scale, dim);
        plain::put_sums(dv + key(j), value_sums, a, 1.f, dim);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
attention_forward_any_f32(const float *q, const float *k, const float *v, float *out, float *lse, const RowTile *tiles, unsigned kv_heads, unsigned share,
                          unsigned dim, float scale) {
    forward(q, k, v, out, lse, tiles, Shape{kv_heads, share, dim, scale});
}
extern "C" __global__ void __launch_bounds__(256, 2)
attention_query_gradient_any_f32(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dq,
                                 const RowTile *tiles, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    query_gradient(q, k, v, dout, lse, delta, dq, tiles, Shape{kv_heads, share, dim, scale});
}
extern "C" __global__ void __launch_bounds__(256, 2)
attention_key_gradients_any_f32(const float *q, const float *k, const float *v, const float *dout, const float *lse, const float *delta, float *dk, float *dv,
                                const KeyTile *tiles, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    key_gradients(q, k, v, dout, lse, delta, dk, dv, tiles, Shape{kv_heads, share, dim, scale});
}
extern "C" __global__ void __launch_bounds__(256, 2)
attention_forward_any_bf16(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse, const RowTile *tiles, unsigned kv_heads, unsigned share,
                          unsigned dim, float scale) {
    forward(q, k, v, out, lse, tiles, Shape{kv_heads, share, dim, scale});
}
extern "C" __global__ void __launch_bounds__(256, 2)
attention_query_gradient_any_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dq,
                                 const RowTile *tiles, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    query_gradient(q, k, v, dout, lse, delta, dq, tiles, Shape{kv_heads, share, dim, scale});
}
extern "C" __global__ void __launch_bounds__(256, 2)
attention_key_gradients_any_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dk, bf16 *dv,
                                const KeyTile *tiles, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    key_gradients(q, k, v, dout, lse, delta, dk, dv, tiles, Shape{kv_heads, share, dim, scale});
}
