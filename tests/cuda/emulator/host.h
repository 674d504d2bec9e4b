// What kernels.cu needs of CUDA, to be compiled as C++ for the CPU.
//
// A launch runs the threads one after the other, blocks in order. So it tests what a thread does, and
// not that threads do not disturb each other.
#pragma once
#include <atomic>
#include <cmath>
#include <cstddef>

#include "half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
    unsigned int x, y, z;
};

static thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T> static inline T atomicAdd(T *to, T value) {
    return std::atomic_ref<T>(*to).fetch_add(value);
}
template <typename T> static inline T atomicMax(T *to, T value) {
    T old = *to;
    if (value > old) *to = value;
    return old;
}
template <typename T> static inline T __ldg(const T *from) { return *from; }

using std::isfinite;
using std::isinf;
using std::isnan;
