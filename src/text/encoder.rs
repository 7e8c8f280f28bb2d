//! Conversations to the ids that the model sees. Ids are made here once and never made again from text.

use std::path::Path;

use super::chat_template::{ChatTemplate, Date};
use super::pretrained::{SpecialTokens, end_token_ids};
use super::stop::{EndOfTurn, StopTokens, end_of_turn, probe_question};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::types::{Message, Prompt};

/// Where a [`PromptEncoder`] comes from.
#[derive(Clone, Copy, Debug)]
pub struct EncoderFiles<'a> {
    /// The model's folder: `generation_config.json`, and the rest unless it is named below.
    pub model_dir: &'a Path,
    /// The tokenizer's folder, when it is not the model's own.
    pub tokenizer_dir: Option<&'a Path>,
    /// A Jinja file in place of the tokenizer's chat template.
    pub chat_template: Option<&'a Path>,
    /// What `strftime_now` gives to the template.
    pub date: Date,
}

impl<'a> EncoderFiles<'a> {
    /// All from one folder.
    pub fn of(model_dir: &'a Path) -> Self {
        Self { model_dir, tokenizer_dir: None, chat_template: None, date: Date::default() }
    }
}

/// Tokenizer, chat template and stop tokens of one model.
///
/// The template alone decides about BOS and every other special token, as in transformers'
/// `apply_chat_template`; the tokenizer adds none. Special tokens that stand in a message are recognised too.
#[derive(Clone, Debug)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    end_of_turn: EndOfTurn,
    stop_tokens: StopTokens,
}

impl PromptEncoder {
    /// # Errors
    /// A file is missing or broken, the template refuses a one-message conversation or writes BOS twice, or
    /// nothing says what ends an answer.
    pub fn load(files: &EncoderFiles) -> Result<Self> {
        let dir = files.tokenizer_dir.unwrap_or(files.model_dir);
        let tokenizer = Tokenizer::from_dir(dir)?;
        let template = ChatTemplate::load(dir, files.chat_template)?.with_date(files.date);
        let special = SpecialTokens::from_dir(dir)?;
        let mut model_ids = end_token_ids(files.model_dir)?;
        if model_ids.is_empty() {
            model_ids = end_token_ids(dir)?;
        }
        Self::new(tokenizer, template, &special, model_ids)
    }

    fn new(
        tokenizer: Tokenizer,
        template: ChatTemplate,
        special: &SpecialTokens,
        model_ids: Vec<u32>,
    ) -> Result<Self> {
        let id_of = |name: &str| match special.get(name) {
            None => Ok(None),
            Some(token) => tokenizer.id(token).map(Some).ok_or_else(|| {
                let problem = format!("{name} is `{token}`, which is no token of this file");
                Error::input(tokenizer.place(), problem, "Use the tokenizer_config.json that belongs to it")
            }),
        };
        let mut stops: Vec<u32> = id_of("eos_token")?.into_iter().chain(model_ids).collect();
        let bos = id_of("bos_token")?;
        let end_of_turn = end_of_turn(&template, &tokenizer, &stops)?;
        stops.extend(end_of_turn.token_ids.last());
        let stop_tokens = StopTokens::new(stops);
        let encoder = Self { tokenizer, template, end_of_turn, stop_tokens };

        let prompt = encoder.encode_prompt(&probe_question())?;
        if bos.is_some_and(|bos| prompt.token_ids.starts_with(&[bos, bos])) {
            let fix = "Remove one from the template";
            return Err(Error::input(encoder.template.place(), "begins every prompt with BOS twice", fix));
        }
        Ok(encoder)
    }

    /// The conversation with the generation prompt.
    ///
    /// # Errors
    /// The template refuses the conversation or writes nothing, or the text cannot be encoded.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Prompt> {
        let token_ids = self.tokenizer.encode(&self.template.render_prompt(messages)?)?;
        if token_ids.is_empty() {
            let fix = "Check the template's loop over messages";
            return Err(Error::input(self.template.place(), "writes nothing for the conversation", fix));
        }
        Ok(Prompt { token_ids })
    }

    /// What SFT trains on: the answer, then [`Self::end_of_turn`]. It continues the prompt's ids and is encoded
    /// by itself, as in generation, so no token spans the boundary.
    ///
    /// # Errors
    /// The answer is empty, or holds a special or stop token, after which generation would have stopped.
    pub fn encode_target(&self, answer: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(answer)?;
        if ids.is_empty() {
            return Err(Error::input("the answer", "has no tokens", "Give the answer to imitate"));
        }
        let is_control = |id: &&u32| self.stop_tokens.contains(**id) || self.tokenizer.is_special(**id);
        if let Some(id) = ids.iter().find(is_control) {
            let token = self.tokenizer.token(*id).unwrap_or_default();
            let problem = format!("holds the special token `{token}`");
            return Err(Error::input("the answer", problem, "Remove it: the end token is added by itself"));
        }
        ids.extend(&self.end_of_turn.token_ids);
        Ok(ids)
    }

    /// A completion as text: its stop token, if it is the last, and special tokens are left out.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode_completion(&self, token_ids: &[u32]) -> Result<String> {
        let answer = match token_ids {
            [answer @ .., last] if self.stop_tokens.contains(*last) => answer,
            _ => token_ids,
        };
        self.tokenizer.decode(answer)
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// `eos_token_id` of the model's `generation_config.json` or `config.json`, `eos_token` of the tokenizer,
    /// and the template's own end of turn.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.stop_tokens
    }

    pub fn end_of_turn(&self) -> &EndOfTurn {
        &self.end_of_turn
    }
}
