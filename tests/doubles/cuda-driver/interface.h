// Between the twin of the driver and the kernels compiled for it: one shared library a kernel file.
#pragma once
#include <cstddef>

namespace twin {

struct Dim {
    unsigned x, y, z;
};

struct Kernel {
    const char *name;
    unsigned parameters;
    const size_t *sizes;    // bytes of each parameter
    const bool *pointers;   // whether it is one
    void (*function)();
    void (*run)(void (*function)(), void **arguments, Dim grid, Dim block, size_t shared_bytes);
};

struct Kernels {
    const Kernel *first;
    size_t count;
    // The block and thread that runs now, for messages.
    void (*where)(Dim &block, size_t &thread);
};

}  // namespace twin

// Each library of kernels exports it under this name.
#define RLVR_TWIN_KERNELS "rlvr_twin_kernels"
