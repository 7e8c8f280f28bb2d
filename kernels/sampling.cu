// From logits to tokens: temperature, top-k, top-p, min-p and one uniform a row, all rows in one launch.
//
// logits [N, V] in f32 or bf16, V < 2^23; uniform [N D] f32 in [0, 1), D draws from each row; result [N D, 2] u32:
// the token, and the bits of its f32 log-probability under the whole tempered distribution. A row whose logits hold
// a NaN, or whose largest is infinite, gives token 0 and NaN. Grid: N D blocks of at most 512 threads.
//
// A token's mass is exp((logit - max) inverse_temperature) in whole units of 2^-40: sums of integers are exact in
// any order, so the result is the same on every run and for every number of threads. No sort: the smallest logit
// that stays is searched digit by digit (4 bits a pass: 8 passes in f32, 4 in bf16, only where top-k or top-p is
// set). Without them the row is read twice, the second time mostly from the cache.
// CPU twin: src/ops/sampling/cpu.rs. Tests: tests/suite/kernels_sampling.rs.
#include "wide.cuh"

#define MAX_WARPS 16
#define DIGITS 16

struct Shared {
    uint64_t segment[MAX_WARPS];  // measure of each warp's share of the row
    uint64_t digit[MAX_WARPS][DIGITS];
    uint64_t reached[DIGITS];
    float max[MAX_WARPS];
    unsigned argmax[MAX_WARPS];
    unsigned bad[MAX_WARPS];
    unsigned found;
};
static __device__ __forceinline__ Shared *shared() {
    __shared__ uint64_t room[(sizeof(Shared) + 7) / 8];
    return reinterpret_cast<Shared *>(room);
}

// Unsigned integers in the order of the logits.
template <typename T>
struct Key;
template <>
struct Key<float> {
    static constexpr int bits = 32;
    static __device__ __forceinline__ uint32_t of(float x) {
        const uint32_t b = bits_of_f32(x);
        return b >> 31 ? ~b : b | 0x80000000u;
    }
};
template <>
struct Key<__nv_bfloat16> {
    static constexpr int bits = 16;
    static __device__ __forceinline__ uint32_t of(float x) { return Key<float>::of(x) >> 16; }
};

template <typename T>
struct Row {
    const T *logits;
    unsigned vocab;
    bool wide;
    float max, inverse_temperature;

    __device__ __forceinline__ uint64_t mass(float logit) const {
        return (uint64_t)(expf((logit - max) * inverse_temperature) * 1099511627776.f);
    }
    // Calls f(token, logit) for a share of the tokens first .. end, `threads` at work, this one the `me`-th.
    template <typename F>
    __device__ __forceinline__ void each(unsigned first, unsigned end, unsigned me, unsigned threads, F f) const {
        constexpr unsigned lanes = Wide<T>::lanes;
        for (unsigned v = first + me * lanes; v < end; v += threads * lanes) {
            float x[lanes];
            load_some(logits + v, end - v, wide, x);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l)
                if (v + l < end) f(v + l, x[l]);
        }
    }
    // Tokens of one warp's share, a multiple of what the warp reads at once.
    __device__ __forceinline__ unsigned span() const {
        const unsigned warps = blockDim.x / 32, step = 32 * Wide<T>::lanes;
        return ((vocab + warps - 1) / warps + step - 1) / step * step;
    }
};

// Tokens that may be drawn: a key above `key`, or equal and the token before `end`.
struct Cut {
    uint32_t key;
    unsigned end;
};
template <typename T>
__device__ __forceinline__ bool kept(Cut cut, unsigned token, float logit) {
    const uint32_t key = Key<T>::of(logit);
    return key > cut.key || (key == cut.key && token < cut.end);
}

// Sum of measure(token, logit) over the row, in every thread; leaves the sum of each warp's share in `segment`.
template <typename T, typename M>
__device__ uint64_t total_of(const Row<T> &row, M measure) {
    Shared *s = shared();
    const unsigned warp = threadIdx.x / 32, first = warp * row.span();
    uint64_t sum = 0;
    if (first < row.vocab) {
        const unsigned end = row.vocab - first < row.span() ? row.vocab : first + row.span();
        row.each(first, end, threadIdx.x % 32, 32, [&](unsigned token, float logit) { sum += measure(token, logit); });
    }
    for (int lanes = 16; lanes > 0; lanes >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) s->segment[warp] = sum;
    __syncthreads();
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += s->segment[w];
    return sum;
}

