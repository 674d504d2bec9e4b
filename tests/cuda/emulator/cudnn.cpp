// As much of cuDNN as haul calls: forward convolutions of NHWC tensors.
#include "emulator.h"
#include "sums.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

using namespace emulator;

namespace {

enum Result : int {
    OK = 0,
    NO_START = 1001,
    BAD_PARAM = 2000,
    BAD_PARAM_NULL = 2002,
    TOO_SMALL = 2006,
    SHAPE_MISMATCH = 2008,
    UNSUPPORTED = 3000,
    EXECUTION_FAILED = 5000,
};

enum Algorithm { IMPLICIT_GEMM = 0, IMPLICIT_PRECOMP_GEMM = 1, ALGORITHMS = 8 };
enum { NCHW = 0, NHWC = 1 };
enum { DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, FMA_MATH = 3 };
enum { FLOAT = 0, HALF = 2, BFLOAT16 = 9 };

struct Tensor {
    int format = -1, type = -1, n = 0, c = 0, h = 0, w = 0;
};

struct Filter {
    int format = -1, type = -1, k = 0, c = 0, r = 0, s = 0;
};

struct Convolution {
    int pad_h = -1, pad_w, stride_h, stride_w, dilation_h, dilation_w, mode, type;
    int math = DEFAULT_MATH, groups = 1;
};

struct Handle {
    Device *device;
    Context *context;
    void *stream = nullptr;
};

struct Performance {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
};

bool element(int type, Element *to) {
    switch (type) {
    case FLOAT: *to = Element::f32; return true;
    case HALF: *to = Element::f16; return true;
    case BFLOAT16: *to = Element::bf16; return true;
    default: return false;
    }
}

Result refuse(Result result, const std::string &why) {
    say("cuDNN: " + why);
    return result;
}

int out(int size, int pad, int stride, int dilation, int kernel) {
    return (size + 2 * pad - ((kernel - 1) * dilation + 1)) / stride + 1;
}

// Why it is no convolution, or none that is emulated.
Result check(const Tensor *x, const Filter *w, const Convolution *c, const Tensor *y) {
    if (!x || !w || !c || !y) return BAD_PARAM_NULL;
    if (x->format < 0 || y->format < 0 || w->format < 0 || c->pad_h < 0)
        return refuse(BAD_PARAM, "a descriptor was never set");
    Element any;
    if (x->type != y->type || x->type != w->type || !element(x->type, &any) || c->type != FLOAT)
        return refuse(UNSUPPORTED, "tensors of types that are not emulated, or of several");
    if (x->format != NHWC || y->format != NHWC || w->format != NHWC)
        return refuse(UNSUPPORTED, "tensors that are not NHWC are not emulated");
    if (c->groups != 1 || c->mode != 1)
        return refuse(UNSUPPORTED, "convolutions of groups, or that are none but cross-correlations, are not emulated");
    if (x->c != w->c || y->c != w->k || x->n != y->n ||
        y->h != out(x->h, c->pad_h, c->stride_h, c->dilation_h, w->r) ||
        y->w != out(x->w, c->pad_w, c->stride_w, c->dilation_w, w->s))
        return refuse(SHAPE_MISMATCH, "shapes that do not fit each other");
    return OK;
}

// Made up, as all numbers about speed are here.
size_t workspace(int algorithm, const Tensor &x, const Filter &w, const Tensor &y) {
    if (algorithm != IMPLICIT_PRECOMP_GEMM) return 0;
    return 4096 + size_t(w.r) * w.s * y.h * y.w * 4 + (x.c % 8 ? size_t(x.n) * x.h * x.w * 16 : 0);
}

struct Job {
    Element element;
    Tensor x, y;
    Filter w;
    Convolution c;
    int algorithm;
    float alpha, beta;
    const void *from, *weights;
    void *to;
    char *space;
    size_t room;
};

size_t bytes(const Job &j, const Tensor &t) { return size_t(t.n) * t.c * t.h * t.w * size_of(j.element); }

// Rows of the result are pixels and its columns channels.
void convolve(const Job &j) {
    const size_t channels = j.x.c, columns = j.y.c, pitch = padded(columns), taps = size_t(j.w.r) * j.w.s;
    std::vector<float> input(size_t(j.x.n) * j.x.h * j.x.w * channels), factors(taps * channels * pitch);
    const std::vector<float> outside(channels, 0.0f);
    for (size_t i = 0; i < input.size(); i++) input[i] = load(j.element, j.from, i);
    for (size_t k = 0; k < columns; k++)
        for (size_t i = 0; i < taps * channels; i++)
            factors[i * pitch + k] = load(j.element, j.weights, k * taps * channels + i);
    for (int n = 0; n < j.y.n; n++)
        for (int row = 0; row < j.y.h; row++)
            for (int left = 0; left < j.y.w; left += TALL)
                for (size_t first = 0; first < columns; first += WIDE) {
                    Vector sums[TALL] = {};
                    for (int r = 0; r < j.w.r; r++)
                        for (int s = 0; s < j.w.s; s++) {
                            const int v = row * j.c.stride_h - j.c.pad_h + r * j.c.dilation_h;
                            const float *rows[TALL];
                            for (int i = 0; i < int(TALL); i++) {
                                const int u = (left + i) * j.c.stride_w - j.c.pad_w + s * j.c.dilation_w;
                                const bool inside = v >= 0 && v < j.x.h && u >= 0 && u < j.x.w && left + i < j.y.w;
                                rows[i] = inside ? &input[((size_t(n) * j.x.h + v) * j.x.w + u) * channels] : outside.data();
                            }
                            add(sums, rows, &factors[(size_t(r) * j.w.s + s) * channels * pitch + first], pitch, channels);
                        }
                    for (int i = 0; i < int(TALL) && left + i < j.y.w; i++) {
                        const size_t at = ((size_t(n) * j.y.h + row) * j.y.w + left + i) * columns;
                        for (size_t k = first; k < std::min(columns, first + WIDE); k++) {
                            float x = j.alpha * sums[i][k - first];
                            if (j.beta != 0) x += j.beta * load(j.element, j.to, at + k);
                            store(j.element, j.to, at + k, x);
                        }
                    }
                }
    if (!settings().position || j.algorithm == IMPLICIT_GEMM) return;
    // A last bit that depends on the picture's place.
    const size_t picture = size_t(j.y.h) * j.y.w * columns;
    for (size_t n = 1; n < size_t(j.y.n); n += 2)
        for (size_t i = n * picture; i < (n + 1) * picture; i += 5)
            static_cast<char *>(j.to)[i * size_of(j.element)] ^= 1;
}

// Two streams with one workspace spoil each other's results; here they are found out.
const uint64_t TAKEN = 0x7aced05eed7aced0;

void run(const Job &j, Device *device) {
    if (fails(Kind::launch, device->number)) return breaks(device, "a convolution failed, as was asked for");
    const size_t weights = size_t(j.w.k) * j.w.r * j.w.s * j.w.c * size_of(j.element);
    if (!is_device(uint64_t(j.from), bytes(j, j.x)) || !is_device(uint64_t(j.to), bytes(j, j.y)) ||
        !is_device(uint64_t(j.weights), weights) || (j.room && !is_device(uint64_t(j.space), j.room)))
        return breaks(device, "a convolution reads or writes outside of its memory");
    std::atomic<uint64_t> one(uint64_t(&j) ^ TAKEN);
    const uint64_t token = one.load();
    if (j.room) {
        memset(j.space, 0xff, j.room);
        memcpy(j.space, &token, 8);
        memcpy(j.space + j.room - 8, &token, 8);
    }
    if (j.beta == 0) memset(j.to, 0xff, bytes(j, j.y));
    dawdle(false);
    convolve(j);
    if (j.room && (memcmp(j.space, &token, 8) || memcmp(j.space + j.room - 8, &token, 8)))
        breaks(device, "somebody wrote to the workspace of a convolution meanwhile");
}

template <typename T> int create(T **to) {
    if (!to) return BAD_PARAM_NULL;
    *to = new T;
    return OK;
}

template <typename T> int destroy(T *one) {
    delete one;
    return OK;
}

} // namespace

