"""Learning rates of transformers' schedulers, for tests/golden/schedules.json: steps from the end of the warm-up on.

    python schedules.py > ../schedules.json        # transformers 5.17, torch 2.11
"""

import json

import torch
from transformers import get_scheduler

PEAK, WARMUP, TOTAL = 4e-5, 3, 20
CASES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "linear", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "cosine", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "1-sqrt", "min_lr_ratio": 0.0}),
]


def rates(name, arguments):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, WARMUP, TOTAL, arguments)
    found = []
    for step in range(TOTAL):
        if step >= WARMUP:
            found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


print(json.dumps({
    "peak": PEAK, "warmup": WARMUP, "total": TOTAL,
    "cases": [{"name": name, "arguments": arguments, "rates": rates(name, arguments)} for name, arguments in CASES],
}, indent=1))
