#!/bin/sh
# Fetches the chat templates of real models, which the wheels of TRL and Xinference carry, renders them with jinja2 and
# prints the folder.
# Usage: tests/golden/make/fetch-templates.sh [CACHE_DIR]     needs python3 with pip; a second call finds the folder.
# Exit code 3: pip could not get the wheels.
set -eu
here=$(dirname "$0")
cache=${1:-${RLVR_CACHE_DIR:-"$here/../../../.cache"}}
# Rendered again where the conversations changed.
made=$(cat "$here/templates.py" "$here/unpack_templates.py" | cksum | cut -d' ' -f1)
folder=$cache/chat-templates-trl-1.16.0-xinference-4.1.0-$made
if [ ! -f "$folder/renderings.json" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    pip="python3 -m pip --quiet --disable-pip-version-check --no-input"
    { $pip download --no-deps --only-binary :all: --dest "$work" trl==1.16.0 xinference==4.1.0 &&
        $pip install --target "$work/jinja" jinja2==3.1.6; } >&2 || {
        echo "pip cannot get trl==1.16.0, xinference==4.1.0 and jinja2==3.1.6" >&2
        exit 3
    }
    python3 "$here/unpack_templates.py" "$work" "$work/templates"
    PYTHONPATH="$work/jinja" python3 "$here/templates.py" "$work/templates" >"$work/renderings.json"
    mv "$work/renderings.json" "$work/templates"
    rm -rf "$folder"
    mv "$work/templates" "$folder"
fi
echo "$folder"
