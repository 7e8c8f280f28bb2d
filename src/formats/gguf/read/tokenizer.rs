//! The tokenizer inside a GGUF file, written as Hugging Face's `tokenizer.json` and its companions.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::container::Gguf;
use crate::error::Result;
use crate::formats::gguf::pre_tokenizer::Split;
use crate::formats::gguf::token_type::TokenType;
use crate::formats::hf::tokenizer_json::{ByteLevelBpe, added_token, byte_level};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const TYPES: &str = "tokenizer.ggml.token_type";
const PRE: &str = "tokenizer.ggml.pre";

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
    let split = split(gguf, &mut notes)?;
    let mut tokens = gguf.texts(TOKENS)?;
    let mut vocab = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(*token, id as u32).is_some() {
            return Err(gguf.wrong(TOKENS, format!("{token:?} has two ids"), AGAIN));
        }
    }
    let types: Vec<Option<TokenType>> = match gguf.integers(TYPES)? {
        Some(numbers) => numbers.into_iter().map(TokenType::of).collect(),
        None => vec![Some(TokenType::Normal); tokens.len()],
    };
    if types.len() != tokens.len() {
        let problem = format!("{} entries for {} tokens", types.len(), tokens.len());
        return Err(gguf.wrong(TYPES, problem, AGAIN));
    }
    tokens
        .truncate(types.iter().rposition(|kind| *kind != Some(TokenType::Unused)).map_or(0, |last| last + 1));
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
    let added = tokens.iter().zip(&types).enumerate().filter_map(|(id, (token, kind))| match kind {
        Some(TokenType::Control) => Some(added_token(id, token, true)),
        Some(TokenType::UserDefined) => Some(added_token(id, token, false)),
        _ => None,
    });
    let added = added.collect::<Vec<_>>();
    // llama.cpp adds <|begin_of_text|> to Llama 3's prompts whether or not the file says so.
    let starts_with_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(split == Split::Llama3);
    let bos = ids.bos.filter(|_| starts_with_bos).map(|id| (id as usize, tokens[id as usize]));
    let in_order = tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into()));
    let tokenizer = ByteLevelBpe {
        vocab: in_order.collect(),
        merges,
        added_tokens: added.clone(),
        bos,
        normalizer: (split == Split::Qwen2).then(|| json!({"type": "NFC"})),
        pre_tokenizer: split.pre_tokenizer(),
        decoder: byte_level(true),
        ignore_merges: split.ignores_merges(),
    };
    let tokenizer = tokenizer.into_json();
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

fn split(gguf: &Gguf, notes: &mut Vec<String>) -> Result<Split> {
    let Some(name) = gguf.text(PRE)? else {
        notes.push(format!(
            "{PRE} is missing: text is cut as GPT-2 does; hold token ids against the original."
        ));
        return Ok(Split::Gpt2);
    };
    Split::named(name).ok_or_else(|| {
        let problem = format!("\"{name}\" is not supported");
        let fix = "Import a model with \"gpt-2\", \"smollm\", \"llama-bpe\" or \"qwen2\", or use its Hugging Face files";
        gguf.wrong(PRE, problem, fix)
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
