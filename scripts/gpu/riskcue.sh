#!/usr/bin/env bash
# SmolLM2-135M on MCP-RiskCue in full on a machine with a GPU: the shipped ablation ablate-riskcue-smollm2-135m.
# That machine has no network, and what travels to it at a time is limited: the model goes in three parts, and the last one leaves room for rlvr.
#
#   scripts/gpu/riskcue.sh pack TRAIN.jsonl VALID.jsonl   # here, after scripts/gpu/build.sh: gpu-out/riskcue/{1,2,3}
#   gpu-out/riskcue.sh keep gpu-out/riskcue/1             # there: puts a part aside; then the same with 2
#   gpu-out/riskcue.sh run OUT gpu-out/riskcue/3          # there: joins, imports, trains; results to OUT
#
# `run` again goes on after a stop (RLVR_SECONDS, by default 540, is when it stops by itself); further arguments go to
# `rlvr ablate`. OUT gets log.txt, machine.txt, ablation.md, ablation.json and runs.tar.gz with metrics and configs.
# What was put aside lies in RLVR_KEEP, by default ~/rlvr-riskcue.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stop() { printf 'riskcue: %s\n' "$*" >&2; exit 2; }
keep=${RLVR_KEEP:-$HOME/rlvr-riskcue}
gguf=SmolLM2-135M-Instruct.Q4_1.gguf

pack() {
    (($# == 2)) || stop "pack wants TRAIN.jsonl and VALID.jsonl"
    cd "$here/../.."
    [[ -x gpu-out/rlvr ]] || stop "gpu-out/rlvr is not there: run scripts/gpu/build.sh"
    local model into=gpu-out/riskcue
    model=$(scripts/fetch-smollm2.sh)
    rm -rf "$into" && mkdir -p "$into"/{1,2,3}
    split -n 3 -d -a 1 "$model" "$into/part-"
    local part
    for part in 0 1 2; do mv "$into/part-$part" "$into/$((part + 1))/"; done
    sha256sum <"$model" | cut -d' ' -f1 >"$into/1/sha256"
    gzip -9 <"$1" >"$into/1/train.jsonl.gz"
    gzip -9 <"$2" >"$into/1/valid.jsonl.gz"
    cp "${BASH_SOURCE[0]}" gpu-out/
    du -sm "$into"/* gpu-out/rlvr
}

put_aside() {
    mkdir -p "$keep" && cp "$1"/* "$keep/"
    ls -l "$keep"
}

run() {
    local out=${1:?run wants a folder for the results} rlvr=$here/rlvr model=$keep/model
    [[ -x $rlvr ]] || rlvr=$here/../../gpu-out/rlvr
    [[ -x $rlvr ]] || stop "no rlvr beside this file or in gpu-out: run scripts/gpu/build.sh"
    mkdir -p "$out"
    if [[ ${2:-} != -* && -d ${2:-} ]]; then
        put_aside "$2" >/dev/null
        shift
    fi
    shift
    if [[ ! -d $model ]]; then
        [[ -f $keep/part-0 && -f $keep/part-1 && -f $keep/part-2 ]] || stop "$keep lacks parts of the model: call keep first"
        cat "$keep"/part-{0,1,2} >"$keep/$gguf"
        [[ $(sha256sum <"$keep/$gguf" | cut -d' ' -f1) == "$(cat "$keep/sha256")" ]] || stop "the parts do not join to the model"
        "$rlvr" import "$keep/$gguf" "$model"
        gunzip -kf "$keep"/{train,valid}.jsonl.gz
    fi
    nvidia-smi >"$out/machine.txt" 2>&1 || grep -m1 'model name' /proc/cpuinfo >"$out/machine.txt"
    cat "$here/build.txt" >>"$out/machine.txt" 2>/dev/null || true
    local ablation=(
        "$rlvr" ablate ablate-riskcue-smollm2-135m --root "$keep/ablation"
        --set "model.path=$model" --set "data.train=$keep/train.jsonl" --set "data.valid=$keep/valid.jsonl" "$@"
    )
    printf '%s\n' "${ablation[*]}" >>"$out/log.txt"
    local rc=0
    timeout -s INT "${RLVR_SECONDS:-540}" "${ablation[@]}" 2>&1 | tee -a "$out/log.txt" || rc=$?
    cp "$keep"/ablation/ablation.{md,json} "$out/" 2>/dev/null || true
    (cd "$keep/ablation" && find runs -name metrics.jsonl -o -name config.resolved.toml | tar czf - -T -) >"$out/runs.tar.gz"
    return "$rc"
}

case ${1:-} in
pack) shift; pack "$@" ;;
keep) put_aside "${2:?keep wants a folder}" ;;
run) shift; run "$@" ;;
*) stop "pack, keep or run; the head of this file says how" ;;
esac
