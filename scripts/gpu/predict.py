#!/usr/bin/env python3
"""What a GRPO step asks of a GPU, and the time it should take there: added up from a trace of the driver's twin.

    scripts/gpu/trace.sh OUT [FLAGS OF rlvr bench step]     # makes OUT/trace.jsonl and OUT/step.jsonl, no GPU needed
    scripts/gpu/predict.py OUT [--against OUT2] [--json] [--card h100|h200|a100]

Counted, and exact: launches, products, bytes allocated at once. Worked out from shapes: bytes and FLOP of each call
(every array read or written once, unless COSTS below says otherwise). The floor is the larger of FLOP and bytes at
the datasheet's rates, call by call. The prediction divides by EFFICIENCY, which is assumed, not measured, and is named
so in what is printed.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

# Datasheets: dense bf16 FLOP/s, f32 FLOP/s outside of tensor cores, bytes/s, multiprocessors.
CARDS = {
    "h100": (989e12, 67e12, 3.35e12, 132),
    "h200": (989e12, 67e12, 4.8e12, 132),
    "a100": (312e12, 19.5e12, 2.04e12, 108),
}
# Shares of the datasheet's rates that are assumed. A product's share is multiplied by that of its last wave of tiles.
EFFICIENCY = {"product": 0.75, "attention": 0.35, "bytes": 0.85}
LEAST = 2.5e-6  # seconds of any kernel on the device
HOST_LAUNCH, HOST_CALL, HOST_WAIT = 5e-6, 1.2e-6, 15e-6  # seconds of the host for a launch, an allocation, a wait
TILE = (128, 256)

PHASES = ("prefill", "decode", "update", "optimizer")


def wave(m, n, k, multiprocessors):
    """The busy share of the multiprocessors, with the best split of the sum over k."""
    tiles = -(-m // TILE[0]) * -(-n // TILE[1])
    shares = (tiles * s / (-(-tiles * s // multiprocessors) * multiprocessors) for s in (1, 2, 4, 8) if s == 1 or k // s >= 512)
    return max(shares)


class Step:
    """The shape that `rlvr bench step` ran."""

    def __init__(self, said):
        self.prompt, self.completions, self.new = said["prompt_tokens"], said["group_size"], said["new_tokens"]
        self.size = 2 if said["dtype"] == "bf16" else 4
        self.said = said

    def pairs(self, rows):
        """(query, key) pairs that attend in a pack of whole groups, or of whole prompts."""
        p, g, r = self.prompt, self.completions, self.new - 1
        prompt = p * (p + 1) // 2
        if rows % (p + g * r) == 0:
            return rows // (p + g * r) * (prompt + g * (r * p + r * (r + 1) // 2))
        if rows % p == 0:
            return rows // p * prompt
        sys.exit(f"predict: attention over {rows} rows is neither groups nor prompts of the step")


def attention_width(name, numbers):
    """Query heads times head width, and the width, from the kernel's name and numbers."""
    kv_heads, share = numbers[:2]
    width = re.search(r"_(64|128)_bf16", name)
    dim = int(width.group(1)) if width else numbers[2]
    return kv_heads * share * dim


