#!/bin/sh
# Fetches the chat templates of real models, which TRL's wheel carries, renders them with jinja2 and prints the folder.
# Usage: tests/golden/make/fetch-templates.sh [CACHE_DIR]     needs python3 with pip; a second call finds the folder.
# Exit code 3: pip could not get trl or jinja2.
set -eu
here=$(dirname "$0")
cache=${1:-${RLVR_CACHE_DIR:-"$here/../../../.cache"}}
# Rendered again where the conversations changed.
folder=$cache/chat-templates-trl-1.16.0-$(cksum <"$here/templates.py" | cut -d' ' -f1)
if [ ! -f "$folder/renderings.json" ]; then
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    pip="python3 -m pip --quiet --disable-pip-version-check --no-input"
    { $pip download --no-deps --dest "$work" trl==1.16.0 &&
        $pip install --target "$work/jinja" jinja2==3.1.6; } >&2 || {
        echo "pip cannot get trl==1.16.0 and jinja2==3.1.6" >&2
        exit 3
    }
    python3 -m zipfile -e "$work"/trl-*.whl "$work"
    PYTHONPATH="$work/jinja" python3 "$here/templates.py" "$work/trl/chat_templates" >"$work/renderings.json"
    rm -rf "$folder"
    mkdir "$folder"
    mv "$work/trl/chat_templates/"*.jinja "$work/renderings.json" "$folder"
fi
echo "$folder"
