#!/usr/bin/env python3
"""Seconds that a stage of riskcue.sh should take on a card: from what predict.py says of one traced step of its shape.

    scripts/gpu/trace.sh OUT --preset smollm2-135m --groups 32 --group-size 8 --prompt-tokens P --new-tokens R ...
    scripts/gpu/riskcue_time.py OUT --rows 2421 --target-tokens T [--card h100] [--json]

GRPO: that step, as many times. SFT: its rows go through the same passes of the update, so they take the update's seconds
by packed token, and an optimiser's step each. Evaluation: the rollout's seconds by prompt, one answer each. Loading,
reading rows and saving are not counted. Worked out, not measured: predict.py names what it assumes.
"""
import argparse
import json
import os
import subprocess
import sys


def predict(folder, card):
    here = os.path.dirname(os.path.abspath(__file__))
    said = subprocess.run(
        [sys.executable, os.path.join(here, "predict.py"), folder, "--json", "--card", card], check=True, stdout=subprocess.PIPE
    )
    with open(os.path.join(folder, "step.jsonl")) as file:
        step = [json.loads(line) for line in file if line.startswith("{")][-1]
    return {name: phase["predicted_seconds"] for name, phase in json.loads(said.stdout)["phases"].items()}, step


def stage(phases, step, a):
    """Seconds by part."""
    row = step["prompt_tokens"] + a.target_tokens
    steps = -(-int(a.epochs * a.rows) // a.rows_per_step)
    by_token = phases["update"] / step["packed_tokens"]
    by_prompt = (phases["prefill"] + phases["decode"]) / step["groups"]
    return {
        "sft": a.epochs * a.rows * row * by_token + steps * phases["optimizer"],
        "grpo": a.grpo_steps * sum(phases.values()),
        "evaluation": a.evaluations * a.eval_rows * by_prompt,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", help="what trace.sh wrote")
    p.add_argument("--card", default="h100")
    p.add_argument("--rows", type=int, required=True, help="rows of SFT")
    p.add_argument("--epochs", type=float, default=3.0)
    p.add_argument("--rows-per-step", type=int, default=16)
    p.add_argument("--target-tokens", type=int, required=True, help="tokens of an answer that SFT imitates, in the mean")
    p.add_argument("--grpo-steps", type=int, default=240)
    p.add_argument("--eval-rows", type=int, default=144)
    p.add_argument("--evaluations", type=int, default=3)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    phases, step = predict(a.folder, a.card)
    parts = stage(phases, step, a)
    parts["all"] = sum(parts.values())
    if a.json:
        print(json.dumps({name: round(seconds, 1) for name, seconds in parts.items()}))
        return
    print(f"{step['preset']}, {step['groups']} x {step['group_size']} answers of {step['new_tokens']} tokens after {step['prompt_tokens']} on {a.card}: worked out")
    for name, seconds in parts.items():
        print(f"{name:<12}{seconds:8.1f} s")


if __name__ == "__main__":
    main()
