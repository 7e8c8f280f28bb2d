#!/usr/bin/env bash
# Holds the plan's model of what ranks send each other against links of a known rate: hosts are network namespaces on a bridge, whose
# way out tc slows down, and `rlvr bench ranks` exchanges gradients and weights between them. A JSON line for each size and number of
# hosts: seconds, and those that (n-1)/n of the bytes take at the link's rate and at the share of it that one exchange has shown.
#
#   scripts/node/try-links.sh RLVR [MBIT]     # as root; Debian: apt-get install iproute2. MBIT: 400, slow enough for any CPU
set -euo pipefail
RLVR=$(realpath "${1:?the binary to try}")
mbit=${2:-400}
dir=$(mktemp -d /tmp/rlvr-links.XXXXXX)
most=4
cleanup() {
    for ((i = 1; i <= most; i++)); do ip netns del "rlvr-l$i" 2>/dev/null || true; done
    ip link del rlvr-bridge 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
ip link add rlvr-bridge type bridge
ip link set rlvr-bridge up
for ((i = 1; i <= most; i++)); do
    ip netns add "rlvr-l$i"
    ip link add "rlvr-p$i" type veth peer name eth0 netns "rlvr-l$i"
    ip link set "rlvr-p$i" master rlvr-bridge up
    ip -n "rlvr-l$i" addr add "10.78.0.$i/24" dev eth0
    ip -n "rlvr-l$i" link set eth0 up
    ip -n "rlvr-l$i" link set lo up
    ip netns exec "rlvr-l$i" tc qdisc add dev eth0 root tbf rate "${mbit}mbit" burst 256kb latency 100ms
done
for ((n = 2; n <= most; n++)); do
    started=()
    for ((i = n; i >= 1; i--)); do
        RANK=$((i - 1)) WORLD_SIZE=$n LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=10.78.0.1 MASTER_PORT=29700 \
            ip netns exec "rlvr-l$i" "$RLVR" bench ranks --mib 2,16,64 --rounds 3 --json >"$dir/$n.$i" 2>"$dir/$n.$i.err" &
        started+=($!)
    done
    for pid in "${started[@]}"; do wait "$pid" || { cat "$dir/$n".*.err >&2; exit 1; }; done
done
python3 - "$mbit" "$dir" "$most" <<'PY'
import json, sys
rate, dir, most = float(sys.argv[1]) * 1e6 / 8, sys.argv[2], int(sys.argv[3])
rows = [json.loads(line) for n in range(2, most + 1) for line in open(f"{dir}/{n}.1") if line.startswith("{")]
def least(row):
    return row["mib"] * 2**20 * (row["ranks"] - 1) / row["ranks"] / rate
share = next(least(row) / row["seconds"] for row in rows if row["ranks"] == 2 and row["mib"] == 16)
for row in rows:
    planned = least(row) / share
    print(json.dumps({"hosts": row["ranks"], "op": row["op"], "mib": row["mib"], "seconds": round(row["seconds"], 4),
                      "at_the_links_rate": round(least(row), 4), "planned": round(planned, 4),
                      "measured_over_planned": round(row["seconds"] / planned, 3)}))
print(json.dumps({"mbit_per_s": rate * 8 / 1e6, "share_of_the_rate_by_16_mib_of_2_hosts": round(share, 3)}))
PY
