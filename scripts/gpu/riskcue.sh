#!/usr/bin/env bash
# SmolLM2-135M on MCP-RiskCue on a machine with a GPU: three epochs of SFT and 240 GRPO steps, on `riskcue-verdict` and on
# `riskcue`, seed after seed as time allows. That machine has no network, and 64 MiB travel to it in one call at most:
# the model goes in two parts, the second one with rlvr and the rows.
#
#   scripts/gpu/riskcue.sh pack TRAIN.jsonl VALID.jsonl TEST.jsonl    # here, after scripts/gpu/build.sh: gpu-out/riskcue/{1,2}
#   gpu-out/riskcue/1/riskcue.sh keep gpu-out/riskcue/1               # there: puts a part aside
#   gpu-out/riskcue/2/riskcue.sh run OUT gpu-out/riskcue/2            # there: joins, imports, trains; results to OUT
#   gpu-out/riskcue/2/riskcue.sh test OUT                             # there, once, when nothing more is to be chosen
#
# A task with a seed is a stage. `run` leaves out those that are done, goes on with one that was stopped, and copies
# metrics and tables to OUT after each; it stops by itself after RLVR_SECONDS (540). It chooses on VALID; TEST is read by
# `test` alone, which refuses a second time. The weights (269 MB) stay there: more than may come back.
# OUT gets log.txt, machine.txt, stages.tsv (seconds, and those that were predicted), results.tar.gz; `test` adds
# test.jsonl. RLVR_KEEP (~/rlvr-riskcue) is where things are put aside; RLVR_RISKCUE_STAGES="TASK:SEED ..." names other
# stages, RLVR_RISKCUE_SET="KEY=VALUE ..." adds settings: both to rehearse with few steps and a tiny model.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stop() { printf 'riskcue: %s\n' "$*" >&2; exit 2; }
keep=${RLVR_KEEP:-$HOME/rlvr-riskcue}
gguf=SmolLM2-135M-Instruct.Q4_1.gguf
first_part=$((50 << 20)) largest_mib=58
read -ra stages <<<"${RLVR_RISKCUE_STAGES:-riskcue-verdict:1 riskcue:1 riskcue-verdict:2 riskcue:2 riskcue-verdict:3 riskcue:3}"
read -ra more <<<"${RLVR_RISKCUE_SET:-}"

# What a task's answers may have, in tokens.
answer_tokens() { case $1 in riskcue) echo 96 ;; *) echo 12 ;; esac; }

pack() {
    (($# == 3)) || stop "pack wants TRAIN.jsonl, VALID.jsonl and TEST.jsonl"
    local model into part name rlvr
    into=$here/../../gpu-out/riskcue rlvr=$here/../../gpu-out/rlvr
    [[ -x $rlvr ]] || stop "gpu-out/rlvr is not there: run scripts/gpu/build.sh"
    model=${RLVR_RISKCUE_GGUF:-$("$here/../fetch-smollm2.sh")}
    rm -rf "$into" && mkdir -p "$into"/{1,2}
    head -c "$first_part" "$model" >"$into/1/part-0"
    tail -c +"$((first_part + 1))" "$model" >"$into/2/part-1"
    sha256sum <"$model" | cut -d' ' -f1 >"$into/2/sha256"
    python3 -c 'import lzma, shutil, sys
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    with open(source, "rb") as a, lzma.open(target, "wb", preset=6) as b:
        shutil.copyfileobj(a, b)' "$rlvr" "$into/2/rlvr.xz" "$1" "$into/2/train.jsonl.xz" "$2" "$into/2/valid.jsonl.xz" "$3" "$into/2/test.jsonl.xz"
    cp "$here/../../gpu-out/build.txt" "$into/2/"
    for part in 1 2; do cp "${BASH_SOURCE[0]}" "$into/$part/riskcue.sh"; done
    predict "$into/2/predicted.tsv" "$rlvr" "$(wc -l <"$1")" "$(wc -l <"$2")"
    for part in 1 2; do
        name=$(du -sm "$into/$part" | cut -f1)
        ((name <= largest_mib)) || stop "part $part is $name MiB, more than the $largest_mib MiB that leave room for the project"
        echo "part $part  $name MiB"
    done
    cat "$into/2/predicted.tsv"
}

# Task and seconds, from a step traced on the driver's twin at the lengths that rows have in the mean: 2,260 and 3,090
# tokens, counted on valid.jsonl. Without a CUDA build there is nothing to trace, and no prediction.
predict() {
    local file=$1 rlvr=$2 rows=$3 valid=$4 task prompt target traced
    : >"$file"
    traced=$(mktemp -d)
    for task in riskcue-verdict riskcue; do
        case $task in riskcue) prompt=3090 target=44 ;; *) prompt=2260 target=6 ;; esac
        RLVR_CUDA_BINARY=$rlvr "$here/trace.sh" "$traced/$task" --preset smollm2-135m --dtype bf16 --groups 32 --group-size 8 --prompt-tokens "$prompt" \
            --new-tokens "$target" --max-tokens-per-pack 16384 --max-rollout-tokens 262144 --max-reused-tokens 0 --keep-activations 2>>"$traced/log" || {
            echo "no prediction: $(tail -n 1 "$traced/log")" >&2
            continue
        }
        printf '%s\t%s\n' "$task" "$(python3 "$here/riskcue_time.py" "$traced/$task" --rows "$rows" --eval-rows "$valid" --target-tokens "$target" --json)" >>"$file"
    done
    rm -rf "$traced"
}

