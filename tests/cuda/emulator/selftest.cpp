// Tests of the emulator itself: that it is as asynchronous, as strict and as exact as its comments say.
//
// Some settings hold for a process, so for those it runs itself with them.
#include "half.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

typedef uint64_t Address;
typedef void *Any;
extern "C" {
int cuInit(unsigned);
int cuDeviceGetCount(int *);
int cuDevicePrimaryCtxRetain(Any *, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(Any);
int cuCtxSynchronize();
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemAlloc_v2(Address *, size_t);
int cuMemFree_v2(Address);
int cuMemAllocAsync(Address *, size_t, Any);
int cuMemFreeAsync(Address, Any);
int cuMemHostAlloc(Any *, size_t, unsigned);
int cuMemFreeHost(Any);
int cuMemcpyHtoD_v2(Address, const void *, size_t);
int cuMemcpyDtoH_v2(void *, Address, size_t);
int cuMemcpyHtoDAsync_v2(Address, const void *, size_t, Any);
int cuMemcpyDtoHAsync_v2(void *, Address, size_t, Any);
int cuMemcpyDtoDAsync_v2(Address, Address, size_t, Any);
int cuMemsetD8Async(Address, unsigned char, size_t, Any);
int cuMemsetD32Async(Address, unsigned, size_t, Any);
int cuStreamCreate(Any *, unsigned);
int cuStreamDestroy_v2(Any);
int cuStreamSynchronize(Any);
int cuStreamQuery(Any);
int cuStreamWaitEvent(Any, Any, unsigned);
int cuEventCreate(Any *, unsigned);
int cuEventDestroy_v2(Any);
int cuEventRecord(Any, Any);
int cuEventQuery(Any);
int cuEventSynchronize(Any);
int cuEventElapsedTime_v2(float *, Any, Any);
int cuLaunchHostFunc(Any, void (*)(void *), void *);
int cuModuleLoadData(Any *, const void *);
int cuModuleGetFunction(Any *, Any, const char *);
int cuLaunchKernel(Any, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Any, void **, void **);
int cuStreamBeginCapture_v2(Any, int);
int cuStreamEndCapture(Any, Any *);
int cuStreamIsCapturing(Any, int *);
int cuThreadExchangeStreamCaptureMode(int *);
int cuGraphInstantiateWithFlags(Any *, Any, unsigned long long);
int cuGraphLaunch(Any, Any);
int cuGraphExecDestroy(Any);
int cuGraphDestroy(Any);
int cuGetErrorName(int, const char **);
int cuMemAllocPitch_v2(void);

int cudnnCreate(Any *);
int cudnnDestroy(Any);
int cudnnSetStream(Any, Any);
int cudnnCreateTensorDescriptor(Any *);
int cudnnDestroyTensorDescriptor(Any);
int cudnnSetTensor4dDescriptor(Any, int, int, int, int, int, int);
int cudnnCreateFilterDescriptor(Any *);
int cudnnDestroyFilterDescriptor(Any);
int cudnnSetFilter4dDescriptor(Any, int, int, int, int, int, int);
int cudnnCreateConvolutionDescriptor(Any *);
int cudnnDestroyConvolutionDescriptor(Any);
int cudnnSetConvolution2dDescriptor(Any, int, int, int, int, int, int, int, int);
int cudnnSetConvolutionMathType(Any, int);
int cudnnGetConvolutionForwardAlgorithm_v7(Any, Any, Any, Any, Any, int, int *, void *);
int cudnnGetConvolutionForwardWorkspaceSize(Any, Any, Any, Any, Any, int, size_t *);
int cudnnConvolutionForward(Any, const void *, Any, const void *, Any, const void *, Any, int, void *, size_t,
                            const void *, Any, void *);

int cublasCreate_v2(Any *);
int cublasDestroy_v2(Any);
int cublasSetStream_v2(Any, Any);
int cublasGemmEx(Any, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int,
                 const void *, void *, int, int, int, int);
}

static int checks = 0;

static void failed(int line, const std::string &what) {
    fprintf(stderr, "selftest.cpp:%d: %s\n", line, what.c_str());
    exit(1);
}

#define IS(expected, value)                                                                        \
    do {                                                                                           \
        auto is_value = (value);                                                                   \
        checks++;                                                                                  \
        if (!(is_value == (expected)))                                                             \
            failed(__LINE__, std::string(#value " is ") + std::to_string(is_value) + ", not " #expected); \
    } while (0)
#define OK(call) IS(0, call)
#define HOLDS(what)                                                                                \
    do {                                                                                           \
        checks++;                                                                                  \
        if (!(what)) failed(__LINE__, "not so: " #what);                                           \
    } while (0)

static const char PTX[] =
    "//\n.version 9.0\n.target sm_90\n"
    ".visible .entry prepare_f32(\n.visible .entry prepare_f16(\n.visible .entry nobody_knows(\n";

static Any start() {
    Any context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    return context;
}

static Any stream() {
    Any made;
    OK(cuStreamCreate(&made, 1));
    return made;
}

static Any event(unsigned flags = 0) {
    Any made;
    OK(cuEventCreate(&made, flags));
    return made;
}

static Address memory(size_t bytes) {
    Address made;
    OK(cuMemAlloc_v2(&made, bytes));
    return made;
}

template <typename T> static T *pinned(size_t count) {
    Any made;
    OK(cuMemHostAlloc(&made, count * sizeof(T), 0));
    return static_cast<T *>(made);
}

static Any function(const char *name) {
    Any module, made;
    OK(cuModuleLoadData(&module, PTX));
    OK(cuModuleGetFunction(&made, module, name));
    return made;
}

// Keeps a stream from going on until it is let go.
struct Gate {
    std::atomic<bool> open{false};
    void close(Any stream) {
        open = false;
        OK(cuLaunchHostFunc(stream, [](void *gate) { while (!static_cast<Gate *>(gate)->open) usleep(100); }, this));
    }
};

// The kernel `prepare_f32`: bytes to values in 0..=1, in groups of eight.
static int prepare(Any kernel, Any stream, Address from, Address to, unsigned pixels) {
    void *parameters[] = {&from, &to, &pixels};
    return cuLaunchKernel(kernel, (pixels + 63) / 64, 1, 1, 64, 1, 1, 0, stream, parameters, nullptr);
}

static void halves() {
    for (uint32_t bits = 0; bits < 65536; bits++) {
        f16 x{uint16_t(bits)};
        float value = f16_to_float_by_parts(x);
        IS(bits_of_float(f16_to_float(x)), bits_of_float(value));
        bool is_nan = (bits & 0x7fff) > 0x7c00;
        HOLDS(std::isnan(value) == is_nan);
        if (!is_nan) {
            IS(int(bits), int(f16_of_float_by_parts(value).bits));
            // By the definition.
            double sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
            if (exponent < 31)
                IS(double(value), sign * (exponent ? std::ldexp(1 + fraction / 1024, int(exponent) - 15) : std::ldexp(fraction, -24)));
        }
        if (!std::isnan(bf16_to_float({uint16_t(bits)}))) IS(int(bits), int(bf16_of_float(bf16_to_float({uint16_t(bits)})).bits));
    }
    // Every tenth of a million floats over the whole range, and all that are halfway.
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 42949) {
        float x = float_of_bits(uint32_t(bits));
        if (!std::isnan(x)) IS(int(f16_of_float(x).bits), int(f16_of_float_by_parts(x).bits));
    }
    for (uint32_t bits = 0; bits < 0x7c00; bits++) {
        float low = f16_to_float({uint16_t(bits)}), high = bits == 0x7bff ? 65536.0f : f16_to_float({uint16_t(bits + 1)});
        float middle = low + (high - low) / 2;
        IS(int(bits & 1 ? bits + 1 : bits), int(f16_of_float_by_parts(middle).bits));
        IS(int(bits), int(f16_of_float_by_parts(std::nextafterf(middle, 0)).bits));
        IS(int(bits + 1), int(f16_of_float_by_parts(std::nextafterf(middle, INFINITY)).bits));
    }
    IS(0x3f80, int(bf16_of_float(1.00390625f).bits));
    IS(0x3f82, int(bf16_of_float(1.01171875f).bits));
}

static void memory_is_guarded() {
    std::vector<unsigned char> host(4096);
    Address a = memory(1000);
    OK(cuMemcpyDtoH_v2(host.data(), a, 1000));
    for (int i = 0; i < 1000; i++) IS(0xff, int(host[i]));
    IS(1, cuMemcpyDtoH_v2(host.data(), a, 1001));
    IS(1, cuMemcpyDtoH_v2(host.data(), a - 1, 4));
    IS(1, cuMemcpyHtoD_v2(a + 997, host.data(), 4));
    // Memory of the wrong side.
    IS(1, cuMemcpyHtoD_v2(Address(host.data()), host.data() + 100, 4));
    IS(1, cuMemcpyHtoD_v2(a, reinterpret_cast<void *>(a + 8), 4));
    OK(cuMemFree_v2(a));
    IS(1, cuMemcpyDtoH_v2(host.data(), a, 4));

    size_t before, after, total;
    OK(cuMemGetInfo_v2(&before, &total));
    a = memory(1 << 20);
    OK(cuMemGetInfo_v2(&after, &total));
    IS(size_t(1 << 20), before - after);
    Address b = 0;
    IS(2, cuMemAlloc_v2(&b, after + 1));
    // Freed in a stream: there is room once it comes to that.
    Any s = stream();
    Gate gate;
    gate.close(s);
    OK(cuMemFreeAsync(a, s));
    OK(cuMemGetInfo_v2(&after, &total));
    HOLDS(after < before);
    gate.open = true;
    OK(cuStreamSynchronize(s));
    OK(cuMemGetInfo_v2(&after, &total));
    IS(before, after);
    OK(cuMemAllocAsync(&a, 64, s));
    OK(cuMemFreeAsync(a, s));
    OK(cuStreamDestroy_v2(s));
    IS(400, cuStreamSynchronize(s));
}

static void calls_return_before_they_ran() {
    Any s = stream(), done = event();
    const int count = 1000;
    auto *in = pinned<unsigned char>(count), *out = pinned<unsigned char>(count);
    Address a = memory(count);
    memset(in, 1, count);
    memset(out, 9, count);
    Gate gate;
    gate.close(s);
    OK(cuMemcpyHtoDAsync_v2(a, in, count, s));
    OK(cuMemcpyDtoHAsync_v2(out, a, count, s));
    OK(cuEventRecord(done, s));
    IS(600, cuStreamQuery(s));
    IS(600, cuEventQuery(done));
    IS(9, int(out[0]));
    // Not read yet, so this is what arrives.
    memset(in, 2, count);
    gate.open = true;
    OK(cuEventSynchronize(done));
    OK(cuEventQuery(done));
    for (int i = 0; i < count; i++) IS(2, int(out[i]));

    // Where nothing is pinned, it is read before the call returns, and written.
    std::vector<unsigned char> pageable(count, 3), back(count, 0);
    gate.close(s);
    OK(cuMemcpyHtoDAsync_v2(a, pageable.data(), count, s));
    memset(pageable.data(), 4, count);
    gate.open = true;
    OK(cuMemcpyDtoHAsync_v2(back.data(), a, count, s));
    for (int i = 0; i < count; i++) IS(3, int(back[i]));
    // Without a stream it waits for those that block.
    Any blocking;
    OK(cuStreamCreate(&blocking, 0));
    memset(pageable.data(), 5, count);
    OK(cuMemcpyHtoD_v2(a, pageable.data(), count));
    gate.close(blocking);
    memset(pageable.data(), 6, count);
    std::thread opens([&] {
        usleep(20000);
        gate.open = true;
    });
    OK(cuMemcpyHtoD_v2(a, pageable.data(), count));
    opens.join();
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(back.data(), a, count));
    for (int i = 0; i < count; i++) IS(6, int(back[i]));
    OK(cuStreamDestroy_v2(blocking));
    OK(cuMemFree_v2(a));
    OK(cuMemFreeHost(in));
    OK(cuMemFreeHost(out));
    IS(1, cuMemFreeHost(out));
    OK(cuStreamDestroy_v2(s));
}

static void events_order_streams() {
    Any first = stream(), second = stream(), done = event();
    Address a = memory(64);
    auto *out = pinned<unsigned char>(64);
    Gate gate;
    for (int round = 0; round < 20; round++) {
        bool waits = round % 2;
        OK(cuMemsetD8Async(a, 1, 64, first));
        OK(cuStreamSynchronize(first));
        gate.close(first);
        OK(cuMemsetD8Async(a, 2, 64, first));
        OK(cuEventRecord(done, first));
        if (waits) OK(cuStreamWaitEvent(second, done, 0));
        OK(cuMemcpyDtoHAsync_v2(out, a, 64, second));
        if (!waits) OK(cuStreamSynchronize(second));
        // Recorded again: whoever waits already waits for what it was.
        gate.open = true;
        OK(cuEventRecord(done, second));
        OK(cuStreamSynchronize(second));
        IS(waits ? 2 : 1, int(out[0]));
        OK(cuStreamSynchronize(first));
    }
    Any never = event();
    OK(cuStreamWaitEvent(first, never, 0));
    OK(cuEventQuery(never));
    Any from = event(), to = event();
    float milliseconds = -1;
    OK(cuEventRecord(from, first));
    OK(cuMemsetD8Async(a, 0, 64, first));
    OK(cuEventRecord(to, first));
    OK(cuEventSynchronize(to));
    OK(cuEventElapsedTime_v2(&milliseconds, from, to));
    HOLDS(milliseconds >= 0);
    IS(400, cuEventElapsedTime_v2(&milliseconds, event(2), to));

    // The legacy stream waits for those that block, and they for it; not so the others.
    Any blocking;
    OK(cuStreamCreate(&blocking, 0));
    gate.close(blocking);
    OK(cuMemsetD8Async(a, 5, 64, blocking));
    OK(cuMemsetD8Async(a, 6, 64, nullptr));
    OK(cuMemsetD8Async(a, 7, 64, blocking));
    IS(600, cuStreamQuery(nullptr));
    OK(cuStreamSynchronize(first));
    gate.open = true;
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(out, a, 64));
    IS(7, int(out[0]));

    // Each thread has a stream of its own by the handle 2.
    Any own = reinterpret_cast<Any>(2);
    gate.close(own);
    Any context;
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    std::thread([&] {
        OK(cuCtxSetCurrent(context));
        OK(cuStreamSynchronize(own));
    }).join();
    IS(600, cuStreamQuery(own));
    gate.open = true;
    OK(cuStreamSynchronize(own));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    OK(cuMemFree_v2(a));
    OK(cuMemFreeHost(out));
}

static void kernels_run() {
    Any s = stream(), kernel = function("prepare_f32"), module, none;
    const unsigned pixels = 100;
    auto *rgb = pinned<unsigned char>(3 * pixels);
    auto *out = pinned<float>(8 * pixels);
    for (unsigned i = 0; i < 3 * pixels; i++) rgb[i] = (unsigned char)i;
    Address from = memory(3 * pixels), to = memory(8 * pixels * 4);
    OK(cuMemcpyHtoDAsync_v2(from, rgb, 3 * pixels, s));
    OK(prepare(kernel, s, from, to, pixels));
    OK(cuMemcpyDtoHAsync_v2(out, to, 8 * pixels * 4, s));
    OK(cuStreamSynchronize(s));
    for (unsigned i = 0; i < pixels; i++)
        for (unsigned c = 0; c < 8; c++) IS(c < 3 ? float((unsigned char)(3 * i + c)) / 255.0f : 0.0f, out[8 * i + c]);
    IS(1, cuLaunchKernel(kernel, 0, 1, 1, 64, 1, 1, 0, s, nullptr, nullptr));
    IS(1, cuLaunchKernel(kernel, 1, 1, 1, 2048, 1, 1, 0, s, nullptr, nullptr));
    IS(200, cuModuleLoadData(&module, "no PTX"));
    IS(222, cuModuleLoadData(&module, ".version 9.9\n"));
    OK(cuModuleLoadData(&module, PTX));
    IS(500, cuModuleGetFunction(&none, module, "finish_f32"));
    IS(500, cuModuleGetFunction(&none, module, "prepare_f3"));
    IS(500, cuModuleGetFunction(&none, module, "nobody_knows"));
    IS(801, cuMemAllocPitch_v2());
    const char *name;
    OK(cuGetErrorName(700, &name));
    HOLDS(!strcmp(name, "CUDA_ERROR_ILLEGAL_ADDRESS"));
    OK(cuMemFree_v2(from));
    OK(cuMemFree_v2(to));
}

static void graphs_replay() {
    Any s = stream(), side = stream(), kernel = function("prepare_f32"), graph, run, fork = event(), join = event();
    const unsigned pixels = 64;
    auto *rgb = pinned<unsigned char>(3 * pixels);
    auto *out = pinned<float>(8 * pixels);
    Address from = memory(3 * pixels), to = memory(8 * pixels * 4), other = memory(16);
    memset(rgb, 0, 3 * pixels);
    memset(out, 0, 8 * pixels * 4);
    OK(cuStreamBeginCapture_v2(s, 1));
    int capturing = 0;
    OK(cuStreamIsCapturing(s, &capturing));
    IS(1, capturing);
    OK(cuMemcpyHtoDAsync_v2(from, rgb, 3 * pixels, s));
    // A second stream takes part, and comes back.
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuMemsetD32Async(other, 77, 4, side));
    OK(prepare(kernel, s, from, to, pixels));
    OK(cuEventRecord(join, side));
    OK(cuStreamWaitEvent(s, join, 0));
    OK(cuMemcpyDtoHAsync_v2(out, to, 8 * pixels * 4, s));
    IS(907, cuEventQuery(fork));
    OK(cuStreamEndCapture(s, &graph));
    OK(cuStreamIsCapturing(s, &capturing));
    IS(0, capturing);
    OK(cuGraphInstantiateWithFlags(&run, graph, 0));
    OK(cuGraphDestroy(graph));
    OK(cuStreamSynchronize(s));
    // Nothing of it happened yet.
    unsigned seen[4];
    OK(cuMemcpyDtoH_v2(seen, other, 16));
    IS(0xffffffffu, seen[0]);
    for (int round = 1; round < 4; round++) {
        memset(rgb, 51 * round, 3 * pixels);
        OK(cuGraphLaunch(run, s));
        OK(cuStreamSynchronize(s));
        for (unsigned i = 0; i < pixels; i++) IS(float(51 * round) / 255.0f, out[8 * i + 2]);
    }
    OK(cuMemcpyDtoH_v2(seen, other, 16));
    IS(77u, seen[3]);
    OK(cuGraphExecDestroy(run));

    // What is not allowed.
    OK(cuStreamBeginCapture_v2(s, 1));
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(cuMemsetD32Async(other, 1, 4, side));
    IS(904, cuStreamEndCapture(s, &graph));
    Any outside = event();
    OK(cuEventRecord(outside, side));
    OK(cuStreamBeginCapture_v2(s, 1));
    IS(905, cuStreamWaitEvent(s, outside, 0));
    IS(901, cuStreamEndCapture(s, &graph));
    OK(cuStreamBeginCapture_v2(s, 1));
    IS(900, cuStreamSynchronize(s));
    IS(901, cuMemsetD32Async(other, 1, 4, s));
    IS(901, cuStreamEndCapture(s, &graph));
    OK(cuStreamBeginCapture_v2(s, 1));
    Address more;
    IS(900, cuMemAlloc_v2(&more, 16));
    IS(901, cuStreamEndCapture(s, &graph));
    // By another thread: a global capture is spoilt, a thread's own is not.
    for (int mode : {0, 1}) {
        OK(cuStreamBeginCapture_v2(s, mode));
        Any context;
        OK(cuDevicePrimaryCtxRetain(&context, 0));
        std::thread([&] {
            Address some = 0;
            OK(cuCtxSetCurrent(context));
            IS(mode ? 0 : 900, cuMemAlloc_v2(&some, 16));
            if (mode) OK(cuMemFree_v2(some));
        }).join();
        OK(cuDevicePrimaryCtxRelease_v2(0));
        IS(mode ? 0 : 901, cuStreamEndCapture(s, &graph));
    }
    IS(401, cuStreamEndCapture(s, &graph));
    IS(900, cuStreamBeginCapture_v2(nullptr, 1));
    for (Address one : {from, to, other}) OK(cuMemFree_v2(one));
}

