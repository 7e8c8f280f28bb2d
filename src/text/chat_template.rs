//! A conversation as the model's own template writes it: Jinja as transformers runs it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use minijinja::{Environment, ErrorKind, Value, context};
use regex::Regex;
use serde_json::{Value as Json, json};
use toml::Table;

use super::foreign::{Habits, Talk};
use super::pretrained::{SpecialTokens, find_template};
pub use super::python::Date;
use super::python::tojson;
use super::watched::{self, Limits};
use super::{jinja2, template_limits};
use crate::error::{Error, Result};
use crate::types::Conversation;

const NAME: &str = "chat_template";
/// What helps against a template that asks for too much.
const OTHER: &str = "Give another template with model.chat_template, or use a model that you trust";

/// A compiled template and the special tokens that it may name.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    special: SpecialTokens,
    arguments: Table,
    /// The template as it was read, with line feeds.
    text: String,
    /// Found out when first asked for.
    habits: OnceLock<Habits>,
    /// What errors call it.
    place: String,
}

/// Arguments that templates of the supported families take, and what they have to be. Templates compare them
/// without a word about other types: `enable_thinking = "false"` would leave thinking on.
const KNOWN_ARGUMENTS: [(&str, &str); 7] = [
    ("enable_thinking", "boolean"),
    ("date_string", "string"),
    ("tools_in_user_message", "boolean"),
    ("thinking", "boolean"),
    ("thinking_budget", "integer"),
    ("reasoning_effort", "string"),
    ("add_vision_id", "boolean"),
];

