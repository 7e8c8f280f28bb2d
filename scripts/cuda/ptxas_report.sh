#!/usr/bin/env bash
# Registers, spills, stack and static shared memory of every kernel, as ptxas gives them for A100 and H100/H200, and
# how many blocks and warps of it live on a multiprocessor at once.
#
#   scripts/cuda/ptxas_report.sh              prints the table
#   scripts/cuda/ptxas_report.sh --out FILE   writes it to FILE (benches/results/ptxas.md)
#
# Exit code 1 when a kernel does not compile, spills registers or is launched nobody knows how, when one outside of
# `stacked` keeps a stack, or when a name below is no kernel any more. Needs nvcc: that of $CUDA_HOME, else the one on
# PATH (scripts/cuda/setup-cuda.sh gets one). RLVR_NVCC_JOBS files are compiled at once, by default 2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Threads a block and bytes of dynamic shared memory, as `cuda.rs` of the op launches it; where that depends on the
# width of a row, for the rows of Llama-3.1-8B in bf16 (4,096 wide, heads of 128).
launches=(
    'adamw_w(16|32)_m(8|32)_(f32|bf16) 256 0'
    'attention_delta_(f32|bf16) 256 0'
    'attention_forward_64_bf16 128 32768' 'attention_forward_128_bf16 128 65536'
    'attention_query_gradient_(64|128)_bf16 128 32768'
    'attention_key_gradients_64_bf16 128 50176' 'attention_key_gradients_128_bf16 128 66048'
    'attention_query_sums_64_bf16 128 49152' 'attention_query_sums_128_bf16 128 65536'
    'attention_forward_any_(f32|bf16) 256 54912' 'attention_query_gradient_any_(f32|bf16) 256 71808'
    'attention_key_gradients_any_(f32|bf16) 256 76288'
    'decode_attention_prefix_64_bf16 128 32768' 'decode_attention_prefix_128_bf16 128 65536'
    'decode_attention_prefix_any_(f32|bf16) 256 54912' 'decode_attention_merge(_wide)?_(f32|bf16) 128 0'
    '(add_assign|add_assign_to_f32|cast_to|fill|normal|scale)_(f32|bf16) 256 0'
    'fill_columns_f32 128 0'
    'embedding_(gather|gather_of_two|scatter)_(f32|bf16) 256 0' 'embedding_scatter_add(_to_f32)?_(f32|bf16) 128 0'
    'rms_norm_(forward|backward|backward_wide)_(f32|bf16) 512 0' 'rms_norm_add_partials 1024 0'
    'rope_(f32|bf16) 256 0' 'qkv_(split|join)_(f32|bf16) 256 0' 'sampling_(f32|bf16) 512 0' 'sum_squares_(f32|bf16) 256 0' 'sum_squares_total 1024 0'
    'swiglu_(forward|backward)_(f32|bf16) 256 0'
    'token_logprob_forward_(f32|bf16) 512 0' 'token_logprob_backward_(f32|bf16|f32_to_bf16) 256 0'
)
# Random weights need range reduction in f64, which takes a stack.
stacked='normal_(f32|bf16)'
architectures=(80 90a)
flags=(-cubin -O3 -std=c++17 -Xptxas -v)

stop() { printf 'ptxas_report: %s\n' "$*" >&2; exit 1; }
out=
while (($#)); do
    case $1 in
    --out) out=${2:?--out needs a file}; shift 2 ;;
    *) stop "unknown argument $1; the head of this file says how it is called" ;;
    esac
done
nvcc=nvcc
if [[ -n ${CUDA_HOME:-} && -x $CUDA_HOME/bin/nvcc ]]; then nvcc=$CUDA_HOME/bin/nvcc; fi
command -v "$nvcc" >/dev/null || stop "no nvcc: run scripts/cuda/setup-cuda.sh and source the env.sh it names, or set CUDA_HOME"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

