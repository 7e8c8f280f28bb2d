// Packed shared-prefix attention, backward. With P = exp(scale q k^T - lse) and delta = rowsum(out dout):
// dv = P^T dout, dS = P (dout v^T - delta), dq = scale dS k, dk = scale dS^T q. Dao et al., arXiv:2307.08691.
//
// key_gradients works out P and dS tile by tile, sums dk and dv, and keeps dS in bf16; query_sums makes dq of it.
// Each block owns what it writes and sums in a fixed order: no atomics, the same bits on every run. A prompt's keys
// sum over all completions in one block. Where dS has no room, query_gradient works P and dS out again.
//
// Kept score gradients: for each key/value head of the launch its strips, 16 m of a tree by 64 keys, 2048 bytes each:
// four A operands (mma.cuh) of 16 keys, 16 bytes a lane. A key tile's strips begin with the M m that hold its first
// row's, M = 4096 / D, and go on to the last row that sees it; what a query does not see is zero.
// q, out, dout, dq [T, query heads, D], k, v, dk, dv [T, kv heads, D] in bf16; lse, delta [T, query heads] f32;
// D 64 or 128. Other element types and head dims: attention_plain.cu. Roofline: docs/kernels.md.
// CPU twin: src/ops/attention/cpu.rs. Tests: tests/suite/kernels_attention.rs.
#include "attention.cuh"
#include "wide.cuh"

// delta, for any D that is a multiple of 8. 8 lanes a vector; grid: vectors / 32 blocks of 256 threads.
template <typename T>
static __device__ __forceinline__ void delta_of(const T *__restrict__ out, const T *__restrict__ dout, float *__restrict__ delta, unsigned vectors, unsigned dim) {
    const unsigned vector = blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8;
    constexpr unsigned wide = Wide<T>::lanes;
    float sum = 0.f;
    if (vector < vectors) {
        const T *a = out + (size_t)vector * dim, *b = dout + (size_t)vector * dim;
        for (unsigned i = threadIdx.x % 8 * wide; i < dim; i += 8 * wide) {
            float x[wide], y[wide];
            load_wide(a + i, x);
            load_wide(b + i, y);
#pragma unroll
            for (unsigned j = 0; j < wide; j++) sum += x[j] * y[j];
        }
    }
    for (int lanes = 4; lanes > 0; lanes >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    if (vector < vectors && threadIdx.x % 8 == 0) delta[vector] = sum;
}

extern "C" __global__ void attention_delta_f32(const float *out, const float *dout, float *delta, unsigned vectors, unsigned dim) {
    delta_of(out, dout, delta, vectors, dim);
}
extern "C" __global__ void attention_delta_bf16(const bf16 *out, const bf16 *dout, float *delta, unsigned vectors, unsigned dim) {
    delta_of(out, dout, delta, vectors, dim);
}

// Grid: (tiles of 64 m, kv heads), 128 threads, dynamic shared memory 32768 bytes (4 tiles of 4096 / D keys).
template <int D>
static __device__ __forceinline__ void query_gradient(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
                                                      const bf16 *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                                                      bf16 *__restrict__ dq, const RowTile *__restrict__ tiles, unsigned kv_heads, unsigned share,
                                                      float scale) {
    constexpr int KEYS = 4096 / D;
    const RowTile tile = tiles[blockIdx.x];
    const unsigned kv_head = blockIdx.y;
    const Queries queries(share, kv_heads, kv_head, tile.own_start);
    const unsigned last = tile.first + tile.count - 1, mine = tile.first + threadIdx.x / 32 * 16 + lane() / 4;
    const unsigned m[2] = {min(mine, last), min(mine + 8, last)};
    const size_t at[2] = {queries.at(m[0]), queries.at(m[1])};
    const unsigned visible[2] = {tile.prefix_len + queries.row(m[0]) + 1, tile.prefix_len + queries.row(m[1]) + 1};
    const float log2_sum[2] = {lse[at[0]] * LOG2E, lse[at[1]] * LOG2E}, offset[2] = {delta[at[0]], delta[at[1]]};
    unsigned a[D / 16][4], g[D / 16][4];
    rows_as_a<D>(a, q + at[0] * D, q + at[1] * D);
    rows_as_a<D>(g, dout + at[0] * D, dout + at[1] * D);
    float sum[D / 8][4] = {};
    const unsigned shared = tile.prefix_len + queries.row(tile.first) + 1;
    stream_keys<D, KEYS>(
        k, v, tile.prefix_len + queries.row(last) + 1, threads_of_block,
        [&](unsigned j) { return ((size_t)tile.token(j) * kv_heads + kv_head) * D; },
        [&](unsigned first, Rows<D> keys, Rows<D> values) {
            float s[KEYS / 8][4] = {}, ds[KEYS / 8][4] = {};
            times_rows<D, KEYS>(s, a, keys);
            times_rows<D, KEYS>(ds, g, values);
            const bool all_visible = first + KEYS <= shared;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float p = exp2_fast(s[n][e] * (scale * LOG2E) - log2_sum[e / 2]);
                    ds[n][e] = p * (ds[n][e] - offset[e / 2]);
                    if (!all_visible && first + n * 8 + lane() % 4 * 2 + e % 2 >= visible[e / 2]) ds[n][e] = 0.f;
                }
            }
            weigh_rows<D, KEYS>(sum, ds, keys);
        });
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (mine + 8 * i <= last) put_row<D>(dq + at[i] * D, sum, i, scale);
}

