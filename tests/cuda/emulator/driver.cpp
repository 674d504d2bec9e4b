// The driver's functions that haul, candle and cudarc call; refused.c has the rest.
#include "kernels.h"
#include "stream.h"

#include <cstdio>
#include <cstring>

using namespace emulator;

namespace {

std::atomic<bool> initialized{false};

// Handles that we gave out and that are pointers of ours.
template <typename T> struct Handles {
    std::mutex lock;
    std::map<void *, std::shared_ptr<T>> all;

    void *add(std::shared_ptr<T> one) {
        std::lock_guard guard(lock);
        void *handle = one.get();
        all[handle] = std::move(one);
        return handle;
    }
    std::shared_ptr<T> get(void *handle) {
        std::lock_guard guard(lock);
        auto found = all.find(handle);
        return found == all.end() ? nullptr : found->second;
    }
    std::shared_ptr<T> remove(void *handle) {
        std::lock_guard guard(lock);
        auto found = all.find(handle);
        if (found == all.end()) return nullptr;
        auto one = found->second;
        all.erase(found);
        return one;
    }
};

template <typename T> Handles<T> &handles() {
    static Handles<T> *const all = new Handles<T>;
    return *all;
}

struct Module {
    // PTX, or empty for something else that cannot be looked into.
    std::string text;
};

struct Function {
    const Kernel *kernel;
};

struct Pool {
    Device *device;
};

void *pool_of(int number) {
    static std::map<int, Pool *> *const all = [] {
        auto pools = new std::map<int, Pool *>;
        for (int n = 0; n < settings().gpus; n++) (*pools)[n] = new Pool{device(n)};
        return pools;
    }();
    return (*all)[number];
}

Status of_device(int number) {
    if (!initialized) return NOT_INITIALIZED;
    return device(number) ? SUCCESS : INVALID_DEVICE;
}

std::string range(uint64_t address, size_t bytes) {
    char text[64];
    snprintf(text, sizeof text, "%zu bytes at %#llx", bytes, (unsigned long long)address);
    return text;
}

enum class Copy { to_device, to_host, on_device };

// A copy in a stream. Where no page is pinned, CUDA takes what is read before it returns, and returns
// after what is written was written.
Status copy(Copy kind, uint64_t to, uint64_t from, size_t bytes, void *handle, bool async) {
    if (Status status = enter()) return status;
    if (!async)
        if (Status status = unless_capturing()) return status;
    auto on = stream(handle);
    if (!on) return INVALID_HANDLE;
    if (!bytes) return SUCCESS;
    bool wrong = false;
    for (auto [address, is] : {std::pair(to, kind != Copy::to_host), std::pair(from, kind != Copy::to_device)}) {
        bool there = is ? is_device(address, bytes) : !touches_device(reinterpret_cast<void *>(address), bytes);
        if (!there) {
            say("a copy of " + range(address, bytes) + (is ? " that are not within a block of a device" : " that are a device's, as if they were the host's"));
            wrong = true;
        }
    }
    if (wrong || !(to && from)) return INVALID_VALUE;
    bool pageable = (kind == Copy::to_device && !is_pinned(reinterpret_cast<void *>(from), bytes)) ||
                    (kind == Copy::to_host && !is_pinned(reinterpret_cast<void *>(to), bytes));
    bool in_graph = captured(on);
    if (!async)
        if (Status status = wait(on)) return status;
    std::shared_ptr<std::string> taken;
    if (pageable && kind == Copy::to_device && !in_graph)
        taken = std::make_shared<std::string>(reinterpret_cast<const char *>(from), bytes);
    Device *device = of(*on);
    Status status = submit(on, [=] {
        if (fails(Kind::copy, device->number)) return breaks(device, "a copy failed, as was asked for");
        if ((kind != Copy::to_host && !is_device(to, bytes)) || (kind != Copy::to_device && !is_device(from, bytes)))
            return breaks(device, "a copy came to its turn when memory had been freed");
        char *target = reinterpret_cast<char *>(to);
        const char *source = taken ? taken->data() : reinterpret_cast<const char *>(from);
        bool overlap = target < source + bytes && source < target + bytes;
        if (overlap) say("a copy from memory to itself");
        if (!overlap) memset(target, 0xff, bytes);
        dawdle(true);
        memmove(target, source, bytes);
    });
    if (status) return status;
    // What was taken from pages that are not pinned arrives when it likes, also after a call without a
    // stream: only the legacy stream's rules order that.
    if (taken) return SUCCESS;
    if (!async || (pageable && kind == Copy::to_host && !in_graph)) return wait(on);
    return SUCCESS;
}

Status fill(uint64_t to, uint32_t value, size_t width, size_t count, void *handle, bool async) {
    if (Status status = enter()) return status;
    auto on = stream(handle);
    if (!on) return INVALID_HANDLE;
    if (!count) return SUCCESS;
    if (!is_device(to, count * width)) {
        say("a fill of " + range(to, count * width) + " that are not within a block of a device");
        return INVALID_VALUE;
    }
    if (to % width) return INVALID_VALUE;
    Device *device = of(*on);
    Status status = submit(on, [=] {
        if (!is_device(to, count * width)) return breaks(device, "a fill came to its turn when memory had been freed");
        memset(reinterpret_cast<void *>(to), 0xff, count * width);
        dawdle(false);
        for (size_t n = 0; n < count; n++) memcpy(reinterpret_cast<char *>(to) + n * width, &value, width);
    });
    if (status || async) return status;
    return wait(on);
}

Status allocate_async(uint64_t *address, size_t bytes, void *handle) {
    if (Status status = enter()) return status;
    auto on = stream(handle);
    if (!on) return INVALID_HANDLE;
    if (!bytes) return INVALID_VALUE;
    // Refuses in a captured stream before there is memory.
    if (captured(on)) {
        say("the emulator does not capture allocations");
        return submit(on, [] {}, false);
    }
    if (Status status = allocate(of(*on), bytes, address)) return status;
    // It is there from here on; whoever uses it earlier, on another stream, loses what was written.
    uint64_t at = *address;
    return submit(on, [at, bytes] { memset(reinterpret_cast<void *>(at), 0xff, bytes); });
}

int attribute(int which) {
    switch (which) {
    case 1: case 2: case 3: return 1024;  // threads of a block
    case 4: return 64;
    case 5: return 0x7fffffff;            // blocks of a grid
    case 6: case 7: return 65535;
    case 8: return 49152;                 // shared memory
    case 9: return 65536;
    case 10: return 32;                   // threads of a warp
    case 12: return 65536;                // registers
    case 13: case 36: return 1000000;     // clocks
    case 14: return 512;                  // alignment
    case 16: return 2;                    // multiprocessors
    case 19: case 31: case 41: case 78: return 1; // host memory mapped, kernels at once, one address space, priorities
    case 39: return 2048;
    case 40: return 2;                    // copies at once
    case 75: return 9;                    // 9.0
    case 76: return 0;
    case 97: return 232448;
    case 115: return 1;                   // pools
    default: return 0;
    }
}

const std::map<int, std::pair<const char *, const char *>> names = {
    {0, {"CUDA_SUCCESS", "no error"}},
    {1, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {2, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {3, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {34, {"CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"}},
    {36, {"CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "API call is not supported in the installed CUDA driver"}},
    {100, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {101, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {200, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {201, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {222, {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."}},
    {400, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {401, {"CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"}},
    {500, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {600, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {709, {"CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"}},
    {801, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
    {900, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
    {901, {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
    {903, {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"}},
    {904, {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"}},
    {905, {"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"}},
    {907, {"CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"}},
    {908, {"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"}},
};

} // namespace

Status emulator::enter() {
    if (!initialized) return NOT_INITIALIZED;
    if (!current()) return INVALID_CONTEXT;
    if (!current()->references) return CONTEXT_IS_DESTROYED;
    return broken(current()->device);
}

// ---- devices and contexts ----

EMULATED int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (!settings().gpus) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}

EMULATED int cuDriverGetVersion(int *version) {
    *version = settings().driver;
    return SUCCESS;
}

EMULATED int cuDeviceGetCount(int *count) {
    if (!initialized) return NOT_INITIALIZED;
    *count = settings().gpus;
    return SUCCESS;
}

EMULATED int cuDeviceGet(int *number, int ordinal) {
    *number = ordinal;
    return of_device(ordinal);
}

EMULATED int cuDeviceGetName(char *name, int length, int number) {
    if (Status status = of_device(number)) return status;
    snprintf(name, length, "Emulated GPU");
    return SUCCESS;
}

EMULATED int cuDeviceGetUuid_v2(unsigned char *uuid, int number) {
    if (Status status = of_device(number)) return status;
    memset(uuid, 0xe0, 16);
    uuid[15] = (unsigned char)number;
    return SUCCESS;
}

EMULATED int cuDeviceGetUuid(unsigned char *uuid, int number) { return cuDeviceGetUuid_v2(uuid, number); }

EMULATED int cuDeviceGetPCIBusId(char *id, int length, int number) {
    if (Status status = of_device(number)) return status;
    snprintf(id, length, "0000:%02x:00.0", number + 1);
    return SUCCESS;
}

EMULATED int cuDeviceTotalMem_v2(size_t *bytes, int number) {
    if (Status status = of_device(number)) return status;
    *bytes = settings().memory;
    return SUCCESS;
}

EMULATED int cuDeviceGetAttribute(int *value, int which, int number) {
    if (Status status = of_device(number)) return status;
    *value = which == 33 ? number + 1 : attribute(which);
    return SUCCESS;
}

EMULATED int cuDevicePrimaryCtxRetain(void **to, int number) {
    if (Status status = of_device(number)) return status;
    if (Status status = broken(device(number))) return status;
    std::lock_guard guard(device(number)->lock);
    context(number)->references++;
    *to = context(number);
    return SUCCESS;
}

EMULATED int cuDevicePrimaryCtxRelease_v2(int number) {
    if (Status status = of_device(number)) return status;
    {
        std::lock_guard guard(device(number)->lock);
        if (!context(number)->references) return INVALID_CONTEXT;
        if (--context(number)->references) return SUCCESS;
    }
    drain(device(number));
    if (size_t left = release_all(device(number)))
        say(std::to_string(left) + " blocks of memory were left when the context of device " +
            std::to_string(number) + " was given back");
    return SUCCESS;
}

EMULATED int cuDevicePrimaryCtxGetState(int number, unsigned *flags, int *active) {
    if (Status status = of_device(number)) return status;
    std::lock_guard guard(device(number)->lock);
    *flags = 0;
    *active = context(number)->references > 0;
    return SUCCESS;
}

EMULATED int cuCtxGetCurrent(void **to) {
    if (!initialized) return NOT_INITIALIZED;
    *to = current();
    return SUCCESS;
}

EMULATED int cuCtxSetCurrent(void *from) {
    if (!initialized) return NOT_INITIALIZED;
    bool known = !from;
    for (int n = 0; n < settings().gpus; n++) known |= context(n) == from;
    if (!known) return INVALID_CONTEXT;
    make_current(static_cast<Context *>(from));
    return SUCCESS;
}

EMULATED int cuCtxGetDevice(int *number) {
    if (Status status = enter()) return status;
    *number = current()->device->number;
    return SUCCESS;
}

EMULATED int cuCtxSetFlags(unsigned) { return enter(); }

EMULATED int cuCtxSynchronize() {
    if (Status status = enter()) return status;
    if (Status status = unless_capturing()) return status;
    drain(current()->device);
    return broken(current()->device);
}

EMULATED int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (Status status = enter()) return status;
    *least = 0;
    *greatest = -5;
    return SUCCESS;
}

EMULATED int cuGetErrorName(int error, const char **text) {
    auto found = names.find(error);
    *text = found == names.end() ? nullptr : found->second.first;
    return *text ? SUCCESS : INVALID_VALUE;
}

EMULATED int cuGetErrorString(int error, const char **text) {
    auto found = names.find(error);
    *text = found == names.end() ? nullptr : found->second.second;
    return *text ? SUCCESS : INVALID_VALUE;
}

// ---- memory ----

EMULATED int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (Status status = enter()) return status;
    std::lock_guard guard(current()->device->lock);
    *total = settings().memory;
    *free = settings().memory - current()->device->used;
    return SUCCESS;
}

EMULATED int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (Status status = enter()) return status;
    if (Status status = unless_capturing()) return status;
    if (!bytes) return INVALID_VALUE;
    return allocate(current()->device, bytes, address);
}

EMULATED int cuMemFree_v2(uint64_t address) {
    if (Status status = enter()) return status;
    if (Status status = unless_capturing()) return status;
    if (!address) return SUCCESS;
    drain(current()->device);
    return release(current()->device, address);
}

EMULATED int cuMemAllocAsync(uint64_t *address, size_t bytes, void *handle) {
    return allocate_async(address, bytes, handle);
}

EMULATED int cuMemAllocFromPoolAsync(uint64_t *address, size_t bytes, void *, void *handle) {
    return allocate_async(address, bytes, handle);
}

EMULATED int cuMemFreeAsync(uint64_t address, void *handle) {
    if (Status status = enter()) return status;
    auto on = stream(handle);
    if (!on) return INVALID_HANDLE;
    if (!address) return SUCCESS;
    Device *device = of(*on);
    return submit(on, [device, address] { release(device, address); }, false);
}

EMULATED int cuDeviceGetDefaultMemPool(void **pool, int number) {
    if (Status status = of_device(number)) return status;
    *pool = pool_of(number);
    return SUCCESS;
}

EMULATED int cuDeviceGetMemPool(void **pool, int number) { return cuDeviceGetDefaultMemPool(pool, number); }

// What a pool keeps changes nothing here: memory that is freed is given back at once.
EMULATED int cuMemPoolSetAttribute(void *, int, void *) { return enter(); }

EMULATED int cuMemPoolGetAttribute(void *pool, int which, void *value) {
    if (Status status = enter()) return status;
    Device *device = static_cast<Pool *>(pool)->device;
    std::lock_guard guard(device->lock);
    if (which >= 1 && which <= 3) {
        *static_cast<int *>(value) = 1;
        return SUCCESS;
    }
    uint64_t bytes = which == 5 || which == 7 ? device->used : which == 6 || which == 8 ? device->peak : 0;
    *static_cast<uint64_t *>(value) = bytes;
    return SUCCESS;
}

EMULATED int cuMemPoolTrimTo(void *, size_t) { return enter(); }

EMULATED int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    if (Status status = enter()) return status;
    if (Status status = unless_capturing()) return status;
    if (flags & ~7u) return INVALID_VALUE;
    return host_allocate(bytes, flags, address);
}

EMULATED int cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }

EMULATED int cuMemHostGetFlags(unsigned *flags, void *address) {
    if (Status status = enter()) return status;
    return host_flags(address, flags) ? SUCCESS : INVALID_VALUE;
}

EMULATED int cuMemFreeHost(void *address) {
    if (Status status = enter()) return status;
    if (Status status = unless_capturing()) return status;
    // Does not wait for copies: what still reads or writes there faults.
    return host_release(address);
}

EMULATED int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    return copy(Copy::to_device, to, uint64_t(from), bytes, nullptr, false);
}
EMULATED int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    return copy(Copy::to_device, to, uint64_t(from), bytes, stream, true);
}
EMULATED int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    return copy(Copy::to_host, uint64_t(to), from, bytes, nullptr, false);
}
EMULATED int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    return copy(Copy::to_host, uint64_t(to), from, bytes, stream, true);
}
EMULATED int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    return copy(Copy::on_device, to, from, bytes, nullptr, false);
}
EMULATED int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    return copy(Copy::on_device, to, from, bytes, stream, true);
}
EMULATED int cuMemcpyPeerAsync(uint64_t to, void *, uint64_t from, void *, size_t bytes, void *stream) {
    return copy(Copy::on_device, to, from, bytes, stream, true);
}

EMULATED int cuMemsetD8_v2(uint64_t to, unsigned char value, size_t count) {
    return fill(to, value, 1, count, nullptr, false);
}
EMULATED int cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, void *stream) {
    return fill(to, value, 1, count, stream, true);
}
EMULATED int cuMemsetD16Async(uint64_t to, unsigned short value, size_t count, void *stream) {
    return fill(to, value, 2, count, stream, true);
}
EMULATED int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *stream) {
    return fill(to, value, 4, count, stream, true);
}

// ---- streams and events ----

EMULATED int cuStreamCreateWithPriority(void **handle, unsigned flags, int priority) {
    if (Status status = enter()) return status;
    if (flags & ~1u) return INVALID_VALUE;
    *handle = create_stream(current(), flags, priority).get();
    return SUCCESS;
}

EMULATED int cuStreamCreate(void **handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

EMULATED int cuStreamDestroy_v2(void *handle) {
    if (Status status = enter()) return status;
    return destroy_stream(handle);
}

EMULATED int cuStreamSynchronize(void *handle) {
    if (Status status = enter()) return status;
    return wait(stream(handle));
}

EMULATED int cuStreamQuery(void *handle) {
    if (Status status = enter()) return status;
    auto one = stream(handle);
    if (!one) return INVALID_HANDLE;
    return idle(*one) ? SUCCESS : NOT_READY;
}

EMULATED int cuStreamGetFlags(void *handle, unsigned *flags) {
    if (Status status = enter()) return status;
    auto one = stream(handle);
    if (!one) return INVALID_HANDLE;
    *flags = one->flags;
    return SUCCESS;
}

EMULATED int cuStreamGetCtx(void *handle, void **context) {
    if (Status status = enter()) return status;
    auto one = stream(handle);
    if (!one) return INVALID_HANDLE;
    *context = one->context;
    return SUCCESS;
}

EMULATED int cuStreamWaitEvent(void *handle, void *event, unsigned) {
    if (Status status = enter()) return status;
    return await(stream(handle), handles<Event>().get(event));
}

EMULATED int cuEventCreate(void **handle, unsigned flags) {
    if (Status status = enter()) return status;
    auto event = std::make_shared<Event>();
    event->context = current();
    event->flags = flags;
    *handle = handles<Event>().add(event);
    return SUCCESS;
}

EMULATED int cuEventDestroy_v2(void *handle) {
    if (Status status = enter()) return status;
    return handles<Event>().remove(handle) ? SUCCESS : INVALID_HANDLE;
}

EMULATED int cuEventRecord(void *handle, void *on) {
    if (Status status = enter()) return status;
    return record(handles<Event>().get(handle), stream(on));
}

EMULATED int cuEventRecordWithFlags(void *handle, void *on, unsigned) { return cuEventRecord(handle, on); }

EMULATED int cuEventQuery(void *handle) {
    if (Status status = enter()) return status;
    return query(handles<Event>().get(handle));
}

EMULATED int cuEventSynchronize(void *handle) {
    if (Status status = enter()) return status;
    return synchronize(handles<Event>().get(handle));
}

EMULATED int cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) {
    if (Status status = enter()) return status;
    Clock::time_point times[2];
    for (int n = 0; n < 2; n++) {
        auto event = handles<Event>().get(n ? to : from);
        if (!event || event->flags & 2) return INVALID_HANDLE;
        if (Status status = query(event)) return status;
        std::lock_guard guard(event->lock);
        if (!event->mark) return INVALID_HANDLE;
        std::lock_guard mark_guard(event->mark->lock);
        times[n] = event->mark->when;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(times[1] - times[0]).count();
    return SUCCESS;
}

EMULATED int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

EMULATED int cuLaunchHostFunc(void *handle, void (*function)(void *), void *data) {
    if (Status status = enter()) return status;
    return submit(stream(handle), [function, data] { function(data); });
}

// ---- kernels ----

EMULATED int cuModuleLoadData(void **handle, const void *image) {
    if (Status status = enter()) return status;
    auto module = std::make_shared<Module>();
    const char *text = static_cast<const char *>(image);
    // A cubin or a fat binary: nothing that can be looked into.
    bool binary = !memcmp(text, "\x7f""ELF", 4) || !memcmp(text, "\x50\xed\x55\xba", 4);
    if (!binary) {
        module->text = text;
        if (module->text.find(".version") == std::string::npos) return INVALID_IMAGE;
        // The driver of 12.4 knows PTX 8.4, that of 13.0 PTX 9.0.
        int major = 0, minor = 0;
        sscanf(text + module->text.find(".version"), ".version %d.%d", &major, &minor);
        int known_major = settings().driver / 1000 - 4, known_minor = settings().driver % 1000 / 10;
        if (major > known_major || (major == known_major && minor > known_minor)) return UNSUPPORTED_PTX_VERSION;
    }
    *handle = handles<Module>().add(module);
    return SUCCESS;
}

EMULATED int cuModuleLoadDataEx(void **handle, const void *image, unsigned, void *, void **) {
    return cuModuleLoadData(handle, image);
}

EMULATED int cuModuleUnload(void *handle) {
    if (Status status = enter()) return status;
    return handles<Module>().remove(handle) ? SUCCESS : INVALID_HANDLE;
}

EMULATED int cuModuleGetFunction(void **handle, void *of, const char *name) {
    if (Status status = enter()) return status;
    auto module = handles<Module>().get(of);
    if (!module) return INVALID_HANDLE;
    // What is not in the PTX is not there for a GPU, whatever is known here.
    if (!module->text.empty()) {
        std::string entry = std::string(".entry ") + name;
        size_t at = module->text.find(entry);
        while (at != std::string::npos && (isalnum(module->text[at + entry.size()]) || module->text[at + entry.size()] == '_'))
            at = module->text.find(entry, at + 1);
        if (at == std::string::npos) return NOT_FOUND;
    }
    const Kernel *found = kernel(name);
    if (!found) {
        say(std::string("the kernel ") + name + " is none of haul's, and is not emulated");
        return NOT_FOUND;
    }
    auto function = std::make_shared<Function>();
    function->kernel = found;
    *handle = handles<Function>().add(function);
    return SUCCESS;
}

EMULATED int cuFuncGetAttribute(int *value, int which, void *handle) {
    if (Status status = enter()) return status;
    if (!handles<Function>().get(handle)) return INVALID_HANDLE;
    *value = which == 0 ? 1024 : which == 4 ? 32 : 0;
    return SUCCESS;
}

EMULATED int cuFuncSetAttribute(void *handle, int, int) {
    if (Status status = enter()) return status;
    return handles<Function>().get(handle) ? SUCCESS : INVALID_HANDLE;
}

EMULATED int cuFuncSetCacheConfig(void *handle, int) { return cuFuncSetAttribute(handle, 0, 0); }

EMULATED int cuOccupancyMaxPotentialBlockSize(int *blocks, int *threads, void *handle, void *, size_t, int most) {
    if (Status status = enter()) return status;
    if (!handles<Function>().get(handle)) return INVALID_HANDLE;
    *blocks = 4;
    *threads = most && most < 256 ? most : 256;
    return SUCCESS;
}

EMULATED int cuLaunchKernel(void *handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, void *on, void **parameters, void **extra) {
    if (Status status = enter()) return status;
    auto function = handles<Function>().get(handle);
    auto where = stream(on);
    if (!function || !where) return INVALID_HANDLE;
    if (extra || !gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffff || gy > 65535 || gz > 65535 ||
        bx > 1024 || by > 1024 || bz > 64 || uint64_t(bx) * by * bz > 1024 || shared > 49152) {
        say("a launch of " + function->kernel->name + " with a grid that no GPU takes");
        return INVALID_VALUE;
    }
    auto call = function->kernel->bind({{gx, gy, gz}, {bx, by, bz}}, parameters);
    Device *device = of(*where);
    const std::string &name = function->kernel->name;
    return submit(where, [device, call, &name] {
        if (fails(Kind::launch, device->number)) return breaks(device, name + " failed, as was asked for");
        dawdle(false);
        call();
    });
}

// ---- graphs ----

EMULATED int cuStreamBeginCapture_v2(void *handle, int mode) {
    if (Status status = enter()) return status;
    return begin_capture(stream(handle), uintptr_t(handle) <= 1, mode);
}

EMULATED int cuStreamIsCapturing(void *handle, int *value) {
    if (Status status = enter()) return status;
    auto one = stream(handle);
    if (!one) return INVALID_HANDLE;
    *value = captured(one) ? 1 : 0;
    return SUCCESS;
}

EMULATED int cuStreamEndCapture(void *handle, void **graph) {
    if (Status status = enter()) return status;
    *graph = nullptr;
    std::shared_ptr<Graph> ended;
    if (Status status = end_capture(stream(handle), &ended)) return status;
    *graph = handles<Graph>().add(ended);
    return SUCCESS;
}

EMULATED int cuThreadExchangeStreamCaptureMode(int *mode) {
    if (*mode < CAPTURE_GLOBAL || *mode > CAPTURE_RELAXED) return INVALID_VALUE;
    *mode = exchange_mode(*mode);
    return SUCCESS;
}

EMULATED int cuGraphInstantiateWithFlags(void **handle, void *of, unsigned long long) {
    if (Status status = enter()) return status;
    auto graph = handles<Graph>().get(of);
    if (!graph) return INVALID_HANDLE;
    auto executable = std::make_shared<Executable>();
    executable->device = current()->device;
    executable->works = graph->works;
    *handle = handles<Executable>().add(executable);
    return SUCCESS;
}

EMULATED int cuGraphUpload(void *handle, void *) {
    if (Status status = enter()) return status;
    return handles<Executable>().get(handle) ? SUCCESS : INVALID_HANDLE;
}

EMULATED int cuGraphLaunch(void *handle, void *on) {
    if (Status status = enter()) return status;
    return launch(handles<Executable>().get(handle), stream(on));
}

EMULATED int cuGraphExecDestroy(void *handle) {
    if (Status status = enter()) return status;
    return handles<Executable>().remove(handle) ? SUCCESS : INVALID_HANDLE;
}

EMULATED int cuGraphDestroy(void *handle) {
    if (Status status = enter()) return status;
    return handles<Graph>().remove(handle) ? SUCCESS : INVALID_HANDLE;
}

EMULATED int cuProfilerStart() { return SUCCESS; }
EMULATED int cuProfilerStop() { return SUCCESS; }
