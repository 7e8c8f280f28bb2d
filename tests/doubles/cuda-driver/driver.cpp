// A twin of libcuda.so.1 for machines without a GPU: device memory is host memory, kernels run on the CPU.
//
// What the program calls through cudarc is here, with the driver's signatures and statuses (CUDA 13 driver API
// reference); every call is done when it returns. It is strict where a driver may be lenient or silent: what would
// be undefined on a device ends the program with a message.
#include <dirent.h>
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "interface.h"
#include "memory.h"
#include "trace.h"

namespace {

using twin::need;
using twin::stop;

// CUresult
enum Status { success = 0, invalid_value = 1, out_of_memory = 2, invalid_device = 101, invalid_image = 200, invalid_context = 201, ecc_uncorrectable = 214, not_found = 500, not_supported = 801 };
using Handle = void *;
using Address = unsigned long long;

constexpr int multiprocessors = 6;  // no power of two, so that shares come out uneven
constexpr size_t shared_by_default = 48 << 10, shared_at_most = 227 << 10;
const char device_name[] = "rlvr CPU twin of the CUDA driver (not a GPU)";

struct Function {
    const twin::Kernel *kernel;
    const twin::Kernels *library;
    size_t shared_bytes = shared_by_default;
};

struct Event {
    std::chrono::steady_clock::time_point at;
    bool recorded = false, timed = true;
};

char context_marks[64], pool_mark;  // their addresses are handles
thread_local Handle current_context;
std::mutex launching;  // the kernels' fibers are one set
const Function *running;

// As many as a host's ranks, of which each takes one; RLVR_TWIN_DEVICES=N: so many.
int devices() {
    static const int count = [] {
        const char *text = std::getenv("RLVR_TWIN_DEVICES");
        if (!text) text = std::getenv("LOCAL_WORLD_SIZE");
        const int asked = text ? std::atoi(text) : 1;
        if (asked < 1 || asked > int(sizeof context_marks)) stop("%s devices cannot be", text);
        return asked;
    }();
    return count;
}

std::string own_folder() {
    Dl_info info;
    if (!dladdr((void *)own_folder, &info)) stop("cannot tell where its library is");
    const std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/') + 1);
}

// Every kernel of every library in kernels/ beside this one, by name.
std::map<std::string, Function> load_functions() {
    std::map<std::string, Function> functions;
    const std::string folder = own_folder() + "kernels/";
    DIR *listing = opendir(folder.c_str());
    if (!listing) stop("no folder %s: build it with tests/doubles/cuda-driver/twin.sh", folder.c_str());
    while (const dirent *entry = readdir(listing)) {
        const std::string name = entry->d_name;
        if (name.size() < 3 || name.substr(name.size() - 3) != ".so") continue;
        void *library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) stop("%s: %s", name.c_str(), dlerror());
        const auto *kernels = (const twin::Kernels *)dlsym(library, RLVR_TWIN_KERNELS);
        if (!kernels) stop("%s lists no kernels", name.c_str());
        for (size_t i = 0; i < kernels->count; i++) {
            const twin::Kernel *kernel = kernels->first + i;
            if (!functions.emplace(kernel->name, Function{kernel, kernels}).second) stop("two kernel files have a kernel %s", kernel->name);
        }
    }
    closedir(listing);
    return functions;
}

std::map<std::string, Function> &functions() {
    static std::map<std::string, Function> all = load_functions();
    return all;
}

}  // namespace

void twin::running_place(char *text, size_t size) {
    if (!running) return;
    Dim block;
    size_t thread;
    running->library->where(block, thread);
    std::snprintf(text, size, "%s, block (%u, %u, %u), thread %zu,", running->kernel->name, block.x, block.y, block.z, thread);
}

// Devices and contexts.

