// haul's kernels, compiled for the CPU.
#define HAUL_HOST
// Given by the build script: the source, and a list of KERNEL(name).
#include KERNELS_SOURCE

#include "kernels.h"

#include <cstdio>
#include <map>
#include <tuple>
#include <utility>

namespace emulator {

namespace {

template <typename... A> struct Call {
    void (*function)(A...);
    std::tuple<A...> parameters;
    Grid grid;

    void operator()() const {
        const unsigned *b = grid.blocks, *t = grid.threads;
        gridDim = {b[0], b[1], b[2]};
        blockDim = {t[0], t[1], t[2]};
        for (blockIdx.z = 0; blockIdx.z < b[2]; blockIdx.z++)
            for (blockIdx.y = 0; blockIdx.y < b[1]; blockIdx.y++)
                for (blockIdx.x = 0; blockIdx.x < b[0]; blockIdx.x++)
                    for (threadIdx.z = 0; threadIdx.z < t[2]; threadIdx.z++)
                        for (threadIdx.y = 0; threadIdx.y < t[1]; threadIdx.y++)
                            for (threadIdx.x = 0; threadIdx.x < t[0]; threadIdx.x++)
                                std::apply(function, parameters);
    }
};

template <typename... A, size_t... I>
std::function<void()> bound(void (*function)(A...), const Grid &grid, void **from, std::index_sequence<I...>) {
    return Call<A...>{function, {*static_cast<A *>(from[I])...}, grid};
}

template <typename... A> Kernel make(const char *name, void (*function)(A...)) {
    return {name, [function](const Grid &grid, void **from) {
                return bound(function, grid, from, std::index_sequence_for<A...>{});
            }};
}

} // namespace

const Kernel *kernel(const std::string &name) {
    static const std::map<std::string, Kernel> *const all = [] {
        auto found = new std::map<std::string, Kernel>;
#define KERNEL(name) found->emplace(#name, make(#name, name));
#include KERNELS_LIST
#undef KERNEL
        return found;
    }();
    auto found = all->find(name);
    return found == all->end() ? nullptr : &found->second;
}

} // namespace emulator