// What an element is on either side, by cuDNN's numbers: 0 f32, 2 f16, 9 bf16.
static size_t width(int type) { return type == 0 ? 4 : 2; }
static double value(int type, const void *from, size_t at) {
    if (type == 0) return static_cast<const float *>(from)[at];
    uint16_t bits = static_cast<const uint16_t *>(from)[at];
    return type == 2 ? f16_to_float({bits}) : bf16_to_float({bits});
}
static void set(int type, void *to, size_t at, float x) {
    if (type == 0) static_cast<float *>(to)[at] = x;
    else static_cast<uint16_t *>(to)[at] = type == 2 ? f16_of_float(x).bits : bf16_of_float(x).bits;
}

struct Shape {
    int n, c, h, w, k, r, s, pad, stride, dilation;
};

static std::mt19937 dice(7);

static std::vector<char> random_values(int type, size_t count, bool repeat_halves = false) {
    std::vector<char> values(count * width(type));
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < count; i++)
        set(type, values.data(), i, repeat_halves && i >= count / 2 ? float(value(type, values.data(), i - count / 2)) : normal(dice));
    return values;
}

// Runs a convolution, and gives its result.
static std::vector<char> convolved(int type, const Shape &z, const std::vector<char> &x, const std::vector<char> &w,
                                   std::vector<char> y, float alpha, float beta, int algorithm) {
    const int oh = (z.h + 2 * z.pad - ((z.r - 1) * z.dilation + 1)) / z.stride + 1;
    const int ow = (z.w + 2 * z.pad - ((z.s - 1) * z.dilation + 1)) / z.stride + 1;
    Any cudnn, xd, wd, cd, yd, s = stream();
    OK(cudnnCreate(&cudnn));
    OK(cudnnSetStream(cudnn, s));
    OK(cudnnCreateTensorDescriptor(&xd));
    OK(cudnnCreateTensorDescriptor(&yd));
    OK(cudnnCreateFilterDescriptor(&wd));
    OK(cudnnCreateConvolutionDescriptor(&cd));
    OK(cudnnSetTensor4dDescriptor(xd, 1, type, z.n, z.c, z.h, z.w));
    OK(cudnnSetTensor4dDescriptor(yd, 1, type, z.n, z.k, oh, ow));
    OK(cudnnSetFilter4dDescriptor(wd, type, 1, z.k, z.c, z.r, z.s));
    OK(cudnnSetConvolution2dDescriptor(cd, z.pad, z.pad, z.stride, z.stride, z.dilation, z.dilation, 1, 0));
    OK(cudnnSetConvolutionMathType(cd, 1));
    size_t room = 0;
    OK(cudnnGetConvolutionForwardWorkspaceSize(cudnn, xd, wd, cd, yd, algorithm, &room));
    Address xa = memory(x.size()), wa = memory(w.size()), ya = memory(y.size()), space = memory(room + 1);
    OK(cuMemcpyHtoDAsync_v2(xa, x.data(), x.size(), s));
    OK(cuMemcpyHtoDAsync_v2(wa, w.data(), w.size(), s));
    OK(cuMemcpyHtoDAsync_v2(ya, y.data(), y.size(), s));
    if (room) IS(2006, cudnnConvolutionForward(cudnn, &alpha, xd, Any(xa), wd, Any(wa), cd, algorithm, Any(space), room - 1, &beta, yd, Any(ya)));
    OK(cudnnConvolutionForward(cudnn, &alpha, xd, Any(xa), wd, Any(wa), cd, algorithm, Any(space), room, &beta, yd, Any(ya)));
    OK(cuMemcpyDtoHAsync_v2(y.data(), ya, y.size(), s));
    OK(cuStreamSynchronize(s));
    for (Address one : {xa, wa, ya, space}) OK(cuMemFree_v2(one));
    OK(cudnnDestroyTensorDescriptor(xd));
    OK(cudnnDestroyTensorDescriptor(yd));
    OK(cudnnDestroyFilterDescriptor(wd));
    OK(cudnnDestroyConvolutionDescriptor(cd));
    OK(cudnnDestroy(cudnn));
    OK(cuStreamDestroy_v2(s));
    return y;
}