// The first token up to and with which the measure is above `target`; `total_of` the same measure came before.
template <typename T, typename M>
__device__ unsigned find(const Row<T> &row, uint64_t target, M measure) {
    constexpr unsigned lanes = Wide<T>::lanes;
    Shared *s = shared();
    const unsigned warps = blockDim.x / 32, lane = threadIdx.x % 32;
    uint64_t before = 0;
    unsigned segment = 0;
    while (segment + 1 < warps && before + s->segment[segment] <= target) before += s->segment[segment++];
    const unsigned first = segment * row.span();
    const unsigned end = row.vocab - first < row.span() ? row.vocab : first + row.span();
    __syncthreads();
    if (threadIdx.x == 0) s->found = row.vocab - 1;
    for (unsigned tile = first; tile < end; tile += blockDim.x * lanes) {
        uint64_t own = 0;
        const unsigned start = tile + threadIdx.x * lanes;
        if (start < end)
            row.each(start, end - start < lanes ? end : start + lanes, 0, 1,
                     [&](unsigned token, float logit) { own += measure(token, logit); });
        uint64_t sum = own;  // of this lane and those before it
        for (unsigned away = 1; away < 32; away <<= 1) {
            const uint64_t left = __shfl_sync(ALL_LANES, sum, (lane - away) % 32);
            if (lane >= away) sum += left;
        }
        __syncthreads();
        if (lane == 31) s->segment[threadIdx.x / 32] = sum;
        __syncthreads();
        uint64_t up_to = before + sum - own;
        for (unsigned w = 0; w < warps; ++w) {
            if (w < threadIdx.x / 32) up_to += s->segment[w];
            before += s->segment[w];
        }
        if (up_to <= target && target < up_to + own)
            row.each(start, end - start < lanes ? end : start + lanes, 0, 1, [&](unsigned token, float logit) {
                const bool short_of = up_to <= target;
                up_to += measure(token, logit);
                if (short_of && up_to > target) s->found = token;
            });
        if (before > target) break;  // the same in every thread
    }
    __syncthreads();
    return s->found;
}

// The shortest run of tokens, by logit downwards and among equals by token upwards, whose measure reaches `need`,
// which is above 0 and at most the total.
template <typename T, typename M>
__device__ Cut cut_at(const Row<T> &row, uint64_t need, M measure) {
    Shared *s = shared();
    const unsigned warps = blockDim.x / 32;
    uint32_t prefix = 0;     // digits found so far of the largest key at or above which the measure reaches `need`
    uint64_t above = 0;      // measure of the keys above it, right after the last digit
    for (int shift = Key<T>::bits - 4; shift >= 0; shift -= 4) {
        uint64_t higher = 0, reach[DIGITS] = {};  // reach[d]: measure of this thread's keys with digit d or more
        row.each(0, row.vocab, threadIdx.x, blockDim.x, [&](unsigned token, float logit) {
            const uint32_t key = Key<T>::of(logit), head = (key >> shift) >> 4;
            if (head < prefix) return;
            const uint64_t m = measure(token, logit);
            if (head > prefix) {
                higher += m;
                return;
            }
            const uint32_t digit = key >> shift & 15;
#pragma unroll
            for (uint32_t d = 1; d < DIGITS; ++d) reach[d] += digit >= d ? m : 0;
        });
        reach[0] = higher;
#pragma unroll
        for (uint32_t d = 0; d < DIGITS; ++d)
            for (int lanes = 16; lanes > 0; lanes >>= 1) reach[d] += __shfl_xor_sync(ALL_LANES, reach[d], lanes);
        __syncthreads();
        if (threadIdx.x % 32 == 0)
#pragma unroll
            for (uint32_t d = 0; d < DIGITS; ++d) s->digit[threadIdx.x / 32][d] = reach[d];
        __syncthreads();
        if (threadIdx.x < DIGITS) {
            uint64_t sum = 0;
            for (unsigned w = 0; w < warps; ++w) sum += s->digit[w][threadIdx.x];
            s->reached[threadIdx.x] = sum;
        }
        __syncthreads();
        const uint64_t over = s->reached[0];
        uint32_t digit = 15;
        above = over;
        while (digit > 0 && over + s->reached[digit] < need) above = over + s->reached[digit--];
        prefix = prefix << 4 | digit;
    }
    const auto equal = [&](unsigned token, float logit) { return Key<T>::of(logit) == prefix ? measure(token, logit) : 0; };
    total_of(row, equal);
    return {prefix, find(row, need - above - 1, equal) + 1};
}

