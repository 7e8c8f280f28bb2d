#!/usr/bin/env bash
# Registers, spills, stack and static shared memory of every kernel, as ptxas gives them for A100 and H100/H200.
#
#   scripts/cuda/ptxas_report.sh              prints the table
#   scripts/cuda/ptxas_report.sh --out FILE   writes it to FILE (benches/results/ptxas.md)
#
# Exit code 1 when a kernel does not compile, when a hot kernel spills registers or keeps a stack, or when a
# name below is no kernel any more. Needs nvcc: that of $CUDA_HOME, else the one on PATH
# (scripts/cuda/setup-cuda.sh gets one). RLVR_NVCC_JOBS files are compiled at once, by default 2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Kernels that a step spends its time in: local memory in them is a defect, elsewhere a number.
hot=(
    'attention_(forward|query_gradient|key_gradients)_(64|128)_bf16'
    'decode_attention_prefix_(64|128)_bf16' 'decode_attention_merge_(f32|bf16)'
    'adamw_w(16|32)_m(8|32)_(f32|bf16)'
    'rms_norm_forward_(f32|bf16)' 'rms_norm_backward_(input|weight)_(f32|bf16)'
    'swiglu_(forward|backward)_(f32|bf16)' 'rope_(f32|bf16)'
    'token_logprob_forward_(f32|bf16)' 'token_logprob_backward_(f32|bf16|f32_to_bf16)'
    'sampling_(f32|bf16)'
)
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
    local commit dirty='' file name rows
    commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
    [[ -z $(git status --porcelain -- kernels 2>/dev/null) ]] || dirty=' with changes in kernels/'
    cat <<HEAD
# What the compiler says of the kernels

Made by \`scripts/cuda/ptxas_report.sh --out benches/results/ptxas.md\` on $(date -u +%F) at commit \`$commit\`$dirty, with
\`nvcc\` $("$nvcc" --version | sed -n 's/.*, V\([0-9.]*\).*/\1/p'), \`${flags[*]}\`. \`a / b\` is sm_80 / sm_90a, one number both. **Spills**: bytes stored plus bytes
loaded. **Shared**: static, bytes a block; what a launch adds is in docs/kernels.md. **Hot** kernels may have
neither spills nor a stack, or this script (and with it the gate) fails.

| file | kernel | hot | registers | spills | stack | shared |
|---|---|---|---|---|---|---|
HEAD
    for file in kernels/*.cu; do
        name=$(basename "$file" .cu)
        for architecture in "${architectures[@]}"; do numbers "$logs/$name.$architecture.log" >"$logs/$name.$architecture"; done
        rows=$(join "$logs/$name.${architectures[0]}" "$logs/$name.${architectures[1]}")
        awk -v file="$name" -v pattern="^($(IFS='|'; echo "${hot[*]}"))\$" '
            function both(a, b) { return a == b ? a : a " / " b }
            { printf "| %s | `%s` | %s | %s | %s | %s | %s |\n", file, $1, $1 ~ pattern ? "yes" : "",
                both($2, $6), both($3, $7), both($4, $8), both($5, $9) }' <<<"$rows"
        printf '%s\n' "$rows" >>"$logs/all"
    done
}
report >"$logs/report.md"
if [[ -n $out ]]; then cp "$logs/report.md" "$out"; else cat "$logs/report.md"; fi

for pattern in "${hot[@]}"; do
    grep -qE "^$pattern " "$logs/all" || stop "no kernel is called $pattern: correct the list in this script"
    bad=$(awk -v pattern="^$pattern\$" '$1 ~ pattern && $3 + $4 + $7 + $8 > 0 { print "  " $1 ": spills " $3 " / " $7 ", stack " $4 " / " $8 " bytes" }' "$logs/all")
    [[ -z $bad ]] || { printf 'hot kernels with local memory (sm_80 / sm_90a):\n%s\n' "$bad" >&2; failed=1; }
done
exit "$failed"
