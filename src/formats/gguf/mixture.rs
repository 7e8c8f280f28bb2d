//! Which type each tensor of a GGUF file gets.

use candle_core::quantized::GgmlDType;

use crate::model::config::ModelConfig;

/// How a GGUF file as a whole is stored. Norms and biases are f32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantisation {
    F32,
    F16,
    Bf16,
    Q8_0,
    /// llama.cpp's mixture of Q4_K and Q6_K.
    Q4KM,
}

impl Quantisation {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4KM => "Q4_K_M",
        }
    }

    /// `general.file_type`, llama.cpp's `llama_ftype`.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }

    /// The type of one parameter, by Hugging Face name and shape.
    ///
    /// A row that is no multiple of a type's block gets a type with a smaller one, as in llama.cpp: Q4_K becomes
    /// Q5_0, Q6_K becomes Q8_0, and where 32 does not divide the row either, F16.
    pub fn tensor_type(self, config: &ModelConfig, name: &str, shape: &[usize]) -> GgmlDType {
        let &[_, columns] = shape else { return GgmlDType::F32 };
        let wanted = match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4KM if gets_more_bits(config, name) => GgmlDType::Q6K,
            Self::Q4KM => GgmlDType::Q4K,
        };
        let fits = |dtype: GgmlDType| columns.is_multiple_of(dtype.block_size());
        let smaller = match wanted {
            GgmlDType::Q4K => GgmlDType::Q5_0,
            GgmlDType::Q6K => GgmlDType::Q8_0,
            other => other,
        };
        [wanted, smaller].into_iter().find(|&dtype| fits(dtype)).unwrap_or(GgmlDType::F16)
    }
}

/// Q6_K in a Q4_K_M file: the head (a tied one is the embedding), and values and down projections of the first and
/// last eighth of the layers and of every third between. llama.cpp, `llama_tensor_get_type` and `use_more_bits`; its
/// exceptions for 80 layers and for experts are left out.
fn gets_more_bits(config: &ModelConfig, name: &str) -> bool {
    if name == "lm_head.weight" || (config.tie_word_embeddings && name == "model.embed_tokens.weight") {
        return true;
    }
    let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    if !matches!(part, "self_attn.v_proj.weight" | "mlp.down_proj.weight") {
        return false;
    }
    let (layers, eighth) = (config.num_hidden_layers, config.num_hidden_layers / 8);
    layer
        .parse::<usize>()
        .is_ok_and(|layer| layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::hf::config_json;
    use std::collections::BTreeMap;

    fn types(json: serde_json::Value) -> BTreeMap<String, usize> {
        let config = config_json::from_json(&json, "config.json").unwrap();
        let mut counts = BTreeMap::new();
        for (name, shape) in config.parameter_names() {
            let dtype = Quantisation::Q4KM.tensor_type(&config, &name, &shape);
            *counts.entry(format!("{dtype:?}")).or_default() += 1;
        }
        counts
    }

    #[test]
    fn an_8b_llama_gets_the_types_of_published_files() {
        // llama.cpp's loader on Llama-3-8B Q4_K_M: f32 65 tensors, q4_K 193, q6_K 33.
        let json = serde_json::json!({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256});
        let want = [("F32", 65), ("Q4K", 193), ("Q6K", 33)];
        assert_eq!(types(json), want.map(|(name, count)| (name.to_string(), count)).into());
    }

    #[test]
    fn rows_that_no_block_divides_get_smaller_blocks() {
        // Rows of 96: not 256, but 32. Rows of 80, in down_proj: neither. 8 layers: 0, 7, 3 and 6 get more bits.
        let json = serde_json::json!({"model_type": "llama", "hidden_size": 96, "intermediate_size": 80,
            "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 300, "tie_word_embeddings": true});
        // v_proj of four layers and the tied head in Q8_0; q, k, o, gate, up of all and v of the rest in Q5_0.
        let want = [("F32", 17), ("Q8_0", 5), ("Q5_0", 8 * 5 + 4), ("F16", 8)];
        assert_eq!(types(json), want.map(|(name, count)| (name.to_string(), count)).into());
    }
}
