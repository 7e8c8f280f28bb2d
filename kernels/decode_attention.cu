// Attention of one new token per sequence, for groups of sequences that share a prompt.
//
// q, out [R, query heads, dim] in f32 or bf16; prefix k, v [prompts' tokens, kv heads, dim]; own k, v [sequences,
// capacity, kv heads, dim]. Two passes, merged by log-sum-exp (flash-decoding; Dao et al. 2023, and arXiv:2402.05099):
//   prefix: queries of all rows of a group and of all heads that share a kv head, up to 128 of them, are the rows of
//     one matrix product, so a prompt's keys are read once for them all; its keys are split over blocks.
//   merge: one warp a query goes over the sequence's own keys, then over the splits' results.
// partial [splits, R, query heads, dim] and partial_lse [splits, R, query heads], f32, lie between the two.
// Roofline: docs/kernels.md. CPU twin: src/ops/decode_attention/cpu.rs. Tests: tests/suite/kernels_decode.rs.
#include "attention_plain.cuh"
#include "wide.cuh"

// Keys key_start.. of a prompt for m first.. of the group whose rows begin at `rows_start`.
struct Split {
    unsigned rows_start, first, count, key_start, keys, slot;
};

// Grid: (splits, kv heads); 32 threads for each 16 m of the largest split, 128 at least. Dynamic shared memory:
// 512 D bytes.
template <int D>
static __device__ __forceinline__ void prefix(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
                                              float *__restrict__ partial, float *__restrict__ partial_lse, const Split *__restrict__ splits,
                                              unsigned rows, unsigned kv_heads, unsigned share, float scale) {
    const Split split = splits[blockIdx.x];
    const unsigned kv_head = blockIdx.y;
    const Queries queries(share, kv_heads, kv_head, split.rows_start);
    const unsigned last = split.first + split.count - 1, warp_first = split.first + threadIdx.x / 32 * 16, mine = warp_first + lane() / 4;
    const size_t at[2] = {queries.at(min(mine, last)), queries.at(min(mine + 8, last))};
    Attending<D> warp;
    rows_as_a<D>(warp.q, q + at[0] * D, q + at[1] * D);
    stream_keys<D, 64>(
        k, v, split.keys, blockDim.x, [&](unsigned j) { return ((size_t)(split.key_start + j) * kv_heads + kv_head) * D; },
        [&](unsigned first, Rows<D> keys, Rows<D> values) {
            const int left = (int)(split.keys - first), visible[2] = {left, left};
            if (warp_first <= last) warp.tile(keys, values, visible, left >= 64, scale * LOG2E);
        });
    if (warp_first > last) return;
    warp.finish();
    const size_t slot = (size_t)split.slot * rows * kv_heads * share;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (mine + 8 * i > last) continue;
        put_row<D>(partial + (slot + at[i]) * D, warp.out, i, 1.f / warp.sum[i]);
        if (lane() % 4 == 0) partial_lse[slot + at[i]] = warp.log_sum(i, scale);
    }
}

// The same for any dim and f32 too, on plain arithmetic: splits of up to 32 m, 256 threads; dynamic shared memory
// 96 (dim + 4) + 1056 floats.
template <typename T>
static __device__ __forceinline__ void prefix_any(const T *__restrict__ q, const T *__restrict__ k, const T *__restrict__ v,
                                                  float *__restrict__ partial, float *__restrict__ partial_lse, const Split *__restrict__ splits,
                                                  unsigned rows, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    const Split split = splits[blockIdx.x];
    const unsigned kv_head = blockIdx.y;
    const Queries queries(share, kv_heads, kv_head, split.rows_start);
    plain::Attended result;
    plain::attend(
        result, q, k, v, dim, scale, split.count, split.keys, [&](unsigned i) { return queries.at(split.first + i) * dim; },
        [&](unsigned j) { return ((size_t)(split.key_start + j) * kv_heads + kv_head) * dim; }, [&](unsigned) { return split.keys; });
    const size_t slot = (size_t)split.slot * rows * kv_heads * share;
#pragma unroll
    for (int a = 0; a < 2; a++) {
        const unsigned i = 2 * plain::y() + a;
        if (i >= split.count) continue;
        const size_t at = slot + queries.at(split.first + i);
        plain::put_sums(partial + at * dim, result.out, a, 1.f / result.sum[a], dim);
        if (plain::x() == 0) partial_lse[at] = result.max[a] * scale + logf(result.sum[a]);
    }
}

