//! Builds a byte-level BPE tokenizer from a corpus: for models that rlvr starts from random weights.
//!
//! The merge loop is our own because it must give the same tokenizer on every run and thread count; the
//! result is an ordinary Hugging Face `tokenizer.json`. BPE: Sennrich et al., arXiv:1508.07909, section 3.2.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

/// Ends a document; also the padding id. Id 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Begins a chat message. Id 1.
pub const MESSAGE_START: &str = "<|im_start|>";
/// Ends a chat message: the stop token. Id 2.
pub const MESSAGE_END: &str = "<|im_end|>";
const SPECIAL: [&str; 3] = [END_OF_TEXT, MESSAGE_START, MESSAGE_END];

/// The chat template that [`save_pretrained`] writes.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
    {{ message['content'] }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A tokenizer of at most `vocab_size` tokens: the special tokens, `phrases` (each always one token), all 256
/// bytes, then merges by falling frequency in `corpus`; ties go to the pair that was made first. Words are
/// cut as in GPT-2, and each digit is a word of its own. No text is unknown to it.
///
/// # Errors
/// `vocab_size` leaves no room for the tokens that must be there, or a phrase is empty or given twice.
pub fn build<'a>(
    corpus: impl Iterator<Item = &'a str>,
    phrases: &[&str],
    vocab_size: usize,
) -> Result<Tokenizer> {
    let place = "byte-level tokenizer";
    let fixed: Vec<&str> = SPECIAL.into_iter().chain(phrases.iter().copied()).collect();
    let mut seen = BTreeSet::new();
    if let Some(phrase) = fixed.iter().find(|phrase| phrase.is_empty() || !seen.insert(**phrase)) {
        return Err(Error::input(
            place,
            format!("phrase {phrase:?} is empty or given twice"),
            "Give each phrase once",
        ));
    }
    let alphabet: Vec<String> = byte_chars().iter().map(char::to_string).collect();
    let least = fixed.len() + alphabet.len();
    if vocab_size < least {
        return Err(Error::config(
            "vocab_size",
            vocab_size,
            format!("{least} or more"),
            format!("{} special tokens and phrases and 256 bytes need an id each", fixed.len()),
        ));
    }

    let mut vocab: Vec<String> = fixed.iter().map(|s| s.to_string()).chain(alphabet).collect();
    let bytes_only = assemble(&vocab, &[], fixed.len())?;
    let words = word_counts(corpus, phrases, &bytes_only)?;
    let merges = learn_merges(words, &mut vocab, vocab_size);
    assemble(&vocab, &merges, fixed.len())
}

/// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into the folder `dir`.
///
/// # Errors
/// A file cannot be written, or `tokenizer` is not one of [`build`]'s.
pub fn save_pretrained(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let id = |token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| {
            Error::input(
                dir.display(),
                format!("the tokenizer has no {token}"),
                "Save only tokenizers that were built here",
            )
        })
    };
    let text = tokenizer.to_string(true).map_err(|e| foreign("tokenizer.json", e))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": MESSAGE_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    let generation = json!({
        "eos_token_id": [id(MESSAGE_END)?, id(END_OF_TEXT)?],
        "pad_token_id": id(END_OF_TEXT)?,
    });
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text + "\n").map_err(Error::io(&path, "write"))
    };
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the folder"))?;
    write("tokenizer.json", text)?;
    write("tokenizer_config.json", format!("{config:#}"))?;
    write("generation_config.json", format!("{generation:#}"))
}

/// The phrases of a tokenizer that [`build`] made, which are words of its texts and no control tokens. None of any other.
pub(super) fn phrases_of(tokenizer: &Tokenizer) -> Vec<String> {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let fixed = (0..).take_while(|id| {
        added.get(id).is_some_and(|token| match SPECIAL.get(*id as usize) {
            Some(special) => token.special && token.content == *special,
            None => !token.special && !token.normalized,
        })
    });
    let first = fixed.count() as u32;
    let bytes_follow = (first..)
        .zip(byte_chars())
        .all(|(id, byte)| tokenizer.id_to_token(id).is_some_and(|token| token == byte.to_string()));
    if !bytes_follow {
        return Vec::new();
    }
    (SPECIAL.len() as u32..first).filter_map(|id| tokenizer.id_to_token(id)).collect()
}

fn foreign(place: &str, source: impl std::fmt::Display) -> Error {
    Error::input(place, source, "This is a fault of rlvr: please report it with the corpus")
}

/// GPT-2's printable stand-in for every byte: printable Latin-1 stands for itself, the rest is moved to
/// U+0100 and up in byte order.
pub fn byte_chars() -> [char; 256] {
    let mut moved = 0;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { byte as u32 } else { 0x100 + moved };
        moved += u32::from(!printable);
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

/// `vocab[..fixed]` are special tokens and phrases; `merges` are pairs of earlier tokens.
fn assemble(vocab: &[String], merges: &[[String; 2]], fixed: usize) -> Result<Tokenizer> {
    let added: Vec<Value> = vocab[..fixed]
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "special": id < SPECIAL.len(),
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level],
        },
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": ids, "merges": merges,
        },
    });
    Tokenizer::from_bytes(file.to_string()).map_err(|e| foreign("tokenizer.json", e))
}

/// How often each word stands in the corpus, in byte characters; phrases are cut out first.
fn word_counts<'a>(
    corpus: impl Iterator<Item = &'a str>,
    phrases: &[&str],
    bytes_only: &Tokenizer,
) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for text in corpus {
        let pieces = phrases.iter().fold(vec![text], |pieces, phrase| {
            pieces.into_iter().flat_map(|piece| piece.split(phrase)).collect()
        });
        for piece in pieces {
            let mut cut = PreTokenizedString::from(piece);
            if let Some(pre_tokenizer) = bytes_only.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut cut).map_err(|e| foreign("tokenizer.json", e))?;
            }
            for (word, _, _) in cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
                *counts.entry(word.to_string()).or_insert(0) += 1;
            }
        }
    }
    Ok(counts)
}

