//! The numbers of one Llama model, and what follows from them: parameter names, shapes, counts, rotary angles.

use candle_core::DType;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Larger sizes are a damaged file, not a model; the bound also keeps every product of two sizes in a `usize`.
const MAX_SIZE: u64 = 1 << 24;
const MAX_LAYERS: u64 = 4096;

/// The numbers of one Llama model. Built by [`ModelConfig::load`], or by hand and then [`ModelConfig::validate`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
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
    pub rope_scaling: Option<Llama3Scaling>,
    pub tie_word_embeddings: bool,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Vec<u32>,
    pub pad_token_id: Option<u32>,
}

/// `rope_scaling` of kind `llama3`: long wavelengths are stretched by `factor`, short ones kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    /// Context length before the scaling, in tokens.
    pub original_max_position_embeddings: usize,
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

    /// A complete `config.json` for weights stored as `dtype`; transformers and rlvr read it.
    pub fn to_json(&self, dtype: DType) -> Value {
        let rope_scaling = self.rope_scaling.as_ref().map(|s| {
            json!({
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            })
        });
        let eos = match self.eos_token_id[..] {
            [] => Value::Null,
            [one] => one.into(),
            _ => json!(self.eos_token_id),
        };
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": rope_scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": match dtype {
                DType::BF16 => "bfloat16",
                DType::F16 => "float16",
                _ => "float32",
            },
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }

    /// Angle per position of each rotated pair of channels, in radians. `[head_dim / 2]`
    ///
    /// `theta^(-2i / head_dim)`; with llama3 scaling, frequencies whose wavelength is past
    /// `original / low_freq_factor` tokens are divided by `factor`, those below `original / high_freq_factor`
    /// kept, and the ones between interpolated.
    pub fn rope_inverse_frequencies(&self) -> Vec<f64> {
        let plain =
            (0..self.head_dim / 2).map(|i| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64));
        match &self.rope_scaling {
            None => plain.collect(),
            Some(scaling) => plain.map(|frequency| scaling.apply(frequency)).collect(),
        }
    }

    /// Every parameter's Hugging Face name and shape, in the order of the forward pass. A tied head is not
    /// listed: it is `model.embed_tokens.weight`.
    pub fn parameter_names(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let q_rows = self.num_attention_heads * self.head_dim;
        let kv_rows = self.num_key_value_heads * self.head_dim;
        let mut names = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let parts = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q_rows, hidden]),
                ("self_attn.k_proj", vec![kv_rows, hidden]),
                ("self_attn.v_proj", vec![kv_rows, hidden]),
                ("self_attn.o_proj", vec![hidden, q_rows]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ];
            names.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
        }
        names.push(("model.norm.weight".into(), vec![hidden]));
        if !self.tie_word_embeddings {
            names.push(("lm_head.weight".into(), vec![self.vocab_size, hidden]));
        }
        names
    }

    /// Stored parameters; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        let head = if self.tie_word_embeddings { 1 } else { 2 };
        let embeddings = head * self.vocab_size as u64 * self.hidden_size as u64;
        let norms = (2 * self.num_hidden_layers as u64 + 1) * self.hidden_size as u64;
        embeddings + norms + self.block_matmul_parameter_count()
    }

    /// Parameters a token is multiplied by: the linear layers and the head, tied or not; neither norms nor the
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

impl Llama3Scaling {
    /// One frequency in radians a token, scaled.
    pub fn apply(&self, frequency: f64) -> f64 {
        let wavelength_tokens = 2.0 * std::f64::consts::PI / frequency;
        let turns = self.original_max_position_embeddings as f64 / wavelength_tokens;
        if turns > self.high_freq_factor {
            frequency
        } else if turns < self.low_freq_factor {
            frequency / self.factor
        } else {
            let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            frequency * (kept + (1.0 - kept) / self.factor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config_json::tests::{tiny, with};

    #[test]
    fn counts_are_those_of_the_listed_parameters() {
        // A block: q and o 8x8, k and v 4x8, three 8x12 matrices = 480, two norms of 8. Embedding 10x8 = 80.
        let tied = ModelConfig::from_json(&tiny(), "config.json").unwrap();
        assert_eq!(tied.parameter_count(), 80 + 2 * (480 + 16) + 8);
        assert_eq!(tied.matmul_parameter_count(), 80 + 2 * 480);
        let untied = with("tie_word_embeddings", false.into()).unwrap();
        assert_eq!(untied.parameter_count(), tied.parameter_count() + 80);
        assert_eq!(untied.matmul_parameter_count(), tied.matmul_parameter_count());
        for config in [tied, untied] {
            let listed =
                config.parameter_names().iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>();
            assert_eq!(listed as u64, config.parameter_count());
        }
    }

    #[test]
    fn llama3_scaling_keeps_divides_and_interpolates() {
        // Wavelengths of 1, 1/4, 1/16 radians a token: 6.28, 25.13 and 100.5 tokens; 32 tokens hold 5.09, 1.273 and
        // 0.318 turns. Past 4 turns kept, under 1 divided by 8, else kept by (1.27324 - 1) / 3 = 0.0910799.
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        assert_eq!(scaling.apply(1.0), 1.0);
        assert!((scaling.apply(0.25) - 0.25 * (0.0910799 + 0.9089201 / 8.0)).abs() < 1e-7);
        assert_eq!(scaling.apply(0.0625), 0.0078125);
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let scaling = json!({"type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        for config in [with("rope_scaling", scaling).unwrap(), with("eos_token_id", 3.into()).unwrap()] {
            let json = config.to_json(DType::BF16);
            assert_eq!(json["torch_dtype"], "bfloat16");
            assert_eq!(ModelConfig::from_json(&json, "config.json").unwrap(), config);
        }
    }
}
