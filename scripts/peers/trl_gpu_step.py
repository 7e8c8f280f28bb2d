#!/usr/bin/env python3
"""Times a full-parameter GRPO step of TRL, or of plain torch + transformers, on one GPU; prints one JSON line.

The work that `rlvr bench step --random-weights` does: a model of a preset's shape with random weights made on
the device, prompts of random tokens, every completion forced to its full length, an arbitrary reward that
differs within a group. Neither weights nor a tokenizer nor data are read from anywhere.

    python3 scripts/peers/trl_gpu_step.py --preset llama-3.1-8b --groups 32 --group-size 8 \\
        --prompt-tokens 1500 --new-tokens 40 --steps 1
    python3 scripts/peers/trl_gpu_step.py --peer torch --device cpu --preset tiny --groups 2 --prompt-tokens 64

`--peer trl` is TRL's GRPOTrainer with its own generation (`transformers.generate`); `--peer torch` is the loop
that one would write by hand: generate, log-probabilities of the completions, clipped loss, AdamW. AdamW's
states have the weights' type in both, as in torch: in bf16, 8 bytes a weight with its gradient.
One more step than asked is run, and the first is reported as `warmup_seconds`. When memory runs out the micro-batch is
halved, down to one sequence, then activations are checkpointed; the line says what was used.
"""
import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time

PRESETS = {
    "llama-3.1-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=128256, rope_theta=5e5, tie_word_embeddings=False,
    ),
    "smollm2-135m": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, vocab_size=49152, rope_theta=1e5, tie_word_embeddings=True,
    ),
    "tiny": dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=512, rope_theta=1e4, tie_word_embeddings=True,
    ),
}  # fmt: skip
OUT_OF_MEMORY = 75


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer", choices=["trl", "torch", "auto"], default="auto", help="auto: trl where it is installed")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    p.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    p.add_argument("--preset", choices=PRESETS, default="llama-3.1-8b")
    p.add_argument("--groups", type=int, default=32, help="prompts per optimiser step")
    p.add_argument("--group-size", type=int, default=8, help="completions per prompt")
    p.add_argument("--prompt-tokens", type=int, default=1500)
    p.add_argument("--new-tokens", type=int, default=40)
    p.add_argument("--steps", type=int, default=1, help="timed steps, after one that is not")
    p.add_argument("--micro-batch", type=int, default=4, help="sequences per forward and backward pass, at most")
    p.add_argument("--generation-batch", type=int, default=64, help="sequences generated at once")
    p.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--once", action="store_true", help=argparse.SUPPRESS)  # no second try with less memory
    a = p.parse_args()
    rows = a.groups * a.group_size
    a.generation_batch = min(a.generation_batch, rows)
    a.micro_batch = min(a.micro_batch, a.generation_batch)
    if rows % a.generation_batch or a.generation_batch % a.group_size or a.generation_batch % a.micro_batch:
        p.error("--generation-batch must divide the rows, and be a multiple of --group-size and --micro-batch")
    if a.peer == "auto":
        from importlib.util import find_spec

        a.peer = "trl" if find_spec("trl") and find_spec("datasets") else "torch"
    return a


