//! Conversations to the ids that the model sees. Ids are made here once and never made again from text.

use std::borrow::Cow;
use std::path::Path;

use super::chat_template::{ChatTemplate, Date};
use super::foreign::{Marked, StandIns, Talk, marked, written_out};
use super::pretrained::{SpecialTokens, end_token_ids, vocab_size};
use super::stop::{EndOfTurn, EndOfTurnSource, StopTokens, end_of_turn, probe_question};
use super::tokenizer::Tokenizer;
use super::written::Written;
use crate::error::{Error, Result};
use crate::types::{Conversation, Prompt, Trusted};

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
    /// Variables for the template, `model.template_args`.
    pub template_args: Option<&'a toml::Table>,
}

impl<'a> EncoderFiles<'a> {
    /// All from one folder.
    pub fn of(model_dir: &'a Path) -> Self {
        let date = Date::default();
        Self { model_dir, tokenizer_dir: None, chat_template: None, date, template_args: None }
    }
}

/// A conversation as the template writes it.
enum Rendered {
    Plain(String),
    /// With stand-ins in texts that could be taken for control tokens.
    Guarded(String, StandIns),
}

impl Rendered {
    fn text(&self) -> &str {
        let (Self::Plain(text) | Self::Guarded(text, _)) = self;
        text
    }

    fn stand_ins(&self) -> Option<&StandIns> {
        match self {
            Self::Plain(_) => None,
            Self::Guarded(_, stand_ins) => Some(stand_ins),
        }
    }

    /// Without stand-ins.
    fn plain(&self) -> Cow<'_, str> {
        match self {
            Self::Plain(text) => text.into(),
            Self::Guarded(text, stand_ins) => stand_ins.restore(text).into(),
        }
    }
}

/// Tokenizer, chat template and stop tokens of one model.
///
/// The template alone decides about BOS and every other control token, as in transformers'
/// `apply_chat_template`; the tokenizer adds none. One that is written in a text of the conversation stays text, unless
/// the conversation trusts it.
#[derive(Clone, Debug)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    end_of_turn: EndOfTurn,
    stop_tokens: StopTokens,
    written: Written,
}

impl PromptEncoder {
    /// # Errors
    /// A file is missing or broken, the template refuses a one-message conversation or writes BOS twice, or
    /// nothing says what ends an answer.
    pub fn load(files: &EncoderFiles) -> Result<Self> {
        let dir = files.tokenizer_dir.unwrap_or(files.model_dir);
        let mut tokenizer = Tokenizer::from_dir(dir)?;
        if let Some(rows) = vocab_size(files.model_dir) {
            tokenizer = tokenizer.within(rows, files.model_dir)?;
        }
        let mut template = ChatTemplate::load(dir, files.chat_template)?.with_date(files.date);
        if let Some(arguments) = files.template_args {
            template = template.with_arguments(arguments)?;
        }
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
        let ends: Option<Vec<String>> = end_of_turn.token_ids.iter().map(|id| tokenizer.token(*id)).collect();
        if let Some(token) =
            tokenizer.beyond().iter().find(|token| ends.iter().flatten().any(|end| end == *token))
        {
            let problem = format!("{token} ends an answer, and the model's embedding has no row for it");
            return Err(Error::input(
                tokenizer.place(),
                problem,
                "Use the tokenizer that belongs to the model",
            ));
        }
        let stop_tokens = StopTokens::new(stops);
        let written = Written::default();
        let encoder = Self { tokenizer, template, end_of_turn, stop_tokens, written };

        // What the template leaves out of a conversation is said at the row.
        let trusted = Trusted::None;
        let rendered = encoder.rendered(&encoder.template.talk(&probe_question()), &trusted, None)?;
        let prompt = encoder.encode_rendered(&rendered, &trusted)?;
        if bos.is_some_and(|bos| prompt.token_ids.starts_with(&[bos, bos])) {
            let fix = "Remove one from the template";
            return Err(Error::input(encoder.template.place(), "begins every prompt with BOS twice", fix));
        }
        Ok(encoder)
    }

