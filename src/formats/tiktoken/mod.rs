//! Llama 3's `tokenizer.model` (tiktoken: a token in base64 and its rank a line) as Hugging Face's `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::disk;
use crate::error::{Error, Result};
use crate::formats::hf::tokenizer_json::{ByteLevelBpe, LLAMA3_SPLIT, added_token, byte_level, cut_by};
use crate::text::byte_tokenizer::byte_chars;

/// Ranks of Llama 3's file; its special tokens follow.
const LLAMA3_RANKS: usize = 128_000;
/// Llama 3.1's special tokens: these, then reserved ones up to 256.
const NAMED: [&str; 11] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
];
const SPECIAL_TOKENS: usize = 256;
/// Meta's own is not part of the file.
const CHAT_TEMPLATE: &str = include_str!("llama3.jinja");

/// Whether the file begins as a list of ranks does.
pub fn is_rank_file(beginning: &[u8]) -> bool {
    let line = beginning.split(|byte| *byte == b'\n').next().unwrap_or_default();
    rank(line).is_some()
}

/// Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` to `out`, and returns the number of ids.
///
/// # Errors
/// The file is no list of ranks or not Llama 3's; `out` has files already, or cannot be written.
pub fn import(file: &Path, out: &Path) -> Result<usize> {
    let text = disk::read(file)?;
    let tokens = tokens(&text, file)?;
    if tokens.len() != LLAMA3_RANKS {
        let problem = format!("has {} ranks, and Llama 3's has {LLAMA3_RANKS}", tokens.len());
        let fix = "Only Llama 3's file is known; take the tokenizer.json of other models";
        return Err(Error::input(file.display(), problem, fix));
    }
    disk::refuse_filled(out)?;
    let config = json!({
        "bos_token": NAMED[0], "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>",
        "clean_up_tokenization_spaces": false, "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let files = [
        ("tokenizer.json", tokenizer(&tokens).to_string()),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("chat_template.jinja", CHAT_TEMPLATE.to_string()),
    ];
    disk::named_when_done(out, |dir| {
        std::fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        files.iter().try_for_each(|(name, text)| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(Error::io(&path, "write"))
        })
    })?;
    Ok(tokens.len() + SPECIAL_TOKENS)
}

/// A line: the token's bytes and its rank.
fn rank(line: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = std::str::from_utf8(line.trim_ascii()).ok()?;
    let (token, rank) = line.split_once(' ')?;
    Some((BASE64_STANDARD.decode(token).ok()?, rank.parse().ok()?)).filter(|(token, _)| !token.is_empty())
}

/// Tokens by rank; every byte alone is among them.
fn tokens(text: &[u8], file: &Path) -> Result<Vec<Vec<u8>>> {
    let mut tokens = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (token, rank) = rank(line).ok_or_else(|| {
            let place = format!("{}:{}", file.display(), number + 1);
            let fix = "Give Llama 3's tokenizer.model; SentencePiece files of the same name are not read";
            Error::input(place, "is no token in base64 and its rank", fix)
        })?;
        if rank != tokens.len() {
            let place = format!("{}:{}", file.display(), number + 1);
            let problem = format!("rank {rank} stands where {} is due", tokens.len());
            return Err(Error::input(place, problem, "Fetch the file again"));
        }
        tokens.push(token);
    }
    let missing = (0..=255u8).find(|byte| !tokens.iter().take(256).any(|token| token == &[*byte]));
    if let Some(byte) = missing {
        let problem = format!("has no token for byte {byte} among its first 256");
        return Err(Error::input(file.display(), problem, "Fetch the file again"));
    }
    Ok(tokens)
}

fn special_tokens() -> impl Iterator<Item = String> {
    let reserved = (3..).map(|i| format!("<|reserved_special_token_{i}|>"));
    NAMED.into_iter().map(String::from).chain(reserved).take(SPECIAL_TOKENS)
}

/// tiktoken merges the pair whose joined token has the lowest rank. As a list of merges: every way to cut a token
/// into two tokens, in the order of the joined token's rank.
fn tokenizer(tokens: &[Vec<u8>]) -> Value {
    let characters = byte_chars();
    let written = |token: &[u8]| token.iter().map(|byte| characters[usize::from(*byte)]).collect::<String>();
    let ranks: HashMap<&[u8], usize> = tokens.iter().enumerate().map(|(i, t)| (t.as_slice(), i)).collect();
    let mut merges = Vec::new();
    for token in tokens {
        let mut cuts: Vec<_> = (1..token.len())
            .filter_map(|at| {
                let (left, right) = token.split_at(at);
                Some((*ranks.get(left)?, *ranks.get(right)?))
            })
            .collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(l, r)| json!([written(&tokens[l]), written(&tokens[r])])));
    }
    let special = special_tokens().enumerate();
    let tokenizer = ByteLevelBpe {
        vocab: tokens.iter().enumerate().map(|(id, token)| (written(token), id.into())).collect(),
        merges,
        added_tokens: special.map(|(i, token)| added_token(tokens.len() + i, &token, true)).collect(),
        bos: Some((tokens.len(), NAMED[0])),
        normalizer: None,
        pre_tokenizer: cut_by(LLAMA3_SPLIT),
        decoder: byte_level(false),
        ignore_merges: true,
    };
    tokenizer.into_json()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes, then `th` and `the`, which only merges of `th` and `e` lead to.
    fn ranks() -> String {
        let encode = |bytes: &[u8]| {
            const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
            let digits = bits.as_bytes().chunks(6).map(|six| {
                let six = format!("{:0<6}", std::str::from_utf8(six).unwrap());
                char::from(DIGITS[usize::from_str_radix(&six, 2).unwrap()])
            });
            let text: String = digits.collect();
            format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4))
        };
        let tokens = (0..=255u8).map(|b| vec![b]).chain([b"th".to_vec(), b"the".to_vec(), " é".into()]);
        tokens.enumerate().map(|(rank, token)| format!("{} {rank}\n", encode(&token))).collect()
    }

    #[test]
    fn ranks_become_merges_and_special_tokens_follow() {
        let text = ranks();
        assert!(
            is_rank_file(text.as_bytes()) && !is_rank_file(b"GGUF\x03\0\0\0") && !is_rank_file(b"\n\x0e\n")
        );
        let json = tokenizer(&tokens(text.as_bytes(), Path::new("t")).unwrap()).to_string();
        let tokenizer = tokenizers::Tokenizer::from_bytes(json).unwrap();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        let (bos, eot) = (259, 259 + 9);
        assert_eq!(ids("the<|eot_id|> é"), [bos, 257, eot, 258]);
        assert_eq!(ids("tha"), [bos, 256, 97]);
        assert_eq!(tokenizer.decode(&[257, 258], true).unwrap(), "the é");
        assert_eq!(tokenizer.get_vocab_size(true), 259 + 256);
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("tokenizer.model");
            std::fs::write(&file, text).unwrap();
            import(&file, &dir.path().join("out")).unwrap_err().to_string()
        };
        assert!(refused(&ranks()).contains("tokenizer.model: has 259 ranks, and Llama 3's has 128000"));
        assert!(
            refused(&ranks().replace(" 9\n", " 10\n")).contains("tokenizer.model:10: rank 10 stands where 9")
        );
        assert!(refused("\n?? 0").contains("tokenizer.model:2: is no token in base64"));
        assert!(refused("QQ== 0").contains("no token for byte 0"));
    }
}
