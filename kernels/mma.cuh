// What the tensor-core kernels share: asynchronous copies to shared memory, matrix fragments and
// mma.sync.m16n8k16 (bf16 in, f32 out), all within one warp; sm_80 and later.
//
// Fragments as in the PTX ISA, "Matrix fragments for mma.m16n8k16": with g = lane / 4 and t = lane % 4 a
// thread holds of A [16, 16] rows g and g + 8, of B [16, 8] column g, of C [16, 8] rows g and g + 8 at columns
// 2 t and 2 t + 1. The CPU twins are in tests/doubles/kernel-shim/cuda_on_cpu.h.
#pragma once
#include "row.cuh"

typedef __nv_bfloat16 bf16;

#ifdef __CUDACC__
// An address in shared memory.
typedef unsigned Shared;

static __device__ __forceinline__ unsigned char *dynamic_shared() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return bytes;
}
static __device__ __forceinline__ Shared shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// Starts a copy of 16 bytes from device memory, or of zeros.
static __device__ __forceinline__ void copy_16(Shared to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void copy_4(Shared to, const void *from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0) : "memory");
}
// Waits for the calling thread's copies; the others' need a barrier after it.
static __device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
static __device__ __forceinline__ void ldmatrix(unsigned (&r)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_transposed(unsigned (&r)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
// An 8x8 matrix of 16-bit elements turned over; lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
static __device__ __forceinline__ unsigned transposed(unsigned matrix) {
    unsigned r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(matrix));
    return r;
}
// c += a b
static __device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#else
typedef uintptr_t Shared;

static inline unsigned char *dynamic_shared() { return (unsigned char *)on_cpu::dynamic_shared.data(); }
static inline Shared shared_address(const void *p) { return (uintptr_t)p; }
static inline void copy_16(Shared to, const void *from, bool inside) { on_cpu::copy_async(to, from, 16, inside); }
static inline void copy_4(Shared to, const void *from, bool inside) { on_cpu::copy_async(to, from, 4, inside); }
static inline void copies_done() { on_cpu::copies_done(); }
static inline void ldmatrix(unsigned (&r)[4], Shared row) { on_cpu::ldmatrix(r, row, false); }
static inline void ldmatrix_transposed(unsigned (&r)[4], Shared row) { on_cpu::ldmatrix(r, row, true); }
static inline unsigned transposed(unsigned matrix) { return on_cpu::transposed(matrix); }
static inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { on_cpu::mma_m16n8k16(c, a, b0, b1); }
static inline float exp2_fast(float x) { return exp2f(x); }
static inline unsigned pack(float low, float high) { return __float2bfloat16(low).bits | unsigned(__float2bfloat16(high).bits) << 16; }
#endif

static __device__ __forceinline__ unsigned lane() { return threadIdx.x % 32; }

// Rows of D bf16 in shared memory, in chunks of 16 bytes. Chunk c of row r lies at place c ^ (r % 8), so that
// one chunk of 8 rows, which is what ldmatrix reads at once, lies in 8 different groups of banks.
template <int D>
struct Rows {
    Shared base;

    static constexpr unsigned chunks = D / 8;
    static constexpr unsigned bytes = D * sizeof(bf16);  // of a row

    __device__ __forceinline__ Shared at(unsigned row, unsigned chunk) const {
        return base + row * bytes + ((chunk ^ (row & 7)) << 4);
    }
    // A [16, 16]: rows first_row.., columns 16 step.., from row-major rows.
    __device__ __forceinline__ void a(unsigned (&r)[4], unsigned first_row, unsigned step) const {
        const unsigned l = lane();
        ldmatrix(r, at(first_row + l % 16, 2 * step + l / 16));
    }
    // Two B [16, 8] whose columns are these rows: rows first_row.. and first_row + 8.., elements 16 step...
    __device__ __forceinline__ void b_of_rows(unsigned (&r)[4], unsigned first_row, unsigned step) const {
        const unsigned l = lane();
        ldmatrix(r, at(first_row + l % 8 + l / 16 * 8, 2 * step + l / 8 % 2));
    }
    // Two B [16, 8] whose rows are these rows: rows first_row.., columns 8 chunk.. and 8 (chunk + 1)...
    __device__ __forceinline__ void b_of_columns(unsigned (&r)[4], unsigned first_row, unsigned chunk) const {
        const unsigned l = lane();
        ldmatrix_transposed(r, at(first_row + l % 16, chunk + l / 16));
    }
};

// The A operands that hold rows g and g + 8 of a warp's 16 rows of D elements, straight from device memory.
template <int D>
static __device__ __forceinline__ void rows_as_a(unsigned (&a)[D / 16][4], const bf16 *row, const bf16 *row_8) {
    const unsigned t = lane() % 4 * 2;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        a[step][0] = *(const unsigned *)(row + step * 16 + t);
        a[step][1] = *(const unsigned *)(row_8 + step * 16 + t);
        a[step][2] = *(const unsigned *)(row + step * 16 + 8 + t);
        a[step][3] = *(const unsigned *)(row_8 + step * 16 + 8 + t);
    }
}

// c [16, N] += a [16, D] rows^T, for N rows of shared memory.
template <int D, int N>
static __device__ __forceinline__ void times_rows(float (&c)[N / 8][4], const unsigned (&a)[D / 16][4], Rows<D> rows) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
            unsigned b[4];
            rows.b_of_rows(b, n * 8, step);
            mma(c[n], a[step], b[0], b[1]);
            mma(c[n + 1], a[step], b[2], b[3]);
        }
    }
}

// The same with A [16, D] from shared memory too.
template <int D, int N>
static __device__ __forceinline__ void rows_times_rows(float (&c)[N / 8][4], Rows<D> left, unsigned first_row, Rows<D> rows) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        unsigned a[4];
        left.a(a, first_row, step);
#pragma unroll
        for (int n = 0; n < N / 8; n += 2) {
            unsigned b[4];
            rows.b_of_rows(b, n * 8, step);
            mma(c[n], a, b[0], b[1]);
            mma(c[n + 1], a, b[2], b[3]);
        }
    }
}

// c [16, D] += w [16, N] rows, for N rows of shared memory; w, an accumulator, is rounded to bf16.
template <int D, int N>
static __device__ __forceinline__ void weigh_rows(float (&c)[D / 8][4], const float (&w)[N / 8][4], Rows<D> rows) {
#pragma unroll
    for (int step = 0; step < N / 16; step++) {
        const float(&left)[4] = w[2 * step], (&right)[4] = w[2 * step + 1];
        const unsigned a[4] = {pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]), pack(right[2], right[3])};
#pragma unroll
        for (int chunk = 0; chunk < D / 8; chunk += 2) {
            unsigned b[4];
            rows.b_of_columns(b, step * 16, chunk);
            mma(c[chunk], a, b[0], b[1]);
            mma(c[chunk + 1], a, b[2], b[3]);
        }
    }
}

// An accumulator's rows g and g + 8 of D elements to device memory.
template <int D>
static __device__ __forceinline__ void put_row(bf16 *row, const float (&c)[D / 8][4], int second, float scale) {
    const unsigned t = lane() % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++) *(unsigned *)(row + n * 8 + t) = pack(c[n][second * 2] * scale, c[n][second * 2 + 1] * scale);
}
template <int D>
static __device__ __forceinline__ void put_row(float *row, const float (&c)[D / 8][4], int second, float scale) {
    const unsigned t = lane() % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; n++) *(float2 *)(row + n * 8 + t) = make_float2(c[n][second * 2] * scale, c[n][second * 2 + 1] * scale);
}