TWIN_EXPORT int cuInit(unsigned) {
    static const bool said = [] {
        std::fprintf(stderr, "rlvr twin: no GPU is used: kernels run on the CPU, for tests; times mean nothing\n");
        // The shim ends the program from inside a kernel; this tells which one.
        return std::atexit([] { if (running) std::fprintf(stderr, "rlvr twin: that was in %s\n", running->kernel->name); }) == 0;
    }();
    return said ? success : not_supported;
}
TWIN_EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, success; }
TWIN_EXPORT int cuDeviceGetCount(int *count) { return *count = devices(), success; }
TWIN_EXPORT int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal >= 0 && ordinal < devices() ? success : invalid_device; }
TWIN_EXPORT int cuDeviceGetName(char *name, int size, int) { return std::snprintf(name, size, "%s", device_name), success; }
TWIN_EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = twin::usage().total, success; }
TWIN_EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 1: return *value = 1024, success;                  // threads a block
        case 8: return *value = shared_by_default, success;     // shared memory a block
        case 10: return *value = 32, success;                   // warp size
        case 16: return *value = twin::dry() ? 132 : multiprocessors, success;  // traced as for an H100
        case 33: return *value = device + 1, success;           // PCI bus
        case 34: case 50: return *value = 0, success;           // and slot, and domain
        case 75: return *value = 9, success;                    // compute capability, major
        case 76: return *value = 0, success;                    // and minor
        case 97: return *value = shared_at_most, success;       // shared memory a block, when asked for
        case 115: return *value = 1, success;                   // memory pools
    }
    stop("cuDeviceGetAttribute: attribute %d is not known to the twin; add it to tests/doubles/cuda-driver/driver.cpp", attribute);
}
TWIN_EXPORT int cuDevicePrimaryCtxRetain(Handle *context, int device) { return *context = context_marks + device, success; }
TWIN_EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return success; }
TWIN_EXPORT int cuCtxGetCurrent(Handle *context) { return *context = current_context, success; }
TWIN_EXPORT int cuCtxSetCurrent(Handle context) { return current_context = context, success; }
TWIN_EXPORT int cuCtxGetDevice(int *device) {
    if (!current_context) return invalid_context;
    return *device = int((char *)current_context - context_marks), success;
}
TWIN_EXPORT int cuCtxSynchronize() { return success; }

// Streams and events: everything is done at once, so a stream is only a handle.

TWIN_EXPORT int cuStreamCreate(Handle *stream, unsigned) { return *stream = new char, success; }
TWIN_EXPORT int cuStreamDestroy_v2(Handle stream) { return delete (char *)stream, success; }
TWIN_EXPORT int cuStreamSynchronize(Handle) { return twin::trace("wait", 0), success; }
TWIN_EXPORT int cuStreamWaitEvent(Handle, Handle, unsigned) { return success; }
TWIN_EXPORT int cuStreamIsCapturing(Handle, int *status) { return *status = 0, success; }
TWIN_EXPORT int cuEventCreate(Handle *event, unsigned flags) {
    auto *made = new Event;
    made->timed = !(flags & 2);
    return *event = made, success;
}
TWIN_EXPORT int cuEventDestroy_v2(Handle event) { return delete (Event *)event, success; }
TWIN_EXPORT int cuEventRecord(Handle event, Handle) {
    auto *e = (Event *)event;
    e->at = std::chrono::steady_clock::now();
    return e->recorded = true, success;
}
TWIN_EXPORT int cuEventSynchronize(Handle) { return success; }
TWIN_EXPORT int cuEventQuery(Handle) { return success; }
TWIN_EXPORT int cuEventElapsedTime_v2(float *milliseconds, Handle start, Handle end) {
    const auto *from = (Event *)start, *to = (Event *)end;
    if (!from->recorded || !to->recorded || !from->timed || !to->timed) return 400;  // CUDA_ERROR_INVALID_HANDLE
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return success;
}

// Memory.

