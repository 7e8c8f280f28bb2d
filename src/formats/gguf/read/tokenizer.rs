//! The tokenizer inside a GGUF file, written as Hugging Face's `tokenizer.json` and its companions.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::container::Gguf;
use crate::error::Result;

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const TYPES: &str = "tokenizer.ggml.token_type";
const PRE: &str = "tokenizer.ggml.pre";
/// ggml's token types.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
/// Rows of the embedding past the last token.
const UNUSED: i64 = 5;

/// How text is cut before byte-pair merging, from Meta's published Llama 3 tokenizer.
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The special tokens' ids, as config.json and generation_config.json want them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    /// End of text, then end of turn and end of message where the file has them.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
    pub unk: Option<u32>,
}

/// The contents of the tokenizer's files.
pub struct TokenizerFiles {
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    pub special_tokens_map: Value,
    pub ids: SpecialIds,
    pub vocab: usize,
    /// What the file left open and how it was settled, a sentence each.
    pub notes: Vec<String>,
}

/// How text is cut before byte-pair merging, from Qwen2's published tokenizer.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Builds the files and checks that the `tokenizers` library reads them with every id where GGUF has it.
pub fn tokenizer_files(gguf: &Gguf, architecture: &str) -> Result<TokenizerFiles> {
    const AGAIN: &str = "Convert the model again";
    let mut notes = Vec::new();
    match gguf.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        other => {
            let problem = format!("\"{}\" is not supported", other.unwrap_or("none"));
            let fix = "Import a model with a byte-level BPE tokenizer (\"gpt2\")";
            return Err(gguf.wrong("tokenizer.ggml.model", problem, fix));
        }
    }
    let split = Split::of(gguf, &mut notes)?;
    let mut tokens = gguf.texts(TOKENS)?;
    let mut vocab = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(*token, id as u32).is_some() {
            return Err(gguf.wrong(TOKENS, format!("{token:?} has two ids"), AGAIN));
        }
    }
    let types = gguf.integers(TYPES)?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        let problem = format!("{} entries for {} tokens", types.len(), tokens.len());
        return Err(gguf.wrong(TYPES, problem, AGAIN));
    }
    tokens.truncate(types.iter().rposition(|&kind| kind != UNUSED).map_or(0, |last| last + 1));
    let mut merges = Vec::new();
    for merge in gguf.texts(MERGES)? {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            vocab.contains_key(left)
                && vocab.contains_key(right)
                && vocab.contains_key(&*format!("{left}{right}"))
        });
        let Some((left, right)) = pair else {
            return Err(gguf.wrong(
                MERGES,
                format!("{merge:?} does not join two tokens into a third"),
                AGAIN,
            ));
        };
        merges.push(json!([left, right]));
    }

    let ids = special_ids(gguf, tokens.len())?;
    let added =
        tokens.iter().zip(&types).enumerate().filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind));
    let added = added.map(|(id, (token, &kind))| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": kind == CONTROL,
        })
    });
    let added = added.collect::<Vec<_>>();
    // llama.cpp adds <|begin_of_text|> to Llama 3's prompts whether or not the file says so.
    let starts_with_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(split == Split::Llama3);
    let bos = ids.bos.filter(|_| starts_with_bos).map(|id| (id, tokens[id as usize]));
    let in_order = tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into()));
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": (split == Split::Qwen2).then(|| json!({"type": "NFC"})),
        "pre_tokenizer": split.pre_tokenizer(),
        "post_processor": bos.map(|(id, token)| post_processor(id, token)),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": split.ignores_merges(),
            "vocab": Value::Object(in_order.collect::<Map<_, _>>()),
            "merges": merges,
        },
    });
    check_ids(gguf, &tokenizer, &tokens)?;

    let special = special_tokens(&ids, &tokens);
    let context = gguf.size(&format!("{architecture}.context_length"))?;
    let mut tokenizer_config = Map::new();
    tokenizer_config.insert("add_prefix_space".into(), false.into());
    tokenizer_config.insert("added_tokens_decoder".into(), added_tokens_decoder(&added));
    tokenizer_config.extend(special.clone());
    match gguf.text("tokenizer.chat_template")? {
        Some(template) => {
            tokenizer_config.insert("chat_template".into(), template.into());
        }
        None => notes.push("The file has no chat template: give one in the config to render chats.".into()),
    }
    tokenizer_config.insert("clean_up_tokenization_spaces".into(), false.into());
    tokenizer_config.insert("model_max_length".into(), json!(context));
    tokenizer_config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    Ok(TokenizerFiles {
        tokenizer,
        tokenizer_config: tokenizer_config.into(),
        special_tokens_map: special.into(),
        ids,
        vocab: tokens.len(),
        notes,
    })
}

/// GGUF's name for how a `tokenizer.json` cuts text before merging.
///
/// # Errors
/// What the file asks for when there is no name for it.
pub fn split_name(tokenizer: &Value) -> std::result::Result<&'static str, String> {
    let given = steps(&tokenizer["pre_tokenizer"]);
    let same = Split::ALL.iter().find(|split| steps(&split.pre_tokenizer()) == given);
    let Some(split) = same else {
        return Err(format!("cuts text by {}", Value::from(given)));
    };
    let ignores_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    if ignores_merges != split.ignores_merges() {
        return Err(format!("has ignore_merges = {ignores_merges} with the cuts of \"{}\"", split.name()));
    }
    Ok(split.name())
}

