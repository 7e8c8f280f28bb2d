// Rows of a matrix by index: gather, overwrite, and the deterministic sum of the embedding's gradient.
//
// table [V, H] and values [N, H] in f32 or bf16; rows [N] u32. Bound by memory: gather and scatter read and write
// each element once; scatter_add reads each value once, and reads and writes each table row that is named once.
// CPU twin: src/ops/embedding/cpu.rs. Tests: tests/suite/kernels_state.rs.
#include "wide.cuh"

// Grid: N blocks. A row outside the table gives NaN: the host checks rows that it knows.
template <typename T>
__device__ void gather(const T *__restrict__ table, const unsigned *__restrict__ rows, T *__restrict__ out,
                       unsigned table_rows, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = width % lanes == 0 && aligned(table) && aligned(out);
    const unsigned row = rows[blockIdx.x];
    const bool inside = row < table_rows;
    for (unsigned i = threadIdx.x * lanes; i < width; i += blockDim.x * lanes) {
        float x[lanes];
#pragma unroll
        for (unsigned l = 0; l < lanes; ++l) x[l] = NAN;
        if (inside) load_some(table + (size_t)row * width + i, width - i, wide, x);
        store_some(out + (size_t)blockIdx.x * width + i, width - i, wide, x);
    }
}

// Grid: N blocks. Row n of the result is row rows[n] of `a`, or with the highest bit set, of `b`.
template <typename T>
__device__ void gather_of_two(const T *__restrict__ a, const T *__restrict__ b, const unsigned *__restrict__ rows,
                              T *__restrict__ out, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = width % lanes == 0 && aligned(a) && aligned(b) && aligned(out);
    const unsigned row = rows[blockIdx.x];
    const T *from = (row >> 31 ? b : a) + (size_t)(row & 0x7fffffffu) * width;
    for (unsigned i = threadIdx.x * lanes; i < width; i += blockDim.x * lanes) {
        float x[lanes];
        load_some(from + i, width - i, wide, x);
        store_some(out + (size_t)blockIdx.x * width + i, width - i, wide, x);
    }
}

// Grid: N blocks. table[rows[n]] = values[n]; a row outside the table is left out. Rows must be distinct (the host
// sends a duplicate outside), or the last write would be chance.
template <typename T>
__device__ void scatter(T *__restrict__ table, const unsigned *__restrict__ rows, const T *__restrict__ values,
                        unsigned table_rows, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = width % lanes == 0 && aligned(table) && aligned(values);
    const unsigned row = rows[blockIdx.x];
    if (row >= table_rows) return;
    for (unsigned i = threadIdx.x * lanes; i < width; i += blockDim.x * lanes) {
        float x[lanes];
        load_some(values + (size_t)blockIdx.x * width + i, width - i, wide, x);
        store_some(table + (size_t)row * width + i, width - i, wide, x);
    }
}

// table[row[d]] += values[order[start[d]]] + ... + values[order[start[d + 1] - 1]], added in that order in f32.
// The host groups equal rows: row [D] distinct and inside the table, start [D + 1], order [N].
// Grid: (D, any) blocks; the second dimension shares out the columns.
template <typename S, typename T>
__device__ void scatter_add(S *__restrict__ table, const unsigned *__restrict__ row, const unsigned *__restrict__ start,
                            const unsigned *__restrict__ order, const T *__restrict__ values, unsigned width) {
    constexpr unsigned lanes = Wide<T>::lanes;
    const bool wide = width % lanes == 0 && aligned(table) && aligned(values);
    S *to = table + (size_t)row[blockIdx.x] * width;
    const unsigned first = start[blockIdx.x], end = start[blockIdx.x + 1];
    for (unsigned i = (blockIdx.y * blockDim.x + threadIdx.x) * lanes; i < width; i += gridDim.y * blockDim.x * lanes) {
        float sum[lanes];
        load_some(to + i, width - i, wide, sum);
#pragma unroll 4
        for (unsigned n = first; n < end; ++n) {
            float x[lanes];
            load_some(values + (size_t)order[n] * width + i, width - i, wide, x);
#pragma unroll
            for (unsigned l = 0; l < lanes; ++l) sum[l] += x[l];
        }
        store_some(to + i, width - i, wide, sum);
    }
}

extern "C" __global__ void embedding_gather_f32(const float *table, const unsigned *rows, float *out, unsigned table_rows,
                                                unsigned width) {
    gather(table, rows, out, table_rows, width);
}
extern "C" __global__ void embedding_gather_bf16(const __nv_bfloat16 *table, const unsigned *rows, __nv_bfloat16 *out,
                                                 unsigned table_rows, unsigned width) {
    gather(table, rows, out, table_rows, width);
}
extern "C" __global__ void embedding_gather_of_two_f32(const float *a, const float *b, const unsigned *rows, float *out,
                                                       unsigned width) {
    gather_of_two(a, b, rows, out, width);
}
extern "C" __global__ void embedding_gather_of_two_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b,
                                                        const unsigned *rows, __nv_bfloat16 *out, unsigned width) {
    gather_of_two(a, b, rows, out, width);
}
extern "C" __global__ void embedding_scatter_f32(float *table, const unsigned *rows, const float *values, unsigned table_rows,
                                                 unsigned width) {
    scatter(table, rows, values, table_rows, width);
}
extern "C" __global__ void embedding_scatter_bf16(__nv_bfloat16 *table, const unsigned *rows, const __nv_bfloat16 *values,
                                                  unsigned table_rows, unsigned width) {
    scatter(table, rows, values, table_rows, width);
}
extern "C" __global__ void embedding_scatter_add_f32(float *table, const unsigned *row, const unsigned *start,
                                                     const unsigned *order, const float *values, unsigned width) {
    scatter_add(table, row, start, order, values, width);
}
extern "C" __global__ void embedding_scatter_add_bf16(__nv_bfloat16 *table, const unsigned *row, const unsigned *start,
                                                      const unsigned *order, const __nv_bfloat16 *values, unsigned width) {
    scatter_add(table, row, start, order, values, width);
}
// bf16 values into an f32 table.
extern "C" __global__ void embedding_scatter_add_to_f32_bf16(float *table, const unsigned *row, const unsigned *start,
                                                             const unsigned *order, const __nv_bfloat16 *values,
                                                             unsigned width) {
    scatter_add(table, row, start, order, values, width);
}