static const Shape SHAPES[] = {
    {1, 8, 5, 7, 8, 3, 3, 1, 1, 1},   {2, 3, 9, 4, 5, 3, 3, 1, 2, 1},    {1, 1, 1, 1, 1, 1, 1, 0, 1, 1},
    {3, 17, 6, 6, 33, 1, 1, 0, 1, 1}, {1, 16, 13, 3, 16, 3, 3, 1, 2, 1}, {2, 5, 8, 9, 7, 5, 3, 2, 1, 1},
    {1, 4, 11, 11, 3, 3, 3, 2, 1, 2}, {2, 24, 2, 2, 40, 3, 3, 1, 1, 1},  {1, 2, 20, 1, 2, 2, 1, 0, 3, 1},
    {4, 8, 7, 7, 15, 3, 3, 1, 1, 1},  {1, 64, 4, 5, 80, 1, 1, 0, 1, 1},  {2, 6, 6, 17, 9, 6, 6, 2, 2, 1},
};

static void convolutions_are_the_definition() {
    for (int type : {0, 2, 9})
        for (const Shape &z : SHAPES) {
            const int oh = (z.h + 2 * z.pad - ((z.r - 1) * z.dilation + 1)) / z.stride + 1;
            const int ow = (z.w + 2 * z.pad - ((z.s - 1) * z.dilation + 1)) / z.stride + 1;
            const auto x = random_values(type, size_t(z.n) * z.h * z.w * z.c, z.n % 2 == 0);
            const auto w = random_values(type, size_t(z.k) * z.r * z.s * z.c);
            const auto before = random_values(type, size_t(z.n) * oh * ow * z.k, z.n % 2 == 0);
            const bool scaled = z.c % 2;
            const float alpha = scaled ? 0.5f : 1, beta = scaled ? 2 : 0;
            const auto y = convolved(type, z, x, w, before, alpha, beta, z.k % 2);
            // A last bit of the type, and what sums in single precision may lose.
            const double bit = type == 0 ? 0 : type == 2 ? std::ldexp(1, -11) : std::ldexp(1, -8);
            for (int n = 0; n < z.n; n++)
                for (int i = 0; i < oh; i++)
                    for (int j = 0; j < ow; j++)
                        for (int k = 0; k < z.k; k++) {
                            double sum = 0, size = 0;
                            for (int r = 0; r < z.r; r++)
                                for (int s = 0; s < z.s; s++)
                                    for (int c = 0; c < z.c; c++) {
                                        int v = i * z.stride - z.pad + r * z.dilation, u = j * z.stride - z.pad + s * z.dilation;
                                        if (v < 0 || v >= z.h || u < 0 || u >= z.w) continue;
                                        double product = value(type, x.data(), ((size_t(n) * z.h + v) * z.w + u) * z.c + c) *
                                                         value(type, w.data(), ((size_t(k) * z.r + r) * z.s + s) * z.c + c);
                                        sum += product;
                                        size += std::fabs(product);
                                    }
                            const size_t at = ((size_t(n) * oh + i) * ow + j) * z.k + k;
                            const double old = value(type, before.data(), at);
                            const double expected = alpha * sum + (scaled ? beta * old : 0);
                            const double off = std::fabs(value(type, y.data(), at) - expected);
                            HOLDS(off <= bit * std::fabs(expected) + 1e-6 * (size + std::fabs(old)) + 1e-7);
                        }
            // Equal pictures give equal bits wherever they are in the batch, and however large it is.
            if (z.n % 2 == 0) HOLDS(!memcmp(y.data(), y.data() + y.size() / 2, y.size() / 2));
            Shape one = z;
            one.n = 1;
            auto alone = convolved(type, one, {x.begin(), x.begin() + x.size() / z.n}, w,
                                   {before.begin(), before.begin() + before.size() / z.n}, alpha, beta, z.k % 2);
            HOLDS(!memcmp(y.data(), alone.data(), alone.size()));
        }
}