static constexpr unsigned strip = 16, strip_bytes = 2048;

// Where the queries of a tree that see a key tile begin, as they are taken M at a time.
template <unsigned M>
static __device__ __forceinline__ unsigned first_query(const KeyTile &tile, unsigned share) {
    return (tile.start - tile.tree) * share / M * M;
}

// Grid: (tiles of 64 keys, kv heads from first_head on), 128 threads. A warp has 16 keys, and takes the rows that see
// them M at a time. Dynamic shared memory: 256 D bytes for the keys and 2 (16384 + 8 M) for the rows, M = 4096 / D.
// dS is kept where `kept` is not null.
template <int D>
static __device__ __forceinline__ void key_gradients(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
                                                     const bf16 *__restrict__ dout, const float *__restrict__ lse, const float *__restrict__ delta,
                                                     bf16 *__restrict__ dk, bf16 *__restrict__ dv, const KeyTile *__restrict__ tiles,
                                                     unsigned char *__restrict__ kept, unsigned head_strips, unsigned first_head, unsigned kv_heads,
                                                     unsigned share, float scale) {
    constexpr int KEYS = 64, M = 4096 / D;
    constexpr unsigned size = M * Rows<D>::bytes, stage_bytes = 2 * size + 2 * M * sizeof(float);
    const KeyTile tile = tiles[blockIdx.x];
    const unsigned kv_head = first_head + blockIdx.y;
    const Queries queries(share, kv_heads, kv_head, tile.tree);
    const unsigned first = first_query<M>(tile, share), end = (tile.rows_end - tile.tree) * share;
    unsigned char *memory = dynamic_shared();
    const Rows<D> keys{shared_address(memory)}, values{keys.base + KEYS * Rows<D>::bytes};
    unsigned char *stages = memory + 2 * KEYS * Rows<D>::bytes;
    const unsigned first_key = threadIdx.x / 32 * 16, key = first_key + lane() / 4;
    // The first row of the tree that sees each of the thread's two keys; past the tile's end there is none.
    unsigned seen_from[2];
#pragma unroll
    for (int i = 0; i < 2; i++) seen_from[i] = key + 8 * i < tile.count ? tile.start - tile.tree + key + 8 * i : 0xffffffffu;
    copy_pair<D, KEYS>(
        keys, values, k, v, threads_of_block, [&](unsigned i) { return ((size_t)(tile.start + i) * kv_heads + kv_head) * D; },
        [&](unsigned i) { return i < tile.count; });
    unsigned char *keep = kept ? kept + ((size_t)blockIdx.y * head_strips + tile.strips) * strip_bytes + threadIdx.x * 16 : nullptr;
    float key_sum[D / 8][4] = {}, value_sum[D / 8][4] = {};
    stream(
        (end - first + M - 1) / M,
        [&](unsigned t) {
            const Shared to = shared_address(stages + t % 2 * stage_bytes);
            const unsigned from = first + t * M;
            copy_pair<D, M>(
                Rows<D>{to}, Rows<D>{to + size}, q, dout, threads_of_block, [&](unsigned i) { return queries.at(from + i) * D; },
                [&](unsigned i) { return from + i < end; });
            const unsigned i = threadIdx.x % M, m = from + i;
            const size_t at = m < end ? queries.at(m) : 0;
            if (threadIdx.x < M) copy_4(to + 2 * size + i * 4, lse + at, m < end);
            else if (threadIdx.x < 2 * M) copy_4(to + 2 * size + (M + i) * 4, delta + at, m < end);
        },
        [&](unsigned t) {
            unsigned char *stage = stages + t % 2 * stage_bytes;
            const Rows<D> rows{shared_address(stage)}, gradients{rows.base + size};
            const float *row_lse = (const float *)(stage + 2 * size), *row_delta = row_lse + M;
            float p[M / 8][4] = {}, ds[M / 8][4] = {};
            rows_times_rows<D, M>(p, keys, first_key, rows);
            rows_times_rows<D, M>(ds, values, first_key, gradients);
            const unsigned from = first + t * M;
            const bool all_visible = tile.count == KEYS && from + M <= end && queries.row(from) >= tile.start - tile.tree + KEYS - 1;
#pragma unroll
            for (int n = 0; n < M / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const unsigned i = n * 8 + lane() % 4 * 2 + e % 2;
                    p[n][e] = exp2_fast(p[n][e] * (scale * LOG2E) - row_lse[i] * LOG2E);
                    if (!all_visible && (from + i >= end || queries.row(from + i) < seen_from[e / 2])) p[n][e] = 0.f;
                    ds[n][e] = p[n][e] * (ds[n][e] - row_delta[i]);
                }
            }
            weigh_rows<D, M>(value_sum, p, gradients);
            weigh_rows<D, M>(key_sum, ds, rows);
            if (!keep) return;
#pragma unroll
            for (int n = 0; n < M / 8; n += 2) {
                const uint4 a = {transposed(pack(ds[n][0], ds[n][1])), transposed(pack(ds[n + 1][0], ds[n + 1][1])),
                                 transposed(pack(ds[n][2], ds[n][3])), transposed(pack(ds[n + 1][2], ds[n + 1][3]))};
                *(uint4 *)(keep + ((size_t)t * (M / strip) + n / 2) * strip_bytes) = a;
            }
        });
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (key + 8 * i >= tile.count) continue;
        const size_t at = ((size_t)(tile.start + key + 8 * i) * kv_heads + kv_head) * D;
        put_row<D>(dk + at, key_sum, i, scale);
        put_row<D>(dv + at, value_sum, i, 1.f);
    }
}

