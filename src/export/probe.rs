//! The text on which a model and its export are compared.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::formats::hf::Companions;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::keep::Keep;
use crate::rng::{Purpose, Stream};
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::text::{PromptEncoder, StopTokens, Tokenizer, chat_template_text};
use crate::types::{Message, PackedBatch, Prompt};

/// Words, numbers, punctuation, code and other scripts: what tokenizers and models treat apart.
const QUESTION: &str = "The tool returned this log. Is it safe to go on?\n\
    2026-03-01T04:12:09Z sshd[2211]: Failed password for root from 203.0.113.7 port 52144 (3 attempts)\n\
    2026-03-01T04:12:31Z backupd: {\"job\": \"nightly\", \"bytes\": 1048576, \"status\": \"ok\"}\n\
    Déjà vu, naïve café, 日本語, 1234567890, it's 100% fine, isn't it?";
/// Longer probes are cut: the differences of a few hundred tokens say enough.
const MAX_TOKENS: usize = 512;
/// Tokens a model without a tokenizer is asked about.
const RANDOM_TOKENS: usize = 64;
/// Tokens that are generated after the probe.
pub const GREEDY_TOKENS: usize = 16;

/// Token ids, and where they come from.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub made_from: String,
    pub token_ids: Vec<u32>,
}

/// What a model says of a probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Log-probs of each token but the first, given those before it; natural logarithms.
    pub logprobs: Vec<f32>,
    /// The likeliest continuation, [`GREEDY_TOKENS`] tokens.
    pub greedy: Vec<u32>,
    /// Log-probs of those tokens.
    pub greedy_logprobs: Vec<f32>,
}

impl Probe {
    /// `text`, or a built-in one: as the user's message where the model has a chat template, else as it is. Without
    /// a tokenizer, token ids from a fixed seed. Cut to what leaves the model room for the greedy tokens.
    ///
    /// # Errors
    /// A file of the tokenizer is broken, there is none for `text`, or the text has fewer than two tokens.
    pub fn new(companions: &Companions, config: &ModelConfig, text: Option<&str>) -> Result<Self> {
        let room = config.max_position_embeddings.saturating_sub(GREEDY_TOKENS).max(1);
        if !companions.has_tokenizer() && text.is_none() {
            let mut stream = Stream::new(0, Purpose::Check, [0; 3]).sequential();
            let draw = |_| stream.below(config.vocab_size) as u32;
            let token_ids = (0..RANDOM_TOKENS.min(room)).map(draw).collect();
            return Ok(Self { made_from: "random token ids".into(), token_ids });
        }
        let what = if text.is_some() { "the text given" } else { "the built-in text" };
        let content = text.unwrap_or(QUESTION);
        let dir = &companions.tokenizer_dir;
        let (how, mut token_ids) = match chat_template_text(dir, companions.chat_template.as_deref())? {
            None => ("as it is", Tokenizer::from_dir(dir)?.encode(content)?),
            Some(_) => {
                let encoder = PromptEncoder::load(&companions.encoder_files())?;
                let message = Message { role: "user".into(), content: content.into() };
                ("through the chat template", encoder.encode_prompt(&[message])?.token_ids)
            }
        };
        token_ids.truncate(MAX_TOKENS.min(room));
        if token_ids.len() < 2 {
            return Err(Error::input("--probe", "has fewer than two tokens", "Give a longer text"));
        }
        Ok(Self { made_from: format!("{what} {how}"), token_ids })
    }

    /// Positions a decoder needs to answer.
    pub fn positions(&self) -> usize {
        self.token_ids.len() + GREEDY_TOKENS
    }

    /// # Errors
    /// A token is not one of the model's, or the computation fails.
    pub fn ask(&self, decoder: &Decoder) -> Result<Answer> {
        let prompt = Prompt { token_ids: self.token_ids.clone() };
        let stop = StopTokens::new(Vec::new());
        let engine = Engine::new(decoder, &stop, Completions::greedy(GREEDY_TOKENS), self.positions());
        let logprobs = self.logprobs(decoder)?;
        let groups = engine.generate(&[Request { prompt: &prompt, sample_id: 0 }], Draws::NONE)?.groups;
        let rollout = groups.into_iter().flat_map(|group| group.rollouts).next();
        let (greedy, greedy_logprobs) = rollout.map(|r| (r.token_ids, r.logprobs)).unwrap_or_default();
        Ok(Answer { logprobs, greedy, greedy_logprobs })
    }

    /// [`Answer::logprobs`] alone.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn logprobs(&self, decoder: &Decoder) -> Result<Vec<f32>> {
        let [first, rest @ ..] = &self.token_ids[..] else { return Ok(Vec::new()) };
        let mut batch = PackedBatch::default();
        batch.push_sequence(&[*first], rest);
        let forward = decoder.forward(&batch, Keep::Nothing)?;
        Ok(decoder.logprobs(&forward, 1.0)?.logprobs)
    }
}

/// `--probe`: the content of a file of that name, or the text itself.
///
/// # Errors
/// The file cannot be read.
pub fn probe_text(argument: &str) -> Result<String> {
    let path = Path::new(argument);
    if path.is_file() {
        return std::fs::read_to_string(path).map_err(Error::io(path, "read the probe"));
    }
    Ok(argument.into())
}
