#!/usr/bin/env bash
# Everything to be known of a machine with a GPU in one call: doctor, GRPO steps, the peer on the same work, every op.
#
#   gpu-out/run.sh OUT [--device cuda|cpu] [--quick] [--budget SECONDS] [--only STAGES]
#
# Needs what scripts/gpu/build.sh packed: beside this file, or in gpu-out of the project. What matters most comes first,
# stages have their own time limits, one that fails or is stopped leaves the others alone, and every step, op and
# finding is a line of JSON that is on disk as soon as it is made. Written to OUT, seven files:
#   machine.txt  stages.tsv (name, exit code, seconds, command)  log.txt
#   doctor.jsonl  steps.jsonl  peers.jsonl  ops.jsonl
# The exit code is 1 when a stage failed. --quick takes small shapes, to try the script (on a CPU, or a driver's
# twin); --budget ends everything after so many seconds (570); --only names stages: doctor,steps,peers,ops.
# RLVR_PEER_PYTHON is the python with torch and transformers for the peer, by default python3.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stop() { printf 'run: %s\n' "$*" >&2; exit 2; }
out= device=cuda quick=no budget=570 only=
while (($#)); do
    case $1 in
    --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
    --quick) quick=yes; shift ;;
    --budget) budget=${2:?--budget needs seconds}; shift 2 ;;
    --only) only=${2:?--only needs names}; shift 2 ;;
    -*) stop "unknown argument $1; the head of this file says how it is called" ;;
    *) [[ -z $out ]] || stop "two folders, $out and $1"; out=$1; shift ;;
    esac
done
[[ -n $out ]] || stop "give the folder for the results"
[[ $device == cuda || $device == cpu ]] || stop "--device $device: cuda or cpu"
pack=$here
[[ -x $pack/rlvr ]] || pack=$here/../../gpu-out
[[ -x $pack/rlvr ]] || stop "no rlvr beside this file or in gpu-out: run scripts/gpu/build.sh"
pack=$(cd "$pack" && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd) || stop "$out: cannot be made"
rm -f "$out"/{machine.txt,stages.tsv,log.txt,doctor.jsonl,steps.jsonl,peers.jsonl,ops.jsonl}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${RLVR_PEER_PYTHON:-python3}
export PATH=$pack:$PATH PYTHONUNBUFFERED=1

# Shapes: 32 prompts of 1,500 tokens with 8 answers of 40, at Llama-3.1-8B's size, and a real small model's.
preset=llama-3.1-8b peer_preset=llama-3.1-8b ops_seconds=0.1
small=(--preset smollm2-135m --groups 4 --group-size 8 --prompt-tokens 1024 --new-tokens 48)
group=(--group-size 8 --prompt-tokens 1500 --new-tokens 40)
few=4 all=32 pack_tokens=7248 tape=65536
# What fits 80 GB beside a trainer that copies the prompt: a quarter of the groups, blocks computed again.
peer=(--groups 8 --micro-batch 8 --generation-batch 32)
if [[ $quick == yes || $device == cpu ]]; then
    preset=smollm2-135m peer_preset=tiny ops_seconds=0.02
    small=(--preset smollm2-135m --groups 1 --group-size 2 --prompt-tokens 24 --new-tokens 3)
    group=(--group-size 4 --prompt-tokens 48 --new-tokens 4)
    few=1 all=2 pack_tokens=8192 tape=8192
    peer=(--groups 2 --micro-batch 2 --generation-batch 8)
fi
step=(rlvr bench step --random-weights --json-lines --device "$device")
dtype=float32
if [[ $device == cuda ]]; then
    # f32 moments, or f32 masters beside 8-bit ones, leave no room in 78 GiB for the gradients that a clip by the
    # global norm has to wait for (docs/gpu.md).
    step+=(--dtype bf16 --moments int8 --bf16-weights stochastic_rounding --gradients bf16)
    dtype=bfloat16
fi
large=("${step[@]}" --preset "$preset" "${group[@]}" --steps 1 --max-tokens-per-pack "$pack_tokens")
ops=(rlvr bench ops --preset "$preset" "${group[@]}" --device "$device" --seconds "$ops_seconds" --json)
[[ $device == cpu ]] || ops+=(--dtype bf16)

# The CUDA libraries that rlvr loads may be those of python's torch.
if [[ $device == cuda && -z ${RLVR_CUDA_LIBRARY_PATH:-} ]]; then
    found=$("$python" - <<'PYTHON' 2>/dev/null
import glob, nvidia, os
names = [f for p in nvidia.__path__ for n in ("libcublas.so*", "libcublasLt.so*", "libcurand.so*")
         for f in glob.glob(os.path.join(p, "**", n), recursive=True)]
print(":".join(sorted({os.path.dirname(f) for f in names})))
PYTHON
    )
    export RLVR_CUDA_LIBRARY_PATH=/usr/local/cuda/lib64:/usr/local/cuda/targets/x86_64-linux/lib:/usr/local/nvidia/lib64${found:+:$found}
    # The loader asks the system's folders first, and libraries load others by themselves.
    export LD_LIBRARY_PATH=$RLVR_CUDA_LIBRARY_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

