// Twins of what rlvr calls in cuBLASLt, and candle in cuBLAS and cuRAND: products by plain loops.
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

// d = alpha op(a) op(b) + beta c + bias, the bias added to every column.
int multiply(int transposed_a, int transposed_b, int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, Matrix c, Matrix d,
             const void *bias = nullptr) {
    const auto known = [](int type) { return type == f32 || type == bf16; };
    if (!known(a.type) || !known(c.type) || a.type != b.type || c.type != d.type || (a.type == f32 && c.type != f32)) return 15;  // CUBLAS_STATUS_NOT_SUPPORTED
    if (m < 0 || n < 0 || k < 0 || c.stride < m || d.stride < m) return 7;                                                     // CUBLAS_STATUS_INVALID_VALUE
    if (m == 0 || n == 0 || k == 0) stop("cuBLAS: an empty product, which is not to reach it");
    check(a, transposed_a, m, k), check(b, transposed_b, k, n);
    need(d.at, extent(d, m, n), "cuBLAS", "the result");
    if (beta != 0.f) need(c.at, extent(c, m, n), "cuBLAS", "what is added");
    if (bias) need(bias, m * width(d.type), "cuBLAS", "the bias");
    if (twin::dry()) return 0;
    const std::vector<float> left = rows_of(a, transposed_a, m, k), right = rows_of(b, transposed_b, k, n);
    // In double: a device adds in tiles, and 50,000 terms one after the other in float would be worse than any of them.
    std::vector<double> sums(n);
    for (int i = 0; i < m; i++) {
        std::fill(sums.begin(), sums.end(), 0.);
        for (int l = 0; l < k; l++)
            for (int j = 0; j < n; j++) sums[j] += double(left[size_t(i) * k + l]) * right[size_t(l) * n + j];
        for (int j = 0; j < n; j++) {
            const float old = beta == 0.f ? 0.f : beta * read(c.at, size_t(j) * c.stride + i, c.type);
            write((void *)d.at, size_t(j) * d.stride + i, d.type, alpha * float(sums[j]) + old + (bias ? read(bias, i, d.type) : 0.f));
        }
    }
    return 0;
}

const void *further(const void *at, long long elements, int type) { return (const char *)at + elements * (long long)width(type); }

}  // namespace

TWIN_EXPORT int cublasCreate_v2(Handle *handle) { return *handle = new char, 0; }
TWIN_EXPORT int cublasDestroy_v2(Handle handle) { return delete (char *)handle, 0; }
TWIN_EXPORT int cublasSetStream_v2(Handle, Handle) { return 0; }
TWIN_EXPORT int cublasSetMathMode(Handle, int) { return 0; }
TWIN_EXPORT int cublasGemmEx(Handle, int transposed_a, int transposed_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                             int a_stride, const void *b, int b_type, int b_stride, const void *beta, void *c, int c_type, int c_stride,
                             int compute, int) {
    if (compute != f32_sums) return 15;
    twin::trace_product("cublas", m, n, k, 1, width(a_type), width(c_type), *(const float *)beta != 0.f, transposed_a, transposed_b);
    return multiply(transposed_a, transposed_b, m, n, k, *(const float *)alpha, {a, a_type, a_stride}, {b, b_type, b_stride},
                    *(const float *)beta, {c, c_type, c_stride}, {c, c_type, c_stride});
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
                                    {further(c, i * c_step, c_type), c_type, c_stride}, {further(c, i * c_step, c_type), c_type, c_stride});
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

// cuBLASLt. Descriptors are what was put into them; the one algorithm there is notes the alignment it was asked for.

