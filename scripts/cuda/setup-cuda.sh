#!/usr/bin/env bash
# Everything that `--features cuda` needs to build: no root, no GPU, no driver, no toolkit.
#
#   scripts/cuda/setup-cuda.sh && . .cuda/env.sh && cargo build --release --features cuda
#
# The compiler comes as pinned Python wheels (about 270 MB unpacked on first use) into $RLVR_CUDA_DIR,
# by default .cuda in the project. Running it again does nothing when the same pins are there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
mkdir -p "${RLVR_CUDA_DIR:-$project/.cuda}"
dest=$(cd "${RLVR_CUDA_DIR:-$project/.cuda}" && pwd)
root=$dest/nvidia/cu13 # all five wheels unpack into this one tree
wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)
stop() { printf 'setup-cuda: %s\n' "$*" >&2; exit 1; }
[[ $(uname -sm) == "Linux x86_64" ]] || stop "$(uname -sm): only Linux on x86-64 is set up here; install the CUDA toolkit and set NVCC and CUDA_HOME"
for tool in python3 cargo cc ld objcopy ar; do
    command -v "$tool" >/dev/null || stop "$tool not found: install it (cc, ld, objcopy and ar come with gcc and binutils)"
done

pins=${wheels[*]}
if [[ $(cat "$dest/pins" 2>/dev/null) != "$pins" ]]; then
    python3 -m pip --version >/dev/null 2>&1 || stop "python3 has no pip: install python3-pip"
    rm -rf "$dest/nvidia" "$dest/pins"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
        --upgrade --target "$dest" "${wheels[@]}"
    ln -sfn lib "$root/lib64"                          # where nvcc, cudarc and candle look
    ln -sfn libcudart_static.a "$root/lib/libcudart.a" # the static runtime opens the driver by itself
    printf '%s' "$pins" >"$dest/pins"
fi

# Stubs follow the cudarc of Cargo.lock; made anew when that or their source changes.
cudarc=$(cargo metadata --manifest-path "$project/Cargo.toml" --locked --features cuda --format-version 1 |
    python3 -c 'import json, os, sys
print(*[os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"])')
[[ -n $cudarc && -d $cudarc/src ]] || stop "cudarc is not among the packages of Cargo.lock"
made_from=$(basename "$cudarc")-$(cat "$here/lazy_stubs.py" "$here/lazy_loader.c" | sha256sum | cut -c1-16)
if [[ $(cat "$dest/stubs" 2>/dev/null) != "$made_from" ]]; then
    python3 "$here/lazy_stubs.py" "$cudarc/src" "$root/lib"
    printf '%s' "$made_from" >"$dest/stubs"
fi

install -m 755 "$here/nvcc-lean" "$root/bin/" # beside nvcc: candle takes the toolkit's place from it
cat >"$dest/env.sh" <<ENV
export CUDA_HOME="$root" CUDA_PATH="$root"
export PATH="$root/bin:\$PATH"
export NVCC="$root/bin/nvcc-lean" # $root/bin/nvcc builds candle's quantised kernels too
export CUDA_COMPUTE_CAP=80        # candle's PTX then loads on every card from A100 on
export CUDARC_CUDA_VERSION=13000
export CUDAFORGE_THREADS=\${CUDAFORGE_THREADS:-2}
ENV
"$root/bin/nvcc" --version | tail -n 2
echo "ready: . $dest/env.sh"
