// What the network does besides convolutions, on NVIDIA GPUs.
//
// Tensors are NHWC without gaps. Channels come in groups of eight, so that a thread reads and writes
// 16 bytes (32 in single precision); channels that only fill up a group are zero. A picture is
// computed by itself: no thread reads two of them, so none can see its neighbours.
//
// Kernels use no shared memory and nothing of warps, so that tests can run this file as C++ on a CPU
// (HAUL_HOST). Compiled without fused multiply-add: `decode` has the bits of `yolo::decode`.

#ifdef HAUL_HOST
#include "host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef __half f16;
typedef __nv_bfloat16 bf16;
#endif

typedef unsigned int u32;
typedef unsigned char u8;

/// A slice of the channels of a tensor that a result goes to.
struct Place {
    /// The tensor.
    void *to;
    /// Its channels.
    u32 pitch;
    /// The first of them that is written.
    u32 first;
    /// The first channel of the result that goes there, and how many.
    u32 from, channels;
    /// Each pixel becomes 2 x 2.
    u32 up;
    u32 unused;
};

/// Four are enough for any YOLOv8.
#define PLACES 4

struct Finish {
    /// Sums of a convolution: `rows` rows of `width` pixels of `pitch` channels.
    const void *sums;
    /// By channel.
    const float *bias;
    /// What is added at last, or null: its first channel, and the channels of its tensor.
    const void *residual;
    u32 residual_pitch;
    u32 width, rows, pitch;
    /// 1 for SiLU.
    u32 act;
    u32 places;
    Place place[PLACES];
};

struct Pool {
    /// The first channel that is read, and the channels of its tensor.
    const void *from;
    u32 pitch, channels;
    u32 width, height, pictures;
    u32 places;
    Place place[PLACES];
};

/// A box that may become a detection: what `lane.rs` reads.
struct Found {
    u32 picture, anchor, label;
    float score;
    float box[4];
};

/// What belongs to a batch and not to a shape.
struct Asked {
    /// Pictures; the rest is padding.
    u32 pictures;
    /// Least score, and the logit below which none can exceed it.
    float conf, floor;
};

struct Decode {
    const void *boxes, *scores;
    u32 boxes_pitch, scores_pitch;
    u32 width, cells, pictures;
    /// Number of the first cell over all scales.
    u32 first;
    u32 stride, bins, classes;
    /// Boxes there is room for.
    u32 room;
    const Asked *asked;
    u32 *count;
    Found *found;
};

struct Unfold {
    const void *from;
    void *to;
    u32 pitch, width, height, pictures;
    u32 kernel, stride, out_width, out_height;
};