static void products_are_the_definition() {
    const int blas_type[] = {0, 2, 14}, own_type[] = {0, 2, 9};
    Any blas, s = stream();
    OK(cublasCreate_v2(&blas));
    OK(cublasSetStream_v2(blas, s));
    for (int which = 0; which < 3; which++)
        for (int ta : {0, 1})
            for (int tb : {0, 1}) {
                const int m = 19, n = 23, k = 11, lda = (ta ? k : m) + 2, ldb = (tb ? n : k) + 1, ldc = m + 3, type = own_type[which];
                const auto a = random_values(type, size_t(lda) * (ta ? m : k)), b = random_values(type, size_t(ldb) * (tb ? k : n));
                auto c = random_values(type, size_t(ldc) * n);
                const auto before = c;
                const float alpha = 1.5f, beta = tb ? 0.5f : 0;
                Address aa = memory(a.size()), ba = memory(b.size()), ca = memory(c.size());
                OK(cuMemcpyHtoDAsync_v2(aa, a.data(), a.size(), s));
                OK(cuMemcpyHtoDAsync_v2(ba, b.data(), b.size(), s));
                OK(cuMemcpyHtoDAsync_v2(ca, c.data(), c.size(), s));
                OK(cublasGemmEx(blas, ta, tb, m, n, k, &alpha, Any(aa), blas_type[which], lda, Any(ba), blas_type[which], ldb, &beta, Any(ca), blas_type[which], ldc, 68, 0));
                OK(cuMemcpyDtoHAsync_v2(c.data(), ca, c.size(), s));
                for (int j = 0; j < n; j++)
                    for (int i = 0; i < ldc; i++) {
                        const size_t at = size_t(j) * ldc + i;
                        double expected = value(type, before.data(), at);
                        if (i < m) {
                            double sum = 0;
                            for (int l = 0; l < k; l++)
                                sum += value(type, a.data(), ta ? size_t(i) * lda + l : size_t(l) * lda + i) *
                                       value(type, b.data(), tb ? size_t(l) * ldb + j : size_t(j) * ldb + l);
                            expected = alpha * sum + beta * expected;
                        }
                        const double bit = type == 0 ? 1e-6 : type == 2 ? std::ldexp(1, -11) : std::ldexp(1, -8);
                        HOLDS(std::fabs(value(type, c.data(), at) - expected) <= bit * std::fabs(expected) + 1e-5);
                    }
                for (Address one : {aa, ba, ca}) OK(cuMemFree_v2(one));
            }
    OK(cublasDestroy_v2(blas));
}

