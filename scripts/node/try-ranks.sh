#!/usr/bin/env bash
# Trains the demo, cut short, as several ranks under each launcher that is here: unbroken, and stopped by a signal and gone on with
# by the same command. One JSON line a trial: whether the model is the unbroken one bit for bit, and how far its weights are from those of one process.
#
#   scripts/node/try-ranks.sh RLVR [DIR]     # as root, for Slurm and the namespaces; RLVR built with --features mpi for MPI
#
#   TORCHRUN=...   torchrun of a torch that is installed; without one its trials are left out
#   ONLY=...       names of trials, a regular expression
#
# Debian: apt-get install openmpi-bin slurmctld slurmd slurm-client munge iproute2. Two hosts are two network namespaces joined by a veth pair,
# with host names of their own and one disk.
set -uo pipefail
RLVR=$(realpath "${1:?the binary to try}")
dir=${2:-$(mktemp -d /tmp/rlvr-ranks.XXXXXX)}
mkdir -p "$dir"
dir=$(realpath "$dir")
cd "$dir" || exit 1
TORCHRUN=${TORCHRUN:-$(command -v torchrun)}
ONLY=${ONLY:-.}
say() { printf '%s\n' "$*" >&2; }
demo=(train demo --set threads=1 --set "run.root=$dir/runs" --set eval.every_steps=0 --set eval.keep_best=last --set checkpoint.every_steps=2
    --set sft.epochs=1.0 --set "grpo.steps=${STEPS:-12}" --set data.synthetic.sft_rows=640 --set data.synthetic.grpo_rows=400
    --set data.synthetic.valid_rows=40)

hosts=(rlvr-a rlvr-b)
cleanup() {
    for pid in slurm/slurmd slurm/slurmctld slurm/munge/munged; do [[ -f $pid.pid ]] && kill "$(<"$pid.pid")" 2>/dev/null; done
    for host in "${hosts[@]}"; do ip netns del "$host" 2>/dev/null; done
    return 0
}
trap cleanup EXIT

steps() { local n; n=$(grep -c '"stage":"grpo"' "runs/$1/metrics.jsonl" 2>/dev/null); echo "${n:-0}"; }

