#!/usr/bin/env python3
"""Ids of texts by tiktoken with Llama 3's tokenizer.model, as golden values for `rlvr import tokenizer.model`.

    python3 tests/golden/make/llama3_ids.py TOKENIZER.MODEL > tests/golden/llama3-ids.json
    python3 tests/golden/make/llama3_ids.py TOKENIZER.MODEL TOKENIZER.JSON     # 20,000 random texts instead

Needs the pip package tiktoken; the second form tokenizers too. TOKENIZER.MODEL: see scripts/fetch-llama3-tokenizer.sh.
"""
import base64
import json
import pathlib
import random
import sys

import tiktoken

# As Meta published it.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "Hello world",
    "",
    " ",
    "  \n\n \t x",
    "It's we'll I'VE they'd",
    "1234567 3.14 0x1F",
    "2024-07-26T10:00:00Z INFO server[42]: job \"backup\" done in 3.2s\r\n",
    'Unsafe MCP Server:{"ServerName":"MailServer", "ToolName":"send", "Reason":"Denial-of-Service"}',
    "é 😀 漢字 עברית नमस्ते\u200b",
    "a\u0301 naïve ﬁ Ⅳ ½",
    "fn main() { let x = &y[..]; }\n    // four\n\ttab",
    "<think>\n\n</think>\n\nsafe",
    "unsafe\nS1,S10",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "https://example.org/a?b=c&d=%20#e",
    "\x00\x1b[2J\x7f",
]


def encoding(path):
    lines = pathlib.Path(path).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    return tiktoken.Encoding("llama3", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})


def main():
    llama = encoding(sys.argv[1])
    if len(sys.argv) == 2:
        cases = [json.dumps({"text": text, "ids": llama.encode(text)}) for text in TEXTS]
        print("[\n" + ",\n".join(cases) + "\n]")
        return
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(sys.argv[2])
    draw = random.Random(1)
    pieces = list("abc XYZ019.,:{}\"'\n\t\r-_/") + ["  ", "é", "😀", "漢", "'s", "\u0301", "the ", "Error", "\u00a0", "ß"]
    for _ in range(20_000):
        text = "".join(draw.choices(pieces, k=draw.randrange(40)))
        got, want = ours.encode(text, add_special_tokens=False).ids, llama.encode(text)
        if got != want:
            sys.exit(f"{text!r}: {got}, tiktoken has {want}")
    print("20,000 random texts: the same ids")


main()
