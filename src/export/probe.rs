//! What a model and its export are asked: rows of the task that the model was trained for, or a plain text.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::config::PackConfig;
use crate::data::jsonl::EncodedRow;
use crate::error::{Error, Result};
use crate::formats::hf::Companions;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::keep::Keep;
use crate::rng::{Purpose, Stream};
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::rollout::judge::judge;
use crate::task::{Evidence, LabelId, Task};
use crate::text::{PromptEncoder, StopTokens, Tokenizer, chat_template_text};
use crate::types::{Message, PackedBatch, Prompt, Rollout};

/// Words, numbers, punctuation, code and other scripts: what tokenizers and models treat apart.
const QUESTION: &str = "The tool returned this log. Is it safe to go on?\n\
    2026-03-01T04:12:09Z sshd[2211]: Failed password for root from 203.0.113.7 port 52144 (3 attempts)\n\
    2026-03-01T04:12:31Z backupd: {\"job\": \"nightly\", \"bytes\": 1048576, \"status\": \"ok\"}\n\
    Déjà vu, naïve café, 日本語, 1234567890, it's 100% fine, isn't it?";
/// Longer texts are cut: the differences of a few hundred tokens say enough.
const MAX_TOKENS: usize = 512;
/// Tokens a model without a tokenizer is asked about.
const RANDOM_TOKENS: usize = 64;
/// Tokens that are generated after a text.
pub const GREEDY_TOKENS: usize = 16;
/// Prompt tokens of all rows together, but for the first [`LEAST_ROWS`].
const MAX_ROW_TOKENS: usize = 8192;
const LEAST_ROWS: usize = 4;

/// Prompts, and where they come from.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    pub made_from: String,
    pub prompts: Vec<ProbePrompt>,
    /// Most tokens that are generated after each.
    #[serde(skip)]
    greedy_tokens: usize,
    /// Of rows with a gold label; a plain text is judged by nobody.
    #[serde(skip)]
    judge: Option<Arc<(Task, PromptEncoder)>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProbePrompt {
    pub token_ids: Vec<u32>,
    /// The row's line in its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    #[serde(skip)]
    gold: Option<LabelId>,
    #[serde(skip)]
    evidence: Option<Arc<Evidence>>,
}

