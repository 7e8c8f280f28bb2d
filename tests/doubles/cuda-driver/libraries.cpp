// Twins of what rlvr and candle call in cuBLAS and cuRAND: products by plain loops with sums in f32.
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "trace.h"

namespace {

using Handle = void *;
using twin::need;
using twin::stop;

enum Type { f32 = 0, bf16 = 14 };  // cudaDataType
constexpr int f32_sums = 68;       // CUBLAS_COMPUTE_32F

float read(const void *at, size_t i, int type) {
    uint32_t bits;
    if (type == f32) return ((const float *)at)[i];
    bits = uint32_t(((const uint16_t *)at)[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

void write(void *at, size_t i, int type, float value) {
    if (type == f32) {
        ((float *)at)[i] = value;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // Round to nearest, ties to even; a NaN stays one.
    ((uint16_t *)at)[i] = value != value ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

size_t width(int type) { return type == f32 ? 4 : 2; }

// Columns one after the other, `stride` elements apart.
struct Matrix {
    const void *at;
    int type, stride;
};

// Bytes from the first to the last element of rows x columns.
size_t extent(const Matrix &m, size_t rows, size_t columns) { return ((columns - 1) * m.stride + rows) * width(m.type); }

void check(const Matrix &m, int transposed, size_t rows, size_t columns) {
    need(m.at, transposed ? extent(m, columns, rows) : extent(m, rows, columns), "cuBLAS", "an operand");
    if (size_t(m.stride) < (transposed ? columns : rows)) stop("cuBLAS: a leading dimension below the number of rows");
}

// op(m) as f32, its rows one after the other.
std::vector<float> rows_of(const Matrix &m, int transposed, size_t rows, size_t columns) {
    std::vector<float> out(rows * columns);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++) out[r * columns + c] = read(m.at, transposed ? r * m.stride + c : c * m.stride + r, m.type);
    return out;
}

int multiply(int transposed_a, int transposed_b, int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, Matrix c) {
    const auto known = [](int type) { return type == f32 || type == bf16; };
    if (!known(a.type) || !known(c.type) || a.type != b.type || (a.type == f32 && c.type != f32)) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
    if (m < 0 || n < 0 || k < 0 || c.stride < m) return 7;                                                     // CUBLAS_STATUS_INVALID_VALUE
    if (m == 0 || n == 0 || k == 0) stop("cuBLAS: an empty product, which is not to reach it");
    check(a, transposed_a, m, k), check(b, transposed_b, k, n);
    need(c.at, extent(c, m, n), "cuBLAS", "the result");
    if (twin::dry()) return 0;
    const std::vector<float> left = rows_of(a, transposed_a, m, k), right = rows_of(b, transposed_b, k, n);
    // In double: a device adds in tiles, and 50,000 terms one after the other in float would be worse than any of them.
    std::vector<double> sums(n);
    for (int i = 0; i < m; i++) {
        std::fill(sums.begin(), sums.end(), 0.);
        for (int l = 0; l < k; l++)
            for (int j = 0; j < n; j++) sums[j] += double(left[size_t(i) * k + l]) * right[size_t(l) * n + j];
        for (int j = 0; j < n; j++) {
            const size_t at = size_t(j) * c.stride + i;
            const float old = beta == 0.f ? 0.f : beta * read(c.at, at, c.type);
            write((void *)c.at, at, c.type, alpha * float(sums[j]) + old);
        }
    }
    return 0;
}

const void *further(const void *at, long long elements, int type) { return (const char *)at + elements * (long long)width(type); }

}  // namespace

TWIN_EXPORT int cublasCreate_v2(Handle *handle) { return *handle = new char, 0; }
TWIN_EXPORT int cublasDestroy_v2(Handle handle) { return delete (char *)handle, 0; }
TWIN_EXPORT int cublasGetVersion_v2(Handle, int *version) { return *version = 130000, 0; }
TWIN_EXPORT int cublasSetStream_v2(Handle, Handle) { return 0; }
TWIN_EXPORT int cublasSetMathMode(Handle, int) { return 0; }
TWIN_EXPORT int cublasSetPointerMode_v2(Handle, int mode) { return mode == 0 ? 0 : 15; }
TWIN_EXPORT int cublasSetWorkspace_v2(Handle, void *start, size_t bytes) {
    need(start, bytes, "cuBLAS", "the workspace");
    return 0;
}
TWIN_EXPORT int cublasGemmEx(Handle, int transposed_a, int transposed_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                             int a_stride, const void *b, int b_type, int b_stride, const void *beta, void *c, int c_type, int c_stride,
                             int compute, int) {
    if (compute != f32_sums) return 15;
    twin::trace_product("cublas", m, n, k, 1, width(a_type), width(c_type), *(const float *)beta != 0.f, transposed_a, transposed_b);
    return multiply(transposed_a, transposed_b, m, n, k, *(const float *)alpha, {a, a_type, a_stride}, {b, b_type, b_stride},
                    *(const float *)beta, {c, c_type, c_stride});
}
TWIN_EXPORT int cublasGemmStridedBatchedEx(Handle, int transposed_a, int transposed_b, int m, int n, int k, const void *alpha, const void *a,
                                           int a_type, int a_stride, long long a_step, const void *b, int b_type, int b_stride,
                                           long long b_step, const void *beta, void *c, int c_type, int c_stride, long long c_step,
                                           int count, int compute, int) {
    if (compute != f32_sums) return 15;
    twin::trace_product("cublas", m, n, k, count, width(a_type), width(c_type), *(const float *)beta != 0.f, transposed_a, transposed_b);
    for (int i = 0; i < count; i++) {
        const int status = multiply(transposed_a, transposed_b, m, n, k, *(const float *)alpha, {further(a, i * a_step, a_type), a_type, a_stride},
                                    {further(b, i * b_step, b_type), b_type, b_stride}, *(const float *)beta,
                                    {further(c, i * c_step, c_type), c_type, c_stride});
        if (status) return status;
    }
    return 0;
}
TWIN_EXPORT int cublasSgemmStridedBatched(Handle handle, int transposed_a, int transposed_b, int m, int n, int k, const float *alpha,
                                          const float *a, int a_stride, long long a_step, const float *b, int b_stride, long long b_step,
                                          const float *beta, float *c, int c_stride, long long c_step, int count) {
    return cublasGemmStridedBatchedEx(handle, transposed_a, transposed_b, m, n, k, alpha, a, f32, a_stride, a_step, b, f32, b_stride, b_step,
                                      beta, c, f32, c_stride, c_step, count, f32_sums, 0);
}

// candle opens a generator with every device; rlvr draws no number from it.
TWIN_EXPORT int curandCreateGenerator(Handle *generator, int) { return *generator = new char, 0; }
TWIN_EXPORT int curandDestroyGenerator(Handle generator) { return delete (char *)generator, 0; }
TWIN_EXPORT int curandSetStream(Handle, Handle) { return 0; }
TWIN_EXPORT int curandSetPseudoRandomGeneratorSeed(Handle, unsigned long long) { return 0; }
