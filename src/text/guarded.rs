//! A tokenizer whose control tokens no text can write.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::control::ControlTokens;
use super::foreign::StandIns;

/// Noncharacters: no text has a use for them.
const LEADS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// The model's own tokenizer but for this: each control token is written as a noncharacter and a number. What else the
/// tokenizer does (normaliser, flags of added tokens, merges) is left to it.
#[derive(Debug)]
struct Renamed {
    inner: tokenizers::Tokenizer,
    lead: char,
    /// From its ids of added tokens to the model's.
    ids: HashMap<u32, u32>,
    /// The model's ids of control tokens that stand for nothing else.
    control: HashSet<u32>,
}

/// [`Renamed`], made when the first text needs it.
#[derive(Clone, Debug, Default)]
pub(super) struct Guarded(Arc<OnceLock<Result<Renamed, String>>>);

/// The name of token `index`: of one length, so that none begins another, and no word's neighbour.
fn name(lead: char, index: usize) -> String {
    format!("{lead}{index:06}{lead}")
}

impl Guarded {
    /// Ids of a text with `stand_ins`: a control token is found only where the text, stand-ins and all, has it.
    ///
    /// # Errors
    /// The tokenizer cannot be renamed, or makes a control token of plain text.
    pub fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        control: &ControlTokens,
        text: &str,
        stand_ins: Option<&StandIns>,
    ) -> Result<Vec<u32>, String> {
        let first = *LEADS.start();
        let other;
        let renamed = if text.contains(first) {
            let lead = LEADS.into_iter().find(|lead| !text.contains(*lead));
            let lead = lead.ok_or("the text has all of Unicode's noncharacters U+FDD0 to U+FDEF")?;
            other = Renamed::new(tokenizer, control, lead)?;
            &other
        } else {
            self.0.get_or_init(|| Renamed::new(tokenizer, control, first)).as_ref().map_err(String::clone)?
        };
        let restored = |piece: &str| match stand_ins {
            Some(stand_ins) => stand_ins.restore(piece),
            None => piece.to_string(),
        };
        let (mut out, mut from) = (String::with_capacity(text.len()), 0);
        for (range, index) in control.found_in(text) {
            out.push_str(&restored(&text[from..range.start]));
            out.push_str(&name(renamed.lead, index));
            from = range.end;
        }
        out.push_str(&restored(&text[from..]));
        renamed.encode(&out)
    }
}

impl Renamed {
    fn new(tokenizer: &tokenizers::Tokenizer, control: &ControlTokens, lead: char) -> Result<Self, String> {
        let mut file = serde_json::to_value(tokenizer).map_err(|e| e.to_string())?;
        let new_name = |token: &str| {
            let index = control.tokens().iter().position(|t| t.content == token)?;
            Some(name(lead, index))
        };
        for token in file["added_tokens"].as_array_mut().into_iter().flatten() {
            if let Some(name) = token["content"].as_str().and_then(new_name) {
                token["content"] = json!(name);
            }
        }
        // A post-processor names tokens, and adds none here.
        file["post_processor"] = Value::Null;
        // What no token can spell becomes the unknown token, wherever it stands.
        let unknown = file["model"]["unk_token"].as_str().map(String::from);
        // And a single character is of the alphabet: what spells all text, whatever else it is.
        let is_kept = |token: &str| unknown.as_deref() == Some(token) || token.chars().nth(1).is_none();
        rename_in_model(&mut file["model"], &|token| if is_kept(token) { None } else { new_name(token) });
        let inner = tokenizers::Tokenizer::from_bytes(file.to_string()).map_err(|e| e.to_string())?;
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let ids = added.iter().filter_map(|(id, token)| {
            let name = new_name(&token.content).unwrap_or_else(|| token.content.clone());
            Some((inner.token_to_id(&name)?, *id))
        });
        let ids = ids.collect();
        let control = control.tokens().iter().filter(|token| !is_kept(&token.content));
        let control = control.filter_map(|token| tokenizer.token_to_id(&token.content)).collect();
        Ok(Self { inner, lead, ids, control })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| e.to_string())?;
        let own = |id: &u32| self.ids.get(id).copied().unwrap_or(*id);
        let ids: Vec<u32> = encoding.get_ids().iter().map(own).collect();
        let count = ids.iter().filter(|id| self.control.contains(id)).count();
        match 2 * count <= text.matches(self.lead).count() {
            true => Ok(ids),
            false => Err("plain text comes out as a control token".into()),
        }
    }
}

