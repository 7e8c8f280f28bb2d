"""Data files as other programs write them, and the rows that are in them, for src/data/lines.

    python tests/golden/make/data_files.py tests/golden/data-files     (pyarrow 26.0.1, datasets 5.2.0, pandas)
"""
import datetime
import gzip
import json
import pathlib
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)

ROWS = [
    {
        "text": text,
        "label": label,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": text}],
        "score": score,
        "count": count,
        "tags": tags,
        "nothing": None,
    }
    for text, label, score, count, tags in [
        ('plain "quoted", with a comma', "Safe", 0.5, 1, ["a", "b"]),
        ("two\nlines\tand a tab; done", "Denial-of-Service", None, -(2**40), []),
        ("é 😀 ‮ \\ /", "Safe", 1e-300, 0, ["ü"]),
    ]
]
(out / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))

schema = pa.schema(
    [
        ("text", pa.string()),
        ("label", pa.dictionary(pa.int32(), pa.string())),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
        ("score", pa.float64()),
        ("count", pa.int64()),
        ("tags", pa.large_list(pa.string())),
        ("nothing", pa.null()),
    ]
)
table = pa.Table.from_pylist(ROWS, schema=schema)
for packing in ["none", "snappy", "gzip", "zstd"]:
    pq.write_table(table, out / f"pyarrow-{packing}.parquet", compression=packing, row_group_size=2)
datasets.disable_progress_bars()
datasets.Dataset.from_list(ROWS).to_parquet(out / "datasets.parquet")

# What only some columns hold: bytes, times, decimals, maps.
odd = pa.table(
    {
        "text": pa.array(["a"]),
        "blob": pa.array([b"\xff\x00"], pa.binary()),
        "utf8": pa.array([b"text"], pa.binary()),
        "when": pa.array([datetime.datetime(2026, 11, 28, 1, 2, 3)], pa.timestamp("ms")),
        "day": pa.array([datetime.date(2026, 11, 28)]),
        "nan": pa.array([float("nan")]),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    }
)
pq.write_table(odd, out / "odd.parquet")

frame = datasets.Dataset.from_list(ROWS).select_columns(["text", "label"]).to_pandas()
frame.to_csv(out / "pandas.csv", index=False)
frame.to_csv(out / "index.csv")
frame.to_csv(out / "pandas.tsv", index=False, sep="\t")
frame.to_csv(out / "semicolons.csv", index=False, sep=";")
frame.to_json(out / "pandas-list.json", orient="records")
frame.to_json(out / "pandas-pretty.json", orient="records", indent=2)
(out / "rows.jsonl.gz").write_bytes(gzip.compress((out / "rows.jsonl").read_bytes(), mtime=0))
pa_zstd = pa.compress((out / "rows.jsonl").read_bytes(), codec="zstd", asbytes=True)
(out / "rows.jsonl.zst").write_bytes(pa_zstd)
