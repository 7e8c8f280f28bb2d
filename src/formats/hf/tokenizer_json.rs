//! `tokenizer.json` of a byte-level BPE tokenizer, made from another format's tokens and merges.

use serde_json::{Map, Value, json};

/// How text is cut before byte pairs are merged, as Meta published it for Llama 3.
pub const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What differs between byte-level BPE tokenizers.
pub struct ByteLevelBpe<'a> {
    /// Tokens, in the stand-in characters of their bytes, and their ids; in the order of the ids.
    pub vocab: Map<String, Value>,
    /// Pairs of tokens, the first to be merged first.
    pub merges: Vec<Value>,
    /// [`added_token`]s.
    pub added_tokens: Vec<Value>,
    /// Id and text of the token before every text that is encoded with special tokens.
    pub bos: Option<(usize, &'a str)>,
    pub normalizer: Option<Value>,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    /// Whether a word that is a token is taken whole.
    pub ignore_merges: bool,
}

impl ByteLevelBpe<'_> {
    pub fn into_json(self) -> Value {
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.bos.map(|(id, token)| begin_with(id, token)),
            "decoder": self.decoder,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.ignore_merges,
                "vocab": self.vocab,
                "merges": self.merges,
            },
        })
    }
}

/// A token that is found in the text before it is cut; a `special` one is left out of decoded text.
pub fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}

/// Bytes as stand-in characters; with `use_regex`, text is cut as GPT-2 does.
pub fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Cuts by the regular expression `pattern`, then bytes as stand-in characters.
pub fn cut_by(pattern: &str) -> Value {
    let split =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    sequence([split, byte_level(false)])
}

pub fn sequence(steps: [Value; 2]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// Puts `token` before every text encoded with special tokens.
fn begin_with(id: usize, token: &str) -> Value {
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [first, text("A")],
        "pair": [first, text("A"), first, text("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}