{
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    [[ -n $name && $device == cuda ]] || name=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf 'machine  %s\nran      %s, device %s, quick %s\n' "$name" "$(date -u '+%F %H:%M')" "$device" "$quick"
    cat "$pack/build.txt"
    printf 'system   %s, %s cores, %s GiB\n\n' "$(uname -sr)" "$(nproc)" "$(awk '/MemTotal/ { print int($2 / 1048576) }' /proc/meminfo)"
    nvidia-smi 2>/dev/null || echo "no nvidia-smi"
    nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current --format=csv 2>/dev/null
} >"$out/machine.txt"

failed=0
wanted() { [[ -z $only || ,$only, == *,$1,* ]]; }
record() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/stages.tsv"; }
# stage NAME LIMIT FILE COMMAND...: standard output goes to FILE line by line, also that of a command that is stopped.
stage() {
    local name=$1 limit=$2 file=$3 left=$((budget - SECONDS)) began=$SECONDS rc
    shift 3
    ((limit <= left)) || limit=$left
    local words=("$@")
    if [[ ${words[0]} == "$python" ]]; then words=(python3 "${words[1]##*/}" "${words[@]:2}"); fi
    printf '== %s: %s\n' "$name" "${words[*]}" | tee -a "$out/log.txt"
    if ((limit < 5)); then
        record "$name" "no time left" 0 "${words[*]}"
        failed=1
        return 1
    fi
    (cd "$scratch" && timeout -k 5 "$limit" "$@") >>"$out/$file" 2>>"$out/log.txt"
    rc=$?
    record "$name" "$rc" $((SECONDS - began)) "${words[*]}"
    if ((rc)); then
        failed=1
        tail -n 4 "$out/log.txt"
        echo "== $name: exit code $rc"
    fi
    return "$rc"
}

# A kernel's fault stays with its process: after one, every op has a process of its own.
doctor() {
    local op
    stage doctor 60 doctor.jsonl rlvr doctor --device "$device" --json-lines && return
    for op in $(rlvr doctor --list); do
        CUDA_LAUNCH_BLOCKING=1 stage "doctor-$op" 15 doctor.jsonl rlvr doctor --device "$device" --json-lines --only "$op"
    done
}
# The best-known setting of each way to spend memory: all activations kept, block inputs taped, blocks computed again.
steps() {
    stage step-small-tape 30 steps.jsonl "${step[@]}" "${small[@]}" --steps 2 --max-reused-tokens "$tape"
    stage step-small 30 steps.jsonl "${step[@]}" "${small[@]}" --steps 2 --max-reused-tokens 0
    stage step-few 40 steps.jsonl "${large[@]}" --groups "$few" --keep-activations --max-reused-tokens 0 || return
    stage step-kept 60 steps.jsonl "${large[@]}" --groups "$all" --keep-activations --max-reused-tokens 0 --max-rollout-tokens 65536
    stage step-tape 60 steps.jsonl "${large[@]}" --groups "$all" --max-reused-tokens "$tape" --max-rollout-tokens 65536
    stage step-recomputed 60 steps.jsonl "${large[@]}" --groups "$all" --max-reused-tokens 0
}
! wanted doctor || doctor
! wanted steps || steps

peers() {
    local work=("$pack/trl_gpu_step.py" --device "$device" --preset "$peer_preset" --dtype "$dtype" "${group[@]}" "${peer[@]}" --steps 1)
    local ready='import sys, torch, transformers; sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())'
    if [[ ! -f ${work[0]} ]] || ! "$python" -c "$ready" "$device" 2>>"$out/log.txt"; then
        record peers "not run: no torch and transformers that see the device" 0 "-"
        return
    fi
    if compgen -G "$pack/wheels/*.whl" >/dev/null; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" "$pack"/wheels/*.whl 2>>"$out/log.txt" &&
            export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
    fi
    if "$python" -c 'import trl, datasets' 2>>"$out/log.txt"; then
        stage peer-trl 210 peers.jsonl "$python" "${work[@]}" --peer trl && return
    fi
    stage peer-torch 150 peers.jsonl "$python" "${work[@]}" --peer torch
}
! wanted peers || peers
! wanted ops || stage ops 90 ops.jsonl "${ops[@]}"

printf '\n'
"$python" "$here/summary.py" "$out"
exit "$failed"
