//! A Hugging Face tokenizer as the metadata of a GGUF file.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

use crate::disk;
use crate::error::{Error, Result};
use crate::formats::gguf::pre_tokenizer::split_name;
use crate::formats::gguf::token_type::TokenType;
use crate::formats::hf::Companions;
use crate::model::config::ModelConfig;
use crate::text::{PromptEncoder, SpecialTokens, chat_template_text};

const OTHER_FORMAT: &str = "Export to --format hf, which keeps tokenizer.json as it is";

/// Keys of `tokenizer.` and what they cannot say.
pub struct TokenizerMetadata {
    pub entries: Vec<(String, Value)>,
    pub notes: Vec<String>,
}

/// A token as GGUF lists it.
#[derive(Clone)]
struct Token {
    text: String,
    kind: TokenType,
}

/// # Errors
/// The tokenizer is not byte-level BPE with cuts that GGUF has a name for, or a file is broken.
pub fn tokenizer_metadata(companions: &Companions, config: &ModelConfig) -> Result<TokenizerMetadata> {
    let path = companions.tokenizer_dir.join("tokenizer.json");
    let text = disk::read_text(&path)?;
    let json: Json = serde_json::from_str(&text)
        .map_err(|e| Error::input(path.display(), format!("not valid JSON ({e})"), "Copy the file again"))?;
    let pre = check_kind(&path, &json)?;
    let mut notes = Vec::new();
    let tokens = tokens(&path, &json, config.vocab_size, &mut notes)?;
    let merges = merges(&path, &json)?;

    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let mut entries = vec![
        ("tokenizer.ggml.model".to_string(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String(pre.into())),
    ];
    let id_of = |text: &str| tokens.iter().position(|token| token.text == text).map(|id| id as u32);
    let ids = special_ids(companions, config, id_of, &mut notes)?;
    let kinds = tokens.iter().map(|token| Value::I32(token.kind as i32)).collect();
    entries.push(("tokenizer.ggml.tokens".into(), texts(tokens.into_iter().map(|t| t.text).collect())));
    entries.push(("tokenizer.ggml.token_type".into(), Value::Array(kinds)));
    entries.push(("tokenizer.ggml.merges".into(), texts(merges)));
    for (name, id) in &ids {
        entries.push((format!("tokenizer.ggml.{name}_token_id"), Value::U32(*id)));
    }
    let bos = ids.iter().find(|(name, _)| *name == "bos").map(|(_, id)| *id);
    let starts_with_bos = bos.is_some() && first_added_id(&path, &text)? == bos;
    entries.push(("tokenizer.ggml.add_bos_token".into(), Value::Bool(starts_with_bos)));
    let template = chat_template_text(&companions.tokenizer_dir, companions.chat_template.as_deref())?;
    if let Some(template) = template {
        entries.push(("tokenizer.chat_template".into(), Value::String(template)));
    }
    Ok(TokenizerMetadata { entries, notes })
}

/// Returns `tokenizer.ggml.pre`.
fn check_kind(path: &Path, json: &Json) -> Result<&'static str> {
    let wrong = |key: &str, problem: String| {
        Err(Error::input(format!("{}: {key}", path.display()), problem, OTHER_FORMAT))
    };
    let model = &json["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == true || !model["dropout"].is_null() {
        let problem = format!("{} is not byte-level BPE, the only kind exported to GGUF", model["type"]);
        return wrong("model", problem);
    }
    if json["decoder"]["type"] != "ByteLevel" {
        return wrong("decoder", format!("{} is not ByteLevel", json["decoder"]["type"]));
    }
    let pre = match split_name(json) {
        Ok(pre) => pre,
        Err(problem) => return wrong("pre_tokenizer", format!("{problem}, for which GGUF has no name here")),
    };
    match &json["normalizer"] {
        Json::Null => Ok(pre),
        // llama.cpp normalises nothing, and converts Qwen's tokenizers all the same.
        normalizer if pre == "qwen2" && normalizer["type"] == "NFC" => Ok(pre),
        normalizer => wrong("normalizer", format!("{normalizer} cannot be said in GGUF")),
    }
}