put_aside() {
    mkdir -p "$keep" && cp "$1"/* "$keep/"
    ls -l "$keep"
}

# The model as a folder, rlvr as a program, rows as text: once.
unpack() {
    [[ ! -f $keep/ready ]] || return 0
    local name
    for name in part-0 part-1 sha256 rlvr.xz train.jsonl.xz valid.jsonl.xz test.jsonl.xz; do
        [[ -f $keep/$name ]] || stop "$keep lacks $name: call keep with both parts first"
    done
    cat "$keep"/part-{0,1} >"$keep/$gguf"
    [[ $(sha256sum <"$keep/$gguf" | cut -d' ' -f1) == "$(cat "$keep/sha256")" ]] || stop "the parts do not join to the model"
    python3 -c 'import lzma, shutil, sys
for name in sys.argv[1:]:
    with lzma.open(name + ".xz", "rb") as a, open(name, "wb") as b:
        shutil.copyfileobj(a, b)' "$keep"/{rlvr,train.jsonl,valid.jsonl,test.jsonl}
    chmod +x "$keep/rlvr"
    [[ -n ${RLVR_RISKCUE_MODEL:-} ]] || "$keep/rlvr" import "$keep/$gguf" "$keep/model"
    touch "$keep/ready"
}

model() { echo "${RLVR_RISKCUE_MODEL:-$keep/model}"; }

# The CUDA libraries of python's torch, where rlvr looks for them.
libraries() {
    [[ -n ${RLVR_CUDA_LIBRARY_PATH:-} ]] && return
    local found
    found=$(python3 -c 'import glob, nvidia, os
names = [f for p in nvidia.__path__ for n in ("libcublas.so*", "libcublasLt.so*", "libcurand.so*") for f in glob.glob(os.path.join(p, "**", n), recursive=True)]
print(":".join(sorted({os.path.dirname(f) for f in names})))' 2>/dev/null) || true
    export RLVR_CUDA_LIBRARY_PATH=${found:+$found:}/usr/local/cuda/lib64:/usr/local/nvidia/lib64
    export LD_LIBRARY_PATH=$RLVR_CUDA_LIBRARY_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

# The ablation of one stage: SFT, and GRPO on top of it. Rows longer than 6,144 tokens are left out.
ablation() {
    local task=$1 seed=$2 setting answer
    answer=$(answer_tokens "$task")
    printf 'config = "riskcue-smollm2-135m"\nseeds = [%s]\narms = ["sft", "sft+grpo"]\nbaseline = "sft"\nset = [\n' "$seed"
    for setting in "task=$task" "model.path=$(model)" "data.train=$keep/train.jsonl" "data.valid=$keep/valid.jsonl" data.max_prompt_tokens=6144 \
        "data.max_target_tokens=$((answer * 2))" model.max_positions=6400 pack.max_tokens_per_pack=16384 pack.max_rollout_tokens=262144 \
        sft.steps=0 sft.epochs=3.0 sft.rows_per_step=16 grpo.steps=240 grpo.prompts_per_step=32 "grpo.max_completion_tokens=$answer" \
        "eval.max_completion_tokens=$answer" checkpoint.every_steps=60 "${more[@]}"; do
        printf '    "%s",\n' "${setting//\"/\\\"}"
    done
    printf ']\n'
}

collect() { # what is there of every stage
    (cd "$keep" && find stages -name metrics.jsonl -o -name config.resolved.toml -o -name 'ablation.*' | tar czf - -T -) >"$1/results.tar.gz"
}

run() {
    local out=${1:?run wants a folder for the results} began stage task seed rc=0 took predicted left
    mkdir -p "$out"
    [[ -z ${2:-} ]] || put_aside "$2" >/dev/null
    unpack
    libraries
    nvidia-smi >"$out/machine.txt" 2>&1 || grep -m1 'model name' /proc/cpuinfo >"$out/machine.txt"
    cat "$keep/build.txt" >>"$out/machine.txt"
    for stage in "${stages[@]}"; do
        task=${stage%:*} seed=${stage#*:}
        local folder=$keep/stages/$task-seed$seed
        [[ ! -f $folder/done ]] || { echo "== $stage: done before"; continue; }
        left=$((${RLVR_SECONDS:-540} - SECONDS))
        ((left >= 20)) || { echo "== $stage: no time left"; rc=1; break; }
        predicted=$(sed -n "s/^$task	.*\"all\": \\([0-9.]*\\).*/\\1/p" "$keep/predicted.tsv" 2>/dev/null || true)
        printf '== %s, predicted %s s, %s s left\n' "$stage" "${predicted:--}" "$left" | tee -a "$out/log.txt"
        mkdir -p "$folder"
        ablation "$task" "$seed" >"$folder/stage.toml"
        began=$SECONDS rc=0
        timeout -s INT -k 10 "$left" "$keep/rlvr" ablate "$folder/stage.toml" --root "$folder/ablation" 2>&1 | tee -a "$out/log.txt" || rc=$?
        took=$((SECONDS - began))
        ((rc)) || touch "$folder/done"
        printf '%s\t%s\t%s\t%s\n' "$stage" "$rc" "$took" "${predicted:--}" | tee -a "$keep/stages.tsv" >>"$out/log.txt"
        printf '== %s: exit code %s, %s s, predicted %s\n' "$stage" "$rc" "$took" "${predicted:--}"
        cp "$keep/stages.tsv" "$out/"
        collect "$out"
        ((rc == 0)) || break
    done
    return "$rc"
}

