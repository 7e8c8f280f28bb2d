#!/usr/bin/env bash
# Tries what build.sh made on a bare Debian 11 (glibc 2.31): the tarball with nothing else installed, then the wheel by pip.
#
#   scripts/release/try.sh [DIR] [ROOT]     # as root; DIR from build.sh, by default target/dist
#
# ROOT is a bare system; where there is none yet, debootstrap (of Debian's packages) makes a Debian 11 there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
dist=$(cd "${1:-target/dist}" && pwd)
root=${2:-${CARGO_TARGET_DIR:-$PWD/target}/bullseye}
stop() { printf 'try: %s\n' "$*" >&2; exit 1; }
((EUID == 0)) || stop "not root: chroot and debootstrap need it"
if [[ ! -x $root/bin/bash ]]; then
    command -v debootstrap >/dev/null || stop "debootstrap not found: install it"
    debootstrap --variant=minbase bullseye "$root" >/dev/null
fi
(cd "$dist" && sha256sum --check SHA256SUMS)

rm -rf "$root/try"
mkdir "$root/try"
cp "$dist"/rlvr-* "$root/try/"
within() { chroot "$root" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/root bash -euo pipefail -c "$1"; }
# Two cores learn nothing in so few steps: that the whole line runs is what is tried.
demo='rlvr train demo --set run.root=/try/runs --set sft.steps=4 --set grpo.steps=2 --set eval.every_steps=0
    --set data.synthetic.sft_rows=640 --set data.synthetic.grpo_rows=100 --set data.synthetic.valid_rows=40'
demo=${demo//$'\n'/}

within '. /etc/os-release; echo "$PRETTY_NAME, $(ldd --version | head -n 1)"; test ! -e /usr/local/bin/rlvr'
within 'tar -xzf /try/rlvr-*.tar.gz -C /usr/local --strip-components=1; rlvr --version; test -s /usr/local/share/man/man1/rlvr-train.1'
within "$demo 2>&1 | tail -n 3; test -s /try/runs/demo-001/model/model.safetensors"
within 'test -s /usr/local/share/doc/rlvr/THIRD-PARTY-LICENSES.txt; tar -tzf /try/rlvr-*.tar.gz | sed "s,^[^/]*/,/usr/local/," |
    grep -v "/$" | xargs rm'
within 'test ! -e /usr/local/bin/rlvr'

# pip itself is from the network; the wheel needs none.
if [[ ! -x $root/usr/bin/pip3 ]]; then
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    within 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-pip' >/dev/null
fi
within 'pip3 --version; pip3 install --quiet --no-index /try/rlvr-*.whl; rlvr -V'
within "$demo 2>&1 | tail -n 3; test -s /try/runs/demo-002/model/model.safetensors"
within 'pip3 show --files rlvr | grep -E "bin/rlvr|LICEN"; pip3 uninstall --quiet --yes rlvr; test ! -e /usr/local/bin/rlvr'
rm -rf "$root/try"
echo "both run"
