//! What is too long by its bytes alone. A token stands for so many bytes of a text at most, so a text of more than that
//! times a budget has more tokens than the budget, and is known to without being tokenised, which takes some 200 bytes of
//! memory a byte.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{ModelWrapper, Tokenizer};

/// NFC makes one byte of at most 3.5 (Unicode 14: U+0390, which has 2, of 7).
const NFC: usize = 4;

/// Bytes of a text that one token stands for at most. `None` where a part of the tokenizer may leave text out or put any
/// amount of it into one token: white space that is removed, characters that become one unknown token.
pub(super) fn most_bytes_of_a_token(tokenizer: &Tokenizer) -> Option<usize> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let marks = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if marks.into_iter().flatten().any(|mark| !mark.is_empty()) {
        return None;
    }
    let (normalizer, pre_tokenizer) =
        (file(tokenizer.get_normalizer())?, file(tokenizer.get_pre_tokenizer())?);
    let shrinks = shrinks(&normalizer)?;
    if !keeps_all(&pre_tokenizer) {
        return None;
    }
    let vocab = tokenizer.get_vocab(false);
    let is_byte_level = is_byte_level(&normalizer) || is_byte_level(&pre_tokenizer);
    if !spells_all(&vocab, is_byte_level, model.byte_fallback) {
        return None;
    }
    // A stand-in character is one byte of the text.
    let length = |token: &String| if is_byte_level { token.chars().count() } else { token.len() };
    let longest = vocab.keys().map(length).max()?;
    let mut added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().values();
    // Strips take the white space beside a token, however much there is.
    let longest = added.try_fold(longest, |longest, token| match token.lstrip || token.rstrip {
        true => None,
        false => Some(longest.max(token.content.len())),
    })?;
    Some(shrinks * longest)
}

/// A part as `tokenizer.json` has it.
fn file(part: Option<&impl Serialize>) -> Option<Value> {
    part.map_or(Some(Value::Null), |part| serde_json::to_value(part).ok())
}

/// How many bytes a normaliser makes one of at most.
fn shrinks(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("Prepend" | "ByteLevel") => Some(1),
        Some("NFC") => Some(NFC),
        Some("Replace") => {
            let (found, put) = (normalizer["pattern"]["String"].as_str()?, normalizer["content"].as_str()?);
            (put.len() >= found.len()).then_some(1)
        }
        Some("Sequence") => {
            let mut all = normalizer["normalizers"].as_array()?.iter();
            all.try_fold(1, |product, one| Some(product * shrinks(one)?))
        }
        _ => None,
    }
}

/// Whether the pre-tokenizer cuts a text without leaving any of it out.
fn keeps_all(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        None => pre_tokenizer.is_null(),
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split" | "Punctuation") => pre_tokenizer["behavior"] != "Removed",
        Some("Sequence") => {
            pre_tokenizer["pretokenizers"].as_array().is_some_and(|all| all.iter().all(keeps_all))
        }
        Some(_) => false,
    }
}

fn is_byte_level(part: &Value) -> bool {
    let inner = ["normalizers", "pretokenizers"].iter().filter_map(|key| part[*key].as_array()).flatten();
    part["type"] == "ByteLevel" || inner.into_iter().any(is_byte_level)
}

/// Whether every byte has a token, so that nothing is unknown.
fn spells_all(vocab: &HashMap<String, u32>, is_byte_level: bool, byte_fallback: bool) -> bool {
    let known = |token: String| vocab.contains_key(&token);
    match is_byte_level {
        true => ByteLevel::alphabet().into_iter().all(|byte| known(byte.into())),
        false => byte_fallback && (0..=u8::MAX).all(|byte| known(format!("<0x{byte:02X}>"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::AddedToken;

    use super::*;
    use crate::text::byte_tokenizer;

    /// Words of up to nine bytes, one of 16, and `change` done to the file.
    fn tokenizer(change: impl Fn(&mut Value)) -> Tokenizer {
        let words = ["wwwwwwwww abc abc wwwwwwwww"];
        let mut made = byte_tokenizer::build(words.into_iter(), &[], 280).unwrap();
        made.add_tokens([AddedToken::from("<|a_long_token|>", false)]).unwrap();
        let mut file = serde_json::to_value(made).unwrap();
        change(&mut file);
        Tokenizer::from_bytes(file.to_string()).unwrap()
    }

    fn text() -> impl Strategy<Value = String> {
        let parts = [
            "w",
            "wwwwwwwww",
            " ",
            "abc",
            "<|a_long_token|>",
            "\u{1100}\u{1161}\u{11a8}",
            "\u{1fef}",
            "é",
            "\n",
        ];
        prop::collection::vec(prop::sample::select(parts.to_vec()), 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn no_text_has_fewer_tokens_than_its_bytes_say(text in text()) {
            let nfc = |file: &mut Value| file["normalizer"] = json!({"type": "NFC"});
            for tokenizer in [tokenizer(|_| ()), tokenizer(nfc)] {
                let most = most_bytes_of_a_token(&tokenizer).unwrap();
                let tokens = tokenizer.encode_fast(text.as_str(), false).unwrap().get_ids().len();
                prop_assert!(text.len() <= most * tokens, "{} bytes in {tokens} tokens", text.len());
            }
        }
    }

    #[test]
    fn the_longest_token_is_found_and_what_may_swallow_text_has_no_bound() {
        let added = "<|a_long_token|>".len();
        let most = |change: &dyn Fn(&mut Value)| most_bytes_of_a_token(&tokenizer(change));
        assert_eq!(most(&|_| ()), Some(added));
        assert_eq!(most(&|file| file["normalizer"] = json!({"type": "NFC"})), Some(4 * added));
        let byte = |byte: u8| format!("<0x{byte:02X}>");
        let fallback = |file: &mut Value| {
            let vocab: serde_json::Map<_, _> = (0..=255).map(|b| (byte(b), json!(b + 3))).collect();
            file["model"]["vocab"] = Value::Object(vocab);
            file["model"]["merges"] = json!([]);
            file["model"]["byte_fallback"] = json!(true);
            file["pre_tokenizer"] = Value::Null;
            let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
            file["normalizer"] =
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]});
        };
        // Its tokens of bytes are not in the vocabulary of the special ones.
        assert!(most(&fallback).is_some_and(|most| most >= added));
        type Change = fn(&mut Value);
        let changes: [(&str, Change); 6] = [
            ("lower", |file| file["normalizer"] = json!({"type": "Lowercase"})),
            ("words", |file| file["pre_tokenizer"] = json!({"type": "WhitespaceSplit"})),
            ("strip", |file| file["added_tokens"][0]["rstrip"] = json!(true)),
            ("suffix", |file| file["model"]["end_of_word_suffix"] = json!("</w>")),
            ("removed", |file| {
                let blank = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false});
                file["pre_tokenizer"] =
                    json!({"type": "Sequence", "pretokenizers": [blank, file["pre_tokenizer"]]});
            }),
            ("shorter", |file| {
                file["normalizer"] = json!({"type": "Replace", "pattern": {"String": "abc"}, "content": ""});
            }),
        ];
        for (name, change) in changes {
            assert_eq!(most(&change), None, "{name}");
        }
    }
}