TWIN_EXPORT int cuMemAlloc_v2(Address *address, size_t bytes) {
    if (bytes == 0) return invalid_value;
    *address = (Address)twin::allocate(bytes);
    return *address ? success : out_of_memory;
}
TWIN_EXPORT int cuMemAllocAsync(Address *address, size_t bytes, Handle) { return cuMemAlloc_v2(address, bytes); }
TWIN_EXPORT int cuMemFree_v2(Address address) {
    if (address && !twin::release((void *)address)) stop("cuMemFree: %p is not the start of a live allocation", (void *)address);
    return success;
}
TWIN_EXPORT int cuMemFreeAsync(Address address, Handle) { return cuMemFree_v2(address); }
TWIN_EXPORT int cuMemGetInfo_v2(size_t *free, size_t *total) {
    const auto usage = twin::usage();
    return *free = usage.total - usage.now, *total = usage.total, success;
}
TWIN_EXPORT int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle) {
    need((void *)to, bytes, "copy to the device", "destination");
    if (twin::inside(from, 1)) stop("copy to the device: the source is device memory");
    twin::trace("to_device", bytes);
    return std::memcpy((void *)to, from, bytes), success;
}
TWIN_EXPORT int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Handle) {
    need((void *)from, bytes, "copy to the host", "source");
    if (twin::inside(to, 1)) stop("copy to the host: the destination is device memory");
    twin::trace("to_host", bytes);
    return std::memcpy(to, (void *)from, bytes), success;
}
TWIN_EXPORT int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle) {
    need((void *)from, bytes, "copy on the device", "source");
    need((void *)to, bytes, "copy on the device", "destination");
    if (to < from + bytes && from < to + bytes) stop("copy on the device: source and destination overlap");
    twin::trace("on_device", bytes);
    if (!twin::dry()) std::memcpy((void *)to, (void *)from, bytes);
    return success;
}
TWIN_EXPORT int cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr); }
TWIN_EXPORT int cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr); }
TWIN_EXPORT int cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
TWIN_EXPORT int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle) {
    need((void *)to, bytes, "filling device memory", "destination");
    twin::trace("fill", bytes);
    if (!twin::dry()) std::memset((void *)to, value, bytes);
    return success;
}
TWIN_EXPORT int cuMemsetD8_v2(Address to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }
TWIN_EXPORT int cuMemHostAlloc(void **start, size_t bytes, unsigned) { return *start = std::malloc(bytes), *start ? success : out_of_memory; }
TWIN_EXPORT int cuMemFreeHost(void *start) { return std::free(start), success; }
TWIN_EXPORT int cuDeviceGetDefaultMemPool(Handle *pool, int) { return *pool = &pool_mark, success; }
TWIN_EXPORT int cuDeviceGetMemPool(Handle *pool, int) { return *pool = &pool_mark, success; }
TWIN_EXPORT int cuMemPoolTrimTo(Handle, size_t) { return success; }
TWIN_EXPORT int cuMemPoolSetAttribute(Handle, int attribute, void *value) {
    if ((attribute == 6 || attribute == 8) && *(uint64_t *)value != 0) return invalid_value;  // the peaks
    if (attribute == 6 || attribute == 8) twin::forget_peak();
    return attribute >= 1 && attribute <= 8 && attribute != 5 && attribute != 7 ? success : invalid_value;
}
TWIN_EXPORT int cuMemPoolGetAttribute(Handle, int attribute, void *value) {
    const auto usage = twin::usage();
    switch (attribute) {
        case 5: case 7: return std::memcpy(value, &usage.now, 8), success;
        case 6: case 8: return std::memcpy(value, &usage.peak, 8), success;
    }
    return invalid_value;
}

// Modules and kernels. The machine code is not looked at: kernels are found by name.