namespace {

struct Description {
    int compute, scale, transposed_a = 0, transposed_b = 0, epilogue = 1;
    const void *bias = nullptr;
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = 7, alignment[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t rows, columns, inner;
    uint32_t alignment[4];
    uint64_t unused[3];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t");

template <typename T>
int put(T &to, const void *value, size_t bytes) {
    if (bytes != sizeof to) return 7;
    return std::memcpy(&to, value, bytes), 0;
}

Matrix matrix(const void *at, const Layout *layout) { return {at, layout->type, int(layout->stride)}; }

// Rows and columns after the transposition that the description asks for.
uint64_t rows(const Layout *l, int transposed) { return transposed ? l->columns : l->rows; }
uint64_t columns(const Layout *l, int transposed) { return transposed ? l->rows : l->columns; }

}  // namespace

TWIN_EXPORT size_t cublasLtGetVersion() { return 130000; }
TWIN_EXPORT int cublasLtCreate(Handle *handle) { return *handle = new char, 0; }
TWIN_EXPORT int cublasLtDestroy(Handle handle) { return delete (char *)handle, 0; }
TWIN_EXPORT int cublasLtMatmulDescCreate(Handle *made, int compute, int scale) {
    if (compute != f32_sums || scale != f32) return 15;
    return *made = new Description{compute, scale}, 0;
}
TWIN_EXPORT int cublasLtMatmulDescDestroy(Handle description) { return delete (Description *)description, 0; }
TWIN_EXPORT int cublasLtMatmulDescSetAttribute(Handle handle, int attribute, const void *value, size_t bytes) {
    auto *description = (Description *)handle;
    switch (attribute) {
        case 3: return put(description->transposed_a, value, bytes);
        case 4: return put(description->transposed_b, value, bytes);
        case 7: return put(description->epilogue, value, bytes);
        case 8: return put(description->bias, value, bytes);
    }
    stop("cublasLtMatmulDescSetAttribute: attribute %d is not known to the twin", attribute);
}
TWIN_EXPORT int cublasLtMatrixLayoutCreate(Handle *made, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    if (stride < (int64_t)rows) stop("cublasLt: a matrix of %llu rows with columns %lld apart", (unsigned long long)rows, (long long)stride);
    return *made = new Layout{type, rows, columns, stride}, 0;
}
TWIN_EXPORT int cublasLtMatrixLayoutDestroy(Handle layout) { return delete (Layout *)layout, 0; }
TWIN_EXPORT int cublasLtMatmulPreferenceCreate(Handle *made) { return *made = new Preference, 0; }
TWIN_EXPORT int cublasLtMatmulPreferenceDestroy(Handle preference) { return delete (Preference *)preference, 0; }
TWIN_EXPORT int cublasLtMatmulPreferenceSetAttribute(Handle handle, int attribute, const void *value, size_t bytes) {
    auto *preference = (Preference *)handle;
    switch (attribute) {
        case 1: return put(preference->workspace, value, bytes);
        case 3: return put(preference->reductions, value, bytes);
        case 5: case 6: case 7: case 8: return put(preference->alignment[attribute - 5], value, bytes);
    }
    stop("cublasLtMatmulPreferenceSetAttribute: attribute %d is not known to the twin", attribute);
}
TWIN_EXPORT int cublasLtMatmulAlgoGetHeuristic(Handle, Handle description, Handle a, Handle b, Handle c, Handle d, Handle preference,
                                               int wanted, Heuristic *found, int *count) {
    const auto *what = (Description *)description;
    const auto *left = (Layout *)a, *right = (Layout *)b, *result = (Layout *)d;
    const auto *prefer = (Preference *)preference;
    if (prefer->reductions != 2) stop("cublasLt: split sums are to stay in f32, in a fixed order");
    const uint64_t m = rows(left, what->transposed_a), k = columns(left, what->transposed_a), n = columns(right, what->transposed_b);
    if (rows(right, what->transposed_b) != k || result->rows != m || result->columns != n || ((Layout *)c)->rows != m || ((Layout *)c)->columns != n)
        return 7;
    if (wanted < 1) return 7;
    // A real library need not have an algorithm for matrices that no vector load reads; this one has none.
    if (what->epilogue == 1 && (prefer->alignment[0] < 4 || prefer->alignment[1] < 4)) return *count = 0, 0;
    *found = {};
    found->algorithm = {m, n, k, {}, {}};
    std::memcpy(found->algorithm.alignment, prefer->alignment, sizeof prefer->alignment);
    return *count = 1, 0;
}
TWIN_EXPORT int cublasLtMatmul(Handle, Handle description, const void *alpha, const void *a, Handle a_layout, const void *b, Handle b_layout,
                               const void *beta, const void *c, Handle c_layout, void *d, Handle d_layout, const Algorithm *algorithm,
                               void *workspace, size_t bytes, Handle) {
    const auto *what = (Description *)description;
    if (bytes) need(workspace, bytes, "cuBLASLt", "the workspace");
    const void *const at[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)at[i] % algorithm->alignment[i]) stop("cuBLASLt: matrix %d is not aligned to %u bytes as its algorithm was asked for", i, algorithm->alignment[i]);
    const auto left = matrix(a, (Layout *)a_layout), right = matrix(b, (Layout *)b_layout);
    const auto added = matrix(c, (Layout *)c_layout), result = matrix(d, (Layout *)d_layout);
    const int m = algorithm->rows, n = algorithm->columns, k = algorithm->inner;
    const float times = *(const float *)alpha, adds = *(const float *)beta;
    if (what->epilogue != 1 && what->epilogue != 4) return 15;
    twin::trace_product("cublasLt", m, n, k, 1, width(left.type), width(result.type), adds != 0.f, what->transposed_a, what->transposed_b);
    return multiply(what->transposed_a, what->transposed_b, m, n, k, times, left, right, adds, added, result,
                    what->epilogue == 4 ? what->bias : nullptr);
}

// candle opens a generator with every device; rlvr draws no number from it.
TWIN_EXPORT int curandCreateGenerator(Handle *generator, int) { return *generator = new char, 0; }
TWIN_EXPORT int curandDestroyGenerator(Handle generator) { return delete (char *)generator, 0; }
TWIN_EXPORT int curandSetStream(Handle, Handle) { return 0; }
TWIN_EXPORT int curandSetPseudoRandomGeneratorSeed(Handle, unsigned long long) { return 0; }