# trial NAME RANKS HOSTS SIGNAL COMMAND...: COMMAND gets rlvr's own arguments, and becomes the launcher that a signal reaches.
trial() {
    local name=$1 ranks=$2 on=$3 signal=$4 start=$SECONDS code again
    shift 4
    [[ $name =~ $ONLY ]] || return 0
    rm -rf "runs/$name" "runs/$name-stopped"
    ("$@" "${demo[@]}" --set "run.name=$name") >"$name.log" 2>&1
    code=$?
    local unbroken=$((SECONDS - start))
    ((code == 0)) || say "$name: exit code $code (look into $dir/$name.log)"
    "$@" "${demo[@]}" --set "run.name=$name-stopped" --resume auto >"$name-stopped.log" 2>&1 &
    local pid=$! at
    for ((i = 0; i < 3000; i++)); do (($(steps "$name-stopped") >= 3)) && break; sleep 0.1; done
    kill -"$signal" "$pid" 2>/dev/null
    wait "$pid"
    code=$?
    at=$(steps "$name-stopped")
    ("$@" "${demo[@]}" --set "run.name=$name-stopped" --resume auto) >"$name-again.log" 2>&1
    again=$?
    python3 - "$name" "$ranks" "$on" "$unbroken" "$signal" "$at" "$code" "$again" "$(sed -n 's/.*note: [0-9]* ranks, started by .*, over //p' "$name.log" | head -1)" <<'PY'
import array, json, struct, sys
name, ranks, hosts, seconds, signal, at, code, again, wire = sys.argv[1:]
def weights(run):
    with open(f"runs/{run}/model/model.safetensors", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        body = file.read()
    return body, array.array("f", body)
line = {"trial": name, "ranks": int(ranks), "over": wire or None, "hosts": int(hosts), "seconds": int(seconds), "signal": signal,
        "grpo_steps_at_the_stop": int(at), "exit_of_the_stop": int(code), "exit_of_the_rest": int(again)}
try:
    (whole, numbers), (stopped, _), (_, one) = weights(name), weights(f"{name}-stopped"), weights("one")
    line["resumed_model_is_the_unbroken_one"] = whole == stopped
    line["largest_difference_from_one_process"] = max(abs(a - b) for a, b in zip(numbers, one))
    line["largest_weight"] = max(map(abs, one))
except OSError as error:
    line["error"] = str(error)
print(json.dumps(line), flush=True)
good = int(again) == 0 and line.get("resumed_model_is_the_unbroken_one") and int(code) in ((1, 75) if "torchrun" in name else (75,))
sys.exit(0 if good else 1)
PY
    # shellcheck disable=SC2181
    (($? == 0)) || failed=1
}
failed=0

has() { command -v "$1" >/dev/null || { say "no $1: its trials are left out"; return 1; }; }

one() { exec "$RLVR" "$@"; }
ONLY=. trial one 1 1 TERM one

own() { exec "$RLVR" "$@" --ranks "$n"; }
for n in 2 4; do trial "rlvr-$n" "$n" 1 TERM own; done

# More ranks than cores: who waits leaves the core to others. mpirun knows; under srun it is to be said.
export OMPI_MCA_mpi_yield_when_idle=1
mpi=(mpirun --allow-run-as-root --oversubscribe)
mpirun_() { exec "${mpi[@]}" -n "$n" "$RLVR" "$@"; }
mpirun_tcp() { RLVR_WIRE=tcp mpirun_ "$@"; }
if has mpirun; then
    for n in 2 4; do trial "mpirun-$n" "$n" 1 USR1 mpirun_; done
    n=2 trial mpirun-2-tcp 2 1 USR1 mpirun_tcp
fi

torch() { exec "$TORCHRUN" --no-python --nproc-per-node "$n" "$RLVR" "$@"; }
if [[ -n $TORCHRUN ]]; then
    for n in 2 4; do trial "torchrun-$n" "$n" 1 TERM torch; done
else
    say "no torchrun: its trials are left out"
fi

slurm() {
    mkdir -p slurm/{state,spool,munge}
    (umask 077 && head -c 1024 /dev/urandom >slurm/munge/key)
    local node
    node=$(hostname -s)
    cat >slurm/slurm.conf <<CONF
ClusterName=rlvr
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/slurm/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/slurm/state
SlurmdSpoolDir=$dir/slurm/spool
SlurmctldPidFile=$dir/slurm/slurmctld.pid
SlurmdPidFile=$dir/slurm/slurmd.pid
SlurmctldLogFile=$dir/slurm/slurmctld.log
SlurmdLogFile=$dir/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=8
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
    export SLURM_CONF=$dir/slurm/slurm.conf
    chmod 755 slurm/munge
    munged --force --key-file="$dir/slurm/munge/key" --socket="$dir/slurm/munge/socket" \
        --pid-file="$dir/slurm/munge/munged.pid" --log-file="$dir/slurm/munge/log" --seed-file="$dir/slurm/munge/seed" &&
        slurmctld && slurmd -N "$node" || return 1
    for _ in {1..60}; do [[ $(sinfo -h -o %T 2>/dev/null) == idle ]] && return 0; sleep 1; done
    return 1
}
srun_() { exec srun --kill-on-bad-exit=1 --mpi="$kind" -n "$n" "$RLVR" "$@"; }
if [[ srun =~ $ONLY || $ONLY == *srun* ]] && has srun && has slurmctld; then
    if slurm; then
        kind=pmix
        for n in 2 4; do trial "srun-pmix-$n" "$n" 1 USR1 srun_; done
        kind=none n=2 trial srun-tcp-2 2 1 USR1 srun_
    else
        say "Slurm does not start: its trials are left out (look into $dir/slurm)"
    fi
fi

namespaces() {
    local index=1
    ip link add "${hosts[0]}" type veth peer name "${hosts[1]}" || return 1
    for host in "${hosts[@]}"; do
        ip netns add "$host" && ip link set "$host" netns "$host" && ip -n "$host" addr add "10.77.0.$index/24" dev "$host" &&
            ip -n "$host" link set "$host" up && ip -n "$host" link set lo up || return 1
        index=$((index + 1))
    done
}
# inside HOST COMMAND...: in its namespace and with its name.
inside() {
    local host=$1
    shift
    # shellcheck disable=SC2016
    exec ip netns exec "$host" unshare --uts -- bash -c 'hostname "$0" && exec "$@"' "$host" "$@"
}
torch_node() {
    inside "${hosts[$1]}" "$TORCHRUN" --no-python --nnodes 2 --node-rank "$1" --master-addr 10.77.0.1 --master-port 29600 \
        --nproc-per-node 1 "$RLVR" "${@:2}"
}
# Both nodes, of which the first is the one that a signal reaches.
torch_hosts() {
    torch_node 1 "$@" >>torch-node-1.log 2>&1 &
    local second=$!
    torch_node 0 "$@" &
    local first=$! code
    trap 'kill -TERM $first' TERM
    wait $first
    code=$?
    while kill -0 $first 2>/dev/null; do wait $first; code=$?; done
    wait $second
    return $code
}
mpi_hosts() {
    export -f inside
    inside "${hosts[0]}" "${mpi[@]}" --mca plm_rsh_agent "$dir/agent.sh" --mca oob_tcp_if_include 10.77.0.0/24 --mca btl_tcp_if_include 10.77.0.0/24 \
        -x MASTER_ADDR=10.77.0.1 --host 10.77.0.1:1,10.77.0.2:1 -n 2 "$RLVR" "$@"
}
if [[ hosts =~ $ONLY || $ONLY == *hosts* ]] && has ip && has unshare; then
    if namespaces; then
        cat >agent.sh <<AGENT
#!/usr/bin/env bash
# mpirun's ssh: HOST COMMAND...
shift
exec ip netns exec ${hosts[1]} unshare --uts -- bash -c "hostname ${hosts[1]}; \$*"
AGENT
        chmod +x agent.sh
        if has mpirun; then trial hosts-mpirun 2 2 USR1 mpi_hosts; fi
        if [[ -n $TORCHRUN ]]; then trial hosts-torchrun 2 2 TERM torch_hosts; fi
    else
        say "no network namespaces: the trials on two hosts are left out"
    fi
fi
exit $failed