// A run of m of one tree, and the key tiles that any of them sees, two runs of the tiles in the order of the batch.
struct SumTile {
    unsigned tree, first, count, prompt_first, prompt_count, own_first, own_count;

    __device__ __forceinline__ unsigned key_tile(unsigned i) const { return i < prompt_count ? prompt_first + i : own_first + (i - prompt_count); }
};

// dq = scale dS k, of kept dS. Grid: (tiles of 128 m, kv heads from first_head on), 128 threads, dynamic shared memory
// 2 (128 D + 16384) bytes: 64 keys and the dS of 128 m with them, twice. A warp has 32 m.
template <int D>
static __device__ __forceinline__ void query_sums(const bf16 *__restrict__ k, const unsigned char *__restrict__ kept, bf16 *__restrict__ dq,
                                                  const SumTile *__restrict__ tiles, const KeyTile *__restrict__ key_tiles, unsigned head_strips,
                                                  unsigned first_head, unsigned kv_heads, unsigned share, float scale) {
    constexpr unsigned KEYS = 64, M = 4096 / D, key_bytes = KEYS * Rows<D>::bytes, stage_bytes = key_bytes + 8 * strip_bytes;
    const SumTile tile = tiles[blockIdx.x];
    const unsigned kv_head = first_head + blockIdx.y, mine = threadIdx.x / 32 * 2;  // of 8 strips
    unsigned char *memory = dynamic_shared();
    kept += (size_t)blockIdx.y * head_strips * strip_bytes;
    float sum[2][D / 8][4] = {};
    stream(
        tile.prompt_count + tile.own_count,
        [&](unsigned t) {
            const KeyTile of = key_tiles[tile.key_tile(t)];
            const Shared to = shared_address(memory + t % 2 * stage_bytes);
            const Rows<D> keys{to};
#pragma unroll 4
            for (unsigned i = threadIdx.x; i < KEYS * Rows<D>::chunks; i += threads_of_block) {
                const unsigned row = i / Rows<D>::chunks, chunk = i % Rows<D>::chunks;
                const bool valid = row < of.count;
                copy_16(keys.at(row, chunk), k + (valid ? ((size_t)(of.start + row) * kv_heads + kv_head) * D + chunk * 8 : 0), valid);
            }
            // Strips in which nobody sees the keys were not kept.
            const unsigned first = first_query<M>(of, share) / strip;
            const unsigned strips = ((of.rows_end - of.tree) * share - first * strip + M - 1) / M * (M / strip);
#pragma unroll
            for (unsigned i = 0; i < 2; i++) {
                const unsigned at = tile.first / strip + mine + i;
                const bool valid = at >= first && at - first < strips;
                const unsigned char *from = kept + (valid ? (size_t)(of.strips + at - first) * strip_bytes : 0);
#pragma unroll
                for (unsigned step = 0; step < 4; step++) {
                    const unsigned place = step * 512 + lane() * 16;
                    copy_16(to + key_bytes + (mine + i) * strip_bytes + place, from + place, valid);
                }
            }
        },
        [&](unsigned t) {
            unsigned char *stage = memory + t % 2 * stage_bytes;
            const Rows<D> keys{shared_address(stage)};
            const unsigned char *strips = stage + key_bytes + mine * strip_bytes + lane() * 16;
#pragma unroll 1
            for (unsigned step = 0; step < 4; step++) {
                const uint4 low = *(const uint4 *)(strips + step * 512), high = *(const uint4 *)(strips + strip_bytes + step * 512);
                const unsigned a[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
#pragma unroll
                for (unsigned chunk = 0; chunk < D / 8; chunk += 2) {
                    unsigned b[4];
                    keys.b_of_columns(b, step * 16, chunk);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        mma(sum[i][chunk], a[i], b[0], b[1]);
                        mma(sum[i][chunk + 1], a[i], b[2], b[3]);
                    }
                }
            }
        });
    const Queries queries(share, kv_heads, kv_head, tile.tree);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned m = (mine + i / 2) * strip + i % 2 * 8 + lane() / 4;
        if (m < tile.count) put_row<D>(dq + queries.at(tile.first + m) * D, sum[i / 2], i % 2, scale);
    }
}