/// Vocabulary and merges may spell control tokens too: those entries are renamed, and merges to or from them left out.
fn rename_in_model(model: &mut Value, new_name: &impl Fn(&str) -> Option<String>) {
    match &mut model["vocab"] {
        Value::Object(vocab) => {
            *vocab = std::mem::take(vocab)
                .into_iter()
                .map(|(token, id)| (new_name(&token).unwrap_or(token), id))
                .collect();
        }
        Value::Array(pieces) => {
            for piece in pieces {
                if let Some(name) = piece[0].as_str().and_then(new_name) {
                    piece[0] = json!(name);
                }
            }
        }
        _ => (),
    }
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|merge| {
            let pair: Vec<&str> = match merge {
                Value::String(both) => both.split(' ').collect(),
                other => other.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
            };
            new_name(&pair.concat()).is_none() && pair.iter().all(|part| new_name(part).is_none())
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::{AddedToken, Tokenizer};

    use super::*;
    use crate::text::byte_tokenizer;

    /// A token of each kind of flag, and of several.
    fn tokens() -> Vec<AddedToken> {
        let plain = |text: &str, special| AddedToken::from(text, special);
        vec![
            plain("<s>", true),
            plain("<|end|>", true),
            plain("<tool>", false),
            plain("word", false).single_word(true),
            plain("<l>", true).lstrip(true),
            plain("<r>", false).rstrip(true),
            plain("[BOTH]", false).lstrip(true).rstrip(true).single_word(true),
            plain("<Norm>", false).normalized(true),
            plain("<tool><tool>", false),
            plain("|", false),
            plain("<s", false).normalized(true),
        ]
    }

    /// With and without a normaliser that makes tokens of other texts.
    fn tokenizer(normalizer: Option<Value>) -> Tokenizer {
        let mut made = byte_tokenizer::build(["the log the log end <s"].into_iter(), &[], 270).unwrap();
        made.add_tokens(tokens()).unwrap();
        let mut file = serde_json::to_value(&made).unwrap();
        file["normalizer"] = normalizer.unwrap_or_default();
        Tokenizer::from_bytes(file.to_string()).unwrap()
    }

    fn control(tokenizer: &Tokenizer) -> ControlTokens {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut added: Vec<_> = added.iter().collect();
        added.sort_by_key(|(id, _)| **id);
        ControlTokens::new(added.into_iter().map(|(_, token)| token.clone()).collect())
    }

    fn text() -> impl Strategy<Value = String> {
        let token = prop::sample::select(tokens()).prop_map(|token| token.content);
        let other =
            prop::sample::select(vec![" ", "\n", "a", "the log", "é", "<", ">", "s>", "1", "\u{FDD0}"]);
        prop::collection::vec(prop_oneof![token, other.prop_map(String::from)], 0..12)
            .prop_map(|all| all.concat())
    }

    proptest! {
        #![proptest_config(crate::seed::cases(512))]

        /// The renamed tokenizer is the model's own in all but names.
        #[test]
        fn without_stand_ins_the_ids_are_the_tokenizers(text in text()) {
            let tokenizer = tokenizer(None);
            let ids = Guarded::default().encode(&tokenizer, &control(&tokenizer), &text, None).unwrap();
            let own = tokenizer.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(ids, own.get_ids());
        }
    }

    #[test]
    fn what_a_normaliser_makes_like_a_token_stays_text() {
        let tokenizer = tokenizer(Some(json!({"type": "Lowercase"})));
        let ids =
            |text: &str| Guarded::default().encode(&tokenizer, &control(&tokenizer), text, None).unwrap();
        let norm = tokenizer.token_to_id("<Norm>").unwrap();
        assert!(tokenizer.encode_fast("<NORM>", false).unwrap().get_ids().contains(&norm));
        assert!(!ids("<NORM>").contains(&norm) && ids("a<Norm>").contains(&norm));
    }

    /// Vocabularies made from SentencePiece hold control tokens beside the words.
    #[test]
    fn merges_do_not_spell_a_token() {
        let mut file = serde_json::to_value(tokenizer(None)).unwrap();
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        for piece in ["<s", "<s>"] {
            let id = vocab.len();
            vocab.entry(piece).or_insert(json!(id));
        }
        file["model"]["merges"] = json!([["<", "s"], ["<s", ">"]]);
        file["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = json!(false);
        file["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<s");
        let tokenizer = Tokenizer::from_bytes(file.to_string()).unwrap();
        let start = tokenizer.token_to_id("<s>").unwrap();
        let control = control(&tokenizer);
        let marked =
            crate::text::foreign::Talk { messages: vec![json!({"content": "<s>a"})], tools: Value::Null };
        let marked = crate::text::foreign::marked(&marked, &control, &[]).unwrap().unwrap();
        let text = format!("<s>{}", marked.talk.messages[0]["content"].as_str().unwrap());
        let ids = Guarded::default().encode(&tokenizer, &control, &text, Some(&marked.stand_ins)).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == start).count(), 1);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s><s>a");
    }
}