static __device__ __forceinline__ void load_8(float (&x)[8], const float *from) {
    const float4 low = plain::four(from), high = plain::four(from + 4);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
static __device__ __forceinline__ void load_8(float (&x)[8], const bf16 *from) { load_wide(from, x); }

struct Merge {
    unsigned rows, kv_heads, share, dim, own_len, capacity;
    float scale;
};

// Grid: R * query heads / 4 blocks of 128 threads. Each of a warp's four groups of 8 lanes takes every fourth key
// and then every fourth split; a lane holds elements 8 (lane % 8) + 64 i + {0..7}.
template <int CHUNKS, typename T>
static __device__ __forceinline__ void merge(const T *__restrict__ q, const T *__restrict__ own_k, const T *__restrict__ own_v,
                                             const unsigned *__restrict__ sequences, const float *__restrict__ partial,
                                             const float *__restrict__ partial_lse, const unsigned *__restrict__ slots, T *__restrict__ out,
                                             float *__restrict__ lse, Merge of) {
    const unsigned heads = of.kv_heads * of.share, query = blockIdx.x * 4 + threadIdx.x / 32;
    if (query >= of.rows * heads) return;
    const unsigned row = query / heads, kv_head = query % heads / of.share, group = lane() / 8, element = lane() % 8 * 8;
    float mine[CHUNKS][8] = {}, sums[CHUNKS][8] = {}, max = -INFINITY, sum = 0.f;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
        if (element + 64 * i < of.dim) load_8(mine[i], q + (size_t)query * of.dim + element + 64 * i);
    // One vector more, with its score in units of log 2.
    const auto add = [&](float score, const float(&value)[CHUNKS][8]) {
        const float top = fmaxf(max, score), shrink = exp2f(max - top), weight = exp2f(score - top);
        max = top;
        sum = sum * shrink + weight;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] = sums[i][j] * shrink + weight * value[i][j];
        }
    };
    const size_t own = (size_t)sequences[row] * of.capacity;
#pragma unroll 2
    for (unsigned first = 0; first < of.own_len; first += 4) {
        const unsigned position = first + group;
        const bool valid = position < of.own_len;
        const size_t at = ((own + (valid ? position : 0)) * of.kv_heads + kv_head) * of.dim + element;
        float key[CHUNKS][8] = {}, value[CHUNKS][8] = {}, score = 0.f;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            if (element + 64 * i >= of.dim) continue;
            load_8(key[i], own_k + at + 64 * i);
            load_8(value[i], own_v + at + 64 * i);
#pragma unroll
            for (int j = 0; j < 8; j++) score += mine[i][j] * key[i][j];
        }
        for (int lanes = 4; lanes > 0; lanes >>= 1) score += __shfl_xor_sync(ALL_LANES, score, lanes);
        if (valid) add(score * (of.scale * LOG2E), value);
    }
    for (unsigned slot = group; slot < slots[row]; slot += 4) {
        const size_t at = (size_t)slot * of.rows * heads + query;
        float value[CHUNKS][8] = {};
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            if (element + 64 * i < of.dim) load_8(value[i], partial + at * of.dim + element + 64 * i);
        add(partial_lse[at] * LOG2E, value);
    }
    __syncwarp();
    float top = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 8));
    top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 16));
    const float shrink = exp2f(max - top);  // 0 for a group that had nothing
    const auto over_groups = [](float x) {
        x += __shfl_xor_sync(ALL_LANES, x, 8);
        return x + __shfl_xor_sync(ALL_LANES, x, 16);
    };
    const float whole = over_groups(sum * shrink), inverse = 1.f / whole;
    if (lane() == 0) lse[query] = top * (1.f / LOG2E) + logf(whole);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float total = over_groups(sums[i][j] * shrink);
            // Each group writes two of the eight.
            if (j / 2 == group && element + 64 * i < of.dim) put(out + (size_t)query * of.dim + element + 64 * i + j, total * inverse);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
