#!/usr/bin/env python3
"""Takes the chat templates out of the wheels of TRL and Xinference, each text once.

    python3 tests/golden/make/unpack_templates.py WHEELS OUT

TRL's are files, those of Xinference stand in a JSON file a model.
"""
import json
import pathlib
import sys
import zipfile


def templates(wheels):
    """(name, text) of each."""
    (trl,), (xinference,) = (list(wheels.glob(f"{name}-*.whl")) for name in ("trl", "xinference"))
    with zipfile.ZipFile(trl) as wheel:
        for name in wheel.namelist():
            if name.startswith("trl/chat_templates/") and name.endswith(".jinja"):
                yield pathlib.Path(name).stem, wheel.read(name).decode()
    with zipfile.ZipFile(xinference) as wheel:
        for name in wheel.namelist():
            if name.startswith("xinference/model/llm/models/") and name.endswith(".json"):
                for model in json.loads(wheel.read(name)):
                    if model.get("chat_template"):
                        yield model["model_name"], model["chat_template"]


def main():
    wheels, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir()
    seen = set()
    for name, text in templates(wheels):
        if text not in seen:
            seen.add(text)
            (out / f"{name}.jinja").write_text(text, encoding="utf-8", newline="")


main()
