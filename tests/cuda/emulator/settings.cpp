// Settings, faults and counts.
#include "emulator.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

namespace emulator {

namespace {

long long number(const char *name, long long otherwise) {
    const char *text = getenv(name);
    if (!text || !*text) return otherwise;
    char *end;
    long long value = strtoll(text, &end, 10);
    if (*end || value < 0) {
        // A test that sets nonsense must not pass.
        fprintf(stderr, "emulator: %s is no number: %s\n", name, text);
        abort();
    }
    return value;
}

struct Fault {
    Kind kind;
    long long nth;
    int device; // -1: any
    std::atomic<long long> seen{0};
    Fault(Kind kind, long long nth, int device) : kind(kind), nth(nth), device(device) {}
};

const char *const names[] = {"launch", "copy", "alloc"};

std::vector<Fault *> faults() {
    std::vector<Fault *> found;
    const char *text = getenv("HAUL_EMULATED_FAULT");
    std::string rest = text ? text : "";
    while (!rest.empty()) {
        size_t comma = rest.find(',');
        std::string one = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        char kind[16];
        long long nth;
        int device = -1, length = -1;
        if (sscanf(one.c_str(), "%15[a-z]:%lld%n", kind, &nth, &length) == 2) {
            const char *tail = one.c_str() + length;
            int at = -1;
            if (sscanf(tail, "@%d%n", &device, &at) == 1) tail += at;
            int which = 0;
            while (which < 3 && strcmp(names[which], kind)) which++;
            if (which < 3 && nth > 0 && !*tail) {
                found.push_back(new Fault(Kind(which), nth, device));
                continue;
            }
        }
        fprintf(stderr, "emulator: HAUL_EMULATED_FAULT is no fault: %s\n", one.c_str());
        abort();
    }
    return found;
}

std::atomic<long long> counts[3];

void report() {
    const char *path = getenv("HAUL_EMULATED_REPORT");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    size_t peak = 0;
    for (int n = 0; n < settings().gpus; n++) {
        std::lock_guard guard(device(n)->lock);
        if (device(n)->peak > peak) peak = device(n)->peak;
    }
    fprintf(file, "launches=%lld copies=%lld allocations=%lld peak=%zu\n", counts[0].load(),
            counts[1].load(), counts[2].load(), peak);
    fclose(file);
}

} // namespace

// Nothing here is ever destroyed: streams may run while the process ends.
const Settings &settings() {
    static const Settings *const all = [] {
        atexit(report);
        return new Settings{
            .gpus = int(number("HAUL_EMULATED_GPUS", 1)),
            .memory = size_t(number("HAUL_EMULATED_MEMORY", 4ll << 30)),
            .driver = int(number("HAUL_EMULATED_DRIVER", 13000)),
            .cudnn = int(number("HAUL_EMULATED_CUDNN", 1)),
            .position = number("HAUL_EMULATED_POSITION", 0) != 0,
            .seed = uint64_t(number("HAUL_EMULATED_SEED", 1)),
        };
    }();
    return *all;
}

void say(const std::string &text) {
    static std::mutex *const lock = new std::mutex;
    static std::set<std::string> *const said = new std::set<std::string>;
    std::lock_guard guard(*lock);
    if (said->insert(text).second) fprintf(stderr, "emulator: %s\n", text.c_str());
}

bool fails(Kind kind, int device) {
    static std::vector<Fault *> *const all = new std::vector<Fault *>(faults());
    counts[int(kind)]++;
    bool now = false;
    for (Fault *fault : *all)
        if (fault->kind == kind && (fault->device < 0 || fault->device == device))
            now |= ++fault->seen == fault->nth;
    if (now) say(std::string("a fault that was asked for: ") + names[int(kind)]);
    return now;
}

Device *device(int number) {
    static Device *const all = [] {
        Device *devices = new Device[settings().gpus ? settings().gpus : 1];
        for (int n = 0; n < settings().gpus; n++) devices[n].number = n;
        return devices;
    }();
    return number >= 0 && number < settings().gpus ? &all[number] : nullptr;
}

Status broken(Device *device) {
    std::lock_guard guard(device->lock);
    return device->broken;
}

void breaks(Device *device, const std::string &why) {
    say("device " + std::to_string(device->number) + ": " + why);
    std::lock_guard guard(device->lock);
    device->broken = ILLEGAL_ADDRESS;
}

} // namespace emulator
