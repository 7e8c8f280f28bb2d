#!/usr/bin/env bash
# rlvr beside its peers on the CPU, in turn: SFT steps beside TRL and plain torch, answers to prompts beside transformers,
# GRPO steps beside TRL. Prints the medians of the rounds and the peer's time over rlvr's.
#
#   scripts/peers/cpu.sh OUT.jsonl [--quick] [--rounds N] [--threads N] [--only sft,eval,grpo]
#
# rlvr is target/release/rlvr or $RLVR, built in release; python with torch, transformers and TRL is $RLVR_PEER_PYTHON, by
# default python3. Nothing else should run: what counts is the ratio within a round, and a shared machine still blurs it.
# --quick takes a tiny model, to try the script. The GRPO peer is trl_gpu_step.py on the CPU. Every line that was measured
# stands in OUT.jsonl; what is there stays, so a second call adds rounds.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stop() { printf 'cpu: %s\n' "$*" >&2; exit 2; }
out= quick=no rounds=3 threads=2 only=sft,eval,grpo
while (($#)); do
    case $1 in
    --quick) quick=yes; shift ;;
    --rounds) rounds=${2:?--rounds needs a number}; shift 2 ;;
    --threads) threads=${2:?--threads needs a number}; shift 2 ;;
    --only) only=${2:?--only needs names}; shift 2 ;;
    -*) stop "unknown argument $1; the head of this file says how it is called" ;;
    *) [[ -z $out ]] || stop "two files, $out and $1"; out=$1; shift ;;
    esac
done
[[ -n $out ]] || stop "give the file for the results"
rlvr=${RLVR:-$here/../../target/release/rlvr} python=${RLVR_PEER_PYTHON:-python3}
[[ -x $rlvr ]] || stop "$rlvr is not there: cargo build --release, or set RLVR"
sft=(--preset smollm2-135m --rows 16 --prompt-tokens 512 --target-tokens 32 --steps 2)
eval=(--preset smollm2-135m --prompts 32 --prompt-tokens 512 --new-tokens 12 --rounds 2)
grpo=(--preset smollm2-135m --groups 1 --group-size 8 --prompt-tokens 1024 --new-tokens 48 --steps 1)
if [[ $quick == yes ]]; then
    sft=(--preset tiny --rows 8 --prompt-tokens 24 --target-tokens 4 --steps 2)
    eval=(--preset tiny --prompts 8 --prompt-tokens 24 --new-tokens 4 --rounds 2)
    grpo=(--preset tiny --groups 1 --group-size 4 --prompt-tokens 24 --new-tokens 4 --steps 1)
fi
run() {
    printf '== %s\n' "$*" >&2
    "$@" >>"$out"
}
wanted() { [[ ,$only, == *,$1,* ]]; }
for ((round = 1; round <= rounds; round++)); do
    if wanted sft; then
        run "$rlvr" bench sft "${sft[@]}" --threads "$threads" --json
        run "$rlvr" bench sft "${sft[@]}" --threads "$threads" --keep-activations --json
        run "$python" "$here/trl_sft.py" --peer trl "${sft[@]}" --threads "$threads"
        run "$python" "$here/trl_sft.py" --peer torch "${sft[@]}" --threads "$threads"
    fi
    if wanted eval; then
        run "$rlvr" bench eval "${eval[@]}" --threads "$threads" --json
        run "$python" "$here/transformers_eval.py" "${eval[@]}" --threads "$threads"
    fi
    if wanted grpo; then
        run "$rlvr" bench step --random-weights "${grpo[@]}" --threads "$threads" --json
        run "$rlvr" bench step --random-weights "${grpo[@]}" --threads "$threads" --keep-activations --json
        OMP_NUM_THREADS=$threads run "$python" "$here/trl_gpu_step.py" --peer trl --device cpu --dtype float32 --micro-batch 2 "${grpo[@]}"
    fi
done
"$python" "$here/ratios.py" "$out"