EMULATED size_t cudnnGetVersion() { return 90100; }
EMULATED size_t cudnnGetCudartVersion() { return 13000; }

EMULATED const char *cudnnGetErrorString(int result) {
    switch (result) {
    case OK: return "CUDNN_STATUS_SUCCESS";
    case NO_START: return "CUDNN_STATUS_NOT_INITIALIZED";
    case BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    case BAD_PARAM_NULL: return "CUDNN_STATUS_BAD_PARAM_NULL_POINTER";
    case TOO_SMALL: return "CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT";
    case SHAPE_MISMATCH: return "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH";
    case UNSUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    default: return "CUDNN_UNKNOWN_STATUS";
    }
}

EMULATED void cudnnGetLastErrorString(char *to, size_t room) { snprintf(to, room, "see stderr"); }

EMULATED int cudnnCreate(Handle **to) {
    if (!settings().cudnn || !current() || broken(of(current()))) return NO_START;
    *to = new Handle{of(current()), current()};
    return OK;
}

EMULATED int cudnnDestroy(Handle *handle) { return destroy(handle); }

EMULATED int cudnnSetStream(Handle *handle, void *stream) {
    if (!handle) return BAD_PARAM_NULL;
    handle->stream = stream;
    return OK;
}

EMULATED int cudnnGetStream(Handle *handle, void **stream) {
    if (!handle) return BAD_PARAM_NULL;
    *stream = handle->stream;
    return OK;
}

