//! `config.json` in Hugging Face layout, read and written: what rlvr cannot compute is refused by its field's name.

use std::path::Path;

use candle_core::DType;
use serde_json::{Value, json};

use super::fields::Fields;
use super::rope_json;
use crate::disk;
use crate::error::{Error, Result};
use crate::model::config::{Family, ModelConfig};

/// Reads `dir/config.json`.
pub fn load(dir: &Path) -> Result<ModelConfig> {
    let path = dir.join("config.json");
    if dir.is_dir() && !path.exists() {
        let fix = "Give a model folder in Hugging Face layout; a GGUF file becomes one with `rlvr import`";
        return Err(Error::input(path.display(), "is missing", fix));
    }
    let text = disk::read_text(&path)?;
    let json = serde_json::from_str(&text)
        .map_err(|e| Error::input(path.display(), format!("not valid JSON ({e})"), "Fetch the file again"))?;
    from_json(&json, &path.display().to_string())
}

/// `place` names the source in errors.
pub fn from_json(json: &Value, place: &str) -> Result<ModelConfig> {
    let Some(map) = json.as_object() else {
        return Err(Error::input(place, "not a JSON object", "Give a model's config.json"));
    };
    let fields = Fields { place: place.into(), map };
    let family = family(&fields)?;
    refuse_unknown_computations(&fields)?;
    let hidden_size = fields.size("hidden_size", None)?;
    let num_attention_heads = fields.size("num_attention_heads", None)?;
    let head_dim = match fields.get("head_dim") {
        Some(_) => fields.size("head_dim", None)?,
        // transformers' own default for this one.
        None if family == Family::Qwen3 => 128,
        None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
        None => {
            return Err(fields.wrong(
                "num_attention_heads",
                format!("{num_attention_heads} does not divide hidden_size = {hidden_size}"),
                "Correct one of the two, or state head_dim",
            ));
        }
    };
    let max_position_embeddings = fields.size("max_position_embeddings", Some(2048))?;
    let (rope_theta, rope_scaling) = rope_json::read(&fields, max_position_embeddings)?;
    let num_hidden_layers = fields.size("num_hidden_layers", None)?;
    refuse_sliding_windows(&fields, num_hidden_layers)?;
    let config = ModelConfig {
        family,
        attention_bias: family == Family::Qwen2 || fields.flag("attention_bias")?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", None)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.size("num_key_value_heads", Some(num_attention_heads))?,
        head_dim,
        vocab_size: fields.size("vocab_size", None)?,
        rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-6))?,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        max_position_embeddings,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_id: fields.token_ids("eos_token_id")?,
        pad_token_id: fields.token_ids("pad_token_id")?.first().copied(),
    };
    config.validate(place)?;
    Ok(config)
}

fn family(fields: &Fields) -> Result<Family> {
    let Some(Value::String(model_type)) = fields.get("model_type") else {
        return Err(fields.missing("model_type"));
    };
    let Some(family) = Family::ALL.into_iter().find(|family| family.model_type() == model_type) else {
        let known = Family::ALL.map(|family| format!("\"{}\"", family.model_type())).join(", ");
        let problem = format!("\"{model_type}\" is not one of the architectures computed here: {known}");
        return Err(fields.wrong("model_type", problem, "Use a model of one of them"));
    };
    if let Some(value) = fields.get("architectures")
        && !value.as_array().is_some_and(|a| a.iter().any(|a| a == family.architecture()))
    {
        let problem = format!("{value} holds no {}", family.architecture());
        return Err(fields.wrong("architectures", problem, "Use a causal language model"));
    }
    if family == Family::Qwen2 && fields.get("attention_bias").is_some_and(|bias| bias == false) {
        let problem = "false, but this architecture always has a bias on queries, keys and values";
        return Err(fields.wrong("attention_bias", problem, "Remove the field, or correct model_type"));
    }
    Ok(family)
}

/// Some layers that attend to the last tokens only would change the result.
fn refuse_sliding_windows(fields: &Fields, layers: usize) -> Result<()> {
    let fix = "Use a model whose layers all attend to the whole context";
    if let Some(types) = fields.get("layer_types") {
        let Some(types) = types.as_array() else {
            return Err(fields.wrong("layer_types", "not a list", "Correct it"));
        };
        if types.len() != layers {
            let problem = format!("{} kinds for num_hidden_layers = {layers}", types.len());
            return Err(fields.wrong("layer_types", problem, "Correct one of the two"));
        }
        return match types.iter().find(|kind| *kind != "full_attention") {
            None => Ok(()),
            Some(kind) => Err(fields.wrong("layer_types", format!("{kind} layers are not supported"), fix)),
        };
    }
    if !fields.flag("use_sliding_window")? || fields.get("sliding_window").is_none() {
        return Ok(());
    }
    let from = match fields.get("max_window_layers") {
        Some(value) if value == 0 => 0,
        _ => fields.size("max_window_layers", Some(28))?,
    };
    if from < layers {
        let problem =
            format!("true: layers from {from} on would see a sliding window, which is not supported");
        return Err(fields.wrong("use_sliding_window", problem, fix));
    }
    Ok(())
}