/// Merges the most frequent pair until `vocab` is full or no pair stands twice in the corpus.
fn learn_merges(
    words: BTreeMap<String, u64>,
    vocab: &mut Vec<String>,
    vocab_size: usize,
) -> Vec<[String; 2]> {
    let mut ids: BTreeMap<String, usize> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), id)).collect();
    // Every character of a word is a byte character, so it has an id.
    let mut words: Vec<(Vec<usize>, u64)> = words
        .into_iter()
        .map(|(word, count)| {
            (
                word.chars().filter_map(|c| ids.get(c.encode_utf8(&mut [0; 4]) as &str).copied()).collect(),
                count,
            )
        })
        .collect();
    let mut merges = Vec::new();
    while vocab.len() < vocab_size {
        let mut pairs: BTreeMap<[usize; 2], u64> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry([pair[0], pair[1]]).or_default() += count;
            }
        }
        let best = pairs.into_iter().filter(|(_, count)| *count > 1);
        // `max_by_key` keeps the last of equals; reversed, that is the pair with the lowest ids.
        let Some((pair, _)) = best.rev().max_by_key(|(_, count)| *count) else { break };
        let [left, right] = pair.map(|id| vocab[id].clone());
        let token = format!("{left}{right}");
        // Two merges may spell the same token; it keeps its first id.
        let id = *ids.entry(token.clone()).or_insert(vocab.len());
        if id == vocab.len() {
            vocab.push(token);
        }
        merges.push([left, right]);
        for (word, _) in &mut words {
            merge(word, pair, id);
        }
    }
    merges
}

fn merge(word: &mut Vec<usize>, pair: [usize; 2], id: usize) {
    let mut at = 0;
    while at + 1 < word.len() {
        if word[at] == pair[0] && word[at + 1] == pair[1] {
            word[at] = id;
            word.remove(at + 1);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
        tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn merges_go_by_frequency_then_by_age() {
        // low 4, lower 2, new 3. Pairs: lo 6, ow 6, ne 3, ew 3, we 2, er 2. The ids of bytes rise with the
        // byte, so (l, o) goes before (o, w): `lo`. Then (lo, w): `low`. Then ties at 3: (e, w) before (n, e).
        let corpus = ["low", "low", "low", "low", "lower", "lower", "new", "new", "new"];
        let tokenizer = build(corpus.into_iter(), &[], 259 + 4).unwrap();
        let made: Vec<_> = (259..263).map(|id| tokenizer.id_to_token(id).unwrap()).collect();
        assert_eq!(made, ["lo", "low", "ew", "new"]);
        assert_eq!(tokens(&tokenizer, "lower"), ["low", "e", "r"]);
    }

    #[test]
    fn special_tokens_phrases_and_bytes_come_first() {
        let tokenizer = build(["a a"].into_iter(), &["Unsafe MCP Server:"], 260).unwrap();
        let ids = [END_OF_TEXT, MESSAGE_START, MESSAGE_END, "Unsafe MCP Server:"]
            .map(|token| tokenizer.token_to_id(token));
        assert_eq!(ids, [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(tokenizer.get_vocab_size(true), 260);
        assert_eq!(tokens(&tokenizer, "xUnsafe MCP Server:y"), ["x", "Unsafe MCP Server:", "y"]);
        // Special tokens vanish from a decoded answer, phrases do not.
        let ids = tokenizer.encode("Unsafe MCP Server:<|im_end|>", false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), true).unwrap(), "Unsafe MCP Server:");
    }

    #[test]
    fn digits_stay_single() {
        let tokenizer = build(["12 12 12 12"; 9].into_iter(), &[], 300).unwrap();
        assert_eq!(tokens(&tokenizer, "1212"), ["1", "2", "1", "2"]);
    }

    #[test]
    fn a_vocabulary_too_small_or_a_phrase_twice_is_refused() {
        let error = build([].into_iter(), &["a b"], 259).unwrap_err().to_string();
        assert!(error.contains("vocab_size = 259") && error.contains("260 or more"), "{error}");
        let error = build([].into_iter(), &["a", "a"], 999).unwrap_err().to_string();
        assert!(error.contains("\"a\" is empty or given twice"), "{error}");
    }

    #[test]
    fn saved_files_load_again() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = build(["read owner=atlas"; 3].into_iter(), &["\"}"], 280).unwrap();
        save_pretrained(&tokenizer, &dir.path().join("new")).unwrap();
        let again = Tokenizer::from_file(dir.path().join("new/tokenizer.json")).unwrap();
        let text = "read owner=atlas\"}<|im_end|>";
        assert_eq!(tokens(&again, text), tokens(&tokenizer, text));
        let config = std::fs::read_to_string(dir.path().join("new/tokenizer_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["chat_template"], CHAT_TEMPLATE);
        assert_eq!(config["eos_token"], MESSAGE_END);
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn any_text_comes_back(text in "\\PC*|[ \\n\\t]*|.*") {
            let corpus = ["the log of the server", "été \u{1F512} 日本"];
            let tokenizer = build(corpus.into_iter(), &["\"}", "Done: "], 290).unwrap();
            let encoded = tokenizer.encode(text.as_str(), false).unwrap();
            prop_assert_eq!(tokenizer.decode(encoded.get_ids(), false).unwrap(), text);
        }
    }
}
