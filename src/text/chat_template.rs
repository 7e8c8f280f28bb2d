//! A conversation as the model's own template writes it: Jinja as transformers runs it.

use std::path::Path;

use minijinja::value::Rest;
use minijinja::{Environment, ErrorKind, Value, context};
use regex::Regex;

use super::pretrained::{SpecialTokens, find_template};
pub use super::python::Date;
use super::python::tojson;
use crate::error::{Error, Result};
use crate::types::Message;

const NAME: &str = "chat_template";

/// A compiled template and the special tokens that it may name.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    special: SpecialTokens,
    /// What errors call it.
    place: String,
}

impl ChatTemplate {
    /// The template of `override_file`, else of `dir`: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (of a list, the one named `default`). Special tokens always come from `dir`.
    ///
    /// # Errors
    /// There is no template, or it does not parse.
    pub fn load(dir: &Path, override_file: Option<&Path>) -> Result<Self> {
        let source = find_template(dir, override_file)?;
        Self::new(&source.text, SpecialTokens::from_dir(dir)?, source.place)
    }

    pub(super) fn new(text: &str, special: SpecialTokens, place: String) -> Result<Self> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", tojson);
        env.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
            Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let template = Self { env, special, place }.with_date(Date::default());
        template.compiled(without_generation_marks(text))
    }

    fn compiled(mut self, text: String) -> Result<Self> {
        match self.env.add_template_owned(NAME, text) {
            Ok(()) => Ok(self),
            Err(e) => Err(self.error(&e, "does not parse", "Correct the template")),
        }
    }

    /// The day that `strftime_now` gives; [`Date::default`] unless set.
    pub fn with_date(mut self, date: Date) -> Self {
        self.env.add_function("strftime_now", move |format: &str| date.format(format));
        self
    }

    /// The conversation and the beginning of the assistant's answer: what the model is conditioned on.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails.
    pub fn render_prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(messages.iter(), true)
    }

    /// The conversation with `answer` as the assistant's last message.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails.
    pub fn render_answered(&self, messages: &[Message], answer: &str) -> Result<String> {
        let answer = Message { role: "assistant".into(), content: answer.into() };
        self.render(messages.iter().chain([&answer]), false)
    }

    fn render<'a>(&self, messages: impl Iterator<Item = &'a Message>, generate: bool) -> Result<String> {
        let variables = context! {
            messages => messages.map(Value::from_serialize).collect::<Vec<_>>(),
            add_generation_prompt => generate,
            // transformers passes these two as None; templates ask whether they are.
            tools => Value::from(()),
            documents => Value::from(()),
            ..Value::from_iter(self.special.variables())
        };
        let template = self.env.get_template(NAME).map_err(|e| self.error(&e, "is lost", "Report this"))?;
        template.render(variables).map_err(|e| {
            let fix = "Change the messages, or give another template with model.chat_template";
            self.error(&e, "refuses the conversation", fix)
        })
    }

    /// The file, and the key in it, that the template was read from.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn error(&self, e: &minijinja::Error, what: &str, fix: &str) -> Error {
        let place = match e.line() {
            Some(line) => format!("{}, line {line}", self.place),
            None => self.place.clone(),
        };
        let problem = e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
        Error::input(place, format!("{what}: {problem}"), fix)
    }
}

/// `{% generation %}` ... `{% endgeneration %}` tell transformers which tokens are the assistant's. Here an
/// answer is never inside a prompt, so they become a condition that always holds.
fn without_generation_marks(text: &str) -> String {
    // Both patterns are constants that a test compiles.
    let replaced = |text: &str, pattern: &str, by: &str| match Regex::new(pattern) {
        Ok(regex) => regex.replace_all(text, by).into_owned(),
        Err(_) => text.to_string(),
    };
    let text = replaced(text, r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", "${1}if true${2}");
    replaced(&text, r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", "${1}endif${2}")
}
