"""top-entropy.json: TRL's GRPO loss where top_entropy_quantile keeps the tokens of high entropy only, and where
use_bias_correction_kl multiplies the KL term by the ratio.

    python top_entropy.py > ../top-entropy.json        # TRL 1.16, torch 2.11

GRPOTrainer._compute_loss and get_high_entropy_mask are called as they are, in f64, on a trainer without a model: log-probs
and entropies are fixed, and gradients are taken by both. Entropies are f32 numbers, with ties among them.
"""

import json
import logging
import types
from collections import defaultdict
from unittest import mock

import torch

logging.disable(logging.WARNING)

from trl.trainer import grpo_trainer  # noqa: E402

B, T, BUDGET = 5, 8, 12
LENGTHS = [8, 3, 1, 5, 6]
TYPES = ["grpo", "bnpo", "dapo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"]

torch.manual_seed(7)
MASK = (torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]).double()
LOGPS = -2 * torch.rand(B, T, dtype=torch.float64)
OLD = LOGPS + 0.4 * torch.randn(B, T, dtype=torch.float64)
REF = LOGPS + 0.3 * torch.randn(B, T, dtype=torch.float64)
# Hundredths: some are equal, and a quantile can lie on a token.
ENTROPIES = (torch.rand(B, T) * 30).round().div(10).float().double()
ADVANTAGES = torch.tensor([1.0, -0.5, 0.25, -1.5, 0.75], dtype=torch.float64)


class Accelerator:
    num_processes = 1
    sync_gradients = True
    gather = staticmethod(lambda tensor: tensor)
    gather_for_metrics = staticmethod(lambda tensor: tensor)
    pad_across_processes = staticmethod(lambda tensor, **_: tensor)
    reduce = staticmethod(lambda tensor, **_: tensor)


def case(kind, level, top, beta, entropy_coef, corrected):
    logps, entropies = LOGPS.clone().requires_grad_(), ENTROPIES.clone().requires_grad_()
    cls = grpo_trainer.GRPOTrainer
    self = mock.MagicMock(spec=cls)
    self.accelerator, self.model = Accelerator(), types.SimpleNamespace(training=True)
    self._metrics = {"train": defaultdict(list)}
    self.loss_type, self.importance_sampling_level, self.beta = kind, level, beta
    self.epsilon_low, self.epsilon_high = 0.2, 5.0 if kind == "cispo" else 0.28
    self.top_entropy_quantile, self.off_policy_mask_threshold = top, None
    self.entropy_coef, self.use_adaptive_entropy = entropy_coef, False
    self._entropy_bonus_enabled = entropy_coef != 0.0
    self.aux_loss_enabled, self.use_vllm = False, False
    self.max_completion_length, self.current_gradient_accumulation_steps = BUDGET, 1
    self.args = types.SimpleNamespace(
        delta=None, steps_per_generation=1, use_bias_correction_kl=corrected,
        sapo_temperature_neg=1.05, sapo_temperature_pos=1.0,
        vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
    )
    self._get_per_token_logps_and_entropies = lambda *_, **__: (logps, entropies, None)
    self.get_high_entropy_mask = types.MethodType(cls.get_high_entropy_mask, self)
    for name in ("get_sapo_token_loss", "get_gamma_weights", "get_phi_weights"):
        if hasattr(cls, name):
            function = cls.__dict__[name]
            plain = isinstance(function, staticmethod)
            setattr(self, name, function.__func__ if plain else types.MethodType(function, self))
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": MASK,
        "advantages": ADVANTAGES, "old_per_token_logps": OLD, "ref_per_token_logps": REF,
        "num_items_in_batch": MASK.sum(),
    }
    loss = cls._compute_loss(self, self.model, inputs)
    loss.backward()
    kept = MASK.bool()
    if top < 1:
        kept = self.get_high_entropy_mask(ENTROPIES, MASK, 1 - top)
    return {
        "loss_type": kind, "level": level, "top": top, "beta": beta, "entropy_coef": entropy_coef,
        "corrected": corrected, "kl": self._metrics["train"]["kl"],
        "loss": loss.item(), "grad_logps": logps.grad.tolist(),
        "grad_entropies": (torch.zeros_like(ENTROPIES) if entropies.grad is None else entropies.grad).tolist(),
        "kept": kept.int().tolist(),
    }


cases = [
    case(kind, level, top, beta, coef, corrected)
    for kind in TYPES
    for level in (["token"] if kind == "vespo" else ["token", "sequence"])
    for top, beta, coef, corrected in [
        (0.2, 0.0, 0.0, False),
        (0.5, 0.04, 0.01, False),
        (0.37, 0.0, 0.02, False),
        (1.0, 0.04, 0.0, True),
        (0.5, 0.3, 0.0, True),
    ]
]
print(json.dumps({
    "lengths": LENGTHS, "max_completion_length": BUDGET, "advantages": ADVANTAGES.tolist(), "logps": LOGPS.tolist(),
    "old_logps": OLD.tolist(), "ref_logps": REF.tolist(), "entropies": ENTROPIES.tolist(), "cases": cases,
}))