/// One entry for each of the model's `rows`.
fn tokens(path: &Path, json: &Json, rows: usize, notes: &mut Vec<String>) -> Result<Vec<Token>> {
    let broken = |problem: String| {
        Error::input(path.display(), problem, "Use the tokenizer that belongs to the model")
    };
    let mut tokens = vec![None; rows];
    let mut put = |id: Option<u64>, token: Token| -> Result<()> {
        let slot = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        let slot =
            slot.ok_or_else(|| broken(format!("{:?} has an id past the model's {rows} rows", token.text)))?;
        *slot = Some(token);
        Ok(())
    };
    for (text, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        put(id.as_u64(), Token { text: text.clone(), kind: TokenType::Normal })?;
    }
    let mut trimmed = Vec::new();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let Some(text) = added["content"].as_str() else { continue };
        if ["lstrip", "rstrip", "single_word"].iter().any(|flag| added[*flag] == true) {
            trimmed.push(text);
        }
        let kind = if added["special"] == true { TokenType::Control } else { TokenType::UserDefined };
        put(added["id"].as_u64(), Token { text: text.into(), kind })?;
    }
    if !trimmed.is_empty() {
        notes.push(format!(
            "GGUF cannot say that {} take the spaces beside them or whole words only.",
            trimmed.join(", ")
        ));
    }
    let named = tokens.into_iter().enumerate();
    let unused = |id: usize| Token { text: format!("[PAD{id}]"), kind: TokenType::Unused };
    Ok(named.map(|(id, token)| token.unwrap_or_else(|| unused(id))).collect())
}

/// `left right`, in order.
fn merges(path: &Path, json: &Json) -> Result<Vec<String>> {
    let merge = |merge: &Json| match merge {
        Json::String(pair) => Some(pair.clone()),
        Json::Array(pair) => match &pair[..] {
            [Json::String(left), Json::String(right)] => Some(format!("{left} {right}")),
            _ => None,
        },
        _ => None,
    };
    let merges = json["model"]["merges"].as_array().into_iter().flatten().map(merge).collect::<Option<_>>();
    merges.ok_or_else(|| {
        let place = format!("{}: model.merges", path.display());
        Error::input(place, "an entry is no pair of tokens", "Copy the file again")
    })
}

/// Ids by GGUF's names for them. What ends an answer is `eos` or, where both are known, `eot`.
fn special_ids(
    companions: &Companions,
    config: &ModelConfig,
    id_of: impl Fn(&str) -> Option<u32>,
    notes: &mut Vec<String>,
) -> Result<Vec<(&'static str, u32)>> {
    let special = SpecialTokens::from_dir(&companions.tokenizer_dir)?;
    let named = |name: &str| special.get(name).and_then(&id_of);
    let mut stops = config.eos_token_id.clone();
    let eos = named("eos_token").or(stops.first().copied());
    let mut ids = vec![
        ("bos", named("bos_token").or(config.bos_token_id)),
        ("eos", eos),
        ("unknown", named("unk_token")),
        ("padding", named("pad_token").or(config.pad_token_id)),
    ];
    if chat_template_text(&companions.tokenizer_dir, companions.chat_template.as_deref())?.is_some() {
        let encoder = PromptEncoder::load(&companions.encoder_files())?;
        stops = encoder.stop_tokens().ids().to_vec();
        ids.push(("eot", encoder.end_of_turn().token_ids.last().copied().filter(|id| Some(*id) != eos)));
    }
    ids.push(("eom", id_of("<|eom_id|>").filter(|id| stops.contains(id) && Some(*id) != eos)));
    let ids: Vec<_> = ids.into_iter().filter_map(|(name, id)| Some((name, id?))).collect();
    let ends = |id: &u32| ids.iter().any(|(name, known)| name.starts_with('e') && known == id);
    let lost: Vec<_> = stops.iter().filter(|id| !ends(id)).map(u32::to_string).collect();
    if !lost.is_empty() {
        notes.push(format!("GGUF has no place for more stop tokens: {} left out.", lost.join(", ")));
    }
    Ok(ids)
}

/// The id the tokenizer puts before every text when asked for special tokens.
fn first_added_id(path: &Path, text: &str) -> Result<Option<u32>> {
    let wrong = |e: tokenizers::Error| {
        Error::input(path.display(), format!("is not a tokenizer file: {e}"), "Copy the file again")
    };
    let tokenizer = tokenizers::Tokenizer::from_bytes(text).map_err(wrong)?;
    let with = tokenizer.encode("a", true).map_err(wrong)?;
    let without = tokenizer.encode("a", false).map_err(wrong)?;
    Ok(with.get_ids().first().copied().filter(|_| with.len() > without.len()))
}
