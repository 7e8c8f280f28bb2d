#include "trace.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "memory.h"

namespace twin {
namespace {

std::mutex writing;

FILE *file() {
    static FILE *const opened = [] {
        const char *path = std::getenv("RLVR_TWIN_TRACE");
        FILE *made = path ? std::fopen(path, "w") : nullptr;
        if (path && !made) stop("RLVR_TWIN_TRACE: %s cannot be written", path);
        return made;
    }();
    return opened;
}

void line(const std::string &text) {
    const std::lock_guard<std::mutex> guard(writing);
    std::fprintf(file(), "%s\n", text.c_str());
}

}  // namespace

bool dry() {
    static const bool set = std::getenv("RLVR_TWIN_DRY") != nullptr;
    return set;
}

void trace_launch(const Kernel &kernel, void **arguments, Dim grid, Dim block, size_t shared_bytes) {
    if (!file()) return;
    std::string pointers, numbers;
    for (unsigned i = 0; i < kernel.parameters; i++) {
        uint64_t value = 0;
        std::memcpy(&value, arguments[i], kernel.sizes[i] < 8 ? kernel.sizes[i] : 8);
        std::string &list = kernel.pointers[i] ? pointers : numbers;
        if (!list.empty()) list += ',';
        list += std::to_string(kernel.pointers[i] ? left_of((void *)value) : value);
    }
    char head[256];
    std::snprintf(head, sizeof head, "{\"launch\":\"%s\",\"grid\":[%u,%u,%u],\"threads\":%u,\"shared\":%zu,", kernel.name, grid.x, grid.y,
                  grid.z, block.x * block.y * block.z, shared_bytes);
    line(head + ("\"pointers\":[" + pointers) + "],\"numbers\":[" + numbers + "]}");
}

void trace_product(const char *library, int m, int n, int k, int count, size_t operand, size_t result, bool adds, bool transposed_a, bool transposed_b) {
    if (!file()) return;
    char text[256];
    std::snprintf(text, sizeof text,
                  "{\"product\":[%d,%d,%d],\"count\":%d,\"bytes\":[%zu,%zu],\"adds\":%s,\"transposed\":[%d,%d],\"library\":\"%s\"}", m, n, k,
                  count, operand, result, adds ? "true" : "false", transposed_a, transposed_b, library);
    line(text);
}

void trace(const char *what, size_t bytes) {
    if (!file()) return;
    line("{\"" + std::string(what) + "\":" + std::to_string(bytes) + "}");
}

}  // namespace twin
