#!/usr/bin/env python3
"""What transformers makes of every field of a config.json: each changed, one at a time, the weights as they were.

    pip install torch transformers safetensors && python tests/golden/make/config_fields.py tests/golden/config-fields

Writes NAME.safetensors, the weights of a base (f32), and cases.json: for each base its config, token ids and the
log-probs of ids[1:] in double precision, then the cases: which fields were changed ("changes": field or field.inner to
value; "removed": a list), and what came of it: "logps" where they differ from the base's, "same", or "refused" with
transformers' own reason, which includes weights that it would have drawn anew.

The fields are those of the config's class, those of the base's config.json, and those of MORE, so that a field which a
later transformers reads is met when this is run again.
"""

import copy
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

IDS = [3, 17, 9, 30, 22, 5, 41, 8, 33, 12, 27, 6, 19, 44, 11, 25, 38, 4, 29, 15, 36, 7, 20, 42]
SHAPE = dict(vocab_size=48, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
             hidden_act="silu", tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
# Old and new spellings side by side, as files of all ages are met.
BASES = {
    "llama": (LlamaConfig, SHAPE | dict(
        model_type="llama", architectures=["LlamaForCausalLM"], rope_theta=100.0, torch_dtype="float32")),
    "llama-bias": (LlamaConfig, SHAPE | dict(
        model_type="llama", architectures=["LlamaForCausalLM"], head_dim=8, attention_bias=True, mlp_bias=False,
        rope_parameters=LLAMA3 | dict(rope_theta=100.0), dtype="float32")),
    "qwen2": (Qwen2Config, SHAPE | dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True, rope_theta=100.0,
        rope_scaling=YARN, use_sliding_window=False, sliding_window=6, max_window_layers=1)),
    "qwen3": (Qwen3Config, SHAPE | dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=8, attention_bias=False,
        rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=100.0),
        layer_types=["full_attention", "full_attention"])),
}
# Fields that no class declares but that are met in files, or read from what is left over; all absent in the bases.
MORE = {
    "rope_theta": [50.0], "partial_rotary_factor": [0.5, 1.0], "original_max_position_embeddings": [8, 32],
    "sliding_window": [6], "use_sliding_window": [True], "max_window_layers": [0, 5], "quantization_config": [],
    "rope_scaling": [None, {}, dict(rope_type="default"), dict(type="linear", factor=3.0),
                     dict(rope_type="dynamic", factor=2.0), YARN, LLAMA3, dict(YARN, type="linear"),
                     dict(rope_type="default", factor=3.0), dict(factor=3.0), dict(rope_type="linear", factor=0.5),
                     dict(YARN, attention_factor=0.8), dict(YARN, truncate=False),
                     dict(YARN, beta_fast=4.0), dict(YARN, beta_slow=2.0), dict(YARN, mscale=0.7),
                     dict(YARN, mscale=0.7, mscale_all_dim=1.0), dict(YARN, attn_factor=0.8),
                     {k: v for k, v in YARN.items() if k != "original_max_position_embeddings"},
                     {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"},
                     dict(rope_type="longrope", short_factor=[1.0] * 2, long_factor=[2.0] * 2,
                          original_max_position_embeddings=16, factor=4.0),
                     dict(rope_type="proportional", partial_rotary_factor=0.5)],
    "rope_parameters": [{}, dict(rope_type="default", rope_theta=50.0), dict(rope_theta=50.0),
                        dict(rope_type="linear", factor=3.0, rope_theta=50.0), dict(YARN, rope_theta=50.0),
                        dict(full_attention=dict(rope_type="default", rope_theta=50.0)),
                        dict(full_attention=dict(rope_type="linear", factor=3.0, rope_theta=50.0),
                             sliding_attention=dict(rope_type="default", rope_theta=9.0))],
    "head_dim": [4, 8, 2], "attention_bias": [True, False], "mlp_bias": [True], "layer_types": [
        ["full_attention", "sliding_attention"], ["sliding_attention"] * 2, ["full_attention"]],
    "attention_dropout": [0.0, 0.5], "pretraining_tp": [2], "num_experts": [4], "use_qk_norm": [True],
    "qk_norm": [True], "rope_interleaved": [True], "no_rope_layers": [[0, 1]], "attention_multiplier": [0.5],
    "residual_multiplier": [0.5], "embedding_multiplier": [2.0], "logits_scaling": [2.0], "scale_emb": [2.0],
    "attn_logit_softcapping": [5.0], "final_logit_softcapping": [5.0], "query_pre_attn_scalar": [2.0],
    "attention_scaling": [2.0], "attention_chunk_size": [4], "attn_temperature_tuning": [True], "is_causal": [False],
    "is_decoder": [False, True], "layer_norm_eps": [0.5], "norm_eps": [0.5], "hidden_activation": ["gelu"],
    "n_layer": [1], "n_embd": [8], "use_bidirectional_attention": [True], "tie_encoder_decoder": [True],
    "logit_scale": [0.5], "torch_dtype": ["bfloat16"], "dtype": ["bfloat16"], "auto_map": [],
}
# Both of a pair only mean something together.
PAIRS = [
    ("*", {"num_attention_heads": 2, "num_key_value_heads": 1}), ("*", {"num_attention_heads": 8, "num_key_value_heads": 4}),
    ("*", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 100}),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention", "sliding_attention"]}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "layer_types": None, "max_window_layers": 1}),
    ("qwen2", {"rope_parameters": dict(YARN, rope_theta=100.0)}),
    ("qwen2", {"rope_parameters": dict(YARN, factor=2.0, rope_theta=100.0)}),
    ("llama", {"rope_scaling": dict(YARN), "original_max_position_embeddings": 8}),
    ("llama", {"rope_scaling": dict(LLAMA3), "original_max_position_embeddings": 8}),
    ("llama", {"rope_scaling": dict(rope_type="linear", factor=2.0), "partial_rotary_factor": 0.5}),
    ("llama", {"rope_scaling": dict(rope_type="linear", factor=2.0, rope_theta=50.0)}),
    ("llama", {"rope_scaling": dict(rope_type="default"), "rope_parameters": dict(rope_theta=50.0)}),
    ("llama", {"rope_scaling": {}, "rope_parameters": dict(rope_theta=50.0)}),
]


