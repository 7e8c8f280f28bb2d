//! `[pack]`: how work is cut into packed batches, and what is kept between passes.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationMemory {
    /// On a GPU the fastest that fits its memory; on the CPU `recompute`.
    Auto,
    /// Block inputs only; blocks are computed again. Least memory.
    Recompute,
    /// Everything. Fastest.
    Keep,
}

/// What each of several ranks holds of the gradients of all weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// All of them, until they are summed after an update's last pack. Least is sent.
    #[default]
    Zero1,
    /// Those of one block, and its share of all others: a block's are summed as soon as a pack's backward pass has them. Least memory.
    Zero2,
}

/// `[pack]`: how work is cut into packed batches. Results do not depend on it, only speed and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PackConfig {
    /// Tokens that go through the model in one training pack; a group's prompt counts once, and the last token of a
    /// completion, which predicts nothing, not at all.
    #[schemars(range(max = 1 << 24))]
    pub max_tokens_per_pack: usize,
    /// Tokens whose keys and values are alive at once while sampling. `"auto"`: on a GPU a whole step's, or a half, a
    /// third and so on, whichever its memory has room for beside what is kept; on the CPU 32768.
    pub max_rollout_tokens: TokenBudget,
    /// What a forward pass keeps for the backward pass.
    pub activations: ActivationMemory,
    /// Tokens whose activations a rollout keeps for the update that follows, which then computes no forward pass
    /// for them; 0 switches it off. What is kept of a token: see `activations`. `"auto"`: on a GPU as many as fit its
    /// memory, on the CPU 8192.
    pub max_reused_tokens: TokenBudget,
    /// Of several ranks: what each holds of the gradients. Its share of the optimiser's state is all that it has of that, either way.
    pub shard: Shard,
}

/// A number of tokens, or `"auto"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenBudget {
    Auto,
    Tokens(usize),
}

impl TokenBudget {
    fn or(self, auto: usize) -> usize {
        match self {
            Self::Auto => auto,
            Self::Tokens(tokens) => tokens,
        }
    }
}

impl PackConfig {
    /// `max_rollout_tokens` where nothing else is known.
    pub const ROLLOUT_TOKENS: usize = 32768;
    /// `max_reused_tokens` on the CPU.
    pub const REUSED_TOKENS: usize = 8192;

    /// `max_rollout_tokens` of a run, which has settled what `auto` is (`plan::activations`).
    pub fn rollout_tokens(&self) -> usize {
        self.max_rollout_tokens.or(Self::ROLLOUT_TOKENS)
    }

    /// `max_reused_tokens`, the same.
    pub fn reused_tokens(&self) -> usize {
        self.max_reused_tokens.or(Self::REUSED_TOKENS)
    }
}

impl Serialize for TokenBudget {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Tokens(tokens) => tokens.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for TokenBudget {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of tokens, or \"auto\"")]
        enum Written {
            Tokens(usize),
            Word(Auto),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Auto {
            Auto,
        }
        Ok(match Written::deserialize(from)? {
            Written::Tokens(tokens) => Self::Tokens(tokens),
            Written::Word(Auto::Auto) => Self::Auto,
        })
    }
}

impl JsonSchema for TokenBudget {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TokenBudget".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 1 << 24 }, { "type": "string", "enum": ["auto"] }] })
    }
}

impl Default for PackConfig {
    fn default() -> Self {
        Self {
            max_tokens_per_pack: 8192,
            max_rollout_tokens: TokenBudget::Auto,
            activations: ActivationMemory::Auto,
            max_reused_tokens: TokenBudget::Auto,
            shard: Shard::default(),
        }
    }
}