EMULATED int cudnnCreateTensorDescriptor(Tensor **to) { return create(to); }
EMULATED int cudnnDestroyTensorDescriptor(Tensor *one) { return destroy(one); }
EMULATED int cudnnCreateFilterDescriptor(Filter **to) { return create(to); }
EMULATED int cudnnDestroyFilterDescriptor(Filter *one) { return destroy(one); }
EMULATED int cudnnCreateConvolutionDescriptor(Convolution **to) { return create(to); }
EMULATED int cudnnDestroyConvolutionDescriptor(Convolution *one) { return destroy(one); }

EMULATED int cudnnSetTensor4dDescriptor(Tensor *to, int format, int type, int n, int c, int h, int w) {
    if (!to || n < 1 || c < 1 || h < 1 || w < 1) return BAD_PARAM;
    *to = {format, type, n, c, h, w};
    return OK;
}

EMULATED int cudnnSetTensor4dDescriptorEx(Tensor *to, int type, int n, int c, int h, int w, int sn, int sc, int sh, int sw) {
    bool nhwc = sc == 1 && sw == c && sh == w * c && sn == h * w * c;
    bool nchw = sw == 1 && sh == w && sc == h * w && sn == c * h * w;
    if (!nhwc && !nchw) return refuse(UNSUPPORTED, "tensors with gaps are not emulated");
    return cudnnSetTensor4dDescriptor(to, nhwc ? NHWC : NCHW, type, n, c, h, w);
}

EMULATED int cudnnSetTensorNdDescriptor(Tensor *to, int type, int count, const int *d, const int *s) {
    if (count != 4) return refuse(UNSUPPORTED, "tensors that have not four dimensions are not emulated");
    return cudnnSetTensor4dDescriptorEx(to, type, d[0], d[1], d[2], d[3], s[0], s[1], s[2], s[3]);
}

EMULATED int cudnnSetFilter4dDescriptor(Filter *to, int type, int format, int k, int c, int r, int s) {
    if (!to || k < 1 || c < 1 || r < 1 || s < 1) return BAD_PARAM;
    *to = {format, type, k, c, r, s};
    return OK;
}

EMULATED int cudnnSetFilterNdDescriptor(Filter *to, int type, int format, int count, const int *d) {
    if (count != 4) return refuse(UNSUPPORTED, "filters that have not four dimensions are not emulated");
    return cudnnSetFilter4dDescriptor(to, type, format, d[0], d[1], d[2], d[3]);
}

EMULATED int cudnnSetConvolution2dDescriptor(Convolution *to, int pad_h, int pad_w, int stride_h, int stride_w,
                                             int dilation_h, int dilation_w, int mode, int type) {
    if (!to || pad_h < 0 || pad_w < 0 || stride_h < 1 || stride_w < 1 || dilation_h < 1 || dilation_w < 1) return BAD_PARAM;
    *to = {pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w, mode, type, to->math, to->groups};
    return OK;
}

EMULATED int cudnnSetConvolutionNdDescriptor(Convolution *to, int count, const int *pad, const int *stride,
                                             const int *dilation, int mode, int type) {
    if (count != 2) return refuse(UNSUPPORTED, "convolutions that have not two dimensions are not emulated");
    return cudnnSetConvolution2dDescriptor(to, pad[0], pad[1], stride[0], stride[1], dilation[0], dilation[1], mode, type);
}

EMULATED int cudnnSetConvolutionMathType(Convolution *to, int math) {
    if (!to || math < 0 || math > 3) return BAD_PARAM;
    to->math = math;
    return OK;
}

EMULATED int cudnnGetConvolutionMathType(Convolution *from, int *math) {
    if (!from) return BAD_PARAM;
    *math = from->math;
    return OK;
}

EMULATED int cudnnSetConvolutionGroupCount(Convolution *to, int groups) {
    if (!to || groups < 1) return BAD_PARAM;
    to->groups = groups;
    return OK;
}

