#!/usr/bin/env python3
"""Times SFT steps of TRL, or of plain torch + transformers, on the work of `rlvr bench sft`; prints one JSON line.

    python3 scripts/peers/trl_sft.py --preset smollm2-135m --rows 8 --prompt-tokens 512 --target-tokens 32 --threads 2

A model of a preset's shape with random weights, rows of random tokens that all have the same length, so that no row is
padded and a batch of them is the same work as a packed sequence of them; the loss is on the answers' tokens, every weight
is trained by AdamW in f32. `--peer trl` is TRL's SFTTrainer, `--peer torch` the loop that one would write by hand: it
asks the head for the answers' rows only, which SFTTrainer does not. One more step than asked is run first, and reported
as `warmup_seconds`. Tokens are rows times prompt and answer, as rlvr counts them.
"""
import argparse
import json
import os
import random
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import trl_gpu_step as grpo


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", choices=["trl", "torch"], default="trl")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    p.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    p.add_argument("--preset", choices=grpo.PRESETS, default="smollm2-135m")
    p.add_argument("--rows", type=int, default=8, help="rows of a step")
    p.add_argument("--prompt-tokens", type=int, default=512)
    p.add_argument("--target-tokens", type=int, default=32)
    p.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not")
    p.add_argument("--micro-batch", type=int, default=4, help="rows per forward and backward pass")
    p.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    a.micro_batch = min(a.micro_batch, a.rows)
    if a.rows % a.micro_batch:
        p.error("--micro-batch must divide --rows")
    # What the model's maker asks for beside the preset.
    a.new_tokens = a.target_tokens
    return a


def row(a, index):
    rng = random.Random(a.seed * 100_003 + index)
    return [rng.randrange(2, grpo.PRESETS[a.preset]["vocab_size"]) for _ in range(a.prompt_tokens + a.target_tokens)]


def run_trl(a):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    vocabulary = {"<e>": 0, "<p>": 1, "a": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), pad_token="<p>", eos_token="<e>"
    )
    steps, began = [], [0.0]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            grpo.synchronise()
            began[0] = time.perf_counter()

        def on_step_end(self, *_, **__):
            grpo.synchronise()
            steps.append(time.perf_counter() - began[0])

    mask = [0] * a.prompt_tokens + [1] * a.target_tokens
    rows = [{"input_ids": row(a, i), "completion_mask": mask} for i in range(a.rows * (a.steps + 1))]
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            per_device_train_batch_size=a.micro_batch,
            gradient_accumulation_steps=a.rows // a.micro_batch,
            max_steps=a.steps + 1,
            max_length=None,
            completion_only_loss=True,
            learning_rate=1e-6,
            optim="adamw_torch_fused" if a.device == "cuda" else "adamw_torch",
            use_cpu=a.device == "cpu",
            bf16=a.dtype == "bfloat16" and a.device == "cuda",
            gradient_checkpointing=a.checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=a.seed,
        )
        trainer = SFTTrainer(
            model=grpo.random_model(a),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        # TRL prints its log lines on stdout: keep that for our one line.
        stdout, sys.stdout = sys.stdout, sys.stderr
        try:
            trainer.train()
        finally:
            sys.stdout = stdout
    logs = [h for h in trainer.state.log_history if "loss" in h]
    want = len(steps) * a.rows * (a.prompt_tokens + a.target_tokens)
    if "num_tokens" in logs[-1] and logs[-1]["num_tokens"] != want:
        sys.exit(f"TRL counted {logs[-1]['num_tokens']} tokens, not {want}: rows have another length")
    return steps, {"loss": [h["loss"] for h in logs], "grad_norm": [h.get("grad_norm") for h in logs]}


def run_torch(a):
    import torch

    model = grpo.random_model(a).train()
    if a.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=a.device == "cuda")
    steps, losses, norms = [], [], []
    for step in range(a.steps + 1):
        rows = torch.tensor([row(a, step * a.rows + i) for i in range(a.rows)], device=a.device)
        grpo.synchronise()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        sum_loss = 0.0
        for first in range(0, a.rows, a.micro_batch):
            ids = rows[first : first + a.micro_batch]
            logits = model(ids, use_cache=False, logits_to_keep=a.target_tokens + 1).logits[:, :-1].float()
            targets = ids[:, a.prompt_tokens :]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            loss = loss / (a.rows * a.target_tokens)
            loss.backward()
            sum_loss += loss.item()
            del logits, loss
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        grpo.synchronise()
        steps.append(time.perf_counter() - start)
        losses.append(sum_loss)
    return steps, {"loss": losses, "grad_norm": norms}


def main():
    a = arguments()
    os.environ.update(
        OMP_NUM_THREADS=str(a.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true"
    )
    import torch
    import transformers

    if a.device == "cpu":
        torch.set_num_threads(a.threads)
    name = "torch"
    if a.peer == "trl":
        import trl

        name = f"trl {trl.__version__}"
    steps, details = (run_trl if a.peer == "trl" else run_torch)(a)
    mean = sum(steps[1:]) / len(steps[1:])
    tokens = a.rows * (a.prompt_tokens + a.target_tokens)
    print(
        json.dumps(
            {
                "bench": "sft", "peer": name, "torch": torch.__version__, "transformers": transformers.__version__,
                "device": a.device, "preset": a.preset, "dtype": a.dtype, "threads": a.threads, "rows": a.rows,
                "prompt_tokens": a.prompt_tokens, "target_tokens": a.target_tokens, "micro_batch": a.micro_batch,
                "activations": "recompute" if a.checkpointing else "keep", "tokens": tokens,
                "warmup_seconds": round(steps[0], 3), "seconds_per_step": [round(s, 3) for s in steps[1:]],
                "mean_step_seconds": round(mean, 3), "tokens_per_second": round(tokens / mean, 1),
                "peak_memory_gib": grpo.peak_memory(a)["peak_memory_gib"], **details,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