    /// The conversation with the generation prompt.
    ///
    /// # Errors
    /// The template refuses the conversation, writes nothing, or leaves a part of it out; the text cannot be encoded.
    pub fn encode_prompt(&self, conversation: &Conversation) -> Result<Prompt> {
        let talk = self.template.talk(conversation);
        let rendered = self.rendered(&talk, &conversation.trusted, None)?;
        let prompt = self.encode_rendered(&rendered, &conversation.trusted)?;
        self.written.check(&self.template, &talk, &rendered.plain())?;
        Ok(prompt)
    }

    /// [`Self::encode_prompt`]. None where the text has more bytes than `most` tokens can stand for: it is not tokenised.
    ///
    /// # Errors
    /// As [`Self::encode_prompt`].
    pub fn encode_prompt_within(&self, conversation: &Conversation, most: usize) -> Result<Option<Prompt>> {
        let talk = self.template.talk(conversation);
        let rendered = self.rendered(&talk, &conversation.trusted, None)?;
        let prompt = match self.tokenizer.is_beyond(&rendered.plain(), most) {
            true => None,
            false => Some(self.encode_rendered(&rendered, &conversation.trusted)?),
        };
        self.written.check(&self.template, &talk, &rendered.plain())?;
        Ok(prompt)
    }

    /// Whether an answer has more bytes than `most` tokens can stand for.
    pub fn is_beyond(&self, answer: &str, most: usize) -> bool {
        self.tokenizer.is_beyond(answer, most)
    }

    /// The control tokens that stand in the conversation as text, and are encoded as text.
    pub fn control_texts(&self, conversation: &Conversation) -> Vec<String> {
        let trusted = match &conversation.trusted {
            Trusted::All => return Vec::new(),
            Trusted::Tokens(list) => list.as_slice(),
            Trusted::None => &[],
        };
        written_out(&self.template.talk(conversation), self.tokenizer.control(), trusted)
    }

    /// What the template writes. A text of the row that could be taken for a control token has stand-ins; where there is no
    /// such text, the template's output is as it would be without all this.
    fn rendered(&self, talk: &Talk, trusted: &Trusted, answer: Option<&str>) -> Result<Rendered> {
        let control = self.tokenizer.control();
        let plain = || self.template.render(talk, answer);
        let listed: &[String] = match trusted {
            Trusted::All => return Ok(Rendered::Plain(plain()?)),
            Trusted::Tokens(list) => list,
            Trusted::None => &[],
        };
        if control.is_empty() {
            return Ok(Rendered::Plain(plain()?));
        }
        let Some(Marked { talk: changed, stand_ins, has_whole }) = marked(talk, control, listed)? else {
            return Ok(Rendered::Plain(plain()?));
        };
        let text = stand_ins.unescape(self.template.render(&changed, answer)?);
        if !has_whole {
            // Pieces of tokens at the edges of texts: nearly always nothing comes of them.
            let plain = plain()?;
            let kinds =
                |text: &str| control.found_in(text).into_iter().map(|(_, token)| token).collect::<Vec<_>>();
            if kinds(&plain) == kinds(&text) {
                return Ok(Rendered::Plain(plain));
            }
        }
        Ok(Rendered::Guarded(text, stand_ins))
    }

    fn encode_rendered(&self, rendered: &Rendered, trusted: &Trusted) -> Result<Prompt> {
        let token_ids = match rendered {
            Rendered::Plain(text) if *trusted == Trusted::All => self.tokenizer.encode(text),
            Rendered::Plain(text) => self.tokenizer.encode_checked(text),
            Rendered::Guarded(text, stand_ins) => self.tokenizer.encode_guarded(text, Some(stand_ins)),
        }?;
        if token_ids.is_empty() {
            let fix = "Check the template's loop over messages";
            return Err(Error::input(self.template.place(), "writes nothing for the conversation", fix));
        }
        Ok(Prompt { token_ids })
    }

    /// What SFT trains on after `messages`: the answer as the template writes it, then [`Self::end_of_turn`]. It
    /// continues the prompt's ids: prompt and target together begin the ids of the answered conversation.
    ///
    /// # Errors
    /// The answer is empty, or holds a special or stop token, after which generation would have stopped; the
    /// template does not continue the prompt with it; a token spans the boundary.
    pub fn encode_target(&self, conversation: &Conversation, answer: &str) -> Result<Vec<u32>> {
        self.encode_target_after(&self.encode_prompt(conversation)?, conversation, answer)
    }

