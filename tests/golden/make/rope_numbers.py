"""Prints the rotary frequencies and attention factors that tests/suite/families.rs holds rlvr's against.

    pip install torch transformers && python tests/golden/make/rope_numbers.py
"""

import json
import logging

logging.disable(logging.WARNING)

from transformers import Qwen3Config  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

CASES = [
    {"rope_type": "linear", "factor": 4.0},
    # The model cards of Qwen2.5 and Qwen3; then the block in DeepSeek-R1-0528-Qwen3-8B's config.json.
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
     "attn_factor": 0.8782488562869419},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 16,
     "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 1.0},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False,
     "attention_factor": 1.25},
]

for case in CASES:
    config = Qwen3Config(hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=131072,
                         rope_theta=1e6, rope_scaling=dict(case))
    frequencies, factor = ROPE_INIT_FUNCTIONS[case["rope_type"]](config)
    print(json.dumps(case), factor, [float(f"{x:.9g}") for x in frequencies.tolist()])
