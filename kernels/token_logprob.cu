// Log-probability of one token per row, and the row's entropy, in one pass over the logits.
//
// logits [N, V] in f32 or bf16; target [N] u32; logprob, entropy, log_sum, dlogprob [N] f32, in nats.
// With z = logits inverse_temperature: log_sum = log sum exp z, logprob = z[target] - log_sum,
// entropy = log_sum - sum softmax(z) z. A target outside the vocabulary gives NaN. Grid: N blocks.
// V is about 150 thousand, so the maximum and the sums share one pass (online softmax, arXiv:1805.02867).
// CPU twin: src/ops/token_logprob.rs. Tests: tests/suite/kernels.rs.
#include "row.cuh"

// Sums over the z seen so far, relative to their maximum: sum of exp(z - max) and of exp(z - max) (z - max).
struct Online {
    float max, sum, weighted;
};

// `o` as it is when measured from `max`, which is not below o.max. An empty one has sum 0 and stays so.
static __device__ __forceinline__ Online from(Online o, float max) {
    if (o.sum == 0.f) return {max, 0.f, 0.f};
    const float shift = o.max - max, scale = expf(shift);
    if (scale == 0.f) return {max, 0.f, 0.f};  // shift may be -inf, and 0 * inf is NaN
    return {max, o.sum * scale, (o.weighted + o.sum * shift) * scale};
}

static __device__ __forceinline__ Online join(Online a, Online b) {
    const float max = fmaxf(a.max, b.max);
    a = from(a, max);
    b = from(b, max);
    return {max, a.sum + b.sum, a.weighted + b.weighted};
}

static __device__ __forceinline__ Online join_lanes(Online o) {
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        const Online other = {__shfl_xor_sync(ALL_LANES, o.max, lanes), __shfl_xor_sync(ALL_LANES, o.sum, lanes),
                              __shfl_xor_sync(ALL_LANES, o.weighted, lanes)};
        o = join(o, other);
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
    const T *row = logits + (size_t)blockIdx.x * vocab;  // size_t: N V passes 32 bits
    const Online empty = {-INFINITY, 0.f, 0.f};
    Online o = empty;
    for (unsigned v = threadIdx.x; v < vocab; v += blockDim.x) {
        const float z = to_f32(row[v]) * inverse_temperature;
        if (z > o.max) o = from(o, z);
        const float e = z == -INFINITY ? 0.f : expf(z - o.max);
        o.sum += e;
        if (e != 0.f) o.weighted += e * (z - o.max);
    }
    o = join_lanes(o);
    Online *warps = online_per_warp();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = o;
    __syncthreads();
    if (threadIdx.x < 32) {
        o = join_lanes(threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : empty);
        if (threadIdx.x == 0) {
            const unsigned t = target[blockIdx.x];
            const float log_of_sum = logf(o.sum);
            log_sum[blockIdx.x] = o.max + log_of_sum;
            // Both relative to the maximum first: subtracting it last would cost digits.
            logprob[blockIdx.x] = t < vocab ? (to_f32(row[t]) * inverse_temperature - o.max) - log_of_sum : NAN;
            entropy[blockIdx.x] = log_of_sum - o.weighted / o.sum;
        }
    }
}

// dL/dlogits = (onehot(target) - softmax(z)) dL/dlogprob inverse_temperature, written over the logits.
// Grid: (N, any) blocks; the second dimension shares out the columns.
template <typename T>
__device__ void backward(T *__restrict__ logits, const unsigned *__restrict__ target, const float *__restrict__ log_sum,
                         const float *__restrict__ dlogprob, unsigned vocab, float inverse_temperature) {
    T *row = logits + (size_t)blockIdx.x * vocab;
    const unsigned t = target[blockIdx.x];
    const float g = dlogprob[blockIdx.x] * inverse_temperature, total = log_sum[blockIdx.x];
    for (unsigned v = blockIdx.y * blockDim.x + threadIdx.x; v < vocab; v += gridDim.y * blockDim.x) {
        const float p = expf(to_f32(row[v]) * inverse_temperature - total);
        put(row + v, ((v == t ? 1.f : 0.f) - p) * g);
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
    backward(logits, target, log_sum, dlogprob, vocab, inverse_temperature);
}
extern "C" __global__ void token_logprob_backward_bf16(__nv_bfloat16 *logits, const unsigned *target, const float *log_sum,
                                                       const float *dlogprob, unsigned vocab, float inverse_temperature) {
    backward(logits, target, log_sum, dlogprob, vocab, inverse_temperature);
}
