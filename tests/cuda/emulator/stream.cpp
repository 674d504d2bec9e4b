#include "stream.h"

#include <csetjmp>
#include <csignal>
#include <unistd.h>

namespace emulator {

namespace {

// All streams by handle, and the ones that have none of their own. Never destroyed.
struct Streams {
    std::mutex lock;
    std::map<void *, std::shared_ptr<Stream>> all;
    std::map<Context *, std::shared_ptr<Stream>> legacy;
    std::map<std::pair<Context *, std::thread::id>, std::shared_ptr<Stream>> of_threads;
    uint64_t next = 0;
};

Streams &streams() {
    static Streams *const all = new Streams;
    return *all;
}

// Captures are rare: one lock for all.
std::mutex &captures_lock() {
    static std::mutex *const lock = new std::mutex;
    return *lock;
}

std::set<Graph *> &captures() {
    static std::set<Graph *> *const all = new std::set<Graph *>;
    return *all;
}

thread_local Context *the_current = nullptr;
thread_local int the_mode = CAPTURE_GLOBAL;
thread_local uint64_t random_state = 0;
// Where to go on when work touches memory that it may not.
thread_local sigjmp_buf *volatile rescue = nullptr;
thread_local void *faulted = nullptr;
struct sigaction before;

uint64_t random_number() {
    // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}

void on_fault(int signal, siginfo_t *info, void *context) {
    if (rescue) {
        faulted = info->si_addr;
        siglongjmp(*rescue, 1);
    }
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
    // What happens without a handler.
    struct sigaction plain = {};
    plain.sa_handler = SIG_DFL;
    sigaction(signal, &plain, nullptr);
}

void catch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction ours = {};
        ours.sa_sigaction = on_fault;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &ours, &before);
    });
}

// Work that faults is left where it is, with what it holds.
void run(Device *device, const Work &work) {
    if (broken(device)) return;
    sigjmp_buf here;
    if (sigsetjmp(here, 1) == 0) {
        rescue = &here;
        work();
        rescue = nullptr;
    } else {
        rescue = nullptr;
        breaks(device, is_pinned(faulted, 1)
                           ? "work faulted in pinned memory"
                           : "work touched memory that is not there: outside of its block, or freed");
    }
}

void serve(std::shared_ptr<Stream> stream) {
    random_state = settings().seed * 0x9e3779b97f4a7c15ull + stream->id * 0xbf58476d1ce4e5b9ull + 1;
    the_current = stream->context;
    for (;;) {
        Work work;
        {
            std::unique_lock guard(stream->lock);
            stream->changed.wait(guard, [&] { return !stream->queue.empty() || stream->closing; });
            if (stream->queue.empty()) return;
            work = std::move(stream->queue.front());
            stream->queue.pop_front();
        }
        run(of(*stream), work);
        work = nullptr;
        std::lock_guard guard(stream->lock);
        stream->done++;
        stream->changed.notify_all();
    }
}

std::shared_ptr<Stream> start(Context *context, bool blocking, bool legacy, unsigned flags, int priority) {
    catch_faults();
    auto stream = std::make_shared<Stream>();
    stream->context = context;
    stream->blocking = blocking;
    stream->legacy = legacy;
    stream->flags = flags;
    stream->priority = priority;
    stream->id = streams().next++;
    std::thread(serve, stream).detach();
    return stream;
}

// Work that ends when another stream has come to a place.
Work until(std::shared_ptr<Stream> stream, uint64_t place) {
    return [stream, place] {
        std::unique_lock guard(stream->lock);
        stream->changed.wait(guard, [&] { return stream->done >= place; });
    };
}

uint64_t place(Stream &stream) {
    std::lock_guard guard(stream.lock);
    return stream.submitted;
}

void push(Stream &stream, Work work) {
    std::lock_guard guard(stream.lock);
    stream.queue.push_back(std::move(work));
    stream.submitted++;
    stream.changed.notify_all();
}

// Appends work, and waits for what the legacy stream's rules order before it.
void enqueue(const std::shared_ptr<Stream> &stream, Work work) {
    std::vector<std::shared_ptr<Stream>> earlier;
    if (stream->legacy || stream->blocking) {
        std::lock_guard guard(streams().lock);
        auto add = [&](const std::shared_ptr<Stream> &other) {
            if (other != stream && other->context == stream->context) earlier.push_back(other);
        };
        if (stream->legacy) {
            for (auto &[handle, other] : streams().all)
                if (other->blocking) add(other);
            for (auto &[thread, other] : streams().of_threads) add(other);
        } else {
            for (auto &[context, other] : streams().legacy) add(other);
        }
    }
    for (auto &other : earlier)
        if (!idle(*other)) push(*stream, until(other, place(*other)));
    push(*stream, std::move(work));
}

void join(Graph &graph, Stream &stream) {
    graph.did[&stream]++;
    if (&stream != graph.origin) graph.unjoined.insert(&stream);
}

} // namespace

Context *current() { return the_current; }
void make_current(Context *context) { the_current = context; }
Device *of(Context *context) { return context->device; }
Device *of(const Stream &stream) { return stream.context->device; }