struct Options {
    float inverse_temperature;
    unsigned greedy;    // 1: the largest logit, the first of equals; the rest is ignored
    unsigned top_k;     // 0: all
    float top_p;        // 1: all
    float reach;        // min-p: how far below the largest a logit may lie; infinity: any
};

template <typename T>
__device__ void sample(const T *__restrict__ logits, const float *__restrict__ uniform, unsigned *__restrict__ result,
                       unsigned vocab, unsigned draws, Options o) {
    Shared *s = shared();
    Row<T> row = {logits + (size_t)(blockIdx.x / draws) * vocab, vocab, vocab % Wide<T>::lanes == 0 && aligned(logits), -INFINITY,
                  o.inverse_temperature};
    unsigned argmax = 0, bad = 0;
    row.each(0, vocab, threadIdx.x, blockDim.x, [&](unsigned token, float logit) {
        bad |= logit != logit;
        if (logit > row.max) row.max = logit, argmax = token;
    });
    const auto join = [&](float max, unsigned token, unsigned other_bad) {
        bad |= other_bad;
        if (max > row.max || (max == row.max && token < argmax)) row.max = max, argmax = token;
    };
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        const float max = __shfl_xor_sync(ALL_LANES, row.max, lanes);
        const unsigned token = __shfl_xor_sync(ALL_LANES, argmax, lanes);
        join(max, token, __shfl_xor_sync(ALL_LANES, bad, lanes));
    }
    if (threadIdx.x % 32 == 0) {
        s->max[threadIdx.x / 32] = row.max;
        s->argmax[threadIdx.x / 32] = argmax;
        s->bad[threadIdx.x / 32] = bad;
    }
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; ++w) join(s->max[w], s->argmax[w], s->bad[w]);
    if (bad || row.max == INFINITY || row.max == -INFINITY) {
        if (threadIdx.x == 0) {
            result[2 * blockIdx.x] = 0;
            result[2 * blockIdx.x + 1] = bits_of_f32(NAN);
        }
        return;
    }
    const auto mass = [&](unsigned, float logit) { return row.mass(logit); };
    const uint64_t whole = total_of(row, mass);
    unsigned token = argmax;
    if (!o.greedy) {
        // (u + half a step of 2^-24) of the mass: a token that has next to none is not drawn even by u = 0.
        const uint64_t twice = 2 * (uint64_t)(uniform[blockIdx.x] * 16777216.f) + 1;
        const auto share = [&](uint64_t total) { return (total >> 25) * twice + ((total & 0x1ffffff) * twice >> 25); };
        if (o.top_k == 0 && o.top_p >= 1.f && o.reach == INFINITY) {
            token = find(row, share(whole), mass);
        } else {
            Cut cut = {0, vocab};
            uint64_t total = whole;
            const auto allowed = [&](unsigned t, float logit) { return kept<T>(cut, t, logit) ? row.mass(logit) : 0; };
            if (o.top_k > 0 && o.top_k < vocab) {
                cut = cut_at(row, o.top_k, [](unsigned, float) { return (uint64_t)1; });
                total = total_of(row, allowed);
            }
            if (o.top_p < 1.f) {
                uint64_t need = (uint64_t)ceil((double)o.top_p * (double)total);
                need = need < 1 ? 1 : need > total ? total : need;
                cut = cut_at(row, need, allowed);
            }
            const auto left = [&](unsigned t, float logit) { return row.max - logit <= o.reach ? allowed(t, logit) : 0; };
            total = total_of(row, left);
            token = find(row, share(total), left);
        }
    }
    if (threadIdx.x == 0) {
        const float log_sum = logf((float)((double)whole * (1. / 1099511627776.)));
        result[2 * blockIdx.x] = token;
        result[2 * blockIdx.x + 1] = bits_of_f32((to_f32(row.logits[token]) - row.max) * row.inverse_temperature - log_sum);
    }
}

extern "C" __global__ void sampling_f32(const float *logits, const float *uniform, unsigned *result, unsigned vocab, unsigned draws,
                                        float inverse_temperature, unsigned greedy, unsigned top_k, float top_p, float reach) {
    sample(logits, uniform, result, vocab, draws, {inverse_temperature, greedy, top_k, top_p, reach});
}
extern "C" __global__ void sampling_bf16(const __nv_bfloat16 *logits, const float *uniform, unsigned *result, unsigned vocab, unsigned draws,
                                         float inverse_temperature, unsigned greedy, unsigned top_k, float top_p, float reach) {
    sample(logits, uniform, result, vocab, draws, {inverse_temperature, greedy, top_k, top_p, reach});
}
