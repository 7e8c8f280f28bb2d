//! How text is cut before byte pairs are merged: GGUF has a name for it, `tokenizer.json` the steps.

use serde_json::{Value, json};

use crate::formats::hf::tokenizer_json::{LLAMA3_SPLIT, byte_level, cut_by, sequence};

/// How text is cut before byte pairs are merged, from Qwen2's published tokenizer.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// How text is cut before merging, by GGUF's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
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
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    /// The cut of `tokenizer.ggml.pre`.
    pub(super) fn named(pre: &str) -> Option<Self> {
        match pre {
            "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Some(Self::Llama3),
            // The distillations on Qwen keep Qwen's tokenizer.
            "qwen2" | "deepseek-r1-qwen" => Some(Self::Qwen2),
            _ => None,
        }
    }

    pub(super) fn pre_tokenizer(self) -> Value {
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => {
                sequence([json!({"type": "Digits", "individual_digits": true}), byte_level(true)])
            }
            Self::Llama3 => cut_by(LLAMA3_SPLIT),
            Self::Qwen2 => cut_by(QWEN2_SPLIT),
        }
    }
}

/// GGUF's name for how a `tokenizer.json` cuts text before merging.
///
/// # Errors
/// What the file asks for when there is no name for it.
pub(super) fn split_name(tokenizer: &Value) -> std::result::Result<&'static str, String> {
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
