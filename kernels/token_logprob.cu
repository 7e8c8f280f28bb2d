// Log-probability of one token per row, and the row's entropy, in one pass over the logits.
//
// logits [N, V] in f32 or bf16; target [N] u32; logprob, entropy, log_sum, dlogprob [N] f32, in nats.
// With z = logits inverse_temperature: log_sum = log sum exp z, logprob = z[target] - log_sum,
// entropy = log_sum - sum softmax(z) z. A target outside the vocabulary gives NaN. Grid: N blocks.
// Bound by memory: forward reads the logits once, backward reads and writes them once.
// V is about 150 thousand, so the maximum and the sums share one pass (online softmax, arXiv:1805.02867).
// CPU twin: src/ops/token_logprob/cpu.rs. Tests: tests/suite/kernels.rs.
#include "wide.cuh"

// Sums over the logits seen so far, with d = (logit - max) inverse_temperature: of exp(d) and of exp(d) d.
// The maximum is taken off before scaling: the difference of two large logits is exact, of two large z not.
struct Online {
    float max, sum, weighted;
};

// The same sums measured from `max`, which is not below o.max. Empty sums stay so.
static __device__ __forceinline__ Online from(Online o, float max, float inverse_temperature) {
    if (o.sum == 0.f) return {max, 0.f, 0.f};
    const float shift = (o.max - max) * inverse_temperature, scale = expf(shift);
    if (scale == 0.f) return {max, 0.f, 0.f};  // shift may be -inf, and 0 * inf is NaN
    return {max, o.sum * scale, (o.weighted + o.sum * shift) * scale};
}

static __device__ __forceinline__ Online join_lanes(Online o, float inverse_temperature) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        Online other = {__shfl_xor_sync(ALL_LANES, o.max, lanes), __shfl_xor_sync(ALL_LANES, o.sum, lanes),
                        __shfl_xor_sync(ALL_LANES, o.weighted, lanes)};
        const float max = fmaxf(o.max, other.max);
        o = from(o, max, inverse_temperature);
        other = from(other, max, inverse_temperature);
        o = {max, o.sum + other.sum, o.weighted + other.weighted};
    }
    return o;
}

static __device__ __forceinline__ Online *online_per_warp() {
    __shared__ Online warps[32];
    return warps;
}

template <typename T>
__device__ void forward(const T *__restrict__ logits, const unsigned *__restrict__ target, float *__restrict__ logprob,
                        float *__restrict__ entropy, float *__restrict__ log_sum, unsigned vocab, float inverse_temperature) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const T *row = logits + (size_t)blockIdx.x * vocab;  // size_t: N V passes 32 bits
    const bool wide = vocab % lanes == 0 && aligned(logits);
    const Online empty = {-INFINITY, 0.f, 0.f};
    Online o = empty;
#pragma unroll 2
    for (unsigned v = threadIdx.x * lanes; v < vocab; v += blockDim.x * lanes) {
        float logit[lanes];
        load_some(row + v, vocab - v, wide, logit, -INFINITY);
        float max = o.max;
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) max = fmaxf(max, logit[l]);
        if (max > o.max) o = from(o, max, inverse_temperature);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) {
            if (logit[l] == -INFINITY) continue;  // a masked token
            const float d = (logit[l] - o.max) * inverse_temperature, e = expf(d);
            o.sum += e;
            o.weighted += e * d;
        }
    }
    o = join_lanes(o, inverse_temperature);
    Online *warps = online_per_warp();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = o;
    __syncthreads();
    if (threadIdx.x < 32) {
        o = join_lanes(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : empty, inverse_temperature);
        if (threadIdx.x == 0) {
            const unsigned t = target[blockIdx.x];
            const float log_of_sum = logf(o.sum);
            log_sum[blockIdx.x] = o.max * inverse_temperature + log_of_sum;
            logprob[blockIdx.x] = t < vocab ? (to_f32(row[t]) - o.max) * inverse_temperature - log_of_sum : NAN;
            entropy[blockIdx.x] = log_of_sum - o.weighted / o.sum;
        }
    }
}

// dL/dlogits = (onehot(target) - softmax(z)) dL/dlogprob inverse_temperature, written over the logits.
// Grid: (N, any) blocks; the second dimension shares out the columns.
// `to` is the logits, or an array of another type that takes the result instead.
template <typename T, typename D>
__device__ void backward(const T *logits, D *to, const unsigned *__restrict__ target, const float *__restrict__ log_sum,
                         const float *__restrict__ dlogprob, unsigned vocab, float inverse_temperature) {
    constexpr unsigned lanes = Wide<D>::lanes;
    const size_t row = (size_t)blockIdx.x * vocab;
    const bool wide = vocab % lanes == 0 && aligned(logits) && aligned(to);
    const unsigned t = target[blockIdx.x];
    const float g = dlogprob[blockIdx.x] * inverse_temperature, total = log_sum[blockIdx.x];
    for (unsigned v = (blockIdx.y * blockDim.x + threadIdx.x) * lanes; v < vocab; v += gridDim.y * blockDim.x * lanes) {
        float x[lanes];
        load_some(logits + row + v, vocab - v, wide, x);
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) x[l] = ((v + l == t ? 1.f : 0.f) - expf(x[l] * inverse_temperature - total)) * g;
        store_some(to + row + v, vocab - v, wide, x);
    }
}

extern "C" __global__ void token_logprob_forward_f32(const float *logits, const unsigned *target, float *logprob, float *entropy,
                                                     float *log_sum, unsigned vocab, float inverse_temperature) {
    forward(logits, target, logprob, entropy, log_sum, vocab, inverse_temperature);
}
extern "C" __global__ void token_logprob_forward_bf16(const __nv_bfloat16 *logits, const unsigned *target, float *logprob,
                                                      float *entropy, float *log_sum, unsigned vocab,
                                                      float inverse_temperature) {
    forward(logits, target, logprob, entropy, log_sum, vocab, inverse_temperature);
}
extern "C" __global__ void token_logprob_backward_f32(float *logits, const unsigned *target, const float *log_sum,
                                                      const float *dlogprob, unsigned vocab, float inverse_temperature) {
    backward(logits, logits, target, log_sum, dlogprob, vocab, inverse_temperature);
}
extern "C" __global__ void token_logprob_backward_bf16(__nv_bfloat16 *logits, const unsigned *target, const float *log_sum,
                                                       const float *dlogprob, unsigned vocab, float inverse_temperature) {
    backward(logits, logits, target, log_sum, dlogprob, vocab, inverse_temperature);
}
// f32 logits, and their gradient in bf16 for the products that follow.
extern "C" __global__ void token_logprob_backward_f32_to_bf16(const float *logits, __nv_bfloat16 *dlogits, const unsigned *target,
                                                              const float *log_sum, const float *dlogprob, unsigned vocab,
                                                              float inverse_temperature) {
    backward(logits, dlogits, target, log_sum, dlogprob, vocab, inverse_temperature);
}
