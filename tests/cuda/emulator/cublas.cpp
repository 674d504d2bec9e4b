// As much of cuBLAS as haul and candle call: handles, and products of matrices.
#include "emulator.h"
#include "sums.h"

#include <algorithm>

using namespace emulator;

namespace {

enum Result : int { OK = 0, NOT_STARTED = 1, WRONG_VALUE = 7, FAILED = 13, UNSUPPORTED = 15 };
// Of cudaDataType_t.
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };

struct Handle {
    Device *device;
    Context *context;
    void *stream = nullptr;
    int pointers = 0, math = 0;
};

// Matrices are column by column: `c[n][m] = Σ b[n][k] · a[k][m]`, with `n` the column.
struct Job {
    bool ta, tb;
    int m, n, k, count;
    float alpha, beta;
    Element in, out;
    const char *a, *b;
    char *c;
    int lda, ldb, ldc;
    long long sa, sb, sc;
};

bool element(int type, Element *to) {
    *to = type == R_32F ? Element::f32 : type == R_16F ? Element::f16 : Element::bf16;
    return type == R_32F || type == R_16F || type == R_16BF;
}

// Bytes from the first element to the last.
size_t extent(Element element, int rows, int columns, int pitch, long long stride, int count) {
    return (size_t(stride) * (count - 1) + size_t(pitch) * (columns - 1) + rows) * size_of(element);
}

void multiply(const Job &j, int which) {
    const char *a = j.a + which * j.sa * size_of(j.in), *b = j.b + which * j.sb * size_of(j.in);
    char *c = j.c + which * j.sc * size_of(j.out);
    const size_t pitch = padded(j.m);
    std::vector<float> factors(size_t(j.k) * pitch), input(size_t(j.n) * j.k);
    const std::vector<float> outside(j.k, 0.0f);
    for (int k = 0; k < j.k; k++)
        for (int m = 0; m < j.m; m++)
            factors[k * pitch + m] = load(j.in, a, j.ta ? size_t(m) * j.lda + k : size_t(k) * j.lda + m);
    for (int n = 0; n < j.n; n++)
        for (int k = 0; k < j.k; k++)
            input[size_t(n) * j.k + k] = load(j.in, b, j.tb ? size_t(k) * j.ldb + n : size_t(n) * j.ldb + k);
    for (int top = 0; top < j.n; top += TALL)
        for (int first = 0; first < j.m; first += WIDE) {
            Vector sums[TALL] = {};
            const float *rows[TALL];
            for (int i = 0; i < int(TALL); i++) rows[i] = top + i < j.n ? &input[size_t(top + i) * j.k] : outside.data();
            add(sums, rows, &factors[first], pitch, j.k);
            for (int i = 0; i < int(TALL) && top + i < j.n; i++)
                for (int m = first; m < std::min(j.m, first + int(WIDE)); m++) {
                    const size_t at = size_t(top + i) * j.ldc + m;
                    float x = j.alpha * sums[i][m - first];
                    if (j.beta != 0) x += j.beta * load(j.out, c, at);
                    store(j.out, c, at, x);
                }
        }
}

void run(const Job &j, Device *device) {
    if (fails(Kind::launch, device->number)) return breaks(device, "a product of matrices failed, as was asked for");
    if (!is_device(uint64_t(j.a), extent(j.in, j.ta ? j.k : j.m, j.ta ? j.m : j.k, j.lda, j.sa, j.count)) ||
        !is_device(uint64_t(j.b), extent(j.in, j.tb ? j.n : j.k, j.tb ? j.k : j.n, j.ldb, j.sb, j.count)) ||
        !is_device(uint64_t(j.c), extent(j.out, j.m, j.n, j.ldc, j.sc, j.count)))
        return breaks(device, "a product of matrices reads or writes outside of its memory");
    dawdle(false);
    for (int which = 0; which < j.count; which++) multiply(j, which);
}