// ---- with settings of their own ----

static void no_gpu() {
    IS(100, cuInit(0));
    int count;
    IS(3, cuDeviceGetCount(&count));
}

static void no_cudnn() {
    start();
    Any cudnn;
    IS(1001, cudnnCreate(&cudnn));
}

// Of the algorithms that can do it, how many give the same bits each time; by stride.
static void picky_cudnn() {
    start();
    Any cudnn, xd, wd, cd, yd;
    OK(cudnnCreate(&cudnn));
    OK(cudnnCreateTensorDescriptor(&xd));
    OK(cudnnCreateTensorDescriptor(&yd));
    OK(cudnnCreateFilterDescriptor(&wd));
    OK(cudnnCreateConvolutionDescriptor(&cd));
    OK(cudnnSetFilter4dDescriptor(wd, 2, 1, 8, 8, 3, 3));
    for (int stride : {1, 2}) {
        OK(cudnnSetTensor4dDescriptor(xd, 1, 2, 1, 8, 32, 32));
        OK(cudnnSetTensor4dDescriptor(yd, 1, 2, 1, 8, 32 / stride, 32 / stride));
        OK(cudnnSetConvolution2dDescriptor(cd, 1, 1, stride, stride, 1, 1, 1, 0));
        struct { int algorithm, status; float time; size_t memory; int same_bits, math, reserved[3]; } found[8];
        int count = 0, able = 0, same = 0;
        OK(cudnnGetConvolutionForwardAlgorithm_v7(cudnn, xd, wd, cd, yd, 8, &count, found));
        for (int n = 0; n < count; n++) {
            able += !found[n].status;
            same += !found[n].status && found[n].same_bits;
        }
        HOLDS(able > 0);
        IS(stride == 1 ? able : 0, same);
    }
}