/// What every rendering sets by itself.
const RESERVED: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

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
        let plain = || {
            let mut env = Environment::new();
            jinja2::configure(&mut env);
            env.add_filter("tojson", tojson);
            env
        };
        let mut env = plain();
        template_limits::configure(&mut env, plain());
        env.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
            Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // As Jinja2: line ends of the template are line feeds, whatever the file has. Those of contents stay.
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let compiled = without_generation_marks(&text);
        let template = Self {
            env: Arc::new(env),
            special,
            arguments: Table::new(),
            text,
            habits: OnceLock::new(),
            place,
        };
        template.with_date(Date::default()).compiled(compiled)
    }

    fn compiled(mut self, text: String) -> Result<Self> {
        if let Err((line, problem)) = template_limits::check_text(&text) {
            return Err(Error::input(format!("{}, line {line}", self.place), problem, OTHER));
        }
        let mut env = Arc::unwrap_or_clone(std::mem::take(&mut self.env));
        let compiled =
            watched::run(Limits::TEMPLATE, move || env.add_template_owned(NAME, text).map(|()| env));
        match compiled.map_err(|why| Error::input(&self.place, why, OTHER))? {
            Ok(env) => {
                self.env = Arc::new(env);
                Ok(self)
            }
            Err(e) => Err(self.error(&e, "does not parse", "Correct the template")),
        }
    }

    /// The day that `strftime_now` gives; [`Date::default`] unless set.
    pub fn with_date(mut self, date: Date) -> Self {
        Arc::make_mut(&mut self.env).add_function("strftime_now", move |format: &str| date.format(format));
        self
    }

    /// Values that the template sees as variables, such as `enable_thinking` of Qwen3's.
    ///
    /// # Errors
    /// The template does not ask for one of them, or it has the wrong type.
    pub fn with_arguments(mut self, arguments: &Table) -> Result<Self> {
        let words: HashSet<&str> = self.text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        for (name, value) in arguments {
            let key = format!("model.template_args.{name}");
            if RESERVED.contains(&name.as_str()) || name.ends_with("_token") {
                let why = "every rendering sets it by itself";
                return Err(Error::config(&key, value, "another name", why));
            }
            if !words.contains(name.as_str()) {
                let why = format!("{} does not ask for it, so it has no effect", self.place);
                return Err(Error::config(&key, value, "a variable of the chat template", why));
            }
            let known = KNOWN_ARGUMENTS.iter().find(|(known, _)| known == name);
            if let Some((_, want)) = known.filter(|(_, want)| *want != value.type_str()) {
                let why = format!("a template would quietly take a {} for something else", value.type_str());
                return Err(Error::config(&key, value, format!("a {want}"), why));
            }
            if let toml::Value::Datetime(_) = value {
                let why = "templates know texts, numbers, lists and tables";
                return Err(Error::config(&key, value, "a text in quotes", why));
            }
        }
        self.arguments = arguments.clone();
        Ok(self)
    }

    /// The template's text with the arguments as its defaults, for a model folder that others load without them.
    /// `None` where there are none.
    pub fn text_with_arguments(&self) -> Option<String> {
        let defaults = self.arguments.iter().map(|(name, value)| {
            // JSON's literals are Jinja's.
            let value = serde_json::to_string(value).unwrap_or_default();
            format!("{{%- if {name} is not defined %}}{{%- set {name} = {value} %}}{{%- endif %}}\n")
        });
        (!self.arguments.is_empty()).then(|| defaults.collect::<String>() + &self.text)
    }

    /// The conversation and the beginning of the assistant's answer: what the model is conditioned on. Nothing is done
    /// about control tokens in it; [`super::PromptEncoder`] does that.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails.
    pub fn render_prompt(&self, conversation: &Conversation) -> Result<String> {
        self.render(&self.talk(conversation), None)
    }

    /// The conversation with `answer` as the assistant's last message.
    ///
    /// # Errors
    /// The template refuses the conversation, or fails.
    pub fn render_answered(&self, conversation: &Conversation, answer: &str) -> Result<String> {
        self.render(&self.talk(conversation), Some(answer))
    }

    /// The conversation as this template gets it.
    pub(super) fn talk(&self, conversation: &Conversation) -> Talk {
        Talk::of(conversation, *self.habits.get_or_init(|| self.find_habits()))
    }

    fn find_habits(&self) -> Habits {
        let rendered = |messages: Json| {
            let Json::Array(messages) = messages else { return None };
            self.render(&Talk { messages, tools: Json::Null }, None).ok()
        };
        let parts = json!([{"type": "text", "text": "Zyxwa"}, {"type": "text", "text": "Zyxwb"}]);
        let parts = rendered(json!([{"role": "user", "content": parts}])).unwrap_or_default();
        let called = |content: Json| {
            let call =
                json!({"id": "abcdefghi", "type": "function", "function": {"name": "n", "arguments": {}}});
            rendered(json!([
                {"role": "user", "content": "Zyxwa"},
                {"role": "assistant", "content": content, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "abcdefghi", "content": "Zyxwb"},
            ]))
        };
        let (null, empty) = (called(Json::Null), called(json!("")));
        let says_none = |null: &String| {
            null.matches("None").count() > empty.as_ref().map_or(0, |empty| empty.matches("None").count())
        };
        Habits {
            takes_parts: ["Zyxwa", "Zyxwb"].iter().all(|word| parts.contains(word))
                && !["'text'", "\"text\""].iter().any(|key| parts.contains(key)),
            takes_null: null.is_some_and(|null| !says_none(&null)),
        }
    }

    /// Whether the template's text has this word, without which it cannot ask for a field of this name.
    pub fn names(&self, word: &str) -> bool {
        self.text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
    }

    /// With the answer, or with the beginning of one.
    pub(super) fn render(&self, talk: &Talk, answer: Option<&str>) -> Result<String> {
        let arguments = self.arguments.iter().map(|(k, v)| (k.clone(), Value::from_serialize(v)));
        let answered = answer.map(|answer| context! { role => "assistant", content => answer });
        let messages = talk.messages.iter().map(Value::from_serialize).chain(answered);
        let variables = context! {
            messages => messages.collect::<Vec<_>>(),
            add_generation_prompt => answer.is_none(),
            // transformers passes these two as None; templates ask whether they are.
            tools => Value::from_serialize(&talk.tools),
            documents => Value::from(()),
            ..Value::from_iter(self.special.variables().chain(arguments))
        };
        let env = Arc::clone(&self.env);
        let rendered = watched::run(Limits::TEMPLATE, move || {
            let mut out = template_limits::Output::default();
            env.get_template(NAME)?.render_captured_to(variables, &mut out)?;
            String::from_utf8(out.0)
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        rendered.map_err(|why| Error::input(&self.place, why, OTHER))?.map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => {
                let most = template_limits::MOST_INSTRUCTIONS;
                self.at_line(&e, format!("takes more than {most} instructions for a conversation"), OTHER)
            }
            _ => {
                let fix = "Change the messages, or give another template with model.chat_template";
                self.error(&e, "refuses the conversation", fix)
            }
        })
    }

    /// The file, and the key in it, that the template was read from.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn error(&self, e: &minijinja::Error, what: &str, fix: &str) -> Error {
        let cause = std::error::Error::source(e).filter(|_| e.kind() == ErrorKind::WriteFailure);
        let detail = || e.detail().map_or_else(|| e.kind().to_string(), str::to_string);
        self.at_line(e, format!("{what}: {}", cause.map_or_else(detail, ToString::to_string)), fix)
    }

    fn at_line(&self, e: &minijinja::Error, problem: String, fix: &str) -> Error {
        match e.line() {
            Some(line) => Error::input(format!("{}, line {line}", self.place), problem, fix),
            None => Error::input(&self.place, problem, fix),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Message;

    fn message(role: &str, content: &str) -> Message {
        Message::new(role, content)
    }

    fn talk<const N: usize>(messages: [Message; N]) -> Conversation {
        messages.to_vec().into()
    }

    fn template(text: &str) -> ChatTemplate {
        let special = SpecialTokens::from([("bos_token", "<s>"), ("eos_token", "</s>")]);
        ChatTemplate::new(text, special, "t.jinja".into()).unwrap()
    }

    const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m.content + '<|im_end|>\\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn chatml() {
        let talk = talk([message("system", "Be brief."), message("user", "Hi")]);
        let prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(template(CHATML).render_prompt(&talk).unwrap(), prompt);
        let answered = template(CHATML).render_answered(&talk, "Hello").unwrap();
        assert_eq!(answered, format!("{prompt}Hello<|im_end|>\n"));
    }

    /// What Llama 3's template does: BOS, a dated system header, trimmed contents.
    const LLAMA3: &str = r#"
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "never" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if tools is not none %}
    {{- raise_exception("tools are not given") }}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today: " + date_string + "\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

    #[test]
    fn llama3_has_bos_once_and_a_date_that_does_not_move() {
        let talk = talk([message("system", " Be brief. "), message("user", "\nHi")]);
        let want = |date: &str| {
            format!(
                "<s><|start_header_id|>system<|end_header_id|>\n\nToday: {date}\nBe brief.<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n"
            )
        };
        assert_eq!(template(LLAMA3).render_prompt(&talk).unwrap(), want("26 Jul 2024"));
        let later = template(LLAMA3).with_date(Date::new(2025, 3, 1).unwrap());
        assert_eq!(later.render_prompt(&talk).unwrap(), want("01 Mar 2025"));
    }

    #[test]
    fn blocks_are_trimmed_and_nothing_is_escaped() {
        let text = "{% for m in messages %}\n    {% if loop.last %}\n{{ m.content }} {{ m.content | tojson }}\n    {% endif %}\n{% endfor %}";
        assert_eq!(template(text).render_prompt(&talk([message("user", "<é>")])).unwrap(), "<é> \"<é>\"\n");
    }

    #[test]
    fn python_idioms() {
        for (text, want) in [
            ("{{ messages[-1].content.split(':')[-1].lstrip() }}", "b"),
            ("{{ messages[0]['content'].startswith('a') and 'x' not in messages[0]['content'] }}", "True"),
            ("{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role }}{% endfor %}", "0user"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{{ messages[0].get('tool_calls', 'none') }}", "none"),
            ("{% if messages[0].tool_calls is not defined and tools is none %}ok{% endif %}", "ok"),
            ("{% if tools is iterable %}{{ tools | length }}{% endif %}{{ 'a' is iterable }}", "True"),
            (
                "{% for m in 'abc' | list %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}",
                "ac",
            ),
            (
                "{% set d = {'b': 1, 'a': 2} %}{{ d | tojson }}{% for k, v in d.items() %}{{ k }}{% endfor %}",
                "{\"b\": 1, \"a\": 2}ba",
            ),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(eos_token) }}", "[</s>]"),
            ("{{ pad_token }}{{ '%s!' | format('a') }}{{ 'a' ~ 1 }}", "a!a1"),
            ("{% generation %}x{%- endgeneration -%} y", "xy"),
            ("{{ true }} {{ none }}", "True None"),
        ] {
            let rendered = template(text).render_prompt(&talk([message("user", "a: b")]));
            assert_eq!(rendered.unwrap(), want, "{text}");
        }
    }

    #[test]
    fn arguments_can_be_written_into_the_template() {
        let text =
            "{{ messages[0].content }}{% if think is defined and think is false %} no{% endif %} {{ name }}";
        let talk = talk([message("user", "Hi")]);
        let arguments = "think = false\nname = 'a \"b\"'".parse().unwrap();
        let with = template(text).with_arguments(&arguments).unwrap();
        let written = with.text_with_arguments().unwrap();
        assert_eq!(template(&written).render_prompt(&talk).unwrap(), "Hi no a \"b\"");
        assert_eq!(with.render_prompt(&talk).unwrap(), "Hi no a \"b\"");
        // They are defaults only.
        let other = template(&written).with_arguments(&"think = true".parse().unwrap()).unwrap();
        assert_eq!(other.render_prompt(&talk).unwrap(), "Hi a \"b\"");
        assert_eq!(template(text).text_with_arguments(), None);
    }

    #[test]
    fn a_template_that_does_not_parse_names_its_file_and_line() {
        let error = ChatTemplate::new("a\n{% for %}", SpecialTokens::default(), "dir/t.jinja".into());
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("dir/t.jinja, line 2: does not parse: "), "{error}");
    }

    #[test]
    fn a_template_that_raises_says_what_it_said() {
        let text =
            "{% if messages[0].role != 'user' %}\n{{ raise_exception('Begin with the user!') }}{% endif %}";
        let error = template(text).render_prompt(&talk([message("system", "x")])).unwrap_err().to_string();
        assert!(
            error.starts_with("t.jinja, line 2: refuses the conversation: Begin with the user!"),
            "{error}"
        );
        assert!(error.contains("model.chat_template"), "{error}");
        for (text, want) in [
            ("{{ messages[0].nothing.more }}", "undefined"),
            ("{{ messages | no_such_filter }}", "no_such_filter"),
            ("{{ strftime_now('%Q') }}", "%Q"),
        ] {
            let error = match ChatTemplate::new(text, SpecialTokens::default(), "t.jinja".into()) {
                Ok(template) => {
                    template.render_prompt(&talk([message("user", "x")])).unwrap_err().to_string()
                }
                Err(error) => error.to_string(),
            };
            assert!(error.contains("t.jinja, line 1") && error.contains(want), "{error}");
        }
    }
}
