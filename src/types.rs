//! The values that flow from a data row to a gradient. Token counts are in tokens, log-probabilities in nats.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One chat message, as a row has it and a chat template gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: Content,
    /// What stands beside the two: `tool_calls`, `tool_call_id`, `name`, `reasoning_content` and whatever else a template may
    /// ask for.
    pub more: Map<String, Value>,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Text(String),
    /// Text parts, as in `[{"type": "text", "text": "..."}]`.
    Parts(Vec<String>),
    /// Null or left out, beside tool calls.
    None,
}

impl Message {
    /// Of a text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Content::Text(content.into()), more: Map::new() }
    }

    /// As a row has it.
    pub fn to_json(&self) -> Value {
        let part = |text: &String| json!({"type": "text", "text": text});
        let content = match &self.content {
            Content::Text(text) => text.as_str().into(),
            Content::Parts(parts) => parts.iter().map(part).collect(),
            Content::None => Value::Null,
        };
        let mut object = Map::from_iter([("role".into(), json!(self.role)), ("content".into(), content)]);
        object.extend(self.more.clone());
        Value::Object(object)
    }

    /// The content, parts with a line end between them; empty where there is none.
    pub fn text(&self) -> Cow<'_, str> {
        match &self.content {
            Content::Text(text) => text.into(),
            Content::Parts(parts) => parts.join("\n").into(),
            Content::None => "".into(),
        }
    }
}

/// What a chat template makes a prompt of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// The tools that the row says there are, a list.
    pub tools: Option<Value>,
    pub trusted: Trusted,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// Which of the tokenizer's added tokens the text of a row may write. All others are text there and no tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trusted {
    #[default]
    None,
    Tokens(Vec<String>),
    All,
}

/// One labelled conversation, before it becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// 1-based line of the file the row came from; with the file's name it finds the row again.
    pub line: usize,
    pub conversation: Conversation,
    /// The gold label, one of the task's label set (its negative label included).
    pub gold: String,
    /// The answer SFT imitates. Absent in files made for GRPO or evaluation only.
    pub target: Option<String>,
    /// Whether the attack in the conversation went through without a guard. Absent where the task does not say.
    pub attack_succeeded: Option<bool>,
}

/// What the model is conditioned on: chat-templated, ends with the generation prompt. `[P]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    pub token_ids: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token was sampled; it is the last of `token_ids`.
    Stop,
    /// The completion budget ran out first.
    Length,
}

/// One sampled completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Completion only, stop token included; the prompt is not repeated. `[L]`
    pub token_ids: Vec<u32>,
    /// `log pi_old(token_t | prefix)` at the sampling temperature, recorded while sampling. `[L]`
    pub logprobs: Vec<f32>,
    pub finish: FinishReason,
}

/// `group_size` rollouts of one prompt; the unit over which advantages are centred.
#[derive(Clone, Debug)]
pub struct Group {
    pub prompt: Prompt,
    pub rollouts: Vec<Rollout>,
}

impl Group {
    /// Over all its completions.
    pub fn completion_tokens(&self) -> usize {
        self.rollouts.iter().map(|rollout| rollout.token_ids.len()).sum()
    }

    /// Tokens that go through the blocks: a completion's last one predicts nothing and is no input.
    pub fn packed_tokens(&self) -> usize {
        let inputs = |rollout: &Rollout| rollout.token_ids.len().saturating_sub(1);
        self.prompt.token_ids.len() + self.rollouts.iter().map(inputs).sum::<usize>()
    }
}

/// A group after scoring. Rewards stay as given; advantages are a new field, never an overwrite.
#[derive(Clone, Debug)]
pub struct ScoredGroup {
    pub group: Group,
    /// `[G]`
    pub rewards: Vec<f32>,
    /// `[G]`
    pub advantages: Vec<f32>,
}

/// A run of tokens that attends causally to itself and, when it has a `prefix`, to all of that segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First token's index in the packed batch.
    pub start: usize,
    pub len: usize,
    /// Index of an earlier segment, itself without a prefix.
    pub prefix: Option<usize>,
}

/// One row of hidden states and the token it has to predict. Several targets may share a row: the first
/// tokens of a group's completions are all predicted from the prompt's last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub row: usize,
    pub token: u32,
}

/// T tokens cut into segments. The only batch format: nothing is padded.
#[derive(Clone, Debug, Default)]
pub struct PackedBatch {
    /// `[T]`
    pub tokens: Vec<u32>,
    /// `[T]`; a segment with a prefix starts at the prefix's length.
    pub positions: Vec<u32>,
    pub segments: Vec<Segment>,
    /// Sequence after sequence, in token order.
    pub targets: Vec<Target>,
    /// Number of targets of each sequence: an SFT row, or a completion. They sum to `targets.len()`.
    pub target_counts: Vec<usize>,
}