static void little_memory() {
    start();
    Address a, b;
    OK(cuMemAlloc_v2(&a, 600000));
    IS(2, cuMemAlloc_v2(&b, 600000));
    OK(cuMemFree_v2(a));
    OK(cuMemAlloc_v2(&b, 600000));
}

static void third_allocation_fails() {
    start();
    Address a;
    for (int n = 1; n < 6; n++) IS(n == 3 ? 2 : 0, cuMemAlloc_v2(&a, 16));
}

// From the second on nothing works, and waiting for it tells so.
static void second_launch_fails() {
    start();
    Any s = stream(), kernel = function("prepare_f32"), done = event();
    Address from = memory(48), to = memory(512);
    OK(cuMemsetD8Async(from, 0, 48, s));
    OK(prepare(kernel, s, from, to, 16));
    OK(cuStreamSynchronize(s));
    OK(prepare(kernel, s, from, to, 16));
    cuEventRecord(done, s);
    IS(700, cuStreamSynchronize(s));
    IS(700, cuEventSynchronize(done));
    Address a;
    IS(700, cuMemAlloc_v2(&a, 16));
    IS(700, prepare(kernel, s, from, to, 16));
}

static void second_copy_fails() {
    start();
    char byte = 0;
    Address a = memory(1);
    OK(cuMemcpyHtoD_v2(a, &byte, 1));
    IS(700, cuMemcpyDtoH_v2(&byte, a, 1));
    IS(700, cuMemcpyHtoD_v2(a, &byte, 1));
}

