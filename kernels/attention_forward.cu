// Packed shared-prefix attention, forward: a token sees all of its segment's prefix and its segment up to itself.
// Online softmax with the log-sum-exp kept, Dao et al., arXiv:2205.14135 and arXiv:2307.08691.
//
// q, out [T, query heads, D], k, v [T, kv heads, D] in bf16; lse [T, query heads] f32; D 64 or 128.
// Grid: (tiles of 64 m, kv heads), 128 threads, dynamic shared memory 512 D bytes (4 tiles of 64 keys).
// Other element types and head dims: attention_plain.cu. Roofline: docs/kernels.md.
// CPU twin: src/ops/attention/cpu.rs. Tests: tests/suite/kernels_attention.rs.
#include "attention.cuh"

template <int D>
static __device__ __forceinline__ void forward(const bf16 *__restrict__ q, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
                                               bf16 *__restrict__ out, float *__restrict__ lse, const RowTile *__restrict__ tiles,
                                               unsigned kv_heads, unsigned share, float scale) {
    const RowTile tile = tiles[blockIdx.x];
    const unsigned kv_head = blockIdx.y;
    const Queries queries(share, kv_heads, kv_head, tile.own_start);
    // Rows past the tile's end repeat its last one, and are not written.
    const unsigned last = tile.first + tile.count - 1, mine = tile.first + threadIdx.x / 32 * 16 + lane() / 4;
    const unsigned m[2] = {min(mine, last), min(mine + 8, last)};
    const unsigned visible[2] = {tile.prefix_len + queries.row(m[0]) + 1, tile.prefix_len + queries.row(m[1]) + 1};
    Attending<D> warp;
    rows_as_a<D>(warp.q, q + queries.at(m[0]) * D, q + queries.at(m[1]) * D);
    const unsigned shared = tile.prefix_len + queries.row(tile.first) + 1;  // keys that every row sees
    stream_keys<D, 64>(
        k, v, tile.prefix_len + queries.row(last) + 1, threads_of_block,
        [&](unsigned j) { return ((size_t)tile.token(j) * kv_heads + kv_head) * D; },
        [&](unsigned first, Rows<D> keys, Rows<D> values) {
            const int left[2] = {(int)(visible[0] - first), (int)(visible[1] - first)};
            warp.tile(keys, values, left, first + 64 <= shared, scale * LOG2E);
        });
    warp.finish();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (mine + 8 * i > last) continue;
        const size_t at = queries.at(m[i]);
        put_row<D>(out + at * D, warp.out, i, 1.f / warp.sum[i]);
        if (lane() % 4 == 0) lse[at] = warp.log_sum(i, scale);
    }
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_64_bf16(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse,
                                                                            const RowTile *tiles, unsigned kv_heads, unsigned share,
                                                                            float scale) {
    forward<64>(q, k, v, out, lse, tiles, kv_heads, share, scale);
}
extern "C" __global__ void __launch_bounds__(128, 3) attention_forward_128_bf16(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse,
                                                                             const RowTile *tiles, unsigned kv_heads, unsigned share,
                                                                             float scale) {
    forward<128>(q, k, v, out, lse, tiles, kv_heads, share, scale);
}
