use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::unknown;
use crate::error::{Error, Result};

/// `[model]`: where the weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Folder in HF layout (config.json, safetensors, tokenizer.json); a short name, of a folder in `checkpoints/`; or a
    /// hub name: `org/name`, `org/name@revision`. Absent: `random` makes a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A small model from the seed, with a byte-level tokenizer built from the synthetic logs or the rows of `data.train`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomModelConfig>,
    /// Folder with the tokenizer, when not the model's own (guards run with another model's tokenizer).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Jinja file that replaces the tokenizer's chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// Variables for the chat template, for instance `{ enable_thinking = false }` for Qwen3's.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub template_args: toml::Table,
    /// Longest sequence, prompt plus completion, in tokens. Sizes the position tables only.
    #[schemars(range(max = 1 << 21))]
    pub max_positions: usize,
    /// Type of weights and activations: "auto" is bf16 on a CUDA device and f32 on the CPU, where
    /// bf16 is slower.
    #[serde(deserialize_with = "DtypeKind::computed")]
    #[schemars(extend("enum" = ["auto", "f32", "bf16"]), with = "String")]
    pub dtype: DtypeKind,
}

/// Type of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DtypeKind {
    /// Bf16 on a CUDA device, f32 on the CPU.
    Auto,
    F32,
    Bf16,
    /// Stored only: nothing computes in it.
    F16,
}

impl DtypeKind {
    pub const ALL: [Self; 4] = [Self::Auto, Self::F32, Self::Bf16, Self::F16];
    /// Types that the ops compute in, and auto.
    pub const COMPUTED: [Self; 3] = [Self::Auto, Self::F32, Self::Bf16];

    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// What it is on a CUDA device, or on the CPU.
    pub fn on(self, cuda: bool) -> DType {
        match self {
            Self::Auto if cuda => DType::BF16,
            Self::Auto | Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Reads a key that takes the types of [`Self::COMPUTED`].
    fn computed<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let found = Self::COMPUTED.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| D::Error::unknown_variant(&text, &["auto", "f32", "bf16"]))
    }
}

impl FromStr for DtypeKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| unknown(text, &Self::ALL))
    }
}

impl fmt::Display for DtypeKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `[model.random]`: shape of a Llama made from the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomModelConfig {
    /// Width of the residual stream. A multiple of twice `attention_heads`.
    #[schemars(range(max = 1 << 16))]
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    #[schemars(range(max = 1 << 20))]
    pub intermediate_size: usize,
    /// Blocks.
    #[schemars(range(max = 1 << 10))]
    pub layers: usize,
    /// Query heads of a block.
    #[schemars(range(max = 1 << 10))]
    pub attention_heads: usize,
    /// Key and value heads of a block, a divisor of `attention_heads`.
    #[schemars(range(max = 1 << 10))]
    pub key_value_heads: usize,
    /// Entries of the byte-level tokenizer, special tokens included.
    #[schemars(range(max = 1 << 20))]
    pub vocab_size: usize,
    /// Base of the rotary angles.
    #[schemars(range(min = 0, max = 1e12))]
    pub rope_theta: f64,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            path: None,
            random: None,
            tokenizer: None,
            chat_template: None,
            template_args: toml::Table::new(),
            max_positions: 4096,
            dtype: DtypeKind::Auto,
        }
    }
}

impl ModelConfig {
    pub fn validate(&self) -> Result<()> {
        match (&self.path, &self.random) {
            (None, None) => Err(Error::input(
                "model",
                "neither model.path nor [model.random] is set",
                "Name a model folder with --set model.path=DIR, or use a preset",
            )),
            (Some(_), Some(_)) => Err(Error::input(
                "model",
                "model.path and [model.random] are both set",
                "Keep one: a folder to load, or a shape to make from the seed",
            )),
            (None, Some(random)) => {
                let unused = [("tokenizer", &self.tokenizer), ("chat_template", &self.chat_template)];
                if let Some((name, path)) = unused.iter().find_map(|(n, p)| Some((n, p.as_ref()?))) {
                    let want = "unset with [model.random]";
                    let why = "its tokenizer is built from the rows";
                    return Err(Error::config(&format!("model.{name}"), path.display(), want, why));
                }
                if let Some((name, value)) = self.template_args.iter().next() {
                    let key = format!("model.template_args.{name}");
                    let why = "the chat template of a random model asks for no variables";
                    return Err(Error::config(&key, value, "unset with [model.random]", why));
                }
                random.validate()
            }
            (Some(_), None) => Ok(()),
        }
    }
}

impl RandomModelConfig {
    fn validate(&self) -> Result<()> {
        let positive = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("layers", self.layers),
            ("attention_heads", self.attention_heads),
            ("key_value_heads", self.key_value_heads),
        ];
        for (name, value) in positive {
            if value == 0 {
                let key = format!("model.random.{name}");
                return Err(Error::config(&key, value, "1 or more", "the model has to have some"));
            }
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            let why = "rotary angles are its powers";
            return Err(Error::config("model.random.rope_theta", self.rope_theta, "above 0", why));
        }
        let [hidden, inner, layers, vocab] =
            [self.hidden_size, self.intermediate_size, self.layers, self.vocab_size].map(|n| n as f64);
        let parameters = hidden * (vocab + layers * (4.0 * hidden + 3.0 * inner));
        if parameters > 1e9 {
            return Err(Error::input(
                "model.random",
                format!("describes a model of {parameters:.1e} parameters, and 1e9 are the most"),
                "Make it smaller, or load a model with model.path",
            ));
        }
        if !self.hidden_size.is_multiple_of(2 * self.attention_heads) {
            return Err(Error::config(
                "model.random.hidden_size",
                self.hidden_size,
                "a multiple of twice attention_heads",
                "each head gets an even share of it",
            ));
        }
        if !self.attention_heads.is_multiple_of(self.key_value_heads) {
            return Err(Error::config(
                "model.random.key_value_heads",
                self.key_value_heads,
                "a divisor of attention_heads",
                "query heads share key/value heads evenly",
            ));
        }
        Ok(())
    }
}
