// The kernels that there are, by name.
#pragma once
#include <functional>
#include <string>

namespace emulator {

struct Grid {
    unsigned blocks[3], threads[3];
};

struct Kernel {
    std::string name;
    // The parameters as they are now, to be run later.
    std::function<std::function<void()>(const Grid &, void **)> bind;
};

const Kernel *kernel(const std::string &name);

} // namespace emulator
