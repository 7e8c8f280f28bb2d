//! `tokenizer.json` as Hugging Face's tokenizers write it.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::bound::most_bytes_of_a_token;
use super::byte_tokenizer;
use super::control::ControlTokens;
use super::foreign::StandIns;
use super::guarded::Guarded;
use super::watched::{self, Limits};
use crate::disk;
use crate::error::{Error, Result};

/// Text to ids and back. Nothing is added, padded or truncated, whatever the file asks for: a chat template
/// already writes the special tokens, and a row that is too long is dropped, never cut.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    control: ControlTokens,
    guarded: Guarded,
    /// The model's embedding: a text with an id at or past it is refused.
    rows: usize,
    /// [`most_bytes_of_a_token`], found out when first asked for.
    most_bytes: Arc<OnceLock<Option<usize>>>,
    /// What errors call it.
    place: String,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`.
    ///
    /// # Errors
    /// The file is missing or is no tokenizer.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if path.is_file() {
            return Self::from_file(&path);
        }
        if !dir.is_dir() {
            let problem = if dir.exists() { "is a file, not a folder" } else { "no such folder" };
            return Err(Error::input(dir.display(), problem, "Name the folder that holds tokenizer.json"));
        }
        let problem = if dir.join("tokenizer.model").is_file() {
            "is missing; tokenizer.model alone cannot be read"
        } else {
            "is missing"
        };
        let fix = "Copy the tokenizer.json that belongs to the model there, or name the folder that has it";
        Err(Error::input(path.display(), problem, fix))
    }

    /// # Errors
    /// The file cannot be read or is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = disk::read(path)?;
        let fix = "Copy the file again; a stub of Git LFS or a half download looks like this";
        let read = watched::run(Limits::FILE, move || {
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())
        });
        let inner = read
            .and_then(|read| read)
            .map_err(|why| Error::input(path.display(), format!("is not a tokenizer file: {why}"), fix))?;
        Self::new(inner, path.display())
    }

    fn new(mut inner: tokenizers::Tokenizer, place: impl ToString) -> Result<Self> {
        let place = place.to_string();
        inner.with_padding(None);
        if let Err(e) = inner.with_truncation(None) {
            return Err(Error::input(place, format!("truncation cannot be switched off: {e}"), "Remove it"));
        }
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let phrases = byte_tokenizer::phrases_of(&inner);
        let mut control: Vec<_> =
            added.iter().filter(|(_, token)| !phrases.contains(&token.content)).collect();
        control.sort_by_key(|(id, _)| **id);
        let control = ControlTokens::new(control.into_iter().map(|(_, token)| token.clone()).collect());
        Ok(Self {
            inner,
            control,
            guarded: Guarded::default(),
            rows: usize::MAX,
            most_bytes: Arc::default(),
            place,
        })
    }

    /// Special tokens written out in `text` become their ids; none are added.
    ///
    /// # Errors
    /// The tokenizer refuses the text, for example an unknown character without an unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.refusal(e))?;
        self.of_the_model(encoding.get_ids().to_vec())
    }

    /// Whether `text` has more than `most` tokens by its bytes alone. False says nothing.
    pub(super) fn is_beyond(&self, text: &str, most: usize) -> bool {
        text.len() > most
            && self
                .most_bytes
                .get_or_init(|| most_bytes_of_a_token(&self.inner))
                .is_some_and(|bytes| text.len() > most.saturating_mul(bytes))
    }

    /// `ids`, which all have a row of the model's embedding.
    fn of_the_model(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        match ids.iter().find(|id| **id as usize >= self.rows) {
            None => Ok(ids),
            Some(id) => {
                let (token, rows) = (self.token(*id).unwrap_or_default(), self.rows);
                let problem = format!("holds `{token}`, id {id}, but the model's embedding has {rows} rows");
                let fix = "Remove it, or use the tokenizer that belongs to the model";
                Err(Error::input("the text", problem, fix))
            }
        }
    }

    /// [`Self::encode`] of a text with `stand_ins`: control tokens are found before these become what they stand for.
    ///
    /// # Errors
    /// As [`Self::encode`]; the tokenizer makes a control token of plain text.
    pub(super) fn encode_guarded(&self, text: &str, stand_ins: Option<&StandIns>) -> Result<Vec<u32>> {
        let ids = self.guarded.encode(&self.inner, &self.control, text, stand_ins);
        self.of_the_model(ids.map_err(|e| self.refusal(e))?)
    }

    /// [`Self::encode`], where the normaliser makes no control token of text that has none.
    ///
    /// # Errors
    /// As [`Self::encode_guarded`].
    pub(super) fn encode_checked(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        if !self.control.any_normalized() {
            return Ok(ids);
        }
        let written = self.control.found_in(text).len();
        let is_control = |id: &&u32| {
            self.inner
                .get_added_vocabulary()
                .get_added_tokens_decoder()
                .get(id)
                .is_some_and(|t| self.control.tokens().contains(t))
        };
        match ids.iter().filter(is_control).count() == written {
            true => Ok(ids),
            false => self.encode_guarded(text, None),
        }
    }

    /// What a prompt is structured with; see [`ControlTokens`].
    pub(super) fn control(&self) -> &ControlTokens {
        &self.control
    }

    fn refusal(&self, e: impl std::fmt::Display) -> Error {
        let fix = "Use the tokenizer that belongs to the model";
        Error::input(&self.place, format!("cannot encode the text: {e}"), fix)
    }

    /// What stands after the last control token of `text`, and its part of `ids`, which are those of `text`: control
    /// tokens cut a text before anything else is looked at, so that what is added behind changes nothing before them.
    /// All of both where there is none, or where the end is not cut off there.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn after_last_special<'a>(&self, text: &'a str, ids: &'a [u32]) -> Result<(&'a str, &'a [u32])> {
        let whole = (text, ids);
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let control = |id: &u32| added.get(id).filter(|token| token.special);
        let Some(at) = ids.iter().rposition(|id| control(id).is_some()) else { return Ok(whole) };
        let Some(token) = control(&ids[at]).map(|token| token.content.as_str()) else { return Ok(whole) };
        let Some(tail) = text.rfind(token).map(|start| &text[start + token.len()..]) else {
            return Ok(whole);
        };
        // A longer token could begin with this one, and end in what is added.
        let longer =
            added.values().any(|other| other.content.len() > token.len() && other.content.starts_with(token));
        match !longer && self.encode(tail)? == ids[at + 1..] {
            true => Ok((tail, &ids[at + 1..])),
            false => Ok(whole),
        }
    }

    /// Special tokens are skipped, and so are ids that the tokenizer does not know: models often have more
    /// rows in their embedding than tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The file's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, true)
    }

    /// As [`Self::decode`], with the special tokens written out.
    ///
    /// # Errors
    /// The file's decoder fails.
    pub fn decode_whole(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    fn decode_with(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| {
            let fix = "Use the tokenizer that belongs to the model";
            Error::input(&self.place, format!("cannot decode: {e}"), fix)
        })
    }

    /// For a model whose embedding has so many rows. Added tokens may lie beyond, such as a padding token that nothing
    /// writes: what holds one is refused.
    ///
    /// # Errors
    /// A token of the vocabulary proper lies beyond.
    pub fn within(mut self, rows: usize, model: &Path) -> Result<Self> {
        let most = self.inner.get_vocab(false).into_values().max().map_or(0, |id| id as usize);
        if most >= rows {
            let model = model.display();
            let problem =
                format!("has ids up to {most}, but the model in {model} has {rows} rows in its embedding");
            let fix = "Use a tokenizer that belongs to the model or to its base (model.tokenizer)";
            return Err(Error::input(self.place, problem, fix));
        }
        self.rows = rows;
        Ok(self)
    }

    /// Added tokens whose ids the model's embedding does not have.
    pub fn beyond(&self) -> Vec<String> {
        let mut found: Vec<(String, u32)> = self.inner.get_vocab(true).into_iter().collect();
        found.retain(|(_, id)| *id as usize >= self.rows);
        found.sort_by_key(|(_, id)| *id);
        found.into_iter().map(|(token, _)| token).collect()
    }

    /// The smallest number above every id, added tokens included. A model's embedding needs at least as many
    /// rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Ids below [`Self::vocab_size`] that no token has, and all from there on, ascending.
    pub fn missing_ids(&self) -> Vec<Range<usize>> {
        let mut ids: Vec<usize> = self.inner.get_vocab(true).into_values().map(|id| id as usize).collect();
        ids.sort_unstable();
        let next = ids.iter().map(|id| id + 1);
        let gaps = std::iter::once(0).chain(next).zip(ids.iter().copied().chain([usize::MAX]));
        gaps.map(|(start, end)| start..end).filter(|ids| !ids.is_empty()).collect()
    }

    /// The text of token `id` as the file writes it; byte-level tokens are in their stand-in characters.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the token that is written `token`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a control token, which [`Self::decode`] skips.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    /// The file that it was read from.
    pub(super) fn place(&self) -> &str {
        &self.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::byte_tokenizer::{self, MESSAGE_END};

    fn saved(dir: &Path) {
        let tokenizer = byte_tokenizer::build(["su su su"].into_iter(), &[], 262).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, dir).unwrap();
    }

    /// Adds `value` under `key` of the saved file.
    fn with_key(dir: &Path, key: &str, value: serde_json::Value) -> Tokenizer {
        let path = dir.join("tokenizer.json");
        let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        file[key] = value;
        std::fs::write(&path, file.to_string()).unwrap();
        Tokenizer::from_dir(dir).unwrap()
    }

    #[test]
    fn special_tokens_are_recognised_and_none_are_added() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path());
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        // 3 special tokens, then the bytes in order: `a` is 3 + 0x61. `su` is the first merge, 3 + 256.
        assert_eq!(tokenizer.encode("a<|im_end|>su").unwrap(), [100, 2, 259]);
        assert_eq!(tokenizer.decode(&[100, 2, 259]).unwrap(), "asu");
        assert_eq!(tokenizer.decode_whole(&[100, 2, 259]).unwrap(), "a<|im_end|>su");
        assert_eq!(tokenizer.encode("").unwrap(), [0; 0]);
        assert_eq!((tokenizer.token(2).as_deref(), tokenizer.id(MESSAGE_END)), (Some(MESSAGE_END), Some(2)));
        assert!(tokenizer.is_special(2) && !tokenizer.is_special(100));
        let control = tokenizer.control().tokens().iter().map(|token| token.content.as_str());
        assert_eq!(control.collect::<Vec<_>>(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
        // The corpus has two merges: `su`, and `su` with its space.
        assert_eq!(tokenizer.vocab_size(), 261);
        // An id beyond the vocabulary is skipped: models have spare rows.
        assert_eq!(tokenizer.decode(&[100, 5000]).unwrap(), "a");
        // Half of a two-byte character.
        assert_eq!(tokenizer.decode(&[3 + 0xC3]).unwrap(), "\u{FFFD}");
    }

    #[test]
    fn truncation_padding_and_bos_of_the_file_are_not_applied() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path());
        let truncation = serde_json::json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        let padding = serde_json::json!({
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        });
        let start = serde_json::json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
        let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
        let processor = serde_json::json!({
            "type": "TemplateProcessing", "single": [start, text], "pair": [start, text],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        });
        with_key(dir.path(), "truncation", truncation);
        with_key(dir.path(), "padding", padding);
        let tokenizer = with_key(dir.path(), "post_processor", processor);
        assert_eq!(tokenizer.encode("abc").unwrap(), [100, 101, 102]);
    }

    #[test]
    fn errors_name_the_file_and_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let error = |dir: &Path| Tokenizer::from_dir(dir).unwrap_err().to_string();
        let missing = error(dir.path());
        assert!(missing.contains("tokenizer.json: is missing. Copy"), "{missing}");
        std::fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
        assert!(error(dir.path()).contains("tokenizer.model alone"));
        std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
        let broken = error(dir.path());
        assert!(
            broken.contains("tokenizer.json: is not a tokenizer file") && broken.contains("Copy"),
            "{broken}"
        );
        assert!(error(&dir.path().join("nowhere")).contains("no such folder"));
        assert!(error(&dir.path().join("tokenizer.model")).contains("is a file, not a folder"));
    }
}