/// The steps of a pre-tokenizer without what does not change ids.
fn steps(pre_tokenizer: &Value) -> Vec<Value> {
    if let Some(steps) = pre_tokenizer["pretokenizers"].as_array() {
        return steps.iter().flat_map(self::steps).collect();
    }
    let mut step = pre_tokenizer.clone();
    if let Some(fields) = step.as_object_mut() {
        fields.shift_remove("trim_offsets");
        fields.sort_keys();
    }
    vec![step]
}

/// How text is cut before merging, by GGUF's name for it.
#[derive(Clone, Copy, PartialEq)]
enum Split {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
}

impl Split {
    const ALL: [Self; 4] = [Self::Gpt2, Self::SmolLm, Self::Llama3, Self::Qwen2];

    fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
        }
    }

    /// Whether a word that is a token is taken whole.
    fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    fn of(gguf: &Gguf, notes: &mut Vec<String>) -> Result<Self> {
        match gguf.text(PRE)? {
            Some("gpt-2") => Ok(Self::Gpt2),
            Some("smollm") => Ok(Self::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Self::Llama3),
            // The distillations on Qwen keep Qwen's tokenizer.
            Some("qwen2" | "deepseek-r1-qwen") => Ok(Self::Qwen2),
            None => {
                notes.push(format!(
                    "{PRE} is missing: text is cut as GPT-2 does; hold token ids against the original."
                ));
                Ok(Self::Gpt2)
            }
            Some(other) => {
                let problem = format!("\"{other}\" is not supported");
                let fix = "Import a model with \"gpt-2\", \"smollm\", \"llama-bpe\" or \"qwen2\", or use its Hugging Face files";
                Err(gguf.wrong(PRE, problem, fix))
            }
        }
    }

    fn pre_tokenizer(self) -> Value {
        let steps = match self {
            Self::Gpt2 => return byte_level(),
            Self::SmolLm => [json!({"type": "Digits", "individual_digits": true}), byte_level()],
            Self::Llama3 | Self::Qwen2 => {
                let pattern = if self == Self::Llama3 { LLAMA3_SPLIT } else { QWEN2_SPLIT };
                let split = json!({
                    "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false,
                });
                let mut bytes = byte_level();
                bytes["use_regex"] = false.into();
                [split, bytes]
            }
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// Puts `token` before every text encoded with special tokens.
fn post_processor(id: u32, token: &str) -> Value {
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [first, text("A")],
        "pair": [first, text("A"), first, text("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

fn special_ids(gguf: &Gguf, vocab: usize) -> Result<SpecialIds> {
    let id = |name: &str| -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match gguf.size(&key)? {
            // Some converters write 2^32 - 1 for none.
            Some(id) if id == u32::MAX as usize => Ok(None),
            Some(id) if id >= vocab => {
                let problem = format!("{id} is past the {vocab} tokens");
                Err(gguf.wrong(&key, problem, "Convert the model again"))
            }
            id => Ok(id.map(|id| id as u32)),
        }
    };
    let mut eos = Vec::new();
    for name in ["eos", "eot", "eom"] {
        eos.extend(id(name)?.filter(|id| !eos.contains(id)));
    }
    Ok(SpecialIds { bos: id("bos")?, eos, pad: id("padding")?, unk: id("unknown")? })
}

fn special_tokens(ids: &SpecialIds, tokens: &[&str]) -> Map<String, Value> {
    let named = [
        ("bos_token", ids.bos),
        ("eos_token", ids.eos.first().copied()),
        ("pad_token", ids.pad),
        ("unk_token", ids.unk),
    ];
    named.into_iter().filter_map(|(name, id)| Some((name.into(), tokens[id? as usize].into()))).collect()
}

fn added_tokens_decoder(added: &[Value]) -> Value {
    let entries = added.iter().map(|token| {
        let mut token = token.clone();
        let id = token.as_object_mut().and_then(|fields| fields.shift_remove("id")).unwrap_or_default();
        (id.to_string(), token)
    });
    Value::Object(entries.collect())
}

/// The `tokenizers` library must read the file, and know every token by the id GGUF gives it.
fn check_ids(gguf: &Gguf, tokenizer: &Value, tokens: &[&str]) -> Result<()> {
    let fix = "Convert the model again, or use its Hugging Face files";
    let tokenizer = Tokenizer::from_bytes(tokenizer.to_string())
        .map_err(|e| gguf.wrong(TOKENS, format!("the tokenizers library refuses them ({e})"), fix))?;
    let moved =
        tokens.iter().enumerate().find(|(id, token)| tokenizer.token_to_id(token) != Some(*id as u32));
    match moved {
        Some((id, token)) => {
            let got = tokenizer.token_to_id(token);
            Err(gguf.wrong(TOKENS, format!("{token:?} should have id {id}, the library gives {got:?}"), fix))
        }
        None => Ok(()),
    }
}
