// A CUDA that runs on the CPU, for tests of haul's GPU code on machines without GPU.
//
// What it proves is our side: what is launched, with what, in which order, and what happens when
// memory or the device gives out. It says nothing about a GPU's speed, nor about NVIDIA's numbers: its
// convolutions are our own.
//
// Streams are threads with queues, so asynchronous calls return before they did anything, and work
// that is not ordered by streams and events runs in whatever order it comes to. Memory is full of NaN
// before it is written, while it is written, and no memory at all once it is freed. What a GPU would
// leave undefined is made as wrong as is cheap, so that tests fail that rely on it.
//
// Settings are environment variables:
//   HAUL_EMULATED_GPUS      how many there are (1)
//   HAUL_EMULATED_MEMORY    bytes of each (4 GiB)
//   HAUL_EMULATED_DRIVER    the version that the driver says it is of (13000)
//   HAUL_EMULATED_CUDNN     0: cuDNN says that it cannot start; 2: for strides above 1 it has nothing
//                           that gives the same bits each time
//   HAUL_EMULATED_POSITION  1: what cuDNN computes for a picture depends on its place in the batch,
//                           unless by IMPLICIT_GEMM
//   HAUL_EMULATED_SEED      of the delays of streams (1); 0: no delays
//   HAUL_EMULATED_FAULT     launch:N, copy:N or alloc:N, or several with commas: the N-th fails. A
//                           launch (of a kernel or a convolution) or a copy fails when it runs, and
//                           leaves the device unusable; an allocation finds no memory, once.
//                           launch:N@D counts those of device D alone.
//   HAUL_EMULATED_REPORT    a file that gets a line of counts when the process ends
#pragma once
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#define EMULATED extern "C"

namespace emulator {

// Statuses of the driver, as far as they are used.
enum Status : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    CONTEXT_IS_DESTROYED = 709,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

// Says something on stderr, once per text.
void say(const std::string &text);

struct Settings {
    int gpus;
    size_t memory;
    int driver;
    int cudnn;
    bool position;
    uint64_t seed;
};
const Settings &settings();

enum class Kind { launch, copy, alloc };

// Counts one of a kind, and tells whether it is one that is to fail.
bool fails(Kind kind, int device);

// What a device is, and what is wrong with it.
struct Device {
    int number;
    std::mutex lock;       // of what follows
    size_t used = 0;       // bytes
    size_t peak = 0;       // bytes
    Status broken = SUCCESS; // what every call returns from now on
};
Device *device(int number);
Status broken(Device *device);
// Makes a device unusable, and says why.
void breaks(Device *device, const std::string &why);

// ---- memory ----

// Takes memory full of NaN, between pages that nobody may touch.
Status allocate(Device *device, size_t bytes, uint64_t *address);
// Gives it back: from now on nobody may touch it.
Status release(Device *device, uint64_t address);
// Gives back what a device's context leaves behind; tells how many blocks that were.
size_t release_all(Device *device);
// Whether a range is within one live block (of any device).
bool is_device(uint64_t address, size_t bytes);
// Whether it touches any.
bool touches_device(const void *address, size_t bytes);
Status host_allocate(size_t bytes, unsigned flags, void **address);
Status host_release(void *address);
// Whether a range is within one block of pinned memory.
bool is_pinned(const void *address, size_t bytes);
bool host_flags(const void *address, unsigned *flags);

// ---- streams ----

// What a stream does, on its own thread.
using Work = std::function<void()>;
struct Context;
struct Stream;
struct Event;
struct Graph;

// The calling thread's.
Context *current();
Device *of(Context *context);
Device *of(const Stream &stream);

// A stream by its handle, for the calling thread and its context: also the handles 0, 1 and 2.
std::shared_ptr<Stream> stream(void *handle);
// Appends work, to the stream's queue or to the graph that it is captured in. `capturable`: else a
// stream that is captured refuses, and the capture is void.
Status submit(const std::shared_ptr<Stream> &stream, Work work, bool capturable = true);
Status wait(const std::shared_ptr<Stream> &stream);
// Waits for all streams of a device.
void drain(Device *device);
bool captured(const std::shared_ptr<Stream> &stream);
// Sleeps for a random while, or not at all; more often if `likely`.
void dawdle(bool likely);

// For the calls that a capture forbids: a status if there is one that does.
Status unless_capturing();

} // namespace emulator