static void kernel_leaves_its_memory() {
    start();
    Any s = stream(), kernel = function("prepare_f32");
    Address from = memory(300), to = memory(100 * 32 - 32 * 16);
    OK(prepare(kernel, s, from, to, 100));
    IS(700, cuStreamSynchronize(s));
}

static void kernel_reads_what_is_freed() {
    start();
    Any s = stream(), kernel = function("prepare_f32");
    Address from = memory(48), to = memory(512);
    OK(cuMemFree_v2(from));
    OK(prepare(kernel, s, from, to, 16));
    IS(700, cuStreamSynchronize(s));
}

static void last_bytes_are_written() {
    start();
    Any s = stream(), kernel = function("prepare_f32");
    // Within the alignment, so that no page guards it: seen when it is freed.
    Address from = memory(48), to = memory(500);
    OK(cuMemsetD8Async(from, 0, 48, s));
    OK(prepare(kernel, s, from, to, 16));
    OK(cuStreamSynchronize(s));
    OK(cuMemFree_v2(to));
    IS(700, cuStreamSynchronize(s));
}

static void freed_twice() {
    start();
    Any s = stream();
    Address a = memory(48);
    OK(cuMemFreeAsync(a, s));
    OK(cuMemFreeAsync(a, s));
    IS(700, cuStreamSynchronize(s));
}