/// What a model says to one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Natural logarithms. Of a text: each token but the first, given those before it. Of a row: the tokens that the
    /// weights in memory answer with.
    pub logprobs: Vec<f32>,
    /// The likeliest continuation.
    pub greedy: Vec<u32>,
    /// Log-probs of those tokens.
    pub greedy_logprobs: Vec<f32>,
    /// What the continuation of a row means, a label or `malformed`, and whether that is the row's own label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<(String, bool)>,
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
            return Ok(Self::of_text("random token ids".into(), token_ids));
        }
        let what = if text.is_some() { "the text given" } else { "the built-in text" };
        let content = text.unwrap_or(QUESTION);
        let dir = &companions.tokenizer_dir;
        let (how, mut token_ids) = match chat_template_text(dir, companions.chat_template.as_deref())? {
            None => ("as it is", Tokenizer::from_dir(dir)?.encode(content)?),
            Some(_) => {
                let encoder = PromptEncoder::load(&companions.encoder_files())?;
                let question = vec![Message::new("user", content)].into();
                ("through the chat template", encoder.encode_prompt(&question)?.token_ids)
            }
        };
        token_ids.truncate(MAX_TOKENS.min(room));
        if token_ids.len() < 2 {
            return Err(Error::input("--probe", "has fewer than two tokens", "Give a longer text"));
        }
        Ok(Self::of_text(format!("{what} {how}"), token_ids))
    }

    fn of_text(made_from: String, token_ids: Vec<u32>) -> Self {
        let prompts = vec![ProbePrompt { token_ids, line: None, gold: None, evidence: None }];
        Self { made_from, prompts, greedy_tokens: GREEDY_TOKENS, judge: None }
    }

    /// At most `most` of the rows, from all parts of their file, and of long ones fewer. `what` names them.
    pub fn of_rows(
        task: Task,
        encoder: PromptEncoder,
        rows: &[EncodedRow],
        most: usize,
        max_completion_tokens: usize,
        what: &str,
    ) -> Self {
        let mean = rows.iter().map(|row| row.prompt.token_ids.len()).sum::<usize>() / rows.len().max(1);
        let affordable = (MAX_ROW_TOKENS / mean.max(1)).max(LEAST_ROWS);
        let count = most.min(affordable).min(rows.len());
        // Files often alternate between labels, and a plain stride would then take one of them only.
        let mut stream = Stream::new(0, Purpose::Check, [1, 0, 0]).sequential();
        let part = |i: usize| i * rows.len() / count;
        let prompts: Vec<ProbePrompt> = (0..count)
            .map(|i| &rows[part(i) + stream.below(part(i + 1) - part(i))])
            .map(|row| ProbePrompt {
                token_ids: row.prompt.token_ids.clone(),
                line: Some(row.line),
                gold: Some(row.gold),
                evidence: row.evidence.clone(),
            })
            .collect();
        Self {
            made_from: format!("{count} of {} rows of {what}, task `{}`", rows.len(), task.name()),
            prompts,
            greedy_tokens: max_completion_tokens,
            judge: Some(Arc::new((task, encoder))),
        }
    }

    /// Whether the answers have a verdict.
    pub fn is_judged(&self) -> bool {
        self.judge.is_some()
    }

    /// Positions a decoder needs to answer.
    pub fn positions(&self) -> usize {
        let longest = self.prompts.iter().map(|prompt| prompt.token_ids.len()).max().unwrap_or(0);
        longest + self.greedy_tokens
    }

    /// One answer a prompt. `first`: those of the weights in memory, whose tokens are held against another model's;
    /// `None` for those themselves.
    ///
    /// # Errors
    /// A token is not one of the model's, or the computation fails.
    pub fn ask(&self, decoder: &Decoder, first: Option<&[Answer]>) -> Result<Vec<Answer>> {
        let none = StopTokens::new(Vec::new());
        let stop = self.judge.as_ref().map_or(&none, |judge| judge.1.stop_tokens());
        let at_once = PackConfig::ROLLOUT_TOKENS.max(self.positions());
        let engine = Engine::new(decoder, stop, Completions::greedy(self.greedy_tokens), at_once);
        let prompts: Vec<Prompt> =
            self.prompts.iter().map(|p| Prompt { token_ids: p.token_ids.clone() }).collect();
        let requests: Vec<Request> = prompts.iter().map(|prompt| Request { prompt, sample_id: 0 }).collect();
        let groups = engine.generate(&requests, Draws::NONE)?.groups;
        let rollouts = groups.into_iter().flat_map(|group| group.rollouts);
        let answers = self.prompts.iter().zip(rollouts).enumerate().map(|(i, (prompt, rollout))| {
            let verdict = self.verdict(prompt, &rollout)?;
            let (greedy, greedy_logprobs) = (rollout.token_ids, rollout.logprobs);
            let logprobs = match verdict {
                None => logprobs(decoder, &prompt.token_ids, 1)?,
                Some(_) => {
                    let answer = first.and_then(|first| first.get(i)).map_or(&greedy, |first| &first.greedy);
                    let whole = [&prompt.token_ids[..], answer].concat();
                    logprobs(decoder, &whole, prompt.token_ids.len())?
                }
            };
            Ok(Answer { logprobs, greedy, greedy_logprobs, verdict })
        });
        answers.collect()
    }

    fn verdict(&self, prompt: &ProbePrompt, rollout: &Rollout) -> Result<Option<(String, bool)>> {
        let (Some(by), Some(gold)) = (&self.judge, prompt.gold) else { return Ok(None) };
        let (task, encoder) = &**by;
        let judged = judge(task, encoder, gold, prompt.evidence.as_deref(), rollout)?;
        Ok(Some((task.verdict_text(judged.verdict), judged.outcome.is_exact())))
    }
}

/// Log-probs of the tokens from the `first` on, each given those before it.
///
/// # Errors
/// A token is not one of the model's, or the computation fails.
pub fn logprobs(decoder: &Decoder, token_ids: &[u32], first: usize) -> Result<Vec<f32>> {
    if token_ids.len() <= first {
        return Ok(Vec::new());
    }
    let (given, targets) = token_ids.split_at(first);
    let mut batch = PackedBatch::default();
    batch.push_sequence(given, targets);
    let forward = decoder.forward(&batch, Keep::Nothing)?;
    Ok(decoder.logprobs(&forward, 1.0)?.logprobs)
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
