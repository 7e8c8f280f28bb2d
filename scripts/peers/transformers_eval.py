#!/usr/bin/env python3
"""Times greedy answers of transformers on the work of `rlvr bench eval`; prints one JSON line.

    python3 scripts/peers/transformers_eval.py --preset smollm2-135m --prompts 16 --prompt-tokens 512 --new-tokens 12

A model of a preset's shape with random weights; prompts of random tokens, all of one length, so that none is padded;
every answer is forced to its full length. The prompts go through `generate` in batches of --batch. One more round than
asked is run first, and reported as `warmup_seconds`.
"""
import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import trl_gpu_step as grpo


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    p.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    p.add_argument("--preset", choices=grpo.PRESETS, default="smollm2-135m")
    p.add_argument("--prompts", type=int, default=16, help="prompts of a round")
    p.add_argument("--prompt-tokens", type=int, default=512)
    p.add_argument("--new-tokens", type=int, default=12)
    p.add_argument("--rounds", type=int, default=2, help="timed rounds, after one that is not")
    p.add_argument("--batch", type=int, default=16, help="prompts that generate gets at once")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(a.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    import transformers

    if a.device == "cpu":
        torch.set_num_threads(a.threads)
    model = grpo.random_model(a).eval()
    rounds = []
    for index in range(a.rounds + 1):
        prompts = [grpo.random_prompt(a, index * a.prompts + i) for i in range(a.prompts)]
        grpo.synchronise()
        start = time.perf_counter()
        for first in range(0, a.prompts, a.batch):
            ids = torch.tensor(prompts[first : first + a.batch], device=a.device)
            with torch.inference_mode():
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False,
                    min_new_tokens=a.new_tokens, max_new_tokens=a.new_tokens,
                )  # fmt: skip
            if made.shape != (len(ids), a.prompt_tokens + a.new_tokens):
                sys.exit(f"generated {tuple(made.shape)}, not {len(ids)} answers of full length")
        grpo.synchronise()
        rounds.append(time.perf_counter() - start)
    mean = sum(rounds[1:]) / len(rounds[1:])
    print(
        json.dumps(
            {
                "bench": "eval", "peer": f"transformers {transformers.__version__}", "torch": torch.__version__,
                "device": a.device, "preset": a.preset, "dtype": a.dtype, "threads": a.threads, "prompts": a.prompts,
                "prompt_tokens": a.prompt_tokens, "new_tokens": a.new_tokens, "batch": a.batch,
                "tokens": a.prompts * (a.prompt_tokens + a.new_tokens), "warmup_seconds": round(rounds[0], 3),
                "seconds_per_round": [round(s, 3) for s in rounds[1:]], "mean_seconds": round(mean, 3),
                "prompts_per_second": round(a.prompts / mean, 2),
                "peak_memory_gib": grpo.peak_memory(a)["peak_memory_gib"],
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