TWIN_EXPORT int cuModuleLoadData(Handle *module, const void *image) {
    uint32_t magic;
    std::memcpy(&magic, image, sizeof magic);
    const bool compiled = magic == 0xba55ed50 || !std::memcmp(image, "\177ELF", 4);
    if (!compiled) stop("a module of PTX text: a kernel of candle's is to run on the device; the twin has rlvr's only. Use an op of src/ops");
    return *module = new char, success;
}
TWIN_EXPORT int cuModuleUnload(Handle module) { return delete (char *)module, success; }
TWIN_EXPORT int cuModuleGetFunction(Handle *function, Handle, const char *name) {
    const auto found = functions().find(name);
    if (found == functions().end()) stop("no kernel is named %s; build the twin again if kernels/ has changed", name);
    return *function = &found->second, success;
}
TWIN_EXPORT int cuFuncGetParamInfo(Handle function, size_t index, size_t *offset, size_t *size) {
    const twin::Kernel *kernel = ((Function *)function)->kernel;
    if (index >= kernel->parameters) return invalid_value;
    *offset = 0;
    for (size_t i = 0; i < index; i++) *offset = (*offset + kernel->sizes[i] + kernel->sizes[i + 1] - 1) / kernel->sizes[i + 1] * kernel->sizes[i + 1];
    return *size = kernel->sizes[index], success;
}
TWIN_EXPORT int cuFuncSetAttribute(Handle function, int attribute, int value) {
    if (attribute == 8) {  // dynamic shared memory
        if (value < 0 || size_t(value) > shared_at_most) return invalid_value;
        ((Function *)function)->shared_bytes = value;
    }
    return success;
}
TWIN_EXPORT int cuFuncGetAttribute(int *value, int attribute, Handle function) {
    switch (attribute) {
        case 0: return *value = 1024, success;  // threads a block
        case 8: return *value = ((Function *)function)->shared_bytes, success;
    }
    return *value = 0, success;
}
// RLVR_TWIN_LOST=N: launch N, from 1, and all after it fail as on a GPU whose memory has an error that ECC cannot correct.
bool is_lost() {
    static const char *const text = std::getenv("RLVR_TWIN_LOST");
    static const unsigned long long at = text ? std::strtoull(text, nullptr, 10) : 0;
    static unsigned long long launches = 0;
    return at && ++launches >= at;
}
TWIN_EXPORT int cuLaunchKernel(Handle handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                               unsigned block_z, unsigned shared_bytes, Handle, void **arguments, void **) {
    const auto *function = (Function *)handle;
    const twin::Kernel *kernel = function->kernel;
    const uint64_t threads = uint64_t(block_x) * block_y * block_z;
    const bool grid_fits = grid_x && grid_x < 1u << 31 && grid_y && grid_y < 1 << 16 && grid_z && grid_z < 1 << 16;
    if (!grid_fits || !threads || threads > 1024 || shared_bytes > function->shared_bytes) return invalid_value;
    const std::lock_guard<std::mutex> guard(launching);
    if (is_lost()) return ecc_uncorrectable;
    for (unsigned i = 0; i < kernel->parameters; i++) {
        char *pointer;
        if (!kernel->pointers[i]) continue;
        std::memcpy(&pointer, arguments[i], sizeof pointer);
        char what[32];
        std::snprintf(what, sizeof what, "argument %u", i);
        if (pointer) need(pointer, 0, kernel->name, what);
    }
    twin::trace_launch(*kernel, arguments, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes);
    if (twin::dry()) return success;
    running = function;
    kernel->run(kernel->function, arguments, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes);
    running = nullptr;
    return success;
}

// Messages.

TWIN_EXPORT int cuGetErrorName(int status, const char **name) {
    switch (status) {
        case success: return *name = "CUDA_SUCCESS", success;
        case invalid_value: return *name = "CUDA_ERROR_INVALID_VALUE", success;
        case out_of_memory: return *name = "CUDA_ERROR_OUT_OF_MEMORY", success;
        case invalid_device: return *name = "CUDA_ERROR_INVALID_DEVICE", success;
        case ecc_uncorrectable: return *name = "CUDA_ERROR_ECC_UNCORRECTABLE", success;
    }
    return *name = nullptr, invalid_value;
}
TWIN_EXPORT int cuGetErrorString(int status, const char **text) {
    switch (status) {
        case success: return *text = "no error", success;
        case invalid_value: return *text = "invalid argument", success;
        case out_of_memory: return *text = "out of memory", success;
        case invalid_device: return *text = "invalid device ordinal", success;
        case ecc_uncorrectable: return *text = "uncorrectable ECC error encountered", success;
    }
    return *text = nullptr, invalid_value;
}