# Every finished stage's models on the test rows.
test_once() {
    local out=${1:?test wants a folder for the results} folder model task
    [[ ! -f $keep/tested ]] || stop "the test rows were read before ($(cat "$keep/tested")): what is chosen after that is chosen on them"
    mkdir -p "$out"
    libraries
    date -u '+%F %H:%M' >"$keep/tested"
    for folder in "$keep"/stages/*; do
        [[ -f $folder/done ]] || continue
        task=$(basename "$folder")
        task=${task%-seed*}
        for model in "$folder"/ablation/runs/*/model; do
            echo "== test: ${model#"$keep"/stages/}" | tee -a "$out/log.txt"
            "$keep/rlvr" eval "$model" "$keep/test.jsonl" --task "$task" --max-prompt-tokens 6144 --max-completion-tokens "$(answer_tokens "$task")" --json 2>>"$out/log.txt" |
                python3 -c 'import json, sys
print(json.dumps({"model": sys.argv[1], **json.load(sys.stdin)}))' "${model#"$keep"/stages/}" >>"$out/test.jsonl"
        done
    done
    cat "$out/test.jsonl"
}

case ${1:-} in
pack) shift; pack "$@" ;;
keep) put_aside "${2:?keep wants a folder}" ;;
run) shift; run "$@" ;;
test) shift; test_once "$@" ;;
*) stop "pack, keep, run or test; the head of this file says how" ;;
esac
