//! The numbers of one model, and what follows from them: parameter names, shapes, counts, rotary angles.

use crate::error::{Error, Result};
use crate::model::rope_scaling::RopeScaling;

/// Larger sizes are a damaged file, not a model; the bound also keeps every product of two sizes in a `usize`.
const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: u64 = 4096;

/// The numbers of one decoder. Read from a file in `formats/`, or made by hand and then
/// held against [`ModelConfig::validate`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    /// A bias on queries, keys and values, and but for Qwen2, which always has it, on the output projection.
    pub attention_bias: bool,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Even. Need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Vec<u32>,
    pub pad_token_id: Option<u32>,
}

/// Which published architecture the numbers belong to: its name in `config.json`, and what follows from the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, Llama-Guard, SmolLM and SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: a bias on queries, keys and values.
    Qwen2,
    /// Qwen3 dense: an RMSNorm over each head's queries and keys.
    Qwen3,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// `model_type` in `config.json`; `general.architecture` in GGUF.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The entry of `architectures` in `config.json`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Whether queries and keys are normed head by head before they are rotated.
    pub fn has_qk_norm(self) -> bool {
        self == Self::Qwen3
    }
}

impl ModelConfig {
    /// The rules between fields; `place` names the source in errors.
    pub fn validate(&self, place: &str) -> Result<()> {
        let wrong = |field: &str, problem: String, fix: &str| {
            Err(Error::input(format!("{place}: {field}"), problem, fix))
        };
        let sizes = [
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_LAYERS),
            ("num_key_value_heads", self.num_key_value_heads, MAX_LAYERS),
            ("head_dim", self.head_dim, MAX_LAYERS),
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("max_position_embeddings", self.max_position_embeddings, u32::MAX as u64),
        ];
        for (field, size, max) in sizes {
            if size == 0 || size as u64 > max {
                return wrong(
                    field,
                    format!("{size} is outside 1..={max}"),
                    "Correct it, or fetch the file again",
                );
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if heads % kv_heads != 0 {
            let problem = format!("{kv_heads} does not divide num_attention_heads = {heads}");
            return wrong(
                "num_key_value_heads",
                problem,
                "Each key head serves a whole number of query heads",
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong(
                "head_dim",
                format!("{} is odd", self.head_dim),
                "Rotary embeddings turn pairs of channels: give an even number",
            );
        }
        // Padding is never used here, and some published files put its id past the vocabulary.
        let bos = self.bos_token_id.map(|id| ("bos_token_id", id));
        for (field, id) in bos.into_iter().chain(self.eos_token_id.iter().map(|&id| ("eos_token_id", id))) {
            if id as usize >= self.vocab_size {
                let problem = format!("{id} is not below vocab_size = {}", self.vocab_size);
                return wrong(field, problem, "Correct one of the two");
            }
        }
        Ok(())
    }

    /// Angle per position of each rotated pair of channels, in radians. `[head_dim / 2]`
    ///
    /// `theta^(-2i / head_dim)`, changed as `rope_scaling` says.
    pub fn rope_inverse_frequencies(&self) -> Vec<f64> {
        let plain: Vec<f64> = (0..self.head_dim / 2)
            .map(|i| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64))
            .collect();
        match &self.rope_scaling {
            None => plain,
            Some(scaling) => scaling.scale(&plain, self.rope_theta),
        }
    }

    /// What the sines and cosines of those angles are multiplied by: 1 but for `yarn`.
    pub fn rope_attention_factor(&self) -> f64 {
        self.rope_scaling.as_ref().map_or(1.0, RopeScaling::attention_factor)
    }

    /// Whether the output projection of attention has a bias.
    pub fn has_output_bias(&self) -> bool {
        self.attention_bias && self.family != Family::Qwen2
    }

    /// Every parameter's Hugging Face name and shape, in the order of the forward pass. A tied head is not
    /// listed: it is `model.embed_tokens.weight`.
    pub fn parameter_names(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let q_rows = self.num_attention_heads * self.head_dim;
        let kv_rows = self.num_key_value_heads * self.head_dim;
        let mut names = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let mut part = |name: &str, shape: Vec<usize>| {
                names.push((format!("model.layers.{layer}.{name}"), shape));
            };
            part("input_layernorm.weight", vec![hidden]);
            for (name, rows) in [("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)] {
                part(&format!("self_attn.{name}.weight"), vec![rows, hidden]);
                if self.attention_bias {
                    part(&format!("self_attn.{name}.bias"), vec![rows]);
                }
            }
            if self.family.has_qk_norm() {
                part("self_attn.q_norm.weight", vec![self.head_dim]);
                part("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            part("self_attn.o_proj.weight", vec![hidden, q_rows]);
            if self.has_output_bias() {
                part("self_attn.o_proj.bias", vec![hidden]);
            }
            part("post_attention_layernorm.weight", vec![hidden]);
            part("mlp.gate_proj.weight", vec![inner, hidden]);
            part("mlp.up_proj.weight", vec![inner, hidden]);
            part("mlp.down_proj.weight", vec![hidden, inner]);
        }
        names.push(("model.norm.weight".into(), vec![hidden]));
        if !self.tie_word_embeddings {
            names.push(("lm_head.weight".into(), vec![self.vocab_size, hidden]));
        }
        names
    }

    /// Stored parameters; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        let count = |(_, shape): (String, Vec<usize>)| shape.iter().map(|&n| n as u64).product::<u64>();
        self.parameter_names().into_iter().map(count).sum()
    }

    /// Parameters a token is multiplied by: the linear layers and the head, tied or not; neither norms, biases nor the
    /// embedding look-up. A forward pass costs twice as many FLOPs a token, attention scores not counted.
    pub fn matmul_parameter_count(&self) -> u64 {
        self.vocab_size as u64 * self.hidden_size as u64 + self.block_matmul_parameter_count()
    }

    fn block_matmul_parameter_count(&self) -> u64 {
        let heads = 2 * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim;
        let per_hidden = heads as u64 + 3 * self.intermediate_size as u64;
        self.num_hidden_layers as u64 * self.hidden_size as u64 * per_hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tie_word_embeddings: bool) -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            attention_bias: false,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 2,
            vocab_size: 10,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings,
            max_position_embeddings: 2048,
            bos_token_id: Some(1),
            eos_token_id: vec![2, 0],
            pad_token_id: None,
        }
    }

    #[test]
    fn counts_are_those_of_the_listed_parameters() {
        // A block: q and o 8x8, k and v 4x8, three 8x12 matrices = 480, two norms of 8. Embedding 10x8 = 80.
        let [tied, untied] = [true, false].map(config);
        assert_eq!(tied.parameter_count(), 80 + 2 * (480 + 16) + 8);
        assert_eq!(tied.matmul_parameter_count(), 80 + 2 * 480);
        assert_eq!(untied.parameter_count(), tied.parameter_count() + 80);
        assert_eq!(untied.matmul_parameter_count(), tied.matmul_parameter_count());
        for config in [tied, untied] {
            let listed =
                config.parameter_names().iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>();
            assert_eq!(listed as u64, config.parameter_count());
        }
    }
}
