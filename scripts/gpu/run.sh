#!/usr/bin/env bash
# Everything to be known of a machine with a GPU in two calls. The first: doctor, GRPO steps by each way to spend memory,
# every op, a table of kernels. The second, after mending: the best way again, torch's products and attention in the
# same shapes, and TRL on the same work.
#
#   gpu-out/run.sh OUT [--run 1|2] [--device cuda|cpu] [--quick] [--budget SECONDS] [--only STAGES] [--best WAY]
#   gpu-out/run.sh --list [--run 1|2] [...]       the stages, their limits in seconds and commands; runs nothing
#
# Needs what scripts/gpu/build.sh packed: beside this file, or in gpu-out of the project. What matters most comes first,
# stages have their own time limits, one that fails or is stopped leaves the others alone, and every step, op and
# finding is a line of JSON that is on disk as soon as it is made. Written to OUT, seven files:
#   machine.txt  stages.tsv (name, exit code, seconds, command)  log.txt  smi.txt (clocks, power, memory by the second)
#   doctor.jsonl  steps.jsonl (rlvr's and the peer's)  ops.jsonl (rlvr's, torch's, kernels)
# The exit code is 1 when a stage failed. --quick takes small shapes, to try the script (on a CPU, or a driver's
# twin), and eight times the limits; --budget ends everything after so many seconds (330 and 350); --only names stages: doctor,steps,ops,kernels
# and best,ops,torch,peers; --best is the way of the second call: kept, tape or recomputed.
# RLVR_PEER_PYTHON is the python with torch and transformers for the peers, by default python3.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stop() { printf 'run: %s\n' "$*" >&2; exit 2; }
out= call=1 device=cuda quick=no budget= only= best=kept list=no
while (($#)); do
    case $1 in
    --run) call=${2:?--run needs 1 or 2}; shift 2 ;;
    --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
    --quick) quick=yes; shift ;;
    --budget) budget=${2:?--budget needs seconds}; shift 2 ;;
    --only) only=${2:?--only needs names}; shift 2 ;;
    --best) best=${2:?--best needs kept, tape or recomputed}; shift 2 ;;
    --list) list=yes; shift ;;
    -*) stop "unknown argument $1; the head of this file says how it is called" ;;
    *) [[ -z $out ]] || stop "two folders, $out and $1"; out=$1; shift ;;
    esac
