"""Holds what PEFT computes with an adapter of ours against what rlvr computed.

    rlvr export MODEL OUT --adapter ADAPTER --format hf --dtype f32 --json > report.json
    python scripts/peers/peft_logprobs.py MODEL ADAPTER OUT report.json

Needs pip packages torch, transformers, peft. Prints the largest difference of log-probs, in nats, between rlvr's merged
weights in memory and (1) PEFT with MODEL and ADAPTER, (2) transformers with the merged folder OUT. Fails above 1e-3.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def find(report, name):
    """The value of `name` wherever it stands in the report."""
    if isinstance(report, dict):
        if name in report:
            return report[name]
        report = list(report.values())
    if isinstance(report, list):
        for part in report:
            found = find(part, name)
            if found is not None:
                return found
    return None


def main():
    base, adapter, merged, report = sys.argv[1:]
    with open(report) as file:
        report = json.load(file)
    ids, ours = find(report, "token_ids"), torch.tensor(find(report["memory"], "logprobs")).double()
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    worst = 0.0
    plain = load(base)
    print(f"without the adapter: {(logprobs(plain, ids) - ours).abs().max():.1e} nats on {len(ids)} tokens")
    for name, model in [("PEFT, beside", PeftModel.from_pretrained(plain, adapter)), ("merged", load(merged))]:
        difference = (logprobs(model, ids) - ours).abs().max().item()
        print(f"{name}: {difference:.1e} nats")
        worst = max(worst, difference)
    sys.exit(worst > 1e-3)


if __name__ == "__main__":
    main()
