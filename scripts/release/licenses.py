#!/usr/bin/env python3
"""Prints the licences of every crate that is linked into the command, each text once, with the crates it is of.

    scripts/release/licenses.py TARGET > THIRD-PARTY-LICENSES.txt

Texts are the files in the crates' own packages. A crate that ships none is listed with the licence that it declares.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

NAMES = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def linked(metadata):
    """Packages that the command is linked of: what normal dependencies reach, build scripts' and procedural macros' not."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    macros = {i for i, p in packages.items() if any("proc-macro" in t["kind"] for t in p["targets"])}
    reached, ahead = set(), [metadata["resolve"]["root"]]
    while ahead:
        at = ahead.pop()
        if at in reached or at in macros:
            continue
        reached.add(at)
        ahead += [d["pkg"] for d in nodes[at]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"])]
    reached.remove(metadata["resolve"]["root"])
    return sorted((packages[i] for i in reached), key=lambda package: (package["name"], package["version"]))


def texts(package):
    """Contents of the package's licence files: those at its top and in folders named so."""
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [p for p in sorted(folder.iterdir()) if NAMES.match(p.name)]
    files += [q for p in files if p.is_dir() for q in sorted(p.iterdir())]
    if package["license_file"]:
        files.append(folder / package["license_file"])
    for path in dict.fromkeys(p for p in files if p.is_file() and p.suffix not in {".rs", ".py", ".html"}):
        yield path.read_text(encoding="utf-8", errors="replace").strip()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", sys.argv[1]]
    packages = linked(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    of_text, without = collections.defaultdict(list), []
    for package in packages:
        found = list(texts(package))
        for text in found:
            of_text[text].append(package)
        if not found:
            without.append(package)
    print(f"rlvr is linked of Rust's standard library (MIT OR Apache-2.0) and {len(packages)} crates. What each declares:\n")
    for package in packages:
        print(f"    {package['name']} {package['version']}  {package['license'] or 'see its file below'}")
    if without:
        print("\nThese ship no licence file; theirs are the texts of the licences named above:\n")
        for package in without:
            print(f"    {package['name']} {package['version']}  {package['repository'] or ''}".rstrip())
    for text, owners in of_text.items():
        print("\n" + "=" * 100)
        print(", ".join(f"{p['name']} {p['version']}" for p in owners) + "\n")
        print(text)


main()
