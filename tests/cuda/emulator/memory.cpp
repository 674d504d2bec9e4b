// Memory of devices, and pinned memory of the host.
#include "emulator.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <map>
#include <new>

namespace emulator {

namespace {

const size_t PAGE = 4096;
// What CUDA aligns to.
const size_t ALIGNED = 512;
// Blocks that stay untouchable after they were freed, so that whoever still uses them is caught.
const size_t KEPT = 256;
const uint8_t GARBAGE = 0xff;

struct Block {
    Device *device; // null: the host's
    size_t bytes;
    size_t room; // bytes, rounded up
    char *region; // with a guard page on either side
    size_t length;
    unsigned flags;
};

struct Memory {
    std::mutex lock;
    std::map<uint64_t, Block> blocks;
    std::deque<std::pair<char *, size_t>> freed;
};

Memory &memory() {
    static Memory *const all = new Memory;
    return *all;
}

size_t up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// The end of a block is as near to the guard page as alignment permits.
bool map(Device *device, size_t bytes, unsigned flags, uint64_t *address) {
    size_t room = up(bytes ? bytes : 1, ALIGNED), pages = up(room, PAGE);
    size_t length = pages + 2 * PAGE;
    void *region = mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) return false;
    char *from = static_cast<char *>(region) + PAGE;
    if (mprotect(from, pages, PROT_READ | PROT_WRITE)) {
        munmap(region, length);
        return false;
    }
    memset(from, GARBAGE, pages);
    char *start = from + (pages - room);
    *address = uint64_t(start);
    std::lock_guard guard(memory().lock);
    memory().blocks[*address] = {device, bytes, room, static_cast<char *>(region), length, flags};
    return true;
}

void unmap(const Block &block) {
    // What is behind the last byte, up to the guard page, is as it was, or somebody wrote there.
    const uint8_t *end = reinterpret_cast<uint8_t *>(block.region) + block.length - PAGE;
    for (const uint8_t *byte = end - (block.room - block.bytes); byte < end; byte++)
        if (*byte != GARBAGE) {
            std::string text = "a block of " + std::to_string(block.bytes) + " bytes was written behind its end";
            block.device ? breaks(block.device, text) : say(text);
            break;
        }
    mprotect(block.region, block.length, PROT_NONE);
    madvise(block.region, block.length, MADV_DONTNEED);
    std::lock_guard guard(memory().lock);
    memory().freed.push_back({block.region, block.length});
    while (memory().freed.size() > KEPT) {
        munmap(memory().freed.front().first, memory().freed.front().second);
        memory().freed.pop_front();
    }
}

bool take(uint64_t address, bool host, Block *block) {
    std::lock_guard guard(memory().lock);
    auto found = memory().blocks.find(address);
    if (found == memory().blocks.end() || (found->second.device == nullptr) != host) return false;
    *block = found->second;
    memory().blocks.erase(found);
    return true;
}

// The block that an address is in.
const Block *find(uint64_t address, uint64_t *start) {
    auto next = memory().blocks.upper_bound(address);
    if (next == memory().blocks.begin()) return nullptr;
    --next;
    *start = next->first;
    const Block &block = next->second;
    return address - next->first <= block.bytes ? &block : nullptr;
}

bool within(uint64_t address, size_t bytes, bool host) {
    std::lock_guard guard(memory().lock);
    uint64_t start;
    const Block *block = find(address, &start);
    return block && (block->device == nullptr) == host && bytes <= block->bytes - (address - start);
}

bool reserve(Device *device, size_t bytes) {
    std::lock_guard guard(device->lock);
    if (bytes > settings().memory - device->used) return false;
    device->used += bytes;
    if (device->used > device->peak) device->peak = device->used;
    return true;
}

void unreserve(Device *device, size_t bytes) {
    std::lock_guard guard(device->lock);
    device->used -= bytes;
}

} // namespace

Status allocate(Device *device, size_t bytes, uint64_t *address) {
    if (fails(Kind::alloc, device->number)) return OUT_OF_MEMORY;
    size_t room = up(bytes ? bytes : 1, ALIGNED);
    if (room < bytes || room > settings().memory) return OUT_OF_MEMORY;
    if (!reserve(device, room)) {
        // What is freed in streams counts once they come to it.
        drain(device);
        if (!reserve(device, room)) return OUT_OF_MEMORY;
    }
    if (map(device, bytes, 0, address)) return SUCCESS;
    unreserve(device, room);
    return OUT_OF_MEMORY;
}

Status release(Device *device, uint64_t address) {
    Block block;
    if (!take(address, false, &block)) {
        breaks(device, "memory is freed that is not there, or was freed before");
        return INVALID_VALUE;
    }
    unmap(block);
    unreserve(block.device, block.room);
    return SUCCESS;
}

size_t release_all(Device *device) {
    size_t count = 0;
    for (;; count++) {
        uint64_t address = 0;
        {
            std::lock_guard guard(memory().lock);
            for (auto &[start, block] : memory().blocks)
                if (block.device == device) address = start;
        }
        if (!address) return count;
        release(device, address);
    }
}

bool is_device(uint64_t address, size_t bytes) { return within(address, bytes, false); }

bool touches_device(const void *address, size_t bytes) {
    uint64_t from = uint64_t(address), start;
    std::lock_guard guard(memory().lock);
    for (uint64_t end : {from, from + (bytes ? bytes - 1 : 0)}) {
        const Block *block = find(end, &start);
        if (block && block->device && end - start < block->bytes) return true;
    }
    return false;
}

Status host_allocate(size_t bytes, unsigned flags, void **address) {
    if (!bytes) return INVALID_VALUE;
    uint64_t at;
    if (!map(nullptr, bytes, flags, &at)) return OUT_OF_MEMORY;
    *address = reinterpret_cast<void *>(at);
    return SUCCESS;
}

Status host_release(void *address) {
    Block block;
    if (!take(uint64_t(address), true, &block)) return INVALID_VALUE;
    unmap(block);
    return SUCCESS;
}

bool is_pinned(const void *address, size_t bytes) { return within(uint64_t(address), bytes, true); }

bool host_flags(const void *address, unsigned *flags) {
    std::lock_guard guard(memory().lock);
    uint64_t start;
    const Block *block = find(uint64_t(address), &start);
    if (!block || block->device) return false;
    *flags = block->flags;
    return true;
}

} // namespace emulator
