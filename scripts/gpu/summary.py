#!/usr/bin/env python3
"""Short tables in Markdown of what run.sh wrote to a folder: python3 summary.py FOLDER.

python3 summary.py --kernels NCU.csv: a line of JSON for each kernel that ncu saw, the longest in sum first.
"""
import csv
import json
import os
import sys


def read(path):
    """The JSON objects of a file, one a line; none where there is no such file."""
    if not os.path.isfile(path):
        return []
    found = []
    with open(path) as file:
        for line in file:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{os.path.basename(path)}: not JSON: {line[:100].strip()}\n")
    return [each for each in found if isinstance(each, dict)]


def number(value, digits=2, scale=1.0):
    return f"{value / scale:.{digits}f}" if isinstance(value, (int, float)) else "-"


def table(head, rows):
    if rows:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for row in rows:
            print("| " + " | ".join(row) + " |")
        print()


def way(r):
    """How a step of rlvr spends memory."""
    kept = "kept" if r.get("activations") == "keep" else "recomputed"
    tape = r.get("max_reused_tokens")
    return f"rlvr, {r.get('preset')}, {r.get('groups')} groups, {kept}" + (f", tape of {tape}" if tape else "")


def steps(folder):
    rows, times = [], {}
    lines = read(os.path.join(folder, "steps.jsonl"))
    for r in (line for line in lines if "mean_step_seconds" in line and "peer" not in line):
        times[way(r)] = r
        rate = f"{number(r.get('update_flop_per_second'), 2, 1e12)} ({number(r.get('mfu_update'))})"
        rows.append((way(r), r, rate))
    worst = [r["metrics"].get("sampling/sampling_logp_difference/max") or 0 for r in lines if "metrics" in r]
    if worst:
        print(f"largest |sampler - trainer log-prob| of {len(worst)} steps: {max(worst):.1e}\n")
    for r in (line for line in lines if "peer" in line):
        how = f"{r.get('preset')}, micro-batch {r.get('micro_batch')}, activations {r.get('activations')}"
        rows.append((f"{r.get('peer')}, {how}", r, "-"))
    keys = ["mean_step_seconds", "rollout_seconds", "prefill_seconds", "decode_seconds", "update_seconds"]
    keys += ["optimizer_seconds", "peak_memory_gib"]
    head = ["step", "s", "rollout", "prefill", "decode", "update", "optimiser", "peak GiB", "update TFLOP/s (MFU)"]
    lines = []
    for name, r, rate in rows:
        lines.append([name, *(number(r.get(key)) for key in keys), rate, *ratios(r, times)])
    table(head + [f"its time over: {name}" for name in times], lines)
    for _, r, _ in rows[:1]:
        work = f"{r.get('groups')} x {r.get('group_size')} of {r.get('new_tokens')} tokens after {r.get('prompt_tokens')}"
        print(f"{r.get('preset')}, {r.get('dtype')}, {work}; rates count the prompt once.\n")


def ratios(r, times):
    """The time of `r` over those of rlvr's runs of the same work; none where the work is another."""
    work = ["preset", "groups", "group_size", "prompt_tokens", "new_tokens"]
    found = []
    for other in times.values():
        same = all(r.get(key) == other.get(key) for key in work)
        mine, theirs = r.get("mean_step_seconds"), other.get("mean_step_seconds")
        found.append(number(mine / theirs) if same and mine and theirs else "-")
    return found


def doctor(folder):
    lines = read(os.path.join(folder, "doctor.jsonl"))
    checks = [line for line in lines if "op" in line]
    if lines:
        seeds = sorted({str(line["seed"]) for line in lines if "seed" in line})
        failed = [check for check in checks if not check.get("passed")]
        print(f"doctor: {len(checks)} checks, {len(failed)} failed, seed {', '.join(seeds)}\n")
        for check in failed:
            print(f"- {json.dumps(check)}")