Context *context(int number) {
    static std::map<int, Context *> *const all = [] {
        auto contexts = new std::map<int, Context *>;
        for (int n = 0; n < settings().gpus; n++) (*contexts)[n] = new Context{device(n)};
        return contexts;
    }();
    auto found = all->find(number);
    return found == all->end() ? nullptr : found->second;
}

std::shared_ptr<Stream> create_stream(Context *context, unsigned flags, int priority) {
    std::lock_guard guard(streams().lock);
    auto stream = start(context, !(flags & 1), false, flags, priority);
    streams().all[stream.get()] = stream;
    return stream;
}

Status destroy_stream(void *handle) {
    std::shared_ptr<Stream> stream;
    {
        std::lock_guard guard(streams().lock);
        auto found = streams().all.find(handle);
        if (found == streams().all.end()) return INVALID_HANDLE;
        stream = found->second;
        streams().all.erase(found);
    }
    // Its thread finishes what there is.
    std::lock_guard guard(stream->lock);
    stream->closing = true;
    stream->changed.notify_all();
    return SUCCESS;
}

std::shared_ptr<Stream> stream(void *handle) {
    std::lock_guard guard(streams().lock);
    if (uintptr_t(handle) == 2) {
        auto &own = streams().of_threads[{the_current, std::this_thread::get_id()}];
        if (!own) own = start(the_current, true, false, 0, 0);
        return own;
    }
    if (uintptr_t(handle) <= 1) {
        auto &legacy = streams().legacy[the_current];
        if (!legacy) legacy = start(the_current, false, true, 0, 0);
        return legacy;
    }
    auto found = streams().all.find(handle);
    return found == streams().all.end() ? nullptr : found->second;
}

bool idle(Stream &stream) {
    std::lock_guard guard(stream.lock);
    return stream.done == stream.submitted;
}

Status submit(const std::shared_ptr<Stream> &stream, Work work, bool capturable) {
    if (!stream) return INVALID_HANDLE;
    std::unique_lock guard(captures_lock());
    if (auto graph = stream->graph) {
        if (!capturable) {
            graph->valid = false;
            return CAPTURE_UNSUPPORTED;
        }
        if (!graph->valid) return CAPTURE_INVALIDATED;
        graph->works.push_back(std::move(work));
        join(*graph, *stream);
        return SUCCESS;
    }
    guard.unlock();
    enqueue(stream, std::move(work));
    return SUCCESS;
}

Status wait(const std::shared_ptr<Stream> &stream) {
    if (!stream) return INVALID_HANDLE;
    {
        std::lock_guard guard(captures_lock());
        if (stream->graph) {
            stream->graph->valid = false;
            return CAPTURE_UNSUPPORTED;
        }
    }
    // The rules of the legacy stream hold for waiting, too.
    if (stream->legacy) enqueue(stream, [] {});
    std::unique_lock guard(stream->lock);
    uint64_t place = stream->submitted;
    stream->changed.wait(guard, [&] { return stream->done >= place; });
    guard.unlock();
    return broken(of(*stream));
}

void drain(Device *device) {
    std::vector<std::shared_ptr<Stream>> all;
    {
        std::lock_guard guard(streams().lock);
        for (auto &[handle, stream] : streams().all) all.push_back(stream);
        for (auto &[context, stream] : streams().legacy) all.push_back(stream);
        for (auto &[thread, stream] : streams().of_threads) all.push_back(stream);
    }
    for (auto &stream : all) {
        if (of(*stream) != device) continue;
        std::unique_lock guard(stream->lock);
        uint64_t place = stream->submitted;
        stream->changed.wait(guard, [&] { return stream->done >= place; });
    }
}

bool captured(const std::shared_ptr<Stream> &stream) {
    std::lock_guard guard(captures_lock());
    return stream && stream->graph;
}

void dawdle(bool likely) {
    if (!settings().seed) return;
    uint64_t number = random_number();
    if (number % 4 < (likely ? 3u : 1u)) usleep((number >> 8) % 200);
    if (number % 251 == 0) usleep(2000);
}