def random_model(a):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(a.seed)
    config = LlamaConfig(
        **PRESETS[a.preset],
        max_position_embeddings=a.prompt_tokens + a.new_tokens + 8,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, a.dtype))
    try:
        with torch.device(a.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 0, 1
    return model


def random_prompt(a, index):
    rng = random.Random(a.seed * 100_003 + index)
    return [rng.randrange(2, PRESETS[a.preset]["vocab_size"]) for _ in range(a.prompt_tokens)]


def advantage(row, group_size):
    """Of rewards 0 and 1 in turn, normed within the group."""
    mean = (group_size // 2) / group_size
    return (row % 2 - mean) / (math.sqrt(mean * (1 - mean)) + 1e-4)


def synchronise():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_trl(a):
    """Seconds of every step and of its rollout, mean completion lengths."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    # A word is a token, so that a prompt's length is exact.
    names = ["<eos>", "<pad>"] + [f"t{i}" for i in range(2, PRESETS[a.preset]["vocab_size"])]
    plain = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="t2"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=names[0], pad_token=names[1], padding_side="left"
    )
    rollout, steps, began = [0.0], [], [0.0]

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            synchronise()
            start = time.perf_counter()
            try:
                return super()._generate_and_score_completions(inputs)
            finally:
                synchronise()
                rollout[-1] += time.perf_counter() - start

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            synchronise()
            began[0] = time.perf_counter()

        def on_step_end(self, *_, **__):
            synchronise()
            steps.append(time.perf_counter() - began[0])
            rollout.append(0.0)

    prompts = [
        {"prompt": " ".join(names[t] for t in random_prompt(a, i))} for i in range(a.groups * (a.steps + 1))
    ]
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=a.micro_batch,
            gradient_accumulation_steps=a.groups * a.group_size // a.micro_batch,
            steps_per_generation=a.generation_batch // a.micro_batch,
            num_generations=a.group_size,
            max_completion_length=a.new_tokens,
            generation_kwargs={"min_new_tokens": a.new_tokens},
            max_steps=a.steps + 1,
            learning_rate=1e-6,
            beta=0.0,
            temperature=1.0,
            optim="adamw_torch_fused" if a.device == "cuda" else "adamw_torch",
            use_cpu=a.device == "cpu",
            bf16=a.dtype == "bfloat16" and a.device == "cuda",
            gradient_checkpointing=a.checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            shuffle_dataset=False,
            disable_tqdm=True,
            seed=a.seed,
        )
        trainer = Timed(
            model=random_model(a),
            reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
            args=config,
            train_dataset=Dataset.from_list(prompts),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        # TRL prints its log lines on stdout: keep that for our one line.
        stdout, sys.stdout = sys.stdout, sys.stderr
        try:
            trainer.train()
        finally:
            sys.stdout = stdout
    logs = [h for h in trainer.state.log_history if "completions/mean_length" in h]
    want = len(steps) * a.groups * a.group_size * (a.prompt_tokens + a.new_tokens)
    if logs[-1]["num_tokens"] != want:
        sys.exit(f"TRL counted {logs[-1]['num_tokens']} tokens, not {want}: prompts or completions have another length")
    details = {
        "mean_completion_tokens": [h["completions/mean_length"] for h in logs],
        "grad_norm": [h.get("grad_norm") for h in logs],
    }
    return steps, rollout[: len(steps)], details


def run_torch(a):
    import torch

    model = random_model(a)
    if a.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=a.device == "cuda")
    steps, rollouts, norms, rows = [], [], [], a.groups * a.group_size
    for step in range(a.steps + 1):
        prompts = [random_prompt(a, step * a.groups + g) for g in range(a.groups) for _ in range(a.group_size)]
        synchronise()
        start = time.perf_counter()
        model.eval()
        sequences = []
        for first in range(0, rows, a.generation_batch):
            ids = torch.tensor(prompts[first : first + a.generation_batch], device=a.device)
            with torch.no_grad():
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                    min_new_tokens=a.new_tokens, max_new_tokens=a.new_tokens,
                )  # fmt: skip
            sequences.append(made)
        sequences = torch.cat(sequences)
        if sequences.shape != (rows, a.prompt_tokens + a.new_tokens):
            sys.exit(f"generated {tuple(sequences.shape)}, not {rows} rows of full length")
        synchronise()
        rollouts.append(time.perf_counter() - start)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        for first in range(0, rows, a.micro_batch):
            ids = sequences[first : first + a.micro_batch]
            logits = model(ids, use_cache=False, logits_to_keep=a.new_tokens + 1).logits[:, :-1].float()
            targets = ids[:, a.prompt_tokens :]
            logprobs = logits.gather(2, targets.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
            weight = [[advantage(first + i, a.group_size)] for i in range(len(ids))]
            # On-policy: the ratio is 1, its gradient that of the log-probability.
            ratio = (logprobs - logprobs.detach()).exp()
            loss = -(ratio * torch.tensor(weight, device=a.device)).sum() / (rows * a.new_tokens)
            loss.backward()
            del logits, logprobs, ratio, loss
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        synchronise()
        steps.append(time.perf_counter() - start)
    return steps, rollouts, {"mean_completion_tokens": [float(a.new_tokens)] * len(steps), "grad_norm": norms}


def peak_memory(a):
    if a.device == "cpu":
        return {"peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    import torch

    return {
        "peak_memory_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def measure(a):
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    name = "torch"
    if a.peer == "trl":
        import trl

        name = f"trl {trl.__version__}"
    try:
        steps, rollouts, details = (run_trl if a.peer == "trl" else run_torch)(a)
    except torch.OutOfMemoryError as error:
        print(error, file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)
    timed, timed_rollouts = steps[1:], rollouts[1:]
    mean = sum(timed) / len(timed)
    packed = a.groups * (a.prompt_tokens + a.group_size * (a.new_tokens - 1))
    result = {
        "peer": name, **versions,
        "device": torch.cuda.get_device_name() if a.device == "cuda" else "cpu",
        "preset": a.preset, "dtype": a.dtype, "groups": a.groups, "group_size": a.group_size,
        "prompt_tokens": a.prompt_tokens, "new_tokens": a.new_tokens, "micro_batch": a.micro_batch,
        "generation_batch": a.generation_batch, "activations": "recompute" if a.checkpointing else "keep",
        "warmup_seconds": round(steps[0], 3), "seconds_per_step": [round(s, 3) for s in timed],
        "mean_step_seconds": round(mean, 3),
        "rollout_seconds": round(sum(timed_rollouts) / len(timed), 3),
        "update_seconds": round(mean - sum(timed_rollouts) / len(timed), 3),
        # Counted as rlvr counts: each prompt once.
        "packed_tokens": packed, "tokens_per_second": round(packed / mean, 1),
        **peak_memory(a), **details,
    }  # fmt: skip
    print(json.dumps(result))


def main():
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    a = arguments()
    if a.once:
        return measure(a)
    # Each try in a process of its own: nothing of a failed one stays on the device.
    while True:
        again = ["--once", f"--peer={a.peer}", f"--micro-batch={a.micro_batch}"]
        tried = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], *again, *(["--checkpointing"] if a.checkpointing else [])]
        )
        if tried.returncode != OUT_OF_MEMORY or (a.micro_batch == 1 and a.checkpointing):
            sys.exit(tried.returncode)
        if a.micro_batch > 1:
            a.micro_batch //= 2
        else:
            a.checkpointing = True


if __name__ == "__main__":
    main()
