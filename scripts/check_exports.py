"""Exports models with rlvr and lets other programs read them. Called by check-exports.sh.

transformers computes the log-probs of exported folders, PEFT those of adapters, the gguf package dequantises every
tensor, and llama.cpp (through xllamacpp) tokenizes and generates. The first difference past its bound ends the script.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

RLVR = sys.argv[1]
TEXT = "Is this log safe? 04:12:09 sshd[2211]: Failed password for root, 1234567 bytes.\n\nDéjà vu, it's 日本語"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLITS = {
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}


def say(what, value, bound):
    """One line, and the end when it is past the bound."""
    print(f"  {what:<58} {value:.2e}  (bound {bound:.0e})", flush=True)
    if not value <= bound:
        sys.exit(f"{what}: {value} is past {bound}")


def same(what, ours, theirs):
    print(f"  {what:<58} {'equal' if ours == theirs else 'DIFFERENT'}", flush=True)
    if ours != theirs:
        sys.exit(f"{what}:\nrlvr   {ours}\nothers {theirs}")


def rlvr(*args):
    done = subprocess.run([RLVR, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"rlvr {' '.join(map(str, args))}\n{done.stderr}")
    return done.stdout


def export(model, out, *args):
    return json.loads(rlvr("export", model, out, "--probe", TEXT, "--json", *args))


def tiny_tokenizer(kind, folder):
    """Byte-level BPE that cuts as the family does, trained on a few words."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    split = pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, TEMPLATE, "user assistant system safe risk 123 45"] * 3, trainer)
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    else:
        first = ("<|endoftext|>", 0)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[first]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        bos_token="<|endoftext|>" if kind == "llama" else None,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def tiny_models(root):
    """One random model of each family, large enough for blocks of 256; written by transformers."""
    torch.manual_seed(torch.seed() % 2**31)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}
    kinds = {
        "llama": (transformers.LlamaConfig, "llama", {"rope_scaling": rope}),
        "qwen2": (transformers.Qwen2Config, "qwen", {"tie_word_embeddings": True}),
        "qwen3": (transformers.Qwen3Config, "qwen", {"head_dim": 32}),
    }
    for name, (config_class, kind, more) in kinds.items():
        folder = root / name
        vocab = tiny_tokenizer(kind, folder)
        config = config_class(**({
            "vocab_size": vocab + 4, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "eos_token_id": 2, "pad_token_id": 0,
            "bos_token_id": 0 if kind == "llama" else None, "initializer_range": 0.06,
        } | more))
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith((".bias", "norm.weight")):
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        yield name, folder


def logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def largest(ours, theirs):
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check_folder(model, work):
    report = export(model, work / "folder", "--format", "hf", "--dtype", "f32", "--max-shard-size", "2MB")
    ids = report["probe"]["prompts"][0]["token_ids"]
    say("folder: log-probs, transformers", largest(report["read_back"][0]["logprobs"], logprobs(load(work / "folder"), ids)), 1e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "folder")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], add_generation_prompt=True)
    same("folder: token ids of the chat, transformers", ids, list(chat["input_ids"] if "input_ids" in chat else chat))
    return report


def half_rows(rows, heads):
    """llama.cpp's order of query and key rows undone, as in transformers' reader of GGUF."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def check_gguf(path, work):
    """The gguf package reads every tensor with rlvr's numbers, and the metadata."""
    reader = gguf.GGUFReader(path)
    text = lambda key: reader.fields[key].contents()
    arch = text("general.architecture")
    layers, heads, kv_heads = (text(f"{arch}.{key}") for key in
                               ["block_count", "attention.head_count", "attention.head_count_kv"])
    again = work / f"{path.stem}-again"
    rlvr("import", path, again, "--dtype", "f32")
    ours = load_file(again / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], layers)
    theirs = {t.name: t for t in reader.tensors}
    worst, kinds = 0.0, set()
    for name, tensor in ours.items():
        stem, kind = name.rsplit(".", 1)
        stored = theirs.pop(f"{names.get_name(stem)}.{kind}")
        values = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(tensor.shape)
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            values = half_rows(values, heads if stem.endswith("q_proj") else kv_heads)
        worst = max(worst, largest(tensor.numpy(), values))
        kinds.add(stored.tensor_type.name)
    same(f"{path.name}: tensors, gguf package", [], [n for n in theirs if n != "rope_freqs.weight"])
    say(f"{path.name}: values of {', '.join(sorted(kinds))}", worst, 0)


