// "Device memory" of the twin: every allocation lies between pages that nothing may touch, its end at their edge.
//
// Fresh memory is filled with NaN; freed memory stays forbidden until many others have been freed. So a kernel or a
// copy that leaves its allocation, or comes back to a freed one, ends the program with a message that names it.
#pragma once
#include <cstddef>
#include <cstdint>

#define TWIN_EXPORT extern "C" __attribute__((visibility("default")))

namespace twin {

// Ends the program with "rlvr twin: ...".
[[noreturn]] __attribute__((format(printf, 1, 2))) void stop(const char *format, ...);

// Null when `bytes` more do not fit into the device.
void *allocate(size_t bytes);
// False for what is no live allocation's start.
bool release(void *start);
// Whether [start, start + bytes) is inside one live allocation; its end counts as inside where bytes is 0.
bool inside(const void *start, size_t bytes);
// Stops unless it is.
void need(const void *start, size_t bytes, const char *who, const char *what);
// Bytes from `start` to the end of the live allocation that it is in; 0 for null.
size_t left_of(const void *start);

struct Usage {
    uint64_t now, peak, total;
};
Usage usage();
void forget_peak();

// The kernel, block and thread that run now, into `text`; nothing where none does.
void running_place(char *text, size_t size);

}  // namespace twin
