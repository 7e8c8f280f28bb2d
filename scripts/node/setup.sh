#!/usr/bin/env bash
# From a bare Ubuntu or Debian machine on x86-64 to a working `rlvr`, in a clone of this repository.
#
#   scripts/node/setup.sh            # for the CPU
#   scripts/node/setup.sh --cuda     # for a GPU: NVIDIA's driver has to be there, nothing else
#
# Asks for root only to install what is missing of build-essential, git, curl, python3 and pip. Rust comes from its own
# installer into ~/.cargo unless one that is new enough is there; the binary goes to /usr/local/bin, or without root to
# ~/.local/bin. A second call only does what is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }
cuda=
case ${1:-} in
    '') ;;
    --cuda) cuda=1 ;;
    *) stop "$1: --cuda or nothing" ;;
esac
[[ $(uname -sm) == "Linux x86_64" ]] || stop "$(uname -sm): only Linux on x86-64 is known to work"

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need cc build-essential
need git git
need curl curl
need python3 python3
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
[[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
if ((${#missing[@]})); then
    command -v apt-get >/dev/null || stop "missing: ${missing[*]}, and no apt-get to install them"
    root=()
    ((EUID == 0)) || root=(sudo)
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
export PATH=$HOME/.cargo/bin:$PATH
version() { cargo --version 2>/dev/null | cut -d' ' -f2; }
if [[ $(printf '%s\n' "$wanted" "$(version)" | sort -V | head -n 1) != "$wanted" ]]; then
    say "installing Rust; $wanted or newer is needed"
    url=https://static.rust-lang.org/rustup/dist/x86_64-unknown-linux-gnu/rustup-init
    work=$(mktemp -d)
    curl --proto '=https' --tlsv1.2 -sSf "$url" -o "$work/rustup-init"
    sum=$(curl --proto '=https' --tlsv1.2 -sSf "$url.sha256" | cut -d' ' -f1)
    sha256sum --check --quiet <<<"$sum  $work/rustup-init"
    chmod +x "$work/rustup-init"
    "$work/rustup-init" -y --quiet --profile minimal --no-modify-path >/dev/null
    rm -rf "$work"
fi

features=()
if [[ $cuda ]]; then
    scripts/cuda/setup-cuda.sh
    . .cuda/env.sh
    features=(--features cuda)
fi
say "building with $(cargo --version); some minutes"
cargo build --release --locked "${features[@]}"
into=/usr/local/bin
[[ -w $into ]] || into=$HOME/.local/bin
mkdir -p "$into"
install -m 755 "${CARGO_TARGET_DIR:-target}/release/rlvr" "$into/rlvr"
say "installed $("$into/rlvr" -V) as $into/rlvr"

if [[ $cuda ]]; then
    # The two libraries that are loaded at run time: of the toolkit, or as wheels.
    libraries=/usr/local/cuda/lib64
    if ! compgen -G "$libraries/libcublas.so*" >/dev/null; then
        libraries=$HOME/.local/share/rlvr-cuda/nvidia/cu13/lib
        python3 -m pip install --quiet --target "$HOME/.local/share/rlvr-cuda" 'nvidia-cublas==13.*' 'nvidia-curand==10.4.*'
    fi
    say "for every shell: export RLVR_CUDA_LIBRARY_PATH=$libraries LD_LIBRARY_PATH=$libraries"
    export RLVR_CUDA_LIBRARY_PATH=$libraries LD_LIBRARY_PATH=$libraries
    command -v nvidia-smi >/dev/null || { say "no nvidia-smi: without a driver nothing can be tried here"; exit 0; }
    "$into/rlvr" doctor --device cuda
fi