class LlamaCpp:
    def __init__(self, path):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_gpu_layers, params.warmup, params.verbosity = 1024, 0, False, -1
        self.server = xllamacpp.Server(params)

    def ask(self, route, body):
        request = urllib.request.Request(
            self.server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))

    def tokenize(self, text):
        return self.ask("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def likeliest(self, ids):
        """The token that comes next and its log-prob; no log-prob for a part of a character."""
        answer = self.ask("/completion", {
            "prompt": ids, "n_predict": 1, "temperature": 0.0, "top_k": 1, "n_probs": 1, "cache_prompt": True,
            "return_tokens": True,
        })
        content = answer.get("completion_probabilities") or [{}]
        return answer["tokens"][0], content[0].get("logprob")


def check_llama_cpp(path, report, tokenizer, bound):
    """After each of rlvr's greedy tokens, llama.cpp's likeliest next token is as likely."""
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        print("  llama.cpp: skipped, no xllamacpp here")
        return
    runtime = LlamaCpp(path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], add_generation_prompt=True, tokenize=False
    )
    ids = report["probe"]["prompts"][0]["token_ids"]
    same(f"{path.name}: token ids, llama.cpp", ids, runtime.tokenize(prompt))
    greedy, ours = report["read_back"][0]["greedy"], report["read_back"][0]["greedy_logprobs"]
    theirs = [runtime.likeliest(ids + greedy[:at]) for at in range(len(greedy))]
    equal = sum(id == token for id, (token, _) in zip(greedy, theirs))
    print(f"  {path.name + ': greedy tokens equal, llama.cpp':<58} {equal} of {len(greedy)}", flush=True)
    pairs = [(a, b) for a, (_, b) in zip(ours, theirs) if b is not None]
    say(f"{path.name}: their log-probs, llama.cpp", largest(*zip(*pairs)), bound)


def check_model(name, model, work):
    print(name, flush=True)
    work.mkdir()
    report = check_folder(model, work)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    # llama.cpp rounds activations to f16 beside f16 weights, to 8 bits beside quantised ones.
    for quant, bound in [("f32", 2e-2), ("f16", 2e-2), ("bf16", 5e-2), ("q8_0", 0.5), ("q4_k_m", 1.0)]:
        path = work / f"{quant}.gguf"
        report = export(model, path, "--format", "gguf", "--quant", quant)
        check_gguf(path, work)
        check_llama_cpp(path, report, tokenizer, bound)
        path.unlink()


def check_adapter(model, work):
    """PEFT's adapter merged by rlvr, and rlvr's copy of it read by PEFT."""
    print(f"{model.name} with an adapter", flush=True)
    work.mkdir()
    config = peft.LoraConfig(r=4, lora_alpha=4, use_rslora=True, target_modules="all-linear",
                             init_lora_weights=False, task_type="CAUSAL_LM")
    with_adapter = peft.get_peft_model(load(model), config).eval()
    with_adapter.save_pretrained(work / "adapter")
    for name, args in [("merged", ["hf", "--dtype", "f32"]), ("copied", ["peft"])]:
        report = export(model, work / name, "--adapter", work / "adapter", "--format", *args)
        ids, ours = report["probe"]["prompts"][0]["token_ids"], report["read_back"][0]["logprobs"]
        say(f"{name}: log-probs, PEFT's own", largest(ours, logprobs(with_adapter, ids)), 1e-3)
        again = load(work / name) if name == "merged" else peft.PeftModel.from_pretrained(load(model), work / name).eval()
        reader = "transformers" if name == "merged" else "PEFT"
        say(f"{name}: log-probs, read by {reader}", largest(ours, logprobs(again, ids)), 1e-3)
    effect = largest(ours, logprobs(load(model), ids))
    if effect < 0.1:
        sys.exit(f"the adapter changes log-probs by {effect} only: this shows nothing")


def main():
    versions = {m.__name__: getattr(m, "__version__", "") for m in [transformers, peft, torch]}
    print(" ".join(f"{name} {version}" for name, version in versions.items()))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, model in tiny_models(root):
            check_model(name, model, root / f"{name}-out")
            check_adapter(model, root / f"{name}-adapter")
        for model in map(Path, sys.argv[2:]):
            check_model(model.name, model, root / f"{model.name}-out")
    print("all as it should be")


main()
