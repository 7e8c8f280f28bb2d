// Comes after a kernel file compiled for the CPU, and lists its entry points.
#pragma once
#include <tuple>
#include <type_traits>

#include "cuda_on_cpu.h"
#include "interface.h"

namespace twin {

template <class... A>
struct Parameters {
    static constexpr size_t sizes[sizeof...(A) + 1] = {sizeof(A)...};
    static constexpr bool pointers[sizeof...(A) + 1] = {std::is_pointer_v<A>...};

    template <size_t... I>
    static std::tuple<A...> read(void **arguments, std::index_sequence<I...>) {
        return {*static_cast<std::remove_const_t<A> *>(arguments[I])...};
    }
    static void run(void (*function)(), void **arguments, Dim grid, Dim block, size_t shared_bytes) {
        const auto kernel = reinterpret_cast<void (*)(A...)>(function);
        const auto values = read(arguments, std::index_sequence_for<A...>());
        on_cpu::launch({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes, [=] { std::apply(kernel, values); });
    }
};

template <class... A>
Kernel kernel(const char *name, void (*function)(A...)) {
    using P = Parameters<A...>;
    return {name, sizeof...(A), P::sizes, P::pointers, reinterpret_cast<void (*)()>(function), P::run};
}

inline void where(Dim &block, size_t &thread) {
    block = {on_cpu::block_index.x, on_cpu::block_index.y, on_cpu::block_index.z};
    thread = on_cpu::running;
}

}  // namespace twin
