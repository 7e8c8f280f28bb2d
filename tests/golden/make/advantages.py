"""Writes tests/golden/advantages.json: advantages and reward metrics of TRL's own trainers for fixed rewards.

    pip install torch==2.11 trl==1.16.0 && python tests/golden/make/advantages.py > tests/golden/advantages.json

GRPOTrainer._generate_and_score_completions and RLOOTrainer's are called as they are, on a trainer without a model: what they
generate and how they reward is fixed, in f64, everything between and after is theirs.
"""

import contextlib
import json
import logging
import types
from collections import defaultdict, deque
from unittest import mock

import torch

logging.disable(logging.WARNING)

from trl.trainer import grpo_trainer, rloo_trainer  # noqa: E402

# [groups][G] rewards of each part; among them dead groups, ties, small spreads and rewards that cancel.
REWARDS = {
    "binary": [[[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]]],
    "graded": [[[1, 0.3, -0.2, 0.3], [0.3, 0.3, 0.3, 0.3], [-0.2, -0.2, 1, 0]]],
    "pairs": [[[1, 0], [0.25, 0.75], [0.5, 0.5]]],
    "one group": [[[0.5, 1.5, -2.0, 0.0, 0.25]]],
    "all equal": [[[0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]],
    "two parts": [
        [[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]],
        [[0, 0.01, 0.02, 0], [0.5, 0.25, 0, 0.125], [0.5, 0.5, 0.5, 0.5]],
    ],
    "a part that is flat": [[[1, 0], [0, 1]], [[2, 2], [2, 2]]],
}
WEIGHTS = {1: [1.0], 2: [1.0, 0.5]}
# Lengths of the completions in turn, and which of them no end token closes.
LENGTHS = [3, 7, 1, 5]
EOS, PAD = 2, 0


class Accelerator:
    device = torch.device("cpu")
    process_index = 0
    num_processes = 1
    gather = staticmethod(lambda tensor: tensor)
    unwrap_model = staticmethod(lambda model: model)


def trainer(module, cls, parts, size, **settings):
    """A trainer that has all that scoring asks for, and no model."""
    self = mock.MagicMock(spec=cls)
    self.accelerator = Accelerator()
    self.model = types.SimpleNamespace(training=True, config=types.SimpleNamespace(model_type="none"))
    self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    self._logs = {
        "prompt": deque(), "completion": deque(), "images": deque(), "rewards": defaultdict(deque),
        "advantages": deque(), "extra": defaultdict(deque),
    }
    self._pending_extra_logs, self._pending_metrics = {}, {}
    names = [f"part{k}" for k in range(parts)]
    self.reward_func_names, self.reward_funcs = names, names
    self.reward_weights = torch.tensor(WEIGHTS[parts], dtype=torch.float64)
    self.num_generations = self.num_generations_eval = size
    self.args = types.SimpleNamespace(
        per_device_train_batch_size=8, per_device_eval_batch_size=8, steps_per_generation=1,
        gradient_accumulation_steps=1, gradient_checkpointing_kwargs=None, gradient_checkpointing=False,
        report_to=[],
    )
    self._tokenizer = types.SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS)
    self.num_iterations, self.beta, self.ref_model = 1, 0.0, None
    self.use_vllm = self.vllm_importance_sampling_correction = False
    self.pad_to_multiple_of, self.mask_truncated_completions = None, False
    self.tools, self._is_vlm, self.environments = None, False, None
    self.multi_objective_aggregation, self.scale_rewards = "sum_then_normalize", "group"
    self.reward_clip_range, self.normalize_advantages, self.num_completions_to_print = None, False, None
    self.top_entropy_quantile, self.log_multimodal = 1.0, False
    self.environment_factories, self.rollout_func, self.chat_template = None, None, None
    for name, value in settings.items():
        setattr(self, name, value)
    return self


def score(module, cls, rewards, **settings):
    """What TRL makes of the rewards: an advantage a completion, and metrics."""
    parts, groups, size = len(rewards), len(rewards[0]), len(rewards[0][0])
    self = trainer(module, cls, parts, size, **settings)
    count = groups * size
    per_func = torch.tensor(rewards, dtype=torch.float64).reshape(parts, count).T.contiguous()
    self._calculate_rewards.return_value = per_func
    lengths = [LENGTHS[i % len(LENGTHS)] for i in range(count)]
    completions = [[5] * (n - 1) + [EOS if i % 3 else 5] for i, n in enumerate(lengths)]
    prompts = [[7, 8]] * count
    generated = {
        grpo_trainer: (prompts, completions, None, [""] * count, None, {}, None, None),
        rloo_trainer: (prompts, completions, [""] * count),
    }[module]
    self._generate.return_value = generated
    self._get_per_token_logps_and_entropies.side_effect = lambda _, ids, __, keep, *a, **k: (
        torch.zeros(ids.size(0), keep, dtype=torch.float64), None, None)
    inputs = [{"prompt": "p"} for _ in range(count)]
    with mock.patch.object(module, "disable_gradient_checkpointing", lambda *a, **k: contextlib.nullcontext()):
        out = cls._generate_and_score_completions(self, inputs)
    metrics = {name: values[-1] for name, values in self._metrics["train"].items()}
    advantages = out["advantages"].reshape(groups, size).tolist()
    return advantages, metrics


def main():
    cases = []
    grpo = (grpo_trainer, grpo_trainer.GRPOTrainer)
    for name, rewards in REWARDS.items():
        for scale in ("group", "batch", "none"):
            advantages, metrics = score(*grpo, rewards, scale_rewards=scale)
            cases.append(dict(rewards=name, combine="sum", scale=scale, baseline="mean",
                              advantages=advantages, metrics=metrics))
        advantages, metrics = score(*grpo, rewards, multi_objective_aggregation="normalize_then_sum")
        cases.append(dict(rewards=name, combine="normalize_then_sum", scale="group", baseline="mean",
                          advantages=advantages, metrics=metrics))
        advantages, metrics = score(rloo_trainer, rloo_trainer.RLOOTrainer, rewards)
        cases.append(dict(rewards=name, combine="sum", scale="none", baseline="leave_one_out",
                          advantages=advantages, metrics=metrics))
    golden = dict(trl="1.16.0", eps=1e-4, weights={str(k): v for k, v in WEIGHTS.items()}, rewards=REWARDS, cases=cases)
    print(json.dumps(golden, indent=1))


main()
