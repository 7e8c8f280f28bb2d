//! What ends an answer, in generation and in training.

use super::chat_template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::types::{Conversation, Message};

/// The tokens that end a completion when sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopTokens(Vec<u32>);

impl StopTokens {
    pub fn new(mut ids: Vec<u32>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }

    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// Ascending, each once.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// What stands after an assistant's answer, and so what SFT teaches to write there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfTurn {
    /// White space that the template puts first, if any, then the stop token.
    pub token_ids: Vec<u32>,
    pub source: EndOfTurnSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfTurnSource {
    /// The chat template writes it after an assistant's message.
    Template,
    /// The template shows none: it refuses an answer, puts it into the middle of a text (as guards do), changes
    /// it, or ends it with plain text. `eos_token` of the tokenizer, or else the first stop token of the model.
    EosToken,
}

/// A word that no template treats in a way of its own.
const PROBE_ANSWER: &str = "Zyxwv";

pub(super) fn probe_question() -> Conversation {
    vec![Message::new("user", "Abcde")].into()
}

/// Reads the end of a turn off the template: what follows the answer, to the first special or stop token.
/// `stops` are the ids known so far, the fallback first.
///
/// # Errors
/// The template shows no end token and `stops` is empty.
pub(super) fn end_of_turn(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    stops: &[u32],
) -> Result<EndOfTurn> {
    if let Some(token_ids) = written_by_template(template, tokenizer, stops)? {
        return Ok(EndOfTurn { token_ids, source: EndOfTurnSource::Template });
    }
    let first = stops.first().ok_or_else(|| {
        Error::input(
            template.place(),
            "nothing says what ends an answer: no end token in the template, no eos_token, no eos_token_id",
            "Set eos_token in tokenizer_config.json, or eos_token_id in generation_config.json",
        )
    })?;
    Ok(EndOfTurn { token_ids: vec![*first], source: EndOfTurnSource::EosToken })
}

/// `None` if the answer does not come last, or plain text follows it.
fn written_by_template(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    stops: &[u32],
) -> Result<Option<Vec<u32>>> {
    // A template may refuse to show an answered conversation: it was written for generation only.
    let Ok(answered) = template.render_answered(&probe_question(), PROBE_ANSWER) else { return Ok(None) };
    let Some((_, after)) = answered.rsplit_once(PROBE_ANSWER) else { return Ok(None) };
    let mut ids = tokenizer.encode(after)?;
    let is_end = |id: &u32| stops.contains(id) || tokenizer.is_special(*id);
    let Some(end) = ids.iter().position(is_end) else { return Ok(None) };
    ids.truncate(end + 1);
    let before = tokenizer.decode_whole(&ids[..end])?;
    Ok(before.trim().is_empty().then_some(ids))
}