def attention(products):
    def cost(step, name, sizes, numbers):
        width = attention_width(name, numbers)
        return products * 2 * width * step.pairs(sizes[0] // step.size // width), sum(sizes)
    return cost


def heads_at_once(kept, strips, first, kv_heads):
    """Key/value heads of a launch that keeps score gradients, a strip of 2048 bytes for 16 queries and a key tile."""
    return min(kept // (2048 * strips), kv_heads - first) if kept else kv_heads


def key_gradients(step, name, sizes, numbers):
    if "_any_" in name:
        return attention(4)(step, name, sizes, numbers)
    strips, first, *heads = numbers
    many = heads_at_once(sizes[9], strips, first, heads[0])
    flop, moved = attention(4)(step, name, sizes[:9], heads)
    return flop * many / heads[0], moved * many / heads[0] + 2048 * strips * many


def query_sums(step, name, sizes, numbers):
    strips, first, *heads = numbers
    many = heads_at_once(sizes[1], strips, first, heads[0])
    flop, moved = attention(1)(step, name, [sizes[2], sizes[0]], heads)
    return flop * many / heads[0], moved * many / heads[0] + 2048 * strips * many


def merged(step, name, sizes, numbers):
    """Of the caches of completions, what is filled."""
    rows, kv_heads, share, dim, filled, capacity = numbers[:6]
    return 4 * rows * kv_heads * share * dim * filled, sum(sizes) - (sizes[1] + sizes[2]) * (1 - filled / capacity)


def prefix(step, name, sizes, numbers):
    width = attention_width(name, numbers[1:])
    rows = sizes[0] // step.size // width
    return 4 * rows * width * step.prompt, sum(sizes)


def all_of(step, name, sizes, numbers):
    return 0, sum(sizes)


def twice(*again):
    """Arrays that are read and written, or read twice."""
    return lambda step, name, sizes, numbers: (0, sum(sizes) + sum(sizes[i] for i in again))


def rows_of(times, index):
    """Rows of a table: as many as `index` has, not the table."""
    return lambda step, name, sizes, numbers: (0, times * sizes[index])


def rope(step, name, sizes, numbers):
    return 0, 2 * sizes[0] + sizes[3] + sizes[3] * numbers[1] * 2


def side_by_side(step, name, sizes, numbers):
    """Rows of a product and their parts, of which two may be caches."""
    return 0, 2 * sizes[0] + sizes[3] * (1 + 2 * numbers[2])


def adamw(step, name, sizes, numbers):
    """Views of larger arrays: by their count. Weights, moments and masters are read and written, gradients read."""
    count, weight, gradient = numbers[-1], 2 if "_w16_" in name else 4, 2 if name.endswith("bf16") else 4
    moments = 2 * 4 if "_m32_" in name else 2 + 2 * 4 / 256
    return 0, count * (2 * weight + gradient + 2 * moments + (8 if sizes[1] else 0))


def counted(step, name, sizes, numbers):
    return 0, numbers[-1] * (2 if name.endswith("bf16") else 4)


# (FLOP, bytes) of a launch, by the start of its name; the first that fits.
COSTS = [
    ("attention_forward", attention(2)),
    ("attention_query_gradient", attention(3)),
    ("attention_key_gradients", key_gradients),
    ("attention_query_sums", query_sums),
    ("decode_attention_prefix", prefix),
    ("decode_attention_merge", merged),
    ("embedding_gather_of_two", rows_of(2, 3)),
    ("embedding_gather", rows_of(2, 2)),
    ("embedding_scatter_add", rows_of(3, 4)),
    ("embedding_scatter", rows_of(2, 2)),
    ("rms_norm_backward", twice(3)),
    ("rms_norm_add_partials", twice(1)),
    ("rope", rope),
    ("add_assign", twice(0)),
    ("scale", twice(0)),
    ("sampling", twice(0)),
    ("token_logprob_backward_f32_to", all_of),
    ("token_logprob_backward", twice(0)),
    ("adamw", adamw),
    ("sum_squares_total", all_of),
    ("sum_squares", counted),
    ("qkv_", side_by_side),
]


class Sum:
    """Calls of one kind."""

    def __init__(self):
        self.calls, self.flop, self.bytes, self.floor, self.device, self.host = 0, 0, 0, 0.0, 0.0, 0.0

    def add(self, flop, moved, floor, device, host):
        self.calls += 1
        self.flop += flop
        self.bytes += moved
        self.floor += floor
        self.device += device
        self.host += host


def call(event, step, card):
    """Kind, FLOP, bytes, floor, device seconds and host seconds of one line of a trace."""
    tensor_cores, plain, bandwidth, multiprocessors = card
    if "product" in event:
        m, n, k = event["product"]
        operand, result = event["bytes"]
        count = event["count"]
        flop = 2 * m * n * k * count
        moved = count * (operand * (m + n) * k + result * m * n * (2 if event["adds"] else 1))
        rate = tensor_cores if operand == 2 else plain
        share = EFFICIENCY["product"] * wave(m * count, n, k, multiprocessors)
        floor = max(flop / rate, moved / bandwidth)
        return "product", flop, moved, floor, max(LEAST, flop / rate / share, moved / bandwidth / EFFICIENCY["bytes"]), HOST_LAUNCH
    if "launch" in event:
        name = event["launch"]
        cost = next((cost for start, cost in COSTS if name.startswith(start)), all_of)
        flop, moved = cost(step, name, event["pointers"], event["numbers"])
        rate = plain if "_any_" in name or "merge" in name else tensor_cores
        floor = max(flop / rate, moved / bandwidth)
        device = max(LEAST, flop / rate / EFFICIENCY["attention"], moved / bandwidth / EFFICIENCY["bytes"])
        return re.sub(r"_(f32|bf16)$", "", name), flop, moved, floor, device, HOST_LAUNCH
    what, moved = next(iter(event.items()))
    if what in ("on_device", "fill"):
        moved *= 2 if what == "on_device" else 1
        return f"copy {what}", 0, moved, moved / bandwidth, max(LEAST, moved / bandwidth / EFFICIENCY["bytes"]), HOST_CALL
    return what.replace("_", " "), 0, 0, 0.0, 0.0, HOST_WAIT if what in ("wait", "to_host") else HOST_CALL


def phases(events):
    """Each event with its phase: what lies before a token is drawn is prefill or decode, what lies before a norm's or
    the embedding's gradient is the update, the rest the optimiser."""
    since, decoding = [], False
    for event in events:
        since.append(event)
        name = event.get("launch", "")
        decoding |= name.startswith("decode_attention")
        if name.startswith("sampling"):
            phase = "decode" if decoding else "prefill"
        elif name.startswith(("embedding_scatter_add", "rms_norm_backward")):
            phase = "update"
        elif name.startswith(("adamw", "sum_squares")):
            phase = "optimizer"
        else:
            continue
        yield from ((phase, e) for e in since)
        since, decoding = [], False


class Trace:
    """The last step of a trace."""

    def __init__(self, folder, card):
        folder = Path(folder)
        said = [json.loads(line) for line in (folder / "step.jsonl").read_text().splitlines() if line.startswith("{")]
        self.step = Step(said[-1])
        events, used, self.peak = [], 0, 0
        with open(folder / "trace.jsonl") as lines:
            for line in lines:
                event = json.loads(line)
                events.append(event)
                used += event.get("allocate", 0) - event.get("free", 0)
                self.peak = max(self.peak, used)
        ends = [i for i, e in enumerate(events) if e.get("launch", "").startswith("adamw")]
        starts = [i for i, j in zip(ends, ends[1:]) if any(e.get("launch", "").startswith("sampling") for e in events[i:j])]
        self.sums = {phase: defaultdict(Sum) for phase in PHASES}
        for phase, event in phases(events[starts[-1] + 1 : ends[-1] + 1]):
            kind, *numbers = call(event, self.step, CARDS[card])
            self.sums[phase][kind].add(*numbers)

    def phase(self, name):
        kinds = self.sums[name].values()
        total = lambda field: sum(getattr(kind, field) for kind in kinds)
        calls = lambda wanted: sum(s.calls for kind, s in self.sums[name].items() if wanted(kind))
        other = ("product", "copy", "allocate", "free", "to ", "wait")
        return {
            "launches": calls(lambda kind: not kind.startswith(other)),
            "products": calls(lambda kind: kind == "product"),
            "copies": calls(lambda kind: kind.startswith(("copy", "to "))),
            "allocations": calls(lambda kind: kind == "allocate"),
            "gigabytes": round(total("bytes") / 1e9, 1),
            "tflop": round(total("flop") / 1e12, 2),
            "floor_seconds": round(total("floor"), 4),
            # The host issues while the device computes: the slower of both.
            "predicted_seconds": round(max(total("device"), total("host")), 4),
            "host_seconds": round(total("host"), 4),
        }

    def summary(self):
        phases = {name: self.phase(name) for name in PHASES}
        return {
            "phases": phases,
            "peak_gib": round(self.peak / 2**30, 2),
            "predicted_seconds": round(sum(p["predicted_seconds"] for p in phases.values()), 3),
            "floor_seconds": round(sum(p["floor_seconds"] for p in phases.values()), 3),
        }


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())


def show(trace, before, kinds):
    said, summary = trace.step.said, trace.summary()
    old = before.summary() if before else None
    print(
        f"{said['preset']} {said['dtype']}, {said['groups']} x {said['group_size']} completions of {said['new_tokens']} tokens after "
        f"{said['prompt_tokens']}, {said['activations']}: added up from a trace, on no GPU"
    )
    fields = ("launches", "products", "copies", "allocations", "gigabytes", "tflop", "floor_seconds", "predicted_seconds", "host_seconds")
    cell = lambda name, f: f"{summary['phases'][name][f]}" + (f" ({old['phases'][name][f]})" if old else "")
    table([("phase", *(f.replace("_seconds", " s") for f in fields)), *((name, *(cell(name, f) for f in fields)) for name in PHASES)])
    was = (lambda f: f" ({old[f]})") if old else (lambda f: "")
    print(f"step: floor {summary['floor_seconds']}{was('floor_seconds')} s, predicted {summary['predicted_seconds']}{was('predicted_seconds')} s, "
          f"peak {summary['peak_gib']}{was('peak_gib')} GiB" + ("; in brackets: before" if old else ""))
    for name in PHASES:
        most = sorted(trace.sums[name].items(), key=lambda kv: -kv[1].device)[:kinds]
        print(f"\n{name}: most of the device's time")
        table([("call", "times", "GB", "TFLOP", "floor s", "predicted s"),
               *((k, str(s.calls), f"{s.bytes / 1e9:.1f}", f"{s.flop / 1e12:.2f}", f"{s.floor:.4f}", f"{s.device:.4f}") for k, s in most)])
    print(f"\nassumed, not measured: shares of the datasheet's rates {EFFICIENCY}, a kernel at least {LEAST * 1e6} us, "
          f"the host {HOST_LAUNCH * 1e6} us a launch")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--against", help="a folder of before")
    parser.add_argument("--card", choices=CARDS, default="h100")
    parser.add_argument("--kinds", type=int, default=8, help="calls listed of each phase")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    trace = Trace(args.folder, args.card)
    if args.json:
        print(json.dumps(trace.summary()))
    else:
        show(trace, Trace(args.against, args.card) if args.against else None, args.kinds)


if __name__ == "__main__":
    main()