EMULATED int cudnnGetConvolution2dForwardOutputDim(Convolution *c, Tensor *x, Filter *w, int *n, int *k, int *h, int *width) {
    if (!c || !x || !w) return BAD_PARAM_NULL;
    *n = x->n;
    *k = w->k;
    *h = out(x->h, c->pad_h, c->stride_h, c->dilation_h, w->r);
    *width = out(x->w, c->pad_w, c->stride_w, c->dilation_w, w->s);
    return OK;
}

EMULATED int cudnnGetConvolutionForwardAlgorithmMaxCount(Handle *, int *count) {
    *count = ALGORITHMS;
    return OK;
}

// The best first, as if something were known about that; then those that cannot do it.
EMULATED int cudnnGetConvolutionForwardAlgorithm_v7(Handle *handle, Tensor *x, Filter *w, Convolution *c, Tensor *y,
                                                    int wanted, int *given, Performance *to) {
    if (!handle || !given || !to || wanted < 1) return BAD_PARAM;
    if (Result result = check(x, w, c, y)) return result;
    std::vector<Performance> all;
    auto add = [&](int algorithm, int math) {
        all.push_back({algorithm, OK, -1, workspace(algorithm, *x, *w, *y), settings().cudnn != 2 || c->stride_h < 2, math, {}});
    };
    const int best = x->type == FLOAT && c->math != TENSOR_OP_MATH ? int(FMA_MATH) : int(TENSOR_OP_MATH);
    // Little work for each row: not worth computing tables before.
    const bool small = w->r == 1 && w->s == 1 && y->h * y->w < 400;
    if (small) add(IMPLICIT_GEMM, best);
    add(IMPLICIT_PRECOMP_GEMM, best);
    if (best != FMA_MATH) add(IMPLICIT_PRECOMP_GEMM, FMA_MATH);
    if (!small) add(IMPLICIT_GEMM, best);
    for (int algorithm = 2; algorithm < ALGORITHMS && all.size() < ALGORITHMS; algorithm++)
        all.push_back({algorithm, UNSUPPORTED, -1, 0, algorithm != 3, DEFAULT_MATH, {}});
    *given = std::min(wanted, int(all.size()));
    std::copy_n(all.begin(), *given, to);
    return OK;
}

EMULATED int cudnnGetConvolutionForwardWorkspaceSize(Handle *handle, Tensor *x, Filter *w, Convolution *c, Tensor *y,
                                                     int algorithm, size_t *to) {
    if (!handle || !to) return BAD_PARAM_NULL;
    if (Result result = check(x, w, c, y)) return result;
    if (algorithm != IMPLICIT_GEMM && algorithm != IMPLICIT_PRECOMP_GEMM) return UNSUPPORTED;
    *to = workspace(algorithm, *x, *w, *y);
    return OK;
}

EMULATED int cudnnConvolutionForward(Handle *handle, const float *alpha, Tensor *x, const void *from, Filter *w,
                                     const void *weights, Convolution *c, int algorithm, void *space, size_t room,
                                     const float *beta, Tensor *y, void *to) {
    if (!handle || !alpha || !beta || !from || !weights || !to) return BAD_PARAM_NULL;
    if (Result result = check(x, w, c, y)) return result;
    if (algorithm != IMPLICIT_GEMM && algorithm != IMPLICIT_PRECOMP_GEMM)
        return refuse(UNSUPPORTED, "an algorithm that cannot do this convolution");
    const size_t needed = workspace(algorithm, *x, *w, *y);
    if (room < needed || (needed && !space)) return refuse(TOO_SMALL, "a workspace that is too small");
    if (current() != handle->context) return refuse(BAD_PARAM, "a handle of another context than the current one");
    if (uint64_t(from) % 16 || uint64_t(to) % 16 || uint64_t(weights) % 16)
        return refuse(UNSUPPORTED, "tensors that do not begin at a multiple of 16 bytes");
    if (broken(handle->device)) return EXECUTION_FAILED;
    Job job{{}, *x, *y, *w, *c, algorithm, *alpha, *beta, from, weights, to, static_cast<char *>(space), needed};
    element(x->type, &job.element);
    Device *device = handle->device;
    if (submit(stream(handle->stream), [job, device] { run(job, device); })) return EXECUTION_FAILED;
    return OK;
}

EMULATED int cudnnAdvVersionCheck() { return OK; }
EMULATED int cudnnCnnVersionCheck() { return OK; }
EMULATED int cudnnOpsVersionCheck() { return OK; }
