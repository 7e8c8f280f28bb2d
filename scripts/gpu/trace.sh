#!/usr/bin/env bash
# A GRPO step of any size traced without a GPU: every launch, library call and allocation. predict.py adds them up.
#
#   scripts/gpu/trace.sh OUT [FLAGS]
#
# FLAGS are those of `rlvr bench step`; without any, Llama-3.1-8B's shape as run.sh has it, blocks computed again.
# RLVR_CUDA_BINARY is an rlvr built with --features cuda, by default that of the target folder. The driver's twin takes
# its place: nothing is computed and no memory is touched, so that 8B takes seconds.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${1:?trace.sh wants a folder for the trace}
shift
mkdir -p "$out" && out=$(cd "$out" && pwd)
(($#)) || set -- --preset llama-3.1-8b --groups 32 --group-size 8 --prompt-tokens 1500 --new-tokens 40 \
    --max-tokens-per-pack 7248 --max-rollout-tokens 65536 --max-reused-tokens 0 \
    --dtype bf16 --moments int8 --bf16-weights stochastic_rounding --gradients bf16
binary=${RLVR_CUDA_BINARY:-${CARGO_TARGET_DIR:-$project/target}/release/rlvr}
[[ -x $binary ]] || { echo "trace: no rlvr at $binary: cargo build --release --features cuda, or set RLVR_CUDA_BINARY" >&2; exit 2; }
RLVR_TWIN_TRACE=$out/trace.jsonl RLVR_TWIN_DRY=1 RLVR_TWIN_MEMORY_MB=${RLVR_TWIN_MEMORY_MB:-143771} \
    "$project/tests/doubles/cuda-driver/twin.sh" --run \
    "$binary" bench step --random-weights --device cuda --steps 1 --json-lines "$@" >"$out/step.jsonl"
