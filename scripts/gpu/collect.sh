#!/usr/bin/env bash
# Puts the results of scripts/gpu/run.sh where they are committed: benches/results/gpu/MACHINE-COMMIT-CALL/.
#
#   scripts/gpu/collect.sh FOLDER
#
# Adds summary.md: the table and every command line. log.txt stays behind, it may name folders of the machine.
# Results of the same machine, commit and call are replaced.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stop() { printf 'collect: %s\n' "$*" >&2; exit 1; }
(($# == 1)) || stop "give the folder that run.sh wrote"
from=$1
[[ -f $from/machine.txt && -f $from/stages.tsv ]] || stop "$from: no machine.txt and stages.tsv there"
machine=$(sed -n 's/^machine  //p' "$from/machine.txt" | tr '[:upper:]' '[:lower:]' | sed 's/[^a-z0-9]\+/-/g; s/^-//; s/-$//')
commit=$(sed -n 's/^commit   //p' "$from/machine.txt")
call=$(sed -n 's/^ran .*, call \([12]\),.*/\1/p' "$from/machine.txt")
[[ -n $machine && -n $commit && -n $call ]] || stop "$from/machine.txt names no machine, commit or call"
to=$here/../../benches/results/gpu/$machine-$commit-$call
rm -rf "$to"
mkdir -p "$to"
for file in "$from"/{machine.txt,stages.tsv,smi.txt,doctor.jsonl,steps.jsonl,ops.jsonl}; do
    [[ ! -f $file ]] || install -m 644 "$file" "$to/"
done
python3 "$here/summary.py" "$to" >"$to/summary.md"
cat "$to/summary.md"
echo "in benches/results/gpu/$machine-$commit-$call"
