#!/usr/bin/env bash
# Packs what scripts/gpu/run.sh needs on a machine with a GPU, and without Rust, into one git-ignored folder.
#
#   scripts/gpu/build.sh [--into FOLDER] [--wheels] [--no-cuda | --binary FILE]
#
# FOLDER (by default gpu-out): rlvr built with CUDA and stripped, run.sh, riskcue.sh, summary.py, the peers' scripts,
# build.txt (commit and versions). It stands alone: copy it anywhere and call its run.sh.
#   --wheels   fetches TRL as wheels too, what a machine with torch and transformers lacks, for Python 3.12
#   --no-cuda  builds without CUDA, to try run.sh --device cpu
#   --binary   packs this rlvr instead of building one
# The compiler comes from scripts/cuda/setup-cuda.sh ($RLVR_CUDA_DIR, by default .cuda).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
wheels=(trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19)
largest_mib=60
stop() { printf 'build: %s\n' "$*" >&2; exit 1; }
into=gpu-out with_wheels=no features=(--features cuda) binary=
while (($#)); do
    case $1 in
    --into) into=${2:?--into needs a folder}; shift 2 ;;
    --wheels) with_wheels=yes; shift ;;
    --no-cuda) features=(); shift ;;
    --binary) binary=${2:?--binary needs a file}; shift 2 ;;
    *) stop "unknown argument $1; the head of this file says how it is called" ;;
    esac
done

compiler=none built_with=${features[1]:-none}
[[ -z $binary ]] || built_with="of the given program"
if [[ -z $binary ]] && ((${#features[@]})); then
    bash scripts/cuda/setup-cuda.sh >&2
    # shellcheck source=/dev/null
    . "${RLVR_CUDA_DIR:-.cuda}/env.sh"
    compiler=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*, V\([0-9.]*\).*/\1/p')
fi
if [[ -z $binary ]]; then
    binary=$(cargo build --release --locked "${features[@]}" --bin rlvr --message-format=json-render-diagnostics |
        python3 -c 'import json, sys
lines = [json.loads(line) for line in sys.stdin]
print(*[line["executable"] for line in lines if line.get("executable")][-1:])')
    [[ -x $binary ]] || stop "cargo built no rlvr"
fi
[[ -x $binary ]] || stop "$binary: no program"

mkdir -p "$into"
rm -rf "$into/wheels"
strip -o "$into/rlvr" "$binary"
cp scripts/gpu/{run.sh,riskcue.sh,summary.py} scripts/peers/{trl_gpu_step,torch_ops}.py "$into/"
if [[ $with_wheels == yes ]]; then
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 -d "$into/wheels" "${wheels[@]}"
fi
changes=$(git status --porcelain --untracked-files=no 2>/dev/null) || changes=unknown
{
    printf 'commit   %s%s\n' "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "${changes:+-changed}"
    printf 'built    %s, %s, nvcc %s, features %s\n' "$(date -u +%F)" "$(rustc --version)" "$compiler" "$built_with"
    printf 'wheels   %s\n' "$([[ $with_wheels == yes ]] && echo "${wheels[*]}" || echo none)"
} >"$into/build.txt"
size=$(du -sm "$into" | cut -f1)
((size <= largest_mib)) || stop "$into is $size MiB, more than the $largest_mib MiB that it may travel with"
cat "$into/build.txt"
echo "ready    $into, $size MiB: $into/run.sh OUT"