def ops(folder):
    about, mine, torch, kernels = {}, [], {}, []
    for r in read(os.path.join(folder, "ops.jsonl")):
        for when in ("ceilings", "ceilings_after"):
            if when in r:
                c = r[when]
                rates = number(c.get("flop_per_second"), 1, 1e12), number(c.get("copy_bytes_per_second"), 1, 1e9)
                print(f"{when.replace('_', ' ')}: {rates[0]} TFLOP/s, {rates[1]} GB/s  ")
        if r.get("bench") == "ops":
            about = r
        if "kernel" in r:
            kernels.append(r)
        elif "peer" in r:
            torch[r["op"], r["shape"], r.get("as")] = r
        elif "op" in r:
            mine.append(r)
        elif r.get("failed"):
            print(f"\nfailed: {r['failed']}")
    if mine:
        print(f"\n{len(mine)} ops of {about.get('preset')}, {about.get('dtype')}\n")
    table(
        ["lowest shares of the roofline", "shape", "us", "share", "bound"],
        [
            [op["op"], op["shape"], number(op["seconds"], 1, 1e-6), number(op["share"]), op["bound"]]
            for op in sorted(mine, key=lambda op: op.get("share", 0))[:12]
        ],
    )
    beside(mine, torch)
    total = sum(k["nanoseconds"] for k in kernels)
    table(
        ["kernel", "launches", "us", "share of the time"],
        [
            [k["kernel"], str(k["launches"]), number(k["nanoseconds"], 1, 1e3), number(k["nanoseconds"] / total)]
            for k in kernels[:20]
        ],
    )


def beside(mine, torch):
    """rlvr and torch on the same shape: rates, and torch's time over rlvr's where the work is the same."""
    rows = []
    for op in mine:
        for how in (None, "prompts", "rows"):
            r = torch.get((op["op"], op["shape"], how))
            if r is None or "seconds" not in r:
                continue
            over = number(r["seconds"] / op["seconds"]) if how != "prompts" else "-"
            rates = [number(each["flop_per_second"], 1, 1e9) for each in (op, r)]
            rows.append([op["op"], op["shape"], *rates, over, how or "same work"])
    table(["op", "shape", "rlvr GFLOP/s", "torch GFLOP/s", "its time over rlvr's", "torch's work"], rows)
    failed = [f"{r['op']} {r['shape']}: {r['failed']}" for r in torch.values() if "failed" in r]
    if failed:
        print("torch failed: " + "; ".join(failed) + "\n")


def kernels(path):
    """Nanoseconds and launches of each kernel in what `ncu --csv --print-units base` printed."""
    found = {}
    with open(path) as file:
        lines = [line for line in file if line.startswith('"')]
    for row in csv.DictReader(lines):
        if row.get("Metric Name") == "gpu__time_duration.sum" and row.get("Metric Unit") in ("ns", "nsecond"):
            of = found.setdefault(row["Kernel Name"].split("(")[0], [0, 0.0])
            of[0] += 1
            of[1] += float(row["Metric Value"].replace(",", ""))
    for name, (launches, time) in sorted(found.items(), key=lambda item: -item[1][1]):
        print(json.dumps({"kernel": name, "launches": launches, "nanoseconds": time}))


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--kernels":
        return kernels(sys.argv[2])
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit(__doc__)
    folder = sys.argv[1]
    with open(os.path.join(folder, "machine.txt")) as file:
        for line in file:
            if not line.strip():
                break
            print(line.rstrip() + "  ")
    print()
    stages = []
    if os.path.isfile(os.path.join(folder, "stages.tsv")):
        with open(os.path.join(folder, "stages.tsv")) as file:
            stages = [line.rstrip("\n").split("\t") for line in file]
    table(["stage", "exit code", "s", "command"], [[*stage[:3], f"`{stage[3]}`"] for stage in stages])
    doctor(folder)
    steps(folder)
    ops(folder)


if __name__ == "__main__":
    main()