    /// [`Self::encode_target`] where the prompt of the conversation is encoded already.
    ///
    /// # Errors
    /// As [`Self::encode_target`].
    pub fn encode_target_after(
        &self,
        prompt: &Prompt,
        conversation: &Conversation,
        answer: &str,
    ) -> Result<Vec<u32>> {
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
        if self.end_of_turn.source == EndOfTurnSource::Template {
            return self.continued(prompt, conversation, answer);
        }
        ids.extend(&self.end_of_turn.token_ids);
        Ok(ids)
    }

    /// The ids that follow the prompt's in the answered conversation, up to the end of the turn.
    fn continued(&self, encoded: &Prompt, conversation: &Conversation, answer: &str) -> Result<Vec<u32>> {
        let refusal = |problem: String| {
            let fix = "Write the answer as the template has it, set model.template_args (for Qwen3: \
                       { enable_thinking = false }), or give another template with model.chat_template";
            Error::input(self.template.place(), problem, fix)
        };
        let talk = self.template.talk(conversation);
        let rendered = |answer| self.rendered(&talk, &conversation.trusted, answer);
        let (prompt, answered) = match (rendered(None)?, rendered(Some(answer))?) {
            // Pieces of tokens came to something in one of the two only.
            (Rendered::Plain(prompt), Rendered::Guarded(answered, stand_ins)) => {
                (Rendered::Plain(prompt), Rendered::Plain(stand_ins.restore(&answered)))
            }
            both => both,
        };
        let guard = prompt.stand_ins().or(answered.stand_ins());
        let (prompt, answered) = (prompt.text(), answered.text());
        let written = answered.strip_prefix(prompt).ok_or_else(|| {
            let same = prompt.chars().zip(answered.chars()).take_while(|(a, b)| a == b).count();
            let own: String = prompt.chars().skip(same).take(40).collect();
            refusal(format!(
                "writes {own:?} at the prompt's end, which an answered conversation does not have"
            ))
        })?;
        // Templates trim what they are given; then the trimmed answer is what is learnt.
        let forms = [answer, answer.trim(), answer.trim_start(), answer.trim_end()];
        let end = &self.end_of_turn.token_ids;
        for form in forms {
            let Some(after) = written.strip_prefix(form) else { continue };
            if !self.tokenizer.encode(after)?.starts_with(end) {
                continue;
            }
            let target = [&self.tokenizer.encode(form)?[..], end].concat();
            if self.is_continued(encoded, &target, prompt, written, guard)? {
                return Ok(target);
            }
            let beginning: String = form.chars().take(20).collect();
            let problem =
                format!("begins with {beginning:?}, which the tokenizer joins with the prompt's end");
            let fix = "Begin it with a word: remove the white space before it";
            return Err(Error::input("the answer", problem, fix));
        }
        let start: String = written.chars().take(40).collect();
        Err(refusal(match written.find(answer.trim()) {
            Some(at) if at > 0 => {
                format!("writes {:?} between the prompt and the answer", &written[..at])
            }
            _ => format!("does not write the answer as it is given, but {start:?}"),
        }))
    }

    /// Whether the ids of `text`, which is the prompt's, and what is `written` after it begin with the prompt's and `target`.
    fn is_continued(
        &self,
        prompt: &Prompt,
        target: &[u32],
        text: &str,
        written: &str,
        stand_ins: Option<&StandIns>,
    ) -> Result<bool> {
        if let Some(stand_ins) = stand_ins {
            let whole = self.tokenizer.encode_guarded(&format!("{text}{written}"), Some(stand_ins))?;
            return Ok(whole.starts_with(&[&prompt.token_ids, target].concat()));
        }
        let (tail, tail_ids) = self.tokenizer.after_last_special(text, &prompt.token_ids)?;
        Ok(self.tokenizer.encode(&format!("{tail}{written}"))?.starts_with(&[tail_ids, target].concat()))
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

    /// What is worth saying of the tokenizer beside this model.
    pub fn note(&self) -> Option<String> {
        let beyond = self.tokenizer.beyond();
        let (first, more) = (beyond.first()?, beyond.len() - 1);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let place = self.tokenizer.place();
        Some(format!(
            "{place}: the model's embedding has no row for {first}{more}; a text that holds it is refused"
        ))
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

#[cfg(test)]
mod tests;
