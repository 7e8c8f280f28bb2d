#!/usr/bin/env python3
"""The lines of scripts/peers/cpu.sh as a table: python3 ratios.py OUT.jsonl. Medians, and the peer's time over rlvr's on
the same work: same bench, shape, counts of rows and tokens, and threads."""
import json
import statistics
import sys

WORK = ["preset", "rows", "prompts", "groups", "group_size", "prompt_tokens", "target_tokens", "new_tokens"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        lines = [json.loads(line) for line in file if line.strip()]
    found = {}
    for r in lines:
        r.setdefault("bench", "step")
        work = (r["bench"], *(f"{key} {r[key]}" for key in WORK if key in r))
        who = r.get("peer", "rlvr"), r.get("activations", "")
        found.setdefault(work, {}).setdefault(who, []).append(r)
    for work, by in found.items():
        print(f"{', '.join(work)}\n")
        print("| | activations | runs | s | tokens/s | peak GiB | its time over rlvr's |\n" + "|---" * 7 + "|")
        times = {who: statistics.median(seconds(r) for r in runs) for who, runs in by.items()}
        mine = {who[1]: time for who, time in times.items() if who[0] == "rlvr"}
        for who, runs in by.items():
            # Activations spent the same way where both say it, else the way that rlvr takes by default.
            own = mine.get(who[1], mine.get("recompute", mine.get("")))
            over = f"{times[who] / own:.2f}" if who[0] != "rlvr" and own else "-"
            if who[0] != "rlvr" and "recompute" in mine and who[1] != "recompute":
                over += f" ({times[who] / mine['recompute']:.2f} of recompute)"
            # A shared prompt is packed once: counts of GRPO steps are not the tokens that a peer computes.
            tokens = [r["tokens"] / seconds(r) for r in runs if "tokens" in r]
            rate = f"{statistics.median(tokens):.0f}" if tokens else "-"
            peak = max((r.get("peak_memory_gib") or 0) for r in runs)
            print(f"| {who[0]} | {who[1]} | {len(runs)} | {times[who]:.3f} | {rate} | {peak:.2f} | {over} |")
        print()


def seconds(r):
    return r["mean_seconds"] if "mean_seconds" in r else r["mean_step_seconds"]


if __name__ == "__main__":
    main()
