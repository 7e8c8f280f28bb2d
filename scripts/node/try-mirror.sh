#!/usr/bin/env bash
# Tries run.mirror: runs whose network has faults while they are killed, stopped and moved to empty disks, and two machines that race for
# one run. Every one has to end bit for bit as an unbroken run; figures at the end.
#
#   scripts/node/try-mirror.sh [FAULTS [RACES [SEED]]]     # 50, 20 and 0
#   S3=moto scripts/node/try-mirror.sh ...                 # against moto's server (pip install 'moto[server]') instead of the suite's own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export RLVR_MIRROR_FAULTS=${1:-50} RLVR_MIRROR_RACES=${2:-20} RLVR_TEST_SEED=${3:-0}
if [[ ${S3:-} == moto ]]; then
    command -v moto_server >/dev/null || { echo "try-mirror: moto_server not found: pip install 'moto[server]'" >&2; exit 1; }
    port=${MOTO_PORT:-5817}
    moto_server -H 127.0.0.1 -p "$port" >/dev/null 2>&1 &
    moto=$!
    trap 'kill "$moto"' EXIT
    for _ in {1..60}; do curl -sf -X PUT "http://127.0.0.1:$port/bucket" >/dev/null && break; sleep 1; done
    export RLVR_MIRROR_S3=127.0.0.1:$port
fi
# Two at once would wait for each other's steps.
cargo test --release ${CARGO_FLAGS:-} --test suite mirror:: -- --nocapture --test-threads=1
