#!/usr/bin/env bash
# Trains a demo through rlvr.sbatch on a Slurm of one node that it starts itself: requeued in the middle, then stopped by
# the signal ahead of the time limit; the model and the metrics are compared with those of an unbroken run, bit for bit.
#
#   scripts/node/try-slurm.sh RLVR [DIR]     # as root; Debian: apt-get install slurmctld slurmd slurm-client munge
#
# Takes some five minutes: Slurm counts time limits in minutes. Everything is in DIR, by default a new folder of /tmp, which
# stays where something went wrong.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export RLVR=$(realpath "${1:?the binary to try}")
dir=${2:-$(mktemp -d /tmp/rlvr-slurm.XXXXXX)}
stop() { printf 'try-slurm: %s (look into %s)\n' "$*" "$dir" >&2; exit 1; }
((EUID == 0)) || stop "not root: slurmd starts jobs of any user"
for tool in munged slurmctld slurmd sbatch; do command -v "$tool" >/dev/null || stop "$tool not found: install it"; done

mkdir -p "$dir"/{state,spool,munge}
cd "$dir"
(umask 077 && head -c 1024 /dev/urandom >munge/key)
node=$(hostname -s)
cat >slurm.conf <<CONF
ClusterName=rlvr
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
end() {
    for pid in slurmd slurmctld munge/munged; do [[ -f $pid.pid ]] && kill "$(<"$pid.pid")" 2>/dev/null; done
    return 0
}
trap end EXIT
chmod 755 munge
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/munged.pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" || stop "munged does not start"
slurmctld && slurmd -N "$node" || stop "Slurm does not start"
for _ in {1..60}; do [[ $(sinfo -h -o %T 2>/dev/null) == idle ]] && break; sleep 1; done
[[ $(sinfo -h -o %T) == idle ]] || stop "the node is not idle: $(sinfo -h -o '%T %E')"

# One thread, so that the time limit comes before the end; otherwise the demo as it is.
train=(demo --set threads=1 --set run.root="$dir/runs")
"$RLVR" train "${train[@]}" --set run.name=unbroken >unbroken.log 2>&1 || stop "the unbroken run failed"

job=$(sbatch --parsable --time=2 --signal=USR1@75 "$here/rlvr.sbatch" "${train[@]}")
state() { squeue -h -j "$job" -o %T 2>/dev/null || true; }
run=$dir/runs/job-$job
steps() { local n; n=$(grep -c '"step"' "$run/metrics.jsonl" 2>/dev/null || true); echo "${n:-0}"; }
wait_for() { # SECONDS WHAT CONDITION
    for ((i = 0; i < $1; i++)); do eval "$3" && return; sleep 1; done
    stop "$2 did not come in $1 s; the job is $(state)"
}
wait_for 60 "the tenth step" '(($(steps) >= 10))'
scontrol requeue "$job"
echo "requeued after $(steps) lines with a step"
wait_for 1200 "the end" '[[ -z $(state) || $(state) == COMPLETED ]]'
log=rlvr-$job.log
echo "restarts: $(grep -c 'train --\|going on\|resum' "$log" || true); stops said: $(grep -c '^stopped' "$log" || true)"
grep -E '^(stopped|slurmstepd)' "$log" || true
[[ -s $run/model/model.safetensors ]] || stop "no model"
cmp "$dir/runs/unbroken/model/model.safetensors" "$run/model/model.safetensors" || stop "another model"
plain() { # metrics without what is measured
    python3 - "$1" <<'PY'
import json, sys
timed = ("seconds", "per_second", "time", "hours", "gib", "cost")
for line in open(sys.argv[1]):
    row = json.loads(line)
    print(json.dumps({k: v for k, v in sorted(row.items()) if not any(word in k for word in timed)}))
PY
}
cmp <(plain "$dir/runs/unbroken/metrics.jsonl") <(plain "$run/metrics.jsonl") || stop "other metrics"
echo "model and metrics are those of the unbroken run, bit for bit"
end
trap - EXIT
[[ -n ${2:-} ]] || rm -rf "$dir"