one() { # one FILE ARCHITECTURE: its log, or what the compiler said
    local name log
    name=$(basename "$1" .cu)
    log=$logs/$name.$2
    "$nvcc" "${flags[@]}" -gencode="arch=compute_$2,code=sm_$2" -o "$log.cubin" "$1" >"$log.log" 2>&1 ||
        { printf '%s for sm_%s:\n' "$1" "$2" >&2; cat "$log.log" >&2; return 1; }
}
failed=0
for kernel in kernels/*.cu; do
    for architecture in "${architectures[@]}"; do
        while (($(jobs -rp | wc -l) >= ${RLVR_NVCC_JOBS:-2})); do wait -n || failed=1; done
        one "$kernel" "$architecture" &
    done
done
while (($(jobs -p | wc -l))); do wait -n || failed=1; done
((failed == 0)) || stop "a kernel does not compile; the compiler's words are above"

# A log to lines "kernel registers spilled-bytes stack shared". What a called function needs counts for its caller.
numbers() {
    awk -F"'" '
        function flush() { if (name) print name, registers, spills, stack, shared; name = "" }
        /Compiling entry function/ { flush(); name = $2; registers = spills = stack = shared = 0 }
        /bytes stack frame/ {
            split($0, words, " ")
            if (words[1] > stack) stack = words[1]
            spills += words[5] + words[9]
        }
        /: Used [0-9]+ registers/ {
            match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
            if (match($0, /[0-9]+ bytes smem/)) { split(substr($0, RSTART), words, " "); shared = words[1] }
        }
        END { flush() }' "$1" | sort
}

report() {
    local commit dirty='' file name
    commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
    [[ -z $(git status --porcelain -- kernels 2>/dev/null) ]] || dirty=' with changes in kernels/'
    cat <<HEAD
# What the compiler says of the kernels

Made by \`scripts/cuda/ptxas_report.sh --out benches/results/ptxas.md\` on $(date -u +%F) at commit \`$commit\`$dirty, with
\`nvcc\` $("$nvcc" --version | sed -n 's/.*, V\([0-9.]*\).*/\1/p'), \`${flags[*]}\`. \`a / b\` is sm_80 / sm_90a, one number both. **Spills**: bytes stored plus bytes
loaded; none may have any, or this script (and with it the gate) fails. **Threads** a block and **shared** memory a
block, static and dynamic, as it is launched; where that depends on the width of a row, at 4,096 in bf16. **Blocks** and
**warps** on a multiprocessor at once: computed from registers (65,536, given out 256 a warp), shared memory (164 / 228
KiB, with 1 KiB a block for the system), threads (2,048) and blocks (32), not measured; what a small grid leaves idle is not in it.

| file | kernel | threads | registers | spills | stack | shared | blocks | warps |
|---|---|---|---|---|---|---|---|---|
HEAD
    for file in kernels/*.cu; do
        name=$(basename "$file" .cu)
        for architecture in "${architectures[@]}"; do numbers "$logs/$name.$architecture.log" >"$logs/$name.$architecture"; done
        join "$logs/$name.${architectures[0]}" "$logs/$name.${architectures[1]}" | awk -v file="$name" '{ print file, $0 }' >>"$logs/all"
    done
    printf '%s\n' "${launches[@]}" >"$logs/launches"
    awk '
        function both(a, b) { return a == b ? a : a " / " b }
        function least(a, b) { return a < b ? a : b }
        function blocks(registers, threads, shared, of_multiprocessor,   warps, live) {
            warps = int((threads + 31) / 32)
            live = int(int(65536 / (int((registers * 32 + 255) / 256) * 256) / 4) * 4 / warps)
            live = least(live, int(of_multiprocessor / (int((shared + 1024 + 127) / 128) * 128)))
            return least(least(live, int(64 / warps)), 32)
        }
        FNR == NR { pattern[++count] = $1; threads[count] = $2; dynamic[count] = $3; next }
        {
            at = 0
            for (i = 1; i <= count; i++) if ($2 ~ "^(" pattern[i] ")$") { at = i; used[i] = 1 }
            if (!at) { print "unknown " $2 > "/dev/stderr"; bad = 1; next }
            warps = int((threads[at] + 31) / 32)
            a = blocks($3, threads[at], $6 + dynamic[at], 164 * 1024); b = blocks($7, threads[at], $10 + dynamic[at], 228 * 1024)
            printf "| %s | `%s` | %s | %s | %s | %s | %s | %s | %s |\n", $1, $2, threads[at], both($3, $7), both($4, $8), both($5, $9),
                both($6 + dynamic[at], $10 + dynamic[at]), both(a, b), both(a * warps, b * warps)
        }
        END {
            for (i = 1; i <= count; i++) if (!used[i]) { print "no kernel is called " pattern[i] > "/dev/stderr"; bad = 1 }
            exit bad
        }' "$logs/launches" "$logs/all"
}
report >"$logs/report.md" || stop "the list of launches in this script is not that of the kernels: correct it"
if [[ -n $out ]]; then cp "$logs/report.md" "$out"; else cat "$logs/report.md"; fi

bad=$(awk -v stacked="^$stacked\$" '$4 + $8 > 0 || ($5 + $9 > 0 && $2 !~ stacked) {
    print "  " $2 ": spills " $4 " / " $8 ", stack " $5 " / " $9 " bytes" }' "$logs/all")
[[ -z $bad ]] || { printf 'kernels with local memory (sm_80 / sm_90a):\n%s\n' "$bad" >&2; exit 1; }