extern "C" __global__ void __launch_bounds__(128, 3)
attention_query_gradient_64_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dq,
                                 const RowTile *tiles, unsigned kv_heads, unsigned share, float scale) {
    query_gradient<64>(q, k, v, dout, lse, delta, dq, tiles, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_key_gradients_64_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dk,
                                bf16 *dv, const KeyTile *tiles, unsigned char *kept, unsigned head_strips, unsigned first_head, unsigned kv_heads,
                                unsigned share, float scale) {
    key_gradients<64>(q, k, v, dout, lse, delta, dk, dv, tiles, kept, head_strips, first_head, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(128, 3)
attention_query_sums_64_bf16(const bf16 *k, const unsigned char *kept, bf16 *dq, const SumTile *tiles, const KeyTile *key_tiles, unsigned head_strips,
                             unsigned first_head, unsigned kv_heads, unsigned share, float scale) {
    query_sums<64>(k, kept, dq, tiles, key_tiles, head_strips, first_head, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_query_gradient_128_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dq,
                                 const RowTile *tiles, unsigned kv_heads, unsigned share, float scale) {
    query_gradient<128>(q, k, v, dout, lse, delta, dq, tiles, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(128)
attention_key_gradients_128_bf16(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dk,
                                bf16 *dv, const KeyTile *tiles, unsigned char *kept, unsigned head_strips, unsigned first_head, unsigned kv_heads,
                                unsigned share, float scale) {
    key_gradients<128>(q, k, v, dout, lse, delta, dk, dv, tiles, kept, head_strips, first_head, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(128, 3)
attention_query_sums_128_bf16(const bf16 *k, const unsigned char *kept, bf16 *dq, const SumTile *tiles, const KeyTile *key_tiles, unsigned head_strips,
                             unsigned first_head, unsigned kv_heads, unsigned share, float scale) {
    query_sums<128>(k, kept, dq, tiles, key_tiles, head_strips, first_head, kv_heads, share, scale);
}