done
[[ $call == [12] ]] || stop "--run $call: 1 or 2"
[[ $device == cuda || $device == cpu ]] || stop "--device $device: cuda or cpu"
[[ $list == yes || -n $out ]] || stop "give the folder for the results"
case $call in
1) groups=(doctor steps ops kernels) budget=${budget:-330} ;;
2) groups=(best ops torch peers) budget=${budget:-350} ;;
esac
for name in ${only//,/ }; do
    [[ " ${groups[*]} " == *" $name "* ]] || stop "--only $name: call $call has ${groups[*]}"
done
pack=$here
if [[ $list == no ]]; then
    [[ -x $pack/rlvr ]] || pack=$here/../../gpu-out
    [[ -x $pack/rlvr ]] || stop "no rlvr beside this file or in gpu-out: run scripts/gpu/build.sh"
    pack=$(cd "$pack" && pwd)
    mkdir -p "$out" && out=$(cd "$out" && pwd) || stop "$out: cannot be made"
    rm -f "$out"/{machine.txt,stages.tsv,log.txt,smi.txt,doctor.jsonl,steps.jsonl,ops.jsonl}
fi
scratch=$(mktemp -d)
watch=
trap '[[ -z $watch ]] || kill "$watch" 2>/dev/null; rm -rf "$scratch"' EXIT
python=${RLVR_PEER_PYTHON:-python3}
export PATH=$pack:$PATH PYTHONUNBUFFERED=1

# Shapes: 32 prompts of 1,500 tokens with 8 answers of 40, at Llama-3.1-8B's size, and a real small model's. Four groups
# of 1,812 rows are a pack of the update.
preset=llama-3.1-8b ops_seconds=0.03 ceiling=() patience=1
small=(--preset smollm2-135m --groups 4 --group-size 8 --prompt-tokens 1024 --new-tokens 48)
group=(--group-size 8 --prompt-tokens 1500 --new-tokens 40)
few=4 all=32 pack_tokens=7248 tape=65536 checks=()
# What fits 80 GB beside a trainer that copies the prompt: a quarter of the groups, blocks computed again.
peer=(--groups 8 --micro-batch 8 --generation-batch 32 --checkpointing)
if [[ $quick == yes || $device == cpu ]]; then
    preset=tiny ops_seconds=0 ceiling=(--ceiling-size 64 --input-sets 1) patience=8
    small=(--preset tiny --groups 1 --group-size 2 --prompt-tokens 24 --new-tokens 3)
    group=(--group-size 4 --prompt-tokens 48 --new-tokens 4)
    few=1 all=2 checks=(--only rope --only swiglu)
    peer=(--groups 2 --micro-batch 2 --generation-batch 8 --checkpointing)
fi
((budget *= patience))
step=(rlvr bench step --random-weights --json-lines --device "$device")
ops=(rlvr bench ops --json-lines --preset "$preset" --device "$device" --groups "$all" "${group[@]}"
    --max-tokens-per-pack "$pack_tokens" --seconds "$ops_seconds" "${ceiling[@]}")
dtype=float32
if [[ $device == cuda ]]; then
    # f32 moments, or f32 masters beside 8-bit ones, leave no room in 78 GiB for the gradients that a clip by the
    # global norm has to wait for (docs/gpu.md).
    step+=(--dtype bf16 --moments int8 --bf16-weights stochastic_rounding --gradients bf16)
    ops+=(--dtype bf16 --gradients bf16)
    dtype=bfloat16
fi
large=("${step[@]}" --preset "$preset" "${group[@]}" --max-tokens-per-pack "$pack_tokens")
# All activations kept, block inputs taped, blocks computed again.
kept=(--keep-activations --max-reused-tokens 0 --max-rollout-tokens 65536)
tape=(--max-reused-tokens "$tape" --max-rollout-tokens 65536)
recomputed=(--max-reused-tokens 0)

# The CUDA libraries that rlvr loads may be those of python's torch.
if [[ $device == cuda && $list == no && -z ${RLVR_CUDA_LIBRARY_PATH:-} ]]; then
    found=$("$python" - <<'PYTHON' 2>/dev/null
import glob, nvidia, os
names = [f for p in nvidia.__path__ for n in ("libcublas.so*", "libcublasLt.so*", "libcurand.so*")
         for f in glob.glob(os.path.join(p, "**", n), recursive=True)]
print(":".join(sorted({os.path.dirname(f) for f in names})))
PYTHON
    )
    export RLVR_CUDA_LIBRARY_PATH=${found:+$found:}/usr/local/cuda/lib64:/usr/local/cuda/targets/x86_64-linux/lib:/usr/local/nvidia/lib64
    # The loader asks the system's folders first, and libraries load others by themselves.
    export LD_LIBRARY_PATH=$RLVR_CUDA_LIBRARY_PATH${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

about() {
    local name
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    [[ -n $name && $device == cuda ]] || name=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf 'machine  %s\nran      %s, call %s, device %s, quick %s\n' "$name" "$(date -u '+%F %H:%M')" "$call" "$device" "$quick"
    cat "$pack/build.txt"
    printf 'system   %s, %s cores, %s GiB\n\n' "$(uname -sr)" "$(nproc)" "$(awk '/MemTotal/ { print int($2 / 1048576) }' /proc/meminfo)"
    nvidia-smi 2>/dev/null || echo "no nvidia-smi"
    nvidia-smi --query-gpu=driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current --format=csv 2>/dev/null
    [[ $device == cpu ]] || printf 'libraries %s\n' "$RLVR_CUDA_LIBRARY_PATH"
}
if [[ $list == no ]]; then
    about >"$out/machine.txt"
    # Power, clocks, use and memory of the card, a line a second.
    if [[ $device == cuda ]] && command -v nvidia-smi >/dev/null; then
        nvidia-smi dmon -s pucm -d 1 >"$out/smi.txt" 2>&1 &
        watch=$!
    else
        echo "no nvidia-smi" >"$out/smi.txt"
    fi
fi

failed=0
wanted() { [[ " ${groups[*]} " == *" $1 "* ]] && [[ -z $only || ,$only, == *,$1,* ]]; }
record() { [[ $list == yes ]] || printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/stages.tsv"; }
# stage NAME LIMIT FILE COMMAND...: standard output goes to FILE line by line, also that of a command that is stopped.
stage() {
    local name=$1 limit=$2 file=$3 left=$((budget - SECONDS)) began=$SECONDS rc
    shift 3
    local words=("$@")
    if [[ ${words[0]} == "$python" ]]; then words=(python3 "${words[1]##*/}" "${words[@]:2}"); fi
    if [[ $list == yes ]]; then
        printf '%s\t%s\t%s\n' "$name" "$limit" "${words[*]}"
        return
    fi
    ((limit *= patience, limit <= left)) || limit=$left
    printf '== %s: %s\n' "$name" "${words[*]}" | tee -a "$out/log.txt"
    if ((limit < 5)); then
        record "$name" "no time left" 0 "${words[*]}"
        failed=1
        return 1
    fi
    [[ $file == /* ]] || file=$out/$file
    (cd "$scratch" && timeout -k 5 "$limit" "$@") >>"$file" 2>>"$out/log.txt"
    rc=$?
    record "$name" "$rc" $((SECONDS - began)) "${words[*]}"
    if ((rc)); then
        failed=1
        tail -n 4 "$out/log.txt"
        echo "== $name: exit code $rc"
    fi
    return "$rc"
}

# Does the binary start, find its libraries, compute one product? If not, nothing else will: the time is saved.
smoke() {
    stage smoke 15 doctor.jsonl rlvr doctor --device "$device" --json-lines --only linear && return
    [[ $device == cpu ]] ||
        (cd "$scratch" && LD_DEBUG=libs timeout 10 rlvr doctor --device cuda --only rope 2>&1 | grep -E 'error|cannot|find library|trying file' | tail -n 40 >>"$out/log.txt")
    "$python" "$here/summary.py" "$out"
    exit 1
}
# A kernel's fault stays with its process: after one, every op has a process of its own, on the inputs that failed.
doctor() {
    local op seed
    stage doctor 45 doctor.jsonl rlvr doctor --device "$device" --json-lines "${checks[@]}" && return
    seed=$(grep -o '"seed":"\?[0-9]*' "$out/doctor.jsonl" | tail -n 1 | grep -o '[0-9]*$')
    for op in $(rlvr doctor --list); do
        CUDA_LAUNCH_BLOCKING=1 stage "doctor-$op" 15 doctor.jsonl rlvr doctor --device "$device" --json-lines --only "$op" ${seed:+--seed "$seed"}
    done
    if command -v compute-sanitizer >/dev/null; then
        stage sanitizer 40 log.txt compute-sanitizer --tool memcheck rlvr bench step --random-weights --device cuda --preset tiny --groups 1 --prompt-tokens 24 --new-tokens 3 --steps 1
    fi
}
steps() {
    stage step-small-tape 20 steps.jsonl "${step[@]}" "${small[@]}" --steps 2 "${tape[@]}"
    stage step-small 15 steps.jsonl "${step[@]}" "${small[@]}" --steps 2 "${recomputed[@]}"
    stage step-few 30 steps.jsonl "${large[@]}" --steps 1 --groups "$few" "${kept[@]}" || {
        CUDA_LAUNCH_BLOCKING=1 stage step-one 30 steps.jsonl "${large[@]}" --steps 1 --groups 1 "${recomputed[@]}"
        return
    }
    stage step-kept 45 steps.jsonl "${large[@]}" --steps 1 --groups "$all" "${kept[@]}"
    stage step-tape 45 steps.jsonl "${large[@]}" --steps 1 --groups "$all" "${tape[@]}"
    stage step-recomputed 40 steps.jsonl "${large[@]}" --steps 1 --groups "$all" "${recomputed[@]}"
}
# Time by kernel of one group's step, if ncu is there.
kernels() {
    local profiled=(rlvr bench step --random-weights --device cuda --preset "$preset" --group-size 8 --prompt-tokens 1500 --groups 1 --new-tokens 3 --steps 1)
    if [[ $list == no ]] && ! command -v ncu >/dev/null; then
        record kernels "not run: no ncu" 0 "-"
        return
    fi
    stage kernels 30 "$scratch/ncu.csv" ncu --clock-control none --print-units base --metrics gpu__time_duration.sum --csv --launch-count 2000 \
        "${profiled[@]}" --dtype bf16 --moments int8 --gradients bf16 "${kept[@]}"
    [[ $list == yes ]] || "$python" "$here/summary.py" --kernels "$scratch/ncu.csv" >>"$out/ops.jsonl" 2>>"$out/log.txt"
}

has() { "$python" -c "$1" "$device" 2>>"$out/log.txt"; }
torch_there='import sys, torch; sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())'
torch_ops() {
    if [[ $list == no ]] && ! has "$torch_there"; then
        record torch "not run: no torch that sees the device" 0 "-"
        return
    fi
    stage torch 40 ops.jsonl "$python" "$pack/torch_ops.py" "$out/ops.jsonl" --device "$device" --seconds "$ops_seconds"
}
peers() {
    local work=("$pack/trl_gpu_step.py" --device "$device" --preset "$preset" --dtype "$dtype" "${group[@]}" "${peer[@]}" --steps 1)
    if [[ $list == no ]]; then
        if ! has "$torch_there" || ! has 'import transformers'; then
            record peers "not run: no torch and transformers that see the device" 0 "-"
            return
        fi
        if compgen -G "$pack/wheels/*.whl" >/dev/null; then
            "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" "$pack"/wheels/*.whl 2>>"$out/log.txt" &&
                export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
        fi
    fi
    if [[ $list == yes ]] || has 'import trl, datasets'; then
        stage peer-trl 205 steps.jsonl "$python" "${work[@]}" --peer trl && return
    fi
    stage peer-torch 205 steps.jsonl "$python" "${work[@]}" --peer torch
}

if [[ $call == 1 ]]; then
    smoke
    ! wanted doctor || doctor
    ! wanted steps || steps
    ! wanted ops || stage ops 45 ops.jsonl "${ops[@]}"
    ! wanted kernels || [[ $device == cpu ]] || kernels
else
    case $best in
    kept) way=("${kept[@]}") ;;
    tape) way=("${tape[@]}") ;;
    recomputed) way=("${recomputed[@]}") ;;
    *) stop "--best $best: kept, tape or recomputed" ;;
    esac
    ! wanted best || stage best 60 steps.jsonl "${large[@]}" --steps 3 --groups "$all" "${way[@]}"
    if wanted ops; then
        stage ops-linear 30 ops.jsonl "${ops[@]}" --only linear
        stage ops-attention 15 ops.jsonl "${ops[@]}" --only attention
    fi
    ! wanted torch || torch_ops
    ! wanted peers || peers
fi
[[ $list == no ]] || exit 0

printf '\n'
"$python" "$here/summary.py" "$out"
exit "$failed"
