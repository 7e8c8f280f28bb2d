#!/usr/bin/env python3
"""Times GRPO steps in TRL on the work that `rlvr bench step` does, and prints one JSON line.

The same model, number of groups, completions per group, prompt length, completion length and
thread count. Prompts are seeded words that are one token each, so their length is exact and no data
file is needed. Every completion is forced to the full length, and the reward is an arbitrary
function that differs within a group, so that no group is dead.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers trl==1.16.0 datasets
    venv/bin/python scripts/peers/trl_step.py MODEL_DIR --groups 1 --group-size 8 \\
        --prompt-tokens 1024 --new-tokens 48 --steps 2 --threads 2

MODEL_DIR is a model in HF layout. The first step of TRL warms caches: one more step than asked is
run and the first is reported as `warmup_seconds`, outside `step_seconds`.
"""
import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="folder with a model in HF layout")
    p.add_argument("--groups", type=int, default=1, help="prompts per optimiser step")
    p.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    p.add_argument("--prompt-tokens", type=int, default=1024)
    p.add_argument("--new-tokens", type=int, default=48)
    p.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--micro-batch", type=int, default=2, help="sequences per forward and backward pass")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    if a.groups * a.group_size % a.micro_batch:
        p.error("--micro-batch must divide --groups x --group-size")
    if not os.path.isfile(os.path.join(a.model, "config.json")):
        p.error(f"{a.model}: no config.json there; give a model folder in HF layout")
    return a


def one_token_words(tokenizer):
    """Words that stay one token each when joined by spaces."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [t[1:] for t, _ in vocabulary if t[:1] in "Ġ▁" and t[1:].isascii() and t[1:].isalpha() and t[1:].islower()]
    return words[:2000]


def prompt_of(tokenizer, words, tokens, seed):
    rng = random.Random(seed)
    text = "".join(" " + rng.choice(words) for _ in range(tokens))
    got = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    if got != tokens:
        sys.exit(f"prompt has {got} tokens, not {tokens}: this tokenizer splits the chosen words")
    return text


def main():
    a = arguments()
    os.environ.update(
        OMP_NUM_THREADS=str(a.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true"
    )
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(a.threads)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    words = one_token_words(tokenizer)
    prompts = [
        prompt_of(tokenizer, words, a.prompt_tokens, a.seed * 1000 + i) for i in range(a.groups * (a.steps + 1))
    ]
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype))

    rollout_seconds, step_seconds, began = [], [], [0.0]

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            start = time.perf_counter()
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                rollout_seconds.append(time.perf_counter() - start)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            began[0] = time.perf_counter()

        def on_step_end(self, *_, **__):
            step_seconds.append(time.perf_counter() - began[0])

    def reward(completions, **_):
        return [i % 3 / 2 for i in range(len(completions))]

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=a.micro_batch,
            gradient_accumulation_steps=a.groups * a.group_size // a.micro_batch,
            num_generations=a.group_size,
            max_completion_length=a.new_tokens,
            generation_kwargs={"min_new_tokens": a.new_tokens},
            max_steps=a.steps + 1,
            learning_rate=1e-6,
            beta=0.0,
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            shuffle_dataset=False,
            disable_tqdm=True,
            seed=a.seed,
        )
        trainer = Timed(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        # TRL prints its log lines on stdout: keep that for our one line.
        stdout, sys.stdout = sys.stdout, sys.stderr
        trainer.train()
        sys.stdout = stdout

    logs = [h for h in trainer.state.log_history if "completions/mean_length" in h]
    lengths = [h["completions/mean_length"] for h in logs]
    timed = step_seconds[1:]
    tokens = a.groups * a.group_size * (a.prompt_tokens + a.new_tokens)
    mean = sum(timed) / len(timed)
    result = {
        "peer": f"trl {trl.__version__}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": a.dtype,
        "groups": a.groups,
        "group_size": a.group_size,
        "prompt_tokens": a.prompt_tokens,
        "new_tokens": a.new_tokens,
        "mean_completion_tokens": lengths,
        "micro_batch": a.micro_batch,
        "threads": a.threads,
        "warmup_seconds": round(step_seconds[0], 3),
        "step_seconds": [round(s, 3) for s in timed],
        "rollout_seconds": [round(s, 3) for s in rollout_seconds[1:]],
        "update_seconds": [round(s - r, 3) for s, r in zip(timed, rollout_seconds[1:])],
        "mean_step_seconds": round(mean, 3),
        "tokens_per_second": round(tokens / mean, 1),
        "grad_norm": [h.get("grad_norm") for h in logs],
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
