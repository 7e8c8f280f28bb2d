#!/usr/bin/env python3
"""Makes golden values of more families than the set has: random tiny models by transformers, in double precision.

    pip install torch transformers safetensors && python tests/golden/make/families.py DIR
    RLVR_GOLDEN_DIR=DIR cargo test --release --test suite model_parity::golden_

DIR gets a folder a model, as transformers saves it, with expected.safetensors: logits of a long input; a GRPO group
computed the naive way, every completion with its own copy of the prompt; log-probs and the gradient of every weight.
"""

import logging
import sys
from pathlib import Path

logging.disable(logging.WARNING)

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config  # noqa: E402

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1,
             eos_token_id=2)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
MODELS = {
    "llama-bias-linear": LlamaConfig(**SHAPE, attention_bias=True, tie_word_embeddings=False,
                                     rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-yarn": Qwen2Config(**SHAPE, rope_parameters=dict(YARN, rope_theta=1e4)),
    "qwen3-untied-yarn": Qwen3Config(**SHAPE, head_dim=16, rope_parameters=dict(
        YARN, rope_theta=1e5, beta_fast=8.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=1.0)),
    "qwen3-bias": Qwen3Config(**SHAPE, head_dim=24, attention_bias=True, tie_word_embeddings=True),
}


def logprobs(model, prompt, completion):
    logits = model(torch.cat([prompt, completion])[None]).logits[0]
    rows = logits[len(prompt) - 1:-1].log_softmax(-1)
    return rows.gather(1, completion[:, None])[:, 0]


def main(root):
    torch.manual_seed(int.from_bytes(b"rlvr", "big"))
    for name, config in MODELS.items():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases: 1 and 0 would hide a mistake
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
        model = model.double()
        ids = lambda n: torch.randint(3, SHAPE["vocab_size"], (n,))
        long_input, prompt = ids(80), ids(11)
        completions = [ids(n) for n in (4, 1, 7, 5)]
        advantages = torch.tensor([1.0, -0.5, 0.25, -0.75], dtype=torch.float64)
        logits = model(long_input[None]).logits[0].detach()
        logps = [logprobs(model, prompt, c) for c in completions]
        tokens = sum(len(c) for c in completions)
        loss = -sum((a * (l - l.detach()).exp()).sum() for a, l in zip(advantages, logps)) / tokens
        loss.backward()
        expected = {
            "long_input": long_input, "long_logits": logits, "prompt": prompt, "completions": torch.cat(completions),
            "completion_lengths": torch.tensor([len(c) for c in completions]), "advantages": advantages,
            "completion_logps": torch.cat(logps).detach(),
        }
        expected |= {f"grad.{n}": p.grad.contiguous() for n, p in model.named_parameters()}
        save_file(expected, root / name / "expected.safetensors")
        print(f"{name}: {len(expected)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
