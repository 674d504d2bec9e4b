// Streams, events and captured graphs, as the driver's functions see them.
#pragma once
#include "emulator.h"

#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <set>
#include <thread>
#include <vector>

namespace emulator {

using Clock = std::chrono::steady_clock;

// A device's primary context. There is no other kind.
struct Context {
    Device *device;
    int references = 0; // 0: destroyed
};

// Work that was recorded, and what is known of how streams were joined meanwhile.
struct Graph {
    std::vector<Work> works;
    bool valid = true, open = true;
    Stream *origin = nullptr;
    int mode = 0;
    std::thread::id thread;
    // By stream: how much it did here, and which did something that the origin has not waited for.
    std::map<Stream *, size_t> did;
    std::set<Stream *> unjoined;
};

struct Executable {
    Device *device;
    std::vector<Work> works;
};

struct Stream {
    Context *context;
    // Waits for the legacy stream, and is waited for by it.
    bool blocking;
    bool legacy;
    unsigned flags;
    int priority;
    uint64_t id;

    std::mutex lock; // of what follows
    std::condition_variable changed;
    std::deque<Work> queue;
    uint64_t submitted = 0, done = 0;
    bool closing = false;

    // Under the lock of all captures.
    std::shared_ptr<Graph> graph;
};

// A place in a stream that others wait for.
struct Mark {
    std::mutex lock;
    std::condition_variable changed;
    bool done = false;
    Clock::time_point when;
};

struct Event {
    Context *context;
    unsigned flags;
    std::mutex lock; // of what follows
    std::shared_ptr<Mark> mark;
    // Where it was recorded, if that was captured, and how much the stream had done there.
    std::shared_ptr<Graph> graph;
    Stream *by = nullptr;
    size_t after = 0;
};

enum { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1, CAPTURE_RELAXED = 2 };

Context *context(int device);
void make_current(Context *context);
// For a call that needs a context: the reason why it cannot be.
Status enter();

std::shared_ptr<Stream> create_stream(Context *context, unsigned flags, int priority);
Status destroy_stream(void *handle);
bool idle(Stream &stream);

Status record(const std::shared_ptr<Event> &event, const std::shared_ptr<Stream> &stream);
Status await(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event);
Status synchronize(const std::shared_ptr<Event> &event);
Status query(const std::shared_ptr<Event> &event);

Status begin_capture(const std::shared_ptr<Stream> &stream, bool legacy, int mode);
Status end_capture(const std::shared_ptr<Stream> &stream, std::shared_ptr<Graph> *graph);
int exchange_mode(int mode);
Status launch(const std::shared_ptr<Executable> &executable, const std::shared_ptr<Stream> &stream);

} // namespace emulator
