#include "memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "interface.h"
#include "trace.h"

namespace twin {
namespace {

struct Allocation {
    char *start, *mapped;
    size_t bytes, mapped_bytes;
    bool live;
};

constexpr size_t page = 4096, alignment = 16, kept_after_free = 4096;

std::recursive_mutex lock;
std::map<uintptr_t, Allocation> allocations;  // by start
std::deque<uintptr_t> freed;
uint64_t used, peak;
struct sigaction earlier;

uint64_t device_bytes() {
    static const char *given = std::getenv("RLVR_TWIN_MEMORY_MB");
    static const uint64_t bytes = (given ? std::strtoull(given, nullptr, 10) : 8192) << 20;
    return bytes;
}

// The allocation that `address` is in, or in whose guard pages it lies.
const Allocation *around(uintptr_t address) {
    auto next = allocations.upper_bound(address + 2 * page);
    while (next != allocations.begin()) {
        const Allocation &a = (--next)->second;
        const auto from = uintptr_t(a.mapped);
        if (address >= from && address < from + a.mapped_bytes) return &a;
        if (from + a.mapped_bytes <= address) return nullptr;
    }
    return nullptr;
}

void on_fault(int signal, siginfo_t *info, void *context) {
    const auto address = uintptr_t(info->si_addr);
    if (const Allocation *a = around(address)) {
        char place[256] = "";
        running_place(place, sizeof place);
        stop("%s%stouched byte %td of an allocation of %zu bytes%s", place, place[0] ? " " : "the host ",
             (char *)address - a->start, a->bytes, a->live ? "" : ", which is freed");
    }
    sigaction(signal, &earlier, nullptr);  // not ours: the fault comes again, to whom it belongs
    (void)context;
}

void catch_faults() {
    static const bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &earlier);
        return true;
    }();
    (void)once;
}

}  // namespace

void stop(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[1024];
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char line[1100];
    const int length = std::snprintf(line, sizeof line, "rlvr twin: %s\n", text);
    if (write(2, line, length) < 0) {}
    std::abort();
}

void *allocate(size_t bytes) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    catch_faults();
    if (used + bytes > device_bytes()) return nullptr;
    trace("allocate", bytes);
    const size_t inner = (bytes + page - 1) / page * page, all = inner + 2 * page;
    char *mapped = (char *)mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped + page, inner, PROT_READ | PROT_WRITE)) return nullptr;
    char *start = mapped + page + (inner - bytes) / alignment * alignment;
    if (!dry()) std::memset(mapped + page, 0xff, inner);
    allocations[uintptr_t(start)] = {start, mapped, bytes, all, true};
    used += bytes;
    peak = peak > used ? peak : used;
    return start;
}

bool release(void *start) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    const auto found = allocations.find(uintptr_t(start));
    if (found == allocations.end() || !found->second.live) return false;
    Allocation &a = found->second;
    trace("free", a.bytes);
    // What lies between an allocation and the edges of its pages is as it was filled.
    for (const char *c = a.mapped + page; !dry() && c < a.mapped + a.mapped_bytes - page; c++) {
        if (c == a.start) c += a.bytes;
        if (c < a.mapped + a.mapped_bytes - page && *c != char(0xff))
            stop("something wrote byte %td of an allocation of %zu bytes; seen when it was freed", c - a.start, a.bytes);
    }
    a.live = false;
    used -= a.bytes;
    madvise(a.mapped + page, a.mapped_bytes - 2 * page, MADV_DONTNEED);
    mprotect(a.mapped + page, a.mapped_bytes - 2 * page, PROT_NONE);
    freed.push_back(found->first);
    while (freed.size() > kept_after_free) {
        const auto oldest = allocations.find(freed.front());
        munmap(oldest->second.mapped, oldest->second.mapped_bytes);
        allocations.erase(oldest);
        freed.pop_front();
    }
    return true;
}

bool inside(const void *start, size_t bytes) {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    auto next = allocations.upper_bound(uintptr_t(start));
    if (next == allocations.begin()) return false;
    const Allocation &a = (--next)->second;
    const size_t offset = (const char *)start - a.start;
    return a.live && offset <= a.bytes && bytes <= a.bytes - offset;
}

void need(const void *start, size_t bytes, const char *who, const char *what) {
    if (inside(start, bytes)) return;
    const std::lock_guard<std::recursive_mutex> guard(lock);
    if (const Allocation *a = around(uintptr_t(start)))
        stop("%s: %s: bytes %td to %td of an allocation of %zu bytes%s", who, what, (const char *)start - a->start,
             (const char *)start - a->start + bytes, a->bytes, a->live ? "" : ", which is freed");
    stop("%s: %s: %p is no device memory", who, what, start);
}

size_t left_of(const void *start) {
    if (!start) return 0;
    const std::lock_guard<std::recursive_mutex> guard(lock);
    const Allocation *a = around(uintptr_t(start));
    return a ? a->start + a->bytes - (const char *)start : 0;
}

Usage usage() {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    return {used, peak, device_bytes()};
}

void forget_peak() {
    const std::lock_guard<std::recursive_mutex> guard(lock);
    peak = used;
}

}  // namespace twin
