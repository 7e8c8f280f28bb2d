//! The files of a draft, as texts.

use super::fields::Input;
use super::{Draft, Row};

/// What the model and its tokenizer say of the rows. Tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Budget of a prompt.
    pub prompt: usize,
    /// Budget of an answer, its end included.
    pub answer: usize,
}

/// What the texts are made of.
pub struct Files<'a> {
    pub draft: &'a Draft,
    /// Name of the task.
    pub name: &'a str,
    /// The folder as a config names it, with a slash at its end.
    pub folder: &'a str,
    /// Value of model.path; None makes a small model from the seed.
    pub model: Option<&'a str>,
    /// Parameters of the model.
    pub parameters: u64,
    pub lengths: Lengths,
    pub train_rows: usize,
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

/// A text in a template.
fn literal(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

impl Files<'_> {
    /// Label after label, as the prompt lists them.
    fn listed(&self) -> String {
        self.draft.labels.all().map(literal).collect::<Vec<_>>().join(", ")
    }

    pub fn task(&self) -> String {
        let labels = &self.draft.labels;
        let ask = format!("Reply with one name and nothing else: {}.", self.listed());
        let input = match &self.draft.reading.input {
            Input::Messages(_) if self.draft.reading.asks_itself() => {
                "# The conversation of a row.\nmessages = \"messages\"\n".into()
            }
            Input::Texts(names) if self.draft.reading.asks_itself() => template("", names),
            Input::Messages(_) => format!(
                "# The conversation of a row, and what is asked of the model, which takes the place of a row's own system text.\n\
                 messages = \"messages\"\nsystem = {}\n",
                quoted(&format!("Read the conversation. {}", ask.replace("{{", "{").replace("}}", "}")))
            ),
            Input::Transcript(_) => {
                template(&format!("Which name fits this conversation? {ask}\n\n"), &["text".into()])
            }
            Input::Texts(names) => template(&format!("Which name fits this text? {ask}\n\n"), names),
        };
        let positive: Vec<String> = labels.positive.iter().map(|name| quoted(name)).collect();
        format!(
            "#:schema schema/task.schema.json
# Made by `rlvr init`: how a row becomes a prompt and a label, what an answer says, and what it earns. docs/tasks.md explains
# every key. The wording of the prompt is yours to improve.

name = {name}

[input]
{input}
# Where a row's label is.
[gold]
path = \"label\"

# The answer that SFT imitates.
[sft]
target_template = {{ negative = \"{{label}}\", positive = \"{{label}}\" }}

# Every answer there is, word for word: for exact probabilities and the stage `enumerate`.
[answers]
negative = \"{{label}}\"
positive = \"{{label}}\"

# The negative label is the one that flags nothing ({because}).
[labels]
negative = {negative}
positive = [{positive}]

# One line is the answer. What is none of the labels is malformed, and malformed is wrong.
[[verdict]]
regex = '^\\s*(\\S.*?)\\s*$'
label = \"$1\"

[[verdict]]
default = \"@malformed\"

# What each outcome earns. Make a missed alarm cost more than a false one, or the other way round, as your use has it; with
# grpo.scale_rewards = \"none\", for the default divides by how far a prompt's answers are apart.
[reward]
exact_positive = 1.0
exact_negative = 1.0
wrong_label = 0.0
false_positive = 0.0
false_negative = 0.0
malformed = -0.5
",
            name = quoted(self.name),
            because = labels.because,
            negative = quoted(&labels.negative),
            positive = positive.join(", "),
        )
    }

    pub fn config(&self) -> String {
        let Lengths { prompt, answer } = self.lengths;
        let folder = self.folder;
        let seed = self.model.is_none();
        let (sft_rate, grpo_rate, steps) =
            if seed { ("2e-3", "1e-4", 300usize) } else { ("1e-4", "2e-5", 150) };
        let rows = 16usize;
        let epochs = (steps * rows).div_ceil(self.train_rows.max(1)).clamp(1, 20);
        let model = match self.model {
            Some(path) => format!("[model]\npath = {}\n", quoted(path)),
            None => "# A small model from the seed, to try the whole line with: no download, minutes on two cores. For a real\n\
                     # detector take [model.random] out and name a model: path = \"org/name\", or a folder.\n[model]\n"
                .into(),
        };
        let random = match self.model {
            Some(_) => String::new(),
            None => "\n[model.random]\nhidden_size = 96\nintermediate_size = 256\nlayers = 2\nattention_heads = 4\n\
                     key_value_heads = 4\nvocab_size = 2048\nrope_theta = 10000.0\n"
                .into(),
        };
        // All weights of a large model and their moments are more than most machines have.
        let lora = match self.parameters > 1_000_000_000 {
            true => {
                "\n# An adapter: all weights would need their moments in memory too (`rlvr plan`).\n[lora]\nrank = 16\n"
            }
            false => "",
        };
        format!(
            "#:schema schema/config.schema.json
# Made by `rlvr init`: a warm-up by SFT, then GRPO. `rlvr train {folder}config.toml --dry-run` prints every key with its
# value and checks the rest; docs/config-reference.md explains the keys. Paths are from where rlvr is started.

task = {task}
stages = [\"sft\", \"grpo\"]

{model}# Prompt and answer together.
max_positions = {positions}
{random}{lora}
[data]
train = {train}
valid = {valid}
# Longer prompts are dropped and counted, never cut.
max_prompt_tokens = {prompt}
max_target_tokens = {answer}

# Until the model answers with a label at all, GRPO has nothing to compare.
[sft]
epochs = {epochs}.0
rows_per_step = {rows}

[sft.optim]
learning_rate = {sft_rate}
warmup_ratio = 0.1
schedule = {{ type = \"cosine\" }}

[grpo]
steps = 50
prompts_per_step = 8
group_size = 8
max_completion_tokens = {answer}
# Half of each step's prompts have the negative label, whatever the rows' shares are.
balance = \"label_sign\"

[grpo.optim]
learning_rate = {grpo_rate}
warmup_steps = 2

[eval]
every_steps = 25
max_completion_tokens = {answer}

[checkpoint]
every_steps = 50
",
            positions = prompt + answer,
            task = quoted(&format!("{folder}task.toml")),
            train = quoted(&format!("{folder}train.jsonl")),
            valid = quoted(&format!("{folder}valid.jsonl")),
        )
    }

    /// Rows as a data file.
    pub fn rows(rows: &[Row]) -> String {
        rows.iter().map(|row| format!("{}\n", row.json)).collect()
    }
}

fn template(before: &str, fields: &[String]) -> String {
    let texts: Vec<String> = match fields {
        [only] => vec![format!("{{{only}}}")],
        several => several.iter().map(|name| format!("{name}: {{{name}}}")).collect(),
    };
    let text = format!("{before}{}", texts.join("\n\n"));
    format!("# What the model reads: {{...}} is the row's text.\ntemplate = {}\n", quoted(&text))
}