fn refuse_unknown_computations(fields: &Fields) -> Result<()> {
    let no = |field: &str, problem: String, fix: &str| Err(fields.wrong(field, problem, fix));
    if fields.flag("mlp_bias")? {
        let problem = "a bias on the MLP's layers is not supported".into();
        return no("mlp_bias", problem, "Use a model without it");
    }
    if let Some(act) = fields.get("hidden_act")
        && act != "silu"
    {
        return no("hidden_act", format!("{act} is not supported"), "Use a model with \"silu\"");
    }
    if fields.get("is_causal").is_some() && !fields.flag("is_causal")? {
        let problem = "false: attention to later tokens is not supported".into();
        return no("is_causal", problem, "Use a causal language model");
    }
    // MLX writes the first, transformers the second, older compressed-tensors the third.
    for field in ["quantization", "quantization_config", "compression_config"] {
        if fields.get(field).is_some() {
            let fix = "Use the model's unquantised weights, or import a GGUF with `rlvr import`";
            return no(field, "quantised weights are not supported".into(), fix);
        }
    }
    for (field, neutral) in [("attention_dropout", 0.0), ("partial_rotary_factor", 1.0)] {
        if let Some(value) = fields.get(field)
            && value.as_f64() != Some(neutral)
        {
            let problem = format!("{value} is not supported, only {neutral}");
            return no(field, problem, "Use a model without it");
        }
    }
    Ok(())
}

/// A complete `config.json` for weights stored as `dtype`; transformers and rlvr read it.
pub fn to_json(config: &ModelConfig, dtype: DType) -> Value {
    let mut json = json!({
        "architectures": [config.family.architecture()],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos_token_id(config),
        "pad_token_id": config.pad_token_id,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": config.family.model_type(),
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": config.rope_scaling.as_ref().map(rope_json::to_json),
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        },
        "use_cache": true,
        "vocab_size": config.vocab_size,
    });
    match config.family {
        Family::Llama => {
            json["mlp_bias"] = false.into();
            json["pretraining_tp"] = 1.into();
        }
        Family::Qwen2 | Family::Qwen3 => {
            json["use_sliding_window"] = false.into();
            json["sliding_window"] = Value::Null;
        }
    }
    json
}

/// The id alone where there is one, null where there is none.
pub(super) fn eos_token_id(config: &ModelConfig) -> Value {
    match config.eos_token_id[..] {
        [] => Value::Null,
        [one] => one.into(),
        _ => json!(config.eos_token_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 10, "rms_norm_eps": 1e-5, "eos_token_id": [2, 0],
            "bos_token_id": 1, "pad_token_id": -1, "tie_word_embeddings": true,
        })
    }

    /// `tiny` with one field changed.
    fn with(field: &str, value: Value) -> Result<ModelConfig> {
        let mut json = tiny();
        json[field] = value;
        from_json(&json, "config.json")
    }

    #[test]
    fn absent_fields_take_the_architectures_defaults() {
        let config = from_json(&tiny(), "config.json").unwrap();
        assert_eq!((config.head_dim, config.rope_theta, config.max_position_embeddings), (2, 10_000.0, 2048));
        assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), None));
        assert_eq!(config.eos_token_id, [2, 0]);
        assert_eq!(with("num_key_value_heads", Value::Null).unwrap().num_key_value_heads, 4);
    }

    #[test]
    fn rope_parameters_and_rope_scaling_say_the_same() {
        let numbers = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_theta": 256.0,
        });
        let new = with("rope_parameters", numbers.clone()).unwrap();
        assert_eq!(with("rope_scaling", numbers).unwrap(), new);
        // theta 256 and head_dim 2: a single frequency, 256^0 = 1.
        assert_eq!((new.rope_theta, new.rope_inverse_frequencies()), (256.0, vec![1.0]));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_field() {
        let cases = [
            ("model_type", json!("qwen3_moe")),
            ("architectures", json!(["LlamaForSequenceClassification"])),
            ("attention_bias", json!("yes")),
            ("layer_types", json!(["full_attention", "sliding_attention"])),
            ("mlp_bias", json!(true)),
            ("hidden_act", json!("gelu")),
            ("quantization_config", json!({"bits": 4})),
            ("partial_rotary_factor", json!(0.5)),
            ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0, "mrope_section": [1]})),
            ("num_key_value_heads", json!(3)),
            ("num_attention_heads", json!(3)),
            ("head_dim", json!(3)),
            ("hidden_size", json!(0)),
            ("vocab_size", json!(1u64 << 40)),
            ("rms_norm_eps", json!("small")),
            ("eos_token_id", json!(10)),
            ("tie_word_embeddings", json!("yes")),
        ];
        for (field, value) in cases {
            let error = with(field, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {field}")) && !error.contains('\n'), "{error}");
        }
        let mut json = tiny();
        json["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0});
        let error = from_json(&json, "config.json").unwrap_err().to_string();
        assert!(error.contains("rope_scaling: low_freq_factor: missing"), "{error}");
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let scaling = json!({"type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        for config in [with("rope_scaling", scaling).unwrap(), with("eos_token_id", 3.into()).unwrap()] {
            let json = to_json(&config, DType::BF16);
            assert_eq!(json["torch_dtype"], "bfloat16");
            assert_eq!(from_json(&json, "config.json").unwrap(), config);
        }
    }
}