Result submit_product(Handle *handle, int ta, int tb, int m, int n, int k, float alpha, const void *a, int type_a, int lda,
                      long long sa, const void *b, int type_b, int ldb, long long sb, float beta, void *c, int type_c,
                      int ldc, long long sc, int count) {
    if (!handle) return NOT_STARTED;
    if (m < 0 || n < 0 || k < 0 || count < 0 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) {
        say("cuBLAS: matrices whose sizes do not fit");
        return WRONG_VALUE;
    }
    if (!m || !n || !count) return OK;
    Job job{ta != 0, tb != 0, m, n, k, count, alpha, beta, {}, {}, static_cast<const char *>(a),
            static_cast<const char *>(b), static_cast<char *>(c), lda, ldb, ldc, sa, sb, sc};
    if (type_a != type_b || !element(type_a, &job.in) || !element(type_c, &job.out) || ta > 1 || tb > 1 || handle->pointers) {
        say("cuBLAS: a product that is not emulated");
        return UNSUPPORTED;
    }
    if (current() != handle->context || broken(handle->device)) return FAILED;
    Device *device = handle->device;
    return submit(stream(handle->stream), [job, device] { run(job, device); }) ? FAILED : OK;
}

// Of cublasComputeType_t, those that sum in single precision.
bool single(int compute) {
    const int all[] = {68, 69, 74, 75, 77};
    return std::find(std::begin(all), std::end(all), compute) != std::end(all);
}

} // namespace

EMULATED int cublasCreate_v2(Handle **to) {
    if (!current() || broken(of(current()))) return NOT_STARTED;
    *to = new Handle{of(current()), current()};
    return OK;
}

EMULATED int cublasDestroy_v2(Handle *handle) {
    delete handle;
    return OK;
}

EMULATED int cublasSetStream_v2(Handle *handle, void *stream) {
    if (!handle) return NOT_STARTED;
    handle->stream = stream;
    return OK;
}

EMULATED int cublasGetVersion_v2(Handle *, int *version) {
    *version = 130000;
    return OK;
}

EMULATED int cublasSetMathMode(Handle *handle, int math) {
    if (!handle) return NOT_STARTED;
    handle->math = math;
    return OK;
}

EMULATED int cublasSetPointerMode_v2(Handle *handle, int mode) {
    if (!handle) return NOT_STARTED;
    handle->pointers = mode;
    return OK;
}

EMULATED int cublasGetPointerMode_v2(Handle *handle, int *mode) {
    if (!handle) return NOT_STARTED;
    *mode = handle->pointers;
    return OK;
}

EMULATED int cublasSetWorkspace_v2(Handle *handle, void *, size_t) { return handle ? OK : NOT_STARTED; }

EMULATED int cublasGemmEx(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, const void *a,
                          int type_a, int lda, const void *b, int type_b, int ldb, const float *beta, void *c,
                          int type_c, int ldc, int compute, int) {
    if (!single(compute)) return UNSUPPORTED;
    return submit_product(handle, ta, tb, m, n, k, *alpha, a, type_a, lda, 0, b, type_b, ldb, 0, *beta, c, type_c, ldc, 0, 1);
}

EMULATED int cublasGemmStridedBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha,
                                        const void *a, int type_a, int lda, long long sa, const void *b, int type_b,
                                        int ldb, long long sb, const float *beta, void *c, int type_c, int ldc,
                                        long long sc, int count, int compute, int) {
    if (!single(compute)) return UNSUPPORTED;
    return submit_product(handle, ta, tb, m, n, k, *alpha, a, type_a, lda, sa, b, type_b, ldb, sb, *beta, c, type_c, ldc, sc, count);
}

EMULATED int cublasSgemm_v2(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *a,
                            int lda, const float *b, int ldb, const float *beta, float *c, int ldc) {
    return submit_product(handle, ta, tb, m, n, k, *alpha, a, R_32F, lda, 0, b, R_32F, ldb, 0, *beta, c, R_32F, ldc, 0, 1);
}

EMULATED int cublasSgemmStridedBatched(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha,
                                       const float *a, int lda, long long sa, const float *b, int ldb, long long sb,
                                       const float *beta, float *c, int ldc, long long sc, int count) {
    return submit_product(handle, ta, tb, m, n, k, *alpha, a, R_32F, lda, sa, b, R_32F, ldb, sb, *beta, c, R_32F, ldc, sc, count);
}