decode_attention_prefix_64_bf16(const bf16 *q, const bf16 *k, const bf16 *v, float *partial, float *partial_lse, const Split *splits,
                                unsigned rows, unsigned kv_heads, unsigned share, float scale) {
    prefix<64>(q, k, v, partial, partial_lse, splits, rows, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(256)
decode_attention_prefix_128_bf16(const bf16 *q, const bf16 *k, const bf16 *v, float *partial, float *partial_lse, const Split *splits,
                                unsigned rows, unsigned kv_heads, unsigned share, float scale) {
    prefix<128>(q, k, v, partial, partial_lse, splits, rows, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(256, 2)
decode_attention_prefix_any_f32(const float *q, const float *k, const float *v, float *partial, float *partial_lse, const Split *splits,
                                unsigned rows, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    prefix_any(q, k, v, partial, partial_lse, splits, rows, kv_heads, share, dim, scale);
}
extern "C" __global__ void __launch_bounds__(128)
decode_attention_merge_f32(const float *q, const float *own_k, const float *own_v, const unsigned *sequences, const float *partial,
                           const float *partial_lse, const unsigned *slots, float *out, float *lse, unsigned rows, unsigned kv_heads, unsigned share,
                           unsigned dim, unsigned own_len, unsigned capacity, float scale) {
    merge<2>(q, own_k, own_v, sequences, partial, partial_lse, slots, out, lse, Merge{rows, kv_heads, share, dim, own_len, capacity, scale});
}
extern "C" __global__ void __launch_bounds__(128)
decode_attention_merge_wide_f32(const float *q, const float *own_k, const float *own_v, const unsigned *sequences, const float *partial,
                           const float *partial_lse, const unsigned *slots, float *out, float *lse, unsigned rows, unsigned kv_heads, unsigned share,
                           unsigned dim, unsigned own_len, unsigned capacity, float scale) {
    merge<4>(q, own_k, own_v, sequences, partial, partial_lse, slots, out, lse, Merge{rows, kv_heads, share, dim, own_len, capacity, scale});
}
extern "C" __global__ void __launch_bounds__(256, 2)
decode_attention_prefix_any_bf16(const bf16 *q, const bf16 *k, const bf16 *v, float *partial, float *partial_lse, const Split *splits,
                                unsigned rows, unsigned kv_heads, unsigned share, unsigned dim, float scale) {
    prefix_any(q, k, v, partial, partial_lse, splits, rows, kv_heads, share, dim, scale);
}
extern "C" __global__ void __launch_bounds__(128)
decode_attention_merge_bf16(const bf16 *q, const bf16 *own_k, const bf16 *own_v, const unsigned *sequences, const float *partial,
                           const float *partial_lse, const unsigned *slots, bf16 *out, float *lse, unsigned rows, unsigned kv_heads, unsigned share,
                           unsigned dim, unsigned own_len, unsigned capacity, float scale) {
    merge<2>(q, own_k, own_v, sequences, partial, partial_lse, slots, out, lse, Merge{rows, kv_heads, share, dim, own_len, capacity, scale});
}
extern "C" __global__ void __launch_bounds__(128)
decode_attention_merge_wide_bf16(const bf16 *q, const bf16 *own_k, const bf16 *own_v, const unsigned *sequences, const float *partial,
                           const float *partial_lse, const unsigned *slots, bf16 *out, float *lse, unsigned rows, unsigned kv_heads, unsigned share,
                           unsigned dim, unsigned own_len, unsigned capacity, float scale) {
    merge<4>(q, own_k, own_v, sequences, partial, partial_lse, slots, out, lse, Merge{rows, kv_heads, share, dim, own_len, capacity, scale});
}
