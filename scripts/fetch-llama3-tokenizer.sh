#!/bin/sh
# Fetches Llama 3's tokenizer.model (2 MB of tiktoken ranks inside Meta's Python wheel) and prints the file's path.
# Usage: scripts/fetch-llama3-tokenizer.sh [CACHE_DIR]     needs python3 with pip; a second call finds the file.
# Exit code 3: pip could not get the wheel.
#   rlvr import "$(scripts/fetch-llama3-tokenizer.sh)" llama3-tokenizer
set -eu
cache=${1:-${RLVR_CACHE_DIR:-"$(dirname "$0")/../.cache"}}
file=$cache/llama3-tokenizer.model
if [ ! -f "$file" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
        --dest "$work" llama-models==0.3.0 >&2 || {
        echo "pip cannot get llama-models==0.3.0" >&2
        exit 3
    }
    python3 -m zipfile -e "$work"/llama_models-*.whl "$work"
    mv "$work/llama_models/llama3/tokenizer.model" "$file"
fi
echo "$file"
