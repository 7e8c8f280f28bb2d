"""distill.json: the distillation loss of Hinton et al., arXiv:1503.02531, over a handful of answers, and its gradient.

    python distill.py > ../distill.json        # torch 2.11

The loss is torch.nn.functional.kl_div of log_softmax(policy / T) against log_softmax(judge / T), batchmean, times T^2;
gradients by autograd, f64. An answer of probability 0 is left out of the judge's softmax.
"""

import json

import torch
import torch.nn.functional as F

CASES = [
    ([-0.9, -1.9, -2.1], [0.2, 0.5, 0.3]),
    ([-12.0, -11.5, -30.25, -9.0], [0.7, 0.1, 0.15, 0.05]),
    ([-0.01, -5.0, -7.0, -6.5, -9.25], [0.96, 0.01, 0.01, 0.01, 0.01]),
    ([-3.0, -3.0], [0.5, 0.5]),
    ([-1.5, -0.5, -4.0], [0.9, 0.1, 0.0]),
]


def case(policy, judge, temperature):
    logps = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    log_q = F.log_softmax(torch.tensor(judge, dtype=torch.float64).log() / temperature, dim=-1)
    log_p = F.log_softmax(logps / temperature, dim=-1)
    q = log_q.exp()
    kl = F.kl_div(log_p[None], q[None], reduction="batchmean")
    loss = temperature**2 * kl
    loss.backward()
    return {
        "logps": policy,
        "judge": judge,
        "temperature": temperature,
        "kl": kl.item(),
        "loss": loss.item(),
        "gradient": logps.grad.tolist(),
    }


print(json.dumps([case(p, q, t) for p, q in CASES for t in (0.5, 1.0, 2.0, 4.0)], indent=1))
