// What the program asked of the device, one JSON line a call, in order: RLVR_TWIN_TRACE=FILE.
//
// With RLVR_TWIN_DRY=1 beside it nothing is computed and memory is address space only, so that a step of a model of
// any size is traced in seconds: what the host reads back is zero.
#pragma once
#include <cstddef>

#include "interface.h"

namespace twin {

bool dry();

// {"launch": name, "grid": [x, y, z], "threads": n, "shared": bytes, "pointers": [bytes from each to its allocation's
// end, 0 of a null], "numbers": [the other arguments, floats too by their bits]}
void trace_launch(const Kernel &kernel, void **arguments, Dim grid, Dim block, size_t shared_bytes);
// {"product": [m, n, k], "count": n, "bytes": [an element of a and b, of c], "adds": whether c is read, "transposed":
// [a, b], "library": name}: columns one after the other, as cuBLAS sees it
void trace_product(const char *library, int m, int n, int k, int count, size_t operand, size_t result, bool adds, bool transposed_a, bool transposed_b);
// {"allocate": bytes}, {"free": bytes}, {"to_device": bytes}, {"to_host": bytes}, {"on_device": bytes}, {"fill": bytes}, {"wait": 0}
void trace(const char *what, size_t bytes);

}  // namespace twin
