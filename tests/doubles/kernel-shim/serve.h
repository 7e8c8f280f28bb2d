// A program that runs one kernel launch on the CPU: the launch comes on standard input, what the kernel
// left in its arrays goes to standard output.
//
//   in:  u32 name length, name; u32 grid x, y, z; u32 block x, y, z; u32 bytes
//       of dynamic shared memory; then each argument of the kernel:
//        for a pointer u64 byte count and the bytes (count 2^64 - 1: a null pointer); else the value's bytes
//   out: the bytes of each array, in the order of the arguments
// A write past either end of an array ends the program with a message.
#pragma once
#include <list>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda_on_cpu.h"

namespace on_cpu {

inline void read(void *to, size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, stdin) != bytes) {
        std::fprintf(stderr, "standard input ended early\n");
        std::exit(2);
    }
}
template <class T>
T read() {
    T value;
    read(&value, sizeof value);
    return value;
}

// An array of the kernel with a margin on both sides that nothing may touch.
struct Array {
    static constexpr size_t margin = 256;
    std::vector<char> bytes;
    char *start = nullptr;
    size_t count = 0;

    explicit Array(uint64_t n) {
        if (n == UINT64_MAX) return;
        count = n;
        bytes.assign(count + 3 * margin, char(0xa5));
        start = bytes.data() + margin + (margin - (uintptr_t)(bytes.data()) % margin) % margin;
        read(start, count);
    }
    bool margins_touched() const {
        const auto clean = [](char c) { return c == char(0xa5); };
        return start && !(std::all_of(bytes.data(), (const char *)start, clean) && std::all_of((const char *)start + count, bytes.data() + bytes.size(), clean));
    }
};

inline std::list<Array> arrays;

template <class T>
T argument() {
    if constexpr (std::is_pointer_v<T>) {
        arrays.emplace_back(read<uint64_t>());
        return reinterpret_cast<T>(arrays.back().start);
    } else {
        return read<T>();
    }
}

struct Entry {
    std::string name;
    std::function<void(Index, Index, size_t)> run;
};

template <class... A>
Entry entry(const char *name, void (*function)(A...)) {
    return {name, [function](Index grid, Index block, size_t shared_bytes) {
                std::tuple<A...> arguments{argument<A>()...};  // braces: left to right
                launch(grid, block, shared_bytes, [&] { std::apply(function, arguments); });
            }};
}

inline int serve(const std::vector<Entry> &entries) {
    std::string name(read<uint32_t>(), ' ');
    read(name.data(), name.size());
    const Index grid = read<Index>(), block = read<Index>();
    const size_t shared_bytes = read<uint32_t>();
    for (const Entry &e : entries) {
        if (e.name != name) continue;
        e.run(grid, block, shared_bytes);
        for (const Array &a : arrays) {
            if (a.margins_touched()) {
                std::fprintf(stderr, "%s wrote outside an array of %zu bytes\n", name.c_str(), a.count);
                return 3;
            }
            if (a.count && std::fwrite(a.start, 1, a.count, stdout) != a.count) return 2;
        }
        return 0;
    }
    std::fprintf(stderr, "no kernel named %s\n", name.c_str());
    return 2;
}

}  // namespace on_cpu
