#!/usr/bin/env bash
# A twin of the CUDA driver for machines without a GPU: rlvr's launch code and kernels run on the CPU, for tests.
#
#   tests/doubles/cuda-driver/twin.sh [--into FOLDER]                 builds it (by default target/cuda-twin)
#   tests/doubles/cuda-driver/twin.sh [--into FOLDER] --run CMD...    builds it and runs CMD with it, for instance
#       tests/doubles/cuda-driver/twin.sh --run cargo test --release --features cuda --test suite cuda_twin::
#
# A binary built with --features cuda finds it through RLVR_CUDA_LIBRARY_PATH=FOLDER, and a real driver
# first where one is installed; --run puts the twin before that. RLVR_TWIN_MEMORY_MB sets its memory;
# RLVR_TWIN_DEVICES=N shows N devices, without it as many as LOCAL_WORLD_SIZE says; RLVR_TWIN_LOST=N lets the
# device be lost at kernel launch N; RLVR_TWIN_TRACE=FILE and RLVR_TWIN_DRY=1 are explained in trace.h.
# Needs a C++20 compiler ($CXX, else c++). Files are compiled again only when they or a header changed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../../.." && pwd)
shim=$project/tests/doubles/kernel-shim
into=${CARGO_TARGET_DIR:-$project/target}/cuda-twin
stop() { printf 'twin: %s\n' "$*" >&2; exit 1; }
run=()
while (($#)); do
    case $1 in
    --into) into=${2:?--into needs a folder}; shift 2 ;;
    --run) shift; run=("$@"); (($#)) || stop "--run needs a command"; break ;;
    *) stop "unknown argument $1; the head of this file says how it is called" ;;
    esac
done
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null || stop "no C++ compiler ($compiler): install one or set CXX"
mkdir -p "$into/kernels" "$into/made"
into=$(cd "$into" && pwd)
# Kernels read vectors of one type as another, as nvcc allows; fibers jump between stacks, which FORTIFY takes for a fault.
flags=(-std=c++20 -O2 -U_FORTIFY_SOURCE -fno-strict-aliasing -g1 -fPIC -shared -fvisibility=hidden -fno-gnu-unique -Wl,-Bsymbolic -Wl,-z,start-stop-visibility=hidden
    -I"$here" -I"$shim" -I"$project/kernels")

# Compiles where the sources, the headers or the flags are not those of the last time.
build() { # build OUTPUT SOURCE...
    local output=$1 sum
    shift
    sum=$({ printf '%s\n' "$compiler" "${flags[@]}" "$@"; cat "$@" "$here"/*.h "$shim"/*.h "$project"/kernels/*.cuh; } | sha256sum)
    if [[ -e $output && $(cat "$output.made" 2>/dev/null) == "$sum" ]]; then return; fi
    "$compiler" "${flags[@]}" -o "$output.new" "$@" -ldl
    mv "$output.new" "$output"
    printf '%s' "$sum" >"$output.made"
}

build "$into/libcuda.so.1" "$here"/{driver,memory,libraries,nccl,trace}.cpp
for library in libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libnccl.so.2; do
    ln -sfn libcuda.so.1 "$into/$library"
done

kept=()
for kernel in "$project"/kernels/*.cu; do
    name=$(basename "$kernel" .cu)
    kept+=("$name")
    source=$into/made/$name.cpp
    # Entry points as the preprocessor leaves them, whatever macros wrote them.
    names=$("$compiler" -E -P -x c++ -std=c++20 -I"$shim" -I"$project/kernels" "$kernel" | tr '\n' ' ' |
        grep -oP 'extern "C" +void +\K\w+(?= *\()' || true)
    [[ -n $names ]] || stop "kernels/$name.cu has no entry point (extern \"C\" __global__ void ...)"
    {
        printf '// %s\n#include "%s"\n#include "kernel_table.h"\n' "$(sha256sum <"$kernel")" "$name.cu"
        printf 'static const twin::Kernel all[] = {\n'
        for entry in $names; do printf '    twin::kernel("%s", %s),\n' "$entry" "$entry"; done
        printf '};\nextern "C" __attribute__((visibility("default"))) const twin::Kernels rlvr_twin_kernels;\n'
        printf 'const twin::Kernels rlvr_twin_kernels = {all, sizeof all / sizeof *all, twin::where};\n'
    } >"$source"
    build "$into/kernels/$name.so" "$source"
done
for library in "$into"/kernels/*.so; do # of kernel files that are no more
    [[ " ${kept[*]} " == *" $(basename "$library" .so) "* ]] || rm -f "$library" "$library.made"
done

if ((${#run[@]})); then
    export RLVR_CUDA_LIBRARY_PATH=$into LD_LIBRARY_PATH=$into${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    exec "${run[@]}"
fi
echo "ready: RLVR_CUDA_LIBRARY_PATH=$into"