def others(value):
    """Values like `value` that are not it."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, max(value // 2, 0)]
    if isinstance(value, float):
        return [value * 2, value / 2]
    if isinstance(value, str):
        return ["gelu"] if value == "silu" else ["bfloat16"] if value == "float32" else []
    return []


def cases(name, kind, base):
    """(changes, removed) of a base, each once."""
    seen = []

    def add(changes, removed=()):
        changes = {k: v for k, v in changes.items() if base.get(k, "absent") != v}
        if (changes or removed) and (changes, removed) not in seen:
            seen.append((changes, removed))

    for field, value in base.items():
        if field in ("model_type", "architectures"):
            continue
        add({}, (field,))
        add({field: None})
        for other in others(value):
            add({field: other})
        if isinstance(value, dict):
            for inner, number in value.items():
                add({}, (f"{field}.{inner}",))
                for other in [None] + others(number):
                    add({f"{field}.{inner}": other})
            for inner in ("attention_factor", "partial_rotary_factor", "beta_fast", "mscale", "unheard_of"):
                add({f"{field}.{inner}": 0.5})
    declared = {f.name: f.default for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    for field, value in declared.items():
        if field not in base and field not in MORE and value is not dataclasses.MISSING:
            for other in others(value):
                add({field: other})
    for field, values in MORE.items():
        for value in values:
            add({field: value})
    for where, changes in PAIRS:
        if where in ("*", name):
            add(changes)
    return seen


def changed(base, changes, removed):
    config = copy.deepcopy(base)
    for path in removed:
        *outer, last = path.split(".")
        at = config[outer[0]] if outer else config
        del at[last]
    for path, value in changes.items():
        *outer, last = path.split(".")
        at = config[outer[0]] if outer else config
        at[last] = value
    return config


def logps(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True)
    anew = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if anew:
        raise ValueError(f"drawn anew: {anew[0]}")
    with torch.no_grad():
        rows = model.eval()(torch.tensor([IDS])).logits[0].log_softmax(-1)
    return rows[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0].tolist()


def main(out):
    transformers.logging.set_verbosity_error()
    found = {"transformers": transformers.__version__, "ids": IDS, "bases": {}}
    for number, (name, (kind, base)) in enumerate(BASES.items()):
        torch.manual_seed(number)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "config.json").write_text(json.dumps(base))
            model = AutoModelForCausalLM.from_config(kind.from_pretrained(folder), attn_implementation="eager")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(0.4 * torch.randn_like(parameter) + (parameter.dim() == 1))
            tied = base["tie_word_embeddings"]
            weights = {n: p.detach().float().contiguous() for n, p in model.state_dict().items()
                       if not (tied and n == "lm_head.weight")}
            save_file(weights, out / f"{name}.safetensors")
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            plain = logps(folder, base)
            rows = []
            for changes, removed in cases(name, kind, base):
                row = {"changes": changes, "removed": list(removed)}
                try:
                    got = logps(folder, changed(base, changes, removed))
                    same = max(abs(a - b) for a, b in zip(got, plain)) < 1e-9
                    row |= {"same": True} if same else {"logps": [round(x, 9) for x in got]}
                except Exception as error:  # whatever it says is its answer
                    row["refused"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
                rows.append(row)
            kinds = {k: sum(k in r for r in rows) for k in ("same", "logps", "refused")}
            print(name, len(rows), kinds)
            found["bases"][name] = {"config": base, "logps": plain, "cases": rows}
    head = json.dumps({k: v for k, v in found.items() if k != "bases"})[:-1]
    with open(out / "cases.json", "w") as file:  # a case a line, so that a change of one shows as one
        file.write(head + ', "bases": {')
        for i, (name, base) in enumerate(found["bases"].items()):
            lines = ",\n".join(json.dumps(row) for row in base["cases"])
            rest = json.dumps({k: v for k, v in base.items() if k != "cases"})[:-1]
            file.write(f'{"," if i else ""}\n"{name}": {rest}, "cases": [\n{lines}\n]}}')
        file.write("}}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