static void place_matters() {
    start();
    const Shape z = {4, 8, 7, 7, 16, 3, 3, 1, 1, 1};
    const auto x = random_values(2, size_t(z.n) * z.h * z.w * z.c), w = random_values(2, size_t(z.k) * z.r * z.s * z.c);
    std::vector<char> four = x, y(size_t(z.n) * z.h * z.w * z.k * 2);
    const size_t one = four.size() / 4, picture = y.size() / 4;
    for (int n = 1; n < 4; n++) memcpy(&four[n * one], &four[0], one);
    auto exact = convolved(2, z, four, w, y, 1, 0, 0), other = convolved(2, z, four, w, y, 1, 0, 1);
    for (int n = 1; n < 4; n++) HOLDS(!memcmp(&exact[n * picture], &exact[0], picture));
    HOLDS(memcmp(&other[picture], &other[0], picture));
}

static void delays_are_off() {
    start();
    calls_return_before_they_ran();
    events_order_streams();
}

static const struct {
    const char *name, *settings;
    void (*test)();
} ALONE[] = {
    {"no_gpu", "HAUL_EMULATED_GPUS=0", no_gpu},
    {"no_cudnn", "HAUL_EMULATED_CUDNN=0", no_cudnn},
    {"picky_cudnn", "HAUL_EMULATED_CUDNN=2", picky_cudnn},
    {"little_memory", "HAUL_EMULATED_MEMORY=1000000", little_memory},
    {"third_allocation_fails", "HAUL_EMULATED_FAULT=alloc:3", third_allocation_fails},
    {"second_launch_fails", "HAUL_EMULATED_FAULT=launch:2,copy:900", second_launch_fails},
    {"second_copy_fails", "HAUL_EMULATED_FAULT=copy:2@0", second_copy_fails},
    {"kernel_leaves_its_memory", "HAUL_EMULATED_SEED=3", kernel_leaves_its_memory},
    {"kernel_reads_what_is_freed", "HAUL_EMULATED_SEED=4", kernel_reads_what_is_freed},
    {"last_bytes_are_written", "HAUL_EMULATED_SEED=5", last_bytes_are_written},
    {"freed_twice", "HAUL_EMULATED_SEED=6", freed_twice},
    {"place_matters", "HAUL_EMULATED_POSITION=1", place_matters},
    {"delays_are_off", "HAUL_EMULATED_SEED=0", delays_are_off},
};

int main(int count, char **arguments) {
    if (count > 1) {
        for (auto &one : ALONE)
            if (!strcmp(one.name, arguments[1])) return one.test(), 0;
        failed(__LINE__, "no such test");
    }
    const auto begun = std::chrono::steady_clock::now();
    start();
    halves();
    memory_is_guarded();
    calls_return_before_they_ran();
    events_order_streams();
    kernels_run();
    graphs_replay();
    convolutions_are_the_definition();
    products_are_the_definition();
    for (auto &one : ALONE) {
        std::string command = std::string(one.settings) + " '" + arguments[0] + "' " + one.name + " 2> /dev/null";
        checks++;
        if (system(command.c_str())) failed(__LINE__, std::string("failed: ") + one.settings + " selftest " + one.name);
    }
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begun;
    printf("emulator: %d checks held in %.1f s\n", checks, seconds.count());
}
