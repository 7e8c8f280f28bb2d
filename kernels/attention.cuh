// What the attention kernels share: how query vectors are numbered, and one warp's online softmax.
#pragma once
#include "mma.cuh"

#define LOG2E 1.4426950408889634f

// The queries of one key/value head: the heads that share it are more rows, m = row * share + head. A tile of m
// is full whatever the segment's length in rows, and reads each key once for all of them.
struct Queries {
    unsigned share, magic, kv_heads, kv_head;
    unsigned start;  // row of m = 0

    __device__ __forceinline__ Queries(unsigned share, unsigned kv_heads, unsigned kv_head, unsigned start)
        : share(share), magic(0xffffffffu / share + 1), kv_heads(kv_heads), kv_head(kv_head), start(start) {}
    // m / share, exact while m * share < 2^32.
    __device__ __forceinline__ unsigned row(unsigned m) const { return share == 1 ? m : __umulhi(m, magic); }
    // Place of m's vector among [tokens, query heads].
    __device__ __forceinline__ size_t at(unsigned m) const {
        const unsigned r = row(m);
        return ((size_t)(start + r) * kv_heads + kv_head) * share + (m - r * share);
    }
};

// A run of m of one segment. Row r of the segment sees the prefix and the segment's rows 0..=r.
struct RowTile {
    unsigned own_start, first, count, prefix_start, prefix_len;

    // Token of key `j`, counted over the prefix and then the segment.
    __device__ __forceinline__ unsigned token(unsigned j) const { return j < prefix_len ? prefix_start + j : own_start + (j - prefix_len); }
};

// Keys start..start + count of one segment. All rows from a key's own up to rows_end see it: the rest of its
// segment and, of a prompt, all completions, which follow it. The tree, a prompt and its completions, begins at row
// `tree`; from strip `strips` on lie the gradients of the keys' scores (attention_backward.cu).
struct KeyTile {
    unsigned start, count, rows_end, tree, strips;
};

static constexpr int warps = 4, threads_of_block = 32 * warps;

// KEYS rows of k and v, row i from element at(i) or zero where inside(i) is false.
template <int D, int KEYS, typename At, typename Inside>
static __device__ __forceinline__ void copy_pair(Rows<D> first_to, Rows<D> second_to, const bf16 *first, const bf16 *second, unsigned threads, At at, Inside inside) {
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < KEYS * Rows<D>::chunks; i += threads) {
        const unsigned row = i / Rows<D>::chunks, chunk = i % Rows<D>::chunks;
        const bool valid = inside(row);
        const size_t from = valid ? at(row) + chunk * 8 : 0;
        copy_16(first_to.at(row, chunk), first + from, valid);
        copy_16(second_to.at(row, chunk), second + from, valid);
    }
}

// One warp's 16 queries and what they have gathered so far.
template <int D>
struct Attending {
    unsigned q[D / 16][4];
    float out[D / 8][4] = {};
    float max[2] = {-INFINITY, -INFINITY};  // of the unscaled scores
    float sum[2] = {0.f, 0.f};              // this thread's share

    // 64 more keys, of which rows g and g + 8 see the first visible[0] and visible[1]. The first call must show
    // every row at least one.
    __device__ __forceinline__ void tile(Rows<D> k, Rows<D> v, const int (&visible)[2], bool all_visible, float scale_log2) {
        // Scores of 64 keys beside 128 sums would leave no registers for a third block on the multiprocessor.
        constexpr int at_once = D > 64 ? 32 : 64;
#pragma unroll 1
        for (int first = 0; first < 64; first += at_once) {
            const int left[2] = {visible[0] - first, visible[1] - first};
            keys<at_once>(Rows<D>{k.base + first * Rows<D>::bytes}, Rows<D>{v.base + first * Rows<D>::bytes}, left, all_visible, scale_log2);
        }
    }
    // KEYS keys in one go.
    template <int KEYS>
    __device__ __forceinline__ void keys(Rows<D> k, Rows<D> v, const int (&visible)[2], bool all_visible, float scale_log2) {
        float s[KEYS / 8][4] = {};
        times_rows<D, KEYS>(s, q, k);
        if (!all_visible) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (n * 8 + (int)(lane() % 4) * 2 + e % 2 >= visible[e / 2]) s[n][e] = -INFINITY;
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float top = max[i];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
            top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
            const float shrink = exp2_fast((max[i] - top) * scale_log2), shift = top * scale_log2;
            max[i] = top;
            sum[i] *= shrink;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                out[n][2 * i] *= shrink;
                out[n][2 * i + 1] *= shrink;
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int e = 2 * i; e < 2 * i + 2; e++) {
                    s[n][e] = exp2_fast(s[n][e] * scale_log2 - shift);
                    sum[i] += s[n][e];
                }
            }
        }
        weigh_rows<D, KEYS>(out, s, v);
    }
    // The sums over all keys, in every lane.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 1);
            sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 2);
        }
    }
    __device__ __forceinline__ float log_sum(int i, float scale) const { return max[i] * scale + logf(sum[i]); }
};

// body(tile) for each of `count` tiles, whose data fetch(tile) copies to the stage tile % 2: one tile is worked on
// while the next one is on its way.
template <typename Fetch, typename Body>
static __device__ __forceinline__ void stream(unsigned count, Fetch fetch, Body body) {
    fetch(0);
    for (unsigned tile = 0; tile < count; tile++) {
        copies_done();
        __syncthreads();  // everyone's copies are there, and everyone is done with the tile before
        if (tile + 1 < count) fetch(tile + 1);
        body(tile);
    }
}

// body(first key, keys, values) for all of `total` keys, KEYS at a time; key(j) is the element where key j's vector
// starts. Dynamic shared memory: 4 KEYS rows of D.
template <int D, int KEYS, typename Key, typename Body>
static __device__ __forceinline__ void stream_keys(const bf16 *k, const bf16 *v, unsigned total, unsigned threads, Key key, Body body) {
    constexpr unsigned size = KEYS * Rows<D>::bytes;
    const Shared base = shared_address(dynamic_shared());
    const auto stage = [&](unsigned tile) { return base + tile % 2 * 2 * size; };
    stream(
        (total + KEYS - 1) / KEYS,
        [&](unsigned tile) {
            copy_pair<D, KEYS>(
                Rows<D>{stage(tile)}, Rows<D>{stage(tile) + size}, k, v, threads, [&](unsigned i) { return key(tile * KEYS + i); },
                [&](unsigned i) { return tile * KEYS + i < total; });
        },
        [&](unsigned tile) { body(tile * KEYS, Rows<D>{stage(tile)}, Rows<D>{stage(tile) + size}); });
}