Status unless_capturing() {
    std::lock_guard guard(captures_lock());
    for (Graph *graph : captures()) {
        bool own = graph->thread == std::this_thread::get_id();
        bool forbids = own ? graph->mode != CAPTURE_RELAXED && the_mode != CAPTURE_RELAXED
                           : graph->mode == CAPTURE_GLOBAL && the_mode == CAPTURE_GLOBAL;
        if (!forbids) continue;
        say("a call that may not be made while a stream is captured");
        graph->valid = false;
        return CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

Status record(const std::shared_ptr<Event> &event, const std::shared_ptr<Stream> &stream) {
    if (!event || !stream) return INVALID_HANDLE;
    if (event->context != stream->context) return INVALID_HANDLE;
    std::unique_lock captures_guard(captures_lock());
    std::unique_lock guard(event->lock);
    if (auto graph = stream->graph) {
        if (!graph->valid) return CAPTURE_INVALIDATED;
        event->mark = nullptr;
        event->graph = graph;
        event->by = stream.get();
        event->after = graph->did[stream.get()];
        return SUCCESS;
    }
    captures_guard.unlock();
    event->graph = nullptr;
    auto mark = event->mark = std::make_shared<Mark>();
    guard.unlock();
    enqueue(stream, [mark] {
        std::lock_guard guard(mark->lock);
        mark->done = true;
        mark->when = Clock::now();
        mark->changed.notify_all();
    });
    return SUCCESS;
}

namespace {

// Ends even where the device broke, and the mark is never set: whoever waits is told afterwards.
void pass(Mark &mark, Device *device) {
    std::unique_lock guard(mark.lock);
    while (!mark.done && !broken(device)) mark.changed.wait_for(guard, std::chrono::milliseconds(5));
}

} // namespace

Status await(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event) {
    if (!event || !stream) return INVALID_HANDLE;
    std::unique_lock captures_guard(captures_lock());
    std::unique_lock guard(event->lock);
    if (auto graph = event->graph) {
        if (!graph->open || (stream->graph && stream->graph != graph)) {
            if (stream->graph) stream->graph->valid = false;
            return CAPTURE_ISOLATION;
        }
        if (!graph->valid) return CAPTURE_INVALIDATED;
        if (event->by != stream.get() && event->after == graph->did[event->by])
            graph->unjoined.erase(event->by);
        stream->graph = graph;
        join(*graph, *stream);
        return SUCCESS;
    }
    auto mark = event->mark;
    if (!mark) return SUCCESS;
    if (stream->graph) {
        say("a captured stream waits for an event from outside");
        stream->graph->valid = false;
        return CAPTURE_ISOLATION;
    }
    captures_guard.unlock();
    guard.unlock();
    Device *recorded_on = event->context->device;
    enqueue(stream, [mark, recorded_on] { pass(*mark, recorded_on); });
    return SUCCESS;
}

Status synchronize(const std::shared_ptr<Event> &event) {
    if (!event) return INVALID_HANDLE;
    std::unique_lock guard(event->lock);
    if (event->graph) return CAPTURED_EVENT;
    auto mark = event->mark;
    guard.unlock();
    if (mark) pass(*mark, event->context->device);
    return broken(event->context->device);
}

Status query(const std::shared_ptr<Event> &event) {
    if (!event) return INVALID_HANDLE;
    std::unique_lock guard(event->lock);
    if (event->graph) return CAPTURED_EVENT;
    auto mark = event->mark;
    guard.unlock();
    if (Status status = broken(event->context->device)) return status;
    if (!mark) return SUCCESS;
    std::lock_guard mark_guard(mark->lock);
    return mark->done ? SUCCESS : NOT_READY;
}

Status begin_capture(const std::shared_ptr<Stream> &stream, bool legacy, int mode) {
    if (!stream) return INVALID_HANDLE;
    if (legacy) return CAPTURE_UNSUPPORTED;
    if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) return INVALID_VALUE;
    std::lock_guard guard(captures_lock());
    if (stream->graph) return ILLEGAL_STATE;
    auto graph = std::make_shared<Graph>();
    graph->origin = stream.get();
    graph->mode = mode;
    graph->thread = std::this_thread::get_id();
    stream->graph = graph;
    captures().insert(graph.get());
    return SUCCESS;
}

Status end_capture(const std::shared_ptr<Stream> &stream, std::shared_ptr<Graph> *ended) {
    if (!stream) return INVALID_HANDLE;
    std::lock_guard guard(captures_lock());
    auto graph = stream->graph;
    if (!graph) return ILLEGAL_STATE;
    if (graph->origin != stream.get()) return CAPTURE_UNMATCHED;
    if (graph->mode != CAPTURE_RELAXED && graph->thread != std::this_thread::get_id())
        return CAPTURE_WRONG_THREAD;
    graph->open = false;
    captures().erase(graph.get());
    {
        std::lock_guard streams_guard(streams().lock);
        for (auto &[handle, other] : streams().all)
            if (other->graph == graph) other->graph = nullptr;
        for (auto &[thread, other] : streams().of_threads)
            if (other->graph == graph) other->graph = nullptr;
    }
    stream->graph = nullptr;
    if (!graph->valid) return CAPTURE_INVALIDATED;
    if (!graph->unjoined.empty()) return CAPTURE_UNJOINED;
    *ended = graph;
    return SUCCESS;
}

int exchange_mode(int mode) {
    std::swap(mode, the_mode);
    return mode;
}

Status launch(const std::shared_ptr<Executable> &executable, const std::shared_ptr<Stream> &stream) {
    if (!executable || !stream) return INVALID_HANDLE;
    if (executable->device != of(*stream)) return INVALID_VALUE;
    if (captured(stream)) say("a graph in a graph is nothing that the emulator does");
    return submit(
        stream,
        [executable] {
            for (const Work &work : executable->works)
                if (!broken(executable->device)) work();
        },
        false);
}

} // namespace emulator