namespace {

template <typename E> struct alignas(8 * sizeof(E)) Group {
    E lane[8];
};

__device__ inline float get(float x) { return x; }
__device__ inline void put(float *to, float x) { *to = x; }
#ifdef HAUL_HOST
__device__ inline float get(f16 x) { return f16_to_float(x); }
__device__ inline void put(f16 *to, float x) { *to = f16_of_float(x); }
__device__ inline float get(bf16 x) { return bf16_to_float(x); }
__device__ inline void put(bf16 *to, float x) { *to = bf16_of_float(x); }
#else
__device__ inline float get(f16 x) { return __half2float(x); }
__device__ inline void put(f16 *to, float x) { *to = __float2half_rn(x); }
__device__ inline float get(bf16 x) { return __bfloat162float(x); }
__device__ inline void put(bf16 *to, float x) { *to = __float2bfloat16_rn(x); }
#endif

/// Launches have fewer than 2^31 threads; divisions of 32 bits are much cheaper than of 64.
__device__ inline u32 index() { return blockIdx.x * blockDim.x + threadIdx.x; }

/// Writes the result's channels `from .. from + 8` of a pixel to where they belong.
template <typename E>
__device__ inline void spread(const Place *place, u32 places, const Group<E> &result, u32 from,
                              u32 row, u32 column, u32 width) {
    for (u32 i = 0; i < places; i++) {
        const Place &p = place[i];
        if (from < p.from || from >= p.from + p.channels) continue;
        const u32 channel = p.first + (from - p.from);
        E *to = (E *)p.to;
        if (!p.up) {
            const size_t pixel = (size_t)row * width + column;
            *(Group<E> *)(to + pixel * p.pitch + channel) = result;
        } else {
            // Rows of all pictures follow each other, so twice the row is the right one.
            for (u32 dy = 0; dy < 2; dy++)
                for (u32 dx = 0; dx < 2; dx++) {
                    const size_t pixel =
                        ((size_t)row * 2 + dy) * ((size_t)width * 2) + column * 2 + dx;
                    *(Group<E> *)(to + pixel * p.pitch + channel) = result;
                }
        }
    }
}

/// Bytes R, G, B to values 0..=1 and five zeros: a thread a pixel.
template <typename E> __device__ inline void prepare(const u8 *rgb, E *to, u32 pixels) {
    const u32 pixel = index();
    if (pixel >= pixels) return;
    Group<E> group;
    for (u32 c = 0; c < 8; c++) put(&group.lane[c], c < 3 ? rgb[(size_t)pixel * 3 + c] / 255.0f : 0.0f);
    *(Group<E> *)(to + (size_t)pixel * 8) = group;
}

/// Bias, activation, residual, and where the result goes: a thread for eight channels of a pixel.
template <typename E> __device__ inline void finish(const Finish &f) {
    const u32 groups = f.pitch / 8;
    const u32 thread = index();
    if (thread >= f.rows * f.width * groups) return;
    const u32 pixel = thread / groups, from = thread % groups * 8;
    const Group<E> sums = *(const Group<E> *)((const E *)f.sums + (size_t)pixel * f.pitch + from);
    const Group<float> bias = *(const Group<float> *)(f.bias + from);
    Group<E> added;
    if (f.residual)
        added = *(const Group<E> *)((const E *)f.residual + (size_t)pixel * f.residual_pitch + from);
    Group<E> result;
    for (u32 c = 0; c < 8; c++) {
        float x = get(sums.lane[c]) + bias.lane[c];
        if (f.act) x = x / (1.0f + expf(-x));
        if (f.residual) x += get(added.lane[c]);
        put(&result.lane[c], x);
    }
    spread(f.place, f.places, result, from, pixel / f.width, pixel % f.width, f.width);
}

/// Maximum over 5 x 5 pixels; what lies outside does not take part.
template <typename E> __device__ inline void pool(const Pool &p) {
    const u32 groups = p.channels / 8;
    const u32 thread = index();
    if (thread >= p.pictures * p.height * p.width * groups) return;
    const u32 pixel = thread / groups, from = thread % groups * 8;
    const u32 column = pixel % p.width, row = pixel / p.width;
    const u32 y = row % p.height, top = row - y;
    Group<E> most;
    bool begun = false;
    for (u32 v = y > 2 ? y - 2 : 0; v <= y + 2 && v < p.height; v++)
        for (u32 u = column > 2 ? column - 2 : 0; u <= column + 2 && u < p.width; u++) {
            const size_t at = ((size_t)(top + v) * p.width + u) * p.pitch + from;
            const Group<E> here = *(const Group<E> *)((const E *)p.from + at);
            for (u32 c = 0; c < 8; c++)
                if (!begun || get(here.lane[c]) > get(most.lane[c])) most.lane[c] = here.lane[c];
            begun = true;
        }
    spread(p.place, p.places, most, from, row, column, p.width);
}

/// e to the power of x, as `yolo::exp`: the same operations in the same order.
__device__ inline double exp_as_on_cpu(double x) {
    if (isnan(x)) return x;
    if (x > 709.0) return INFINITY;
    if (x < -708.0) return 0.0;
    const double ln2 = 0.693147180559945309417232121458;
    const double n = round(x / ln2);
    const double r = x - n * ln2;
    double sum = 1.0;
    for (int i = 14; i >= 1; i--) sum = 1.0 + sum * r / (double)i;
    // |n| is at most 1023, so that halves of it are powers of two that multiply exactly.
    return sum * ldexp(1.0, (int)n);
}

/// One side of a box in cells: the expectation of a softmax over its bins.
template <typename E> __device__ inline double side(const E *logits, u32 bins) {
    double largest = -INFINITY;
    for (u32 i = 0; i < bins; i++) {
        const double x = get(logits[i]);
        if (x > largest) largest = x;
    }
    double sum = 0.0, weighted = 0.0;
    for (u32 i = 0; i < bins; i++) {
        const double e = exp_as_on_cpu((double)get(logits[i]) - largest);
        sum += e;
        weighted += e * (double)i;
    }
    return weighted / sum;
}

/// The rule of `yolo::Cell::candidate`: a thread for each cell of each picture. Boxes are written in
/// any order; whoever reads them sorts by picture and anchor.
template <typename E> __device__ inline void decode(const Decode &d) {
    const u32 thread = index();
    const Asked asked = *d.asked;
    if (thread >= d.pictures * d.cells) return;
    const u32 picture = thread / d.cells, cell = thread % d.cells;
    if (picture >= asked.pictures) return;
    const E *scores = (const E *)d.scores + (size_t)thread * d.scores_pitch;
    float best = -INFINITY;
    u32 label = 0;
    for (u32 from = 0; from < d.classes; from += 8) {
        const Group<E> logits = *(const Group<E> *)(scores + from);
        for (u32 c = 0; c < 8; c++) {
            const float logit = get(logits.lane[c]);
            // NaN stays, so that a cell with one is out.
            if (from + c < d.classes && (logit > best || isnan(logit))) {
                best = logit;
                label = from + c;
            }
        }
    }
    // Most cells end here, without an exponential.
    if (best < asked.floor) return;
    const float score = (float)(1.0 / (1.0 + exp_as_on_cpu(-(double)best)));
    if (!(score > asked.conf)) return;
    const E *boxes = (const E *)d.boxes + (size_t)thread * d.boxes_pitch;
    const double x = (double)(cell % d.width) + 0.5, y = (double)(cell / d.width) + 0.5;
    const double stride = (double)d.stride;
    Found found;
    found.picture = picture;
    found.anchor = d.first + cell;
    found.label = label;
    found.score = score;
    found.box[0] = (float)((x - side(boxes, d.bins)) * stride);
    found.box[1] = (float)((y - side(boxes + d.bins, d.bins)) * stride);
    found.box[2] = (float)((x + side(boxes + 2 * d.bins, d.bins)) * stride);
    found.box[3] = (float)((y + side(boxes + 3 * d.bins, d.bins)) * stride);
    for (u32 i = 0; i < 4; i++)
        if (!isfinite(found.box[i])) return;
    const u32 at = atomicAdd(d.count, 1u);
    if (at < d.room) d.found[at] = found;
}

/// The pixels under a kernel side by side, for a convolution by a product of matrices: a thread for
/// eight channels of a tap.
template <typename E> __device__ inline void unfold(const Unfold &u) {
    const u32 groups = u.pitch / 8, taps = u.kernel * u.kernel;
    const u32 thread = index();
    if (thread >= u.pictures * u.out_height * u.out_width * taps * groups) return;
    const u32 group = thread % groups, rest = thread / groups;
    const u32 tap = rest % taps, pixel = rest / taps;
    const u32 column = pixel % u.out_width, row = pixel / u.out_width;
    const u32 y = row % u.out_height, picture = row / u.out_height;
    const int pad = (int)(u.kernel / 2);
    const int from_y = (int)(y * u.stride + tap / u.kernel) - pad;
    const int from_x = (int)(column * u.stride + tap % u.kernel) - pad;
    Group<E> value;
    if (from_y >= 0 && from_y < (int)u.height && from_x >= 0 && from_x < (int)u.width) {
        const size_t at = ((size_t)picture * u.height + from_y) * u.width + from_x;
        value = *(const Group<E> *)((const E *)u.from + at * u.pitch + group * 8);
    } else {
        for (u32 c = 0; c < 8; c++) put(&value.lane[c], 0.0f);
    }
    *(Group<E> *)((E *)u.to + (size_t)thread * 8) = value;
}

} // namespace

/// All kernels, for each kind of element.
#define KERNELS(X)                                                                                 \
    X(f32, float)                                                                                  \
    X(f16, f16)                                                                                    \
    X(bf16, bf16)

#define DEFINE(name, E)                                                                            \
    extern "C" __global__ void prepare_##name(const u8 *rgb, void *to, u32 pixels) {               \
        prepare<E>(rgb, (E *)to, pixels);                                                          \
    }                                                                                              \
    extern "C" __global__ void finish_##name(Finish f) { finish<E>(f); }                           \
    extern "C" __global__ void pool_##name(Pool p) { pool<E>(p); }                                 \
    extern "C" __global__ void decode_##name(Decode d) { decode<E>(d); }                           \
    extern "C" __global__ void unfold_##name(Unfold u) { unfold<E>(u); }

KERNELS(DEFINE)
