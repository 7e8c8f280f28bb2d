#!/bin/sh
# Holds `rlvr export` against other programs: transformers, PEFT, the gguf package and llama.cpp.
# Usage: scripts/check-exports.sh [MODEL_DIR...]     builds rlvr, makes a virtual environment, prints what differs.
#   MODEL_DIR           real models to check beside the tiny ones that the script makes
#   RLVR_CHECK_PYTHON   a Python that has torch, transformers, peft, gguf and xllamacpp, instead of an environment
#   RLVR                the program, instead of building it
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${RLVR:-}" ]; then
    cargo build --release --manifest-path "$here/../Cargo.toml"
    RLVR=${CARGO_TARGET_DIR:-"$here/../target"}/release/rlvr
fi
python=${RLVR_CHECK_PYTHON:-}
if [ -z "$python" ]; then
    env=${RLVR_CACHE_DIR:-"$here/../.cache"}/check-exports
    python=$env/bin/python
    if [ ! -x "$python" ]; then
        python3 -m venv "$env"
        # torch from PyPI brings CUDA along; its own index has a CPU build a tenth the size:
        #   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu scripts/check-exports.sh
        "$python" -m pip install --quiet torch transformers peft gguf xllamacpp
    fi
fi
exec "$python" "$here/check_exports.py" "$RLVR" "$@"
