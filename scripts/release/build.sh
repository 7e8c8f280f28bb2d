#!/usr/bin/env bash
# A tarball and a wheel of the command for Linux on x86-64, for glibc 2.17 and newer, without feature cuda.
#
#   scripts/release/build.sh [DIR]        # into DIR, by default target/dist; then scripts/release/try.sh tries them
#
# Built is the commit that is checked out, not edits beside it. Needs cargo, git and python3 with venv; two PyPI packages do
# the rest: maturin makes the wheel, and zig is a C compiler and linker that binds against the symbols of an old glibc.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=x86_64-unknown-linux-gnu
tools=(maturin==1.16.0 ziglang==0.15.2)
stop() { printf 'release: %s\n' "$*" >&2; exit 1; }
[[ $(uname -sm) == "Linux x86_64" ]] || stop "$(uname -sm): only Linux on x86-64 is built here"
for tool in cargo cc git python3 tar sha256sum objdump; do command -v "$tool" >/dev/null || stop "$tool not found: install it"; done

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} CARGO_INCREMENTAL=0
mkdir -p "${1:-target/dist}" "$CARGO_TARGET_DIR"
out=$(cd "${1:-target/dist}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

env=$CARGO_TARGET_DIR/release-tools
if [[ $(cat "$env/pins" 2>/dev/null) != "${tools[*]}" ]]; then
    rm -rf "$env"
    python3 -m venv "$env" || stop "python3 has no venv: install python3-venv"
    "$env/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: "${tools[@]}"
    printf '%s' "${tools[*]}" >"$env/pins"
fi
export PATH=$env/bin:$PATH

git diff --quiet HEAD -- || echo "edits that are not committed are left out"
git clone --quiet --no-hardlinks . "$work/rlvr"
cd "$work/rlvr"
scripts/release/licenses.py "$target" >THIRD-PARTY-LICENSES.txt
maturin build --release --zig --target "$target" --compatibility manylinux2014 --out "$work/wheel"

rlvr=$CARGO_TARGET_DIR/$target/release/rlvr
version=$(cargo pkgid | sed 's/.*[#@]//')
name=rlvr-$version-x86_64-linux-gnu
tree=$work/$name
install -D -m 755 "$rlvr" "$tree/bin/rlvr"
"$rlvr" man --into "$tree/share/man/man1" >/dev/null
mkdir -p "$tree"/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d,doc/rlvr}
"$rlvr" completions bash >"$tree/share/bash-completion/completions/rlvr"
"$rlvr" completions zsh >"$tree/share/zsh/site-functions/_rlvr"
"$rlvr" completions fish >"$tree/share/fish/vendor_completions.d/rlvr.fish"
cp -r README.md CHANGELOG.md LICENSE-* THIRD-PARTY-LICENSES.txt docs configs tasks "$tree/share/doc/rlvr/"
# The same commit gives the same tarball, up to the linker.
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -cf - "$name" |
    gzip -9n >"$out/$name.tar.gz"
cp "$work"/wheel/*.whl "$out/"
cd "$out"
sha256sum "$name.tar.gz" rlvr-"$version"-*.whl >SHA256SUMS
"$rlvr" --version
echo "newest symbol of glibc: $(objdump -T "$rlvr" | grep -o 'GLIBC_[0-9.]*' | sort -V | tail -n 1)"
ls -l "$out"
