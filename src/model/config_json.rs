//! Reading `config.json` in Hugging Face layout: what rlvr cannot compute is refused by its field's name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::config::{Llama3Scaling, ModelConfig};

impl ModelConfig {
    /// Reads `dir/config.json`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if dir.is_dir() && !path.exists() {
            let fix =
                "Give a model folder in Hugging Face layout; a GGUF file becomes one with `rlvr import`";
            return Err(Error::input(path.display(), "is missing", fix));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let json = serde_json::from_str(&text).map_err(|e| {
            Error::input(path.display(), format!("not valid JSON ({e})"), "Fetch the file again")
        })?;
        Self::from_json(&json, &path.display().to_string())
    }

    /// `place` names the source in errors.
    pub fn from_json(json: &Value, place: &str) -> Result<Self> {
        let Some(map) = json.as_object() else {
            return Err(Error::input(place, "not a JSON object", "Give a model's config.json"));
        };
        let fields = Fields { place: place.into(), map };
        fields.refuse_other_models()?;
        let hidden_size = fields.size("hidden_size", None)?;
        let num_attention_heads = fields.size("num_attention_heads", None)?;
        let head_dim = match fields.get("head_dim") {
            Some(_) => fields.size("head_dim", None)?,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(fields.wrong(
                    "num_attention_heads",
                    format!("{num_attention_heads} does not divide hidden_size = {hidden_size}"),
                    "Correct one of the two, or state head_dim",
                ));
            }
        };
        let (rope_theta, rope_scaling) = fields.rope()?;
        let config = Self {
            hidden_size,
            intermediate_size: fields.size("intermediate_size", None)?,
            num_hidden_layers: fields.size("num_hidden_layers", None)?,
            num_attention_heads,
            num_key_value_heads: fields.size("num_key_value_heads", Some(num_attention_heads))?,
            head_dim,
            vocab_size: fields.size("vocab_size", None)?,
            rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-6))?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            max_position_embeddings: fields.size("max_position_embeddings", Some(2048))?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            eos_token_id: fields.token_ids("eos_token_id")?,
            pad_token_id: fields.token_ids("pad_token_id")?.first().copied(),
        };
        config.validate(place)?;
        Ok(config)
    }
}

/// A JSON object whose errors name the file and the field. An explicit null reads as absent.
struct Fields<'a> {
    place: String,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn wrong(&self, field: &str, problem: impl ToString, fix: &str) -> Error {
        Error::input(format!("{}: {field}", self.place), problem, fix)
    }

    fn missing(&self, field: &str) -> Error {
        self.wrong(field, "missing", "Fetch the model's own config.json")
    }

    fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => {
                value.as_u64().filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                    self.wrong(field, format!("{value} is not a positive whole number"), "Correct it")
                })
            }
        }
    }

    fn positive(&self, field: &str, default: Option<f64>) -> Result<f64> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .ok_or_else(|| self.wrong(field, format!("{value} is not a positive number"), "Correct it")),
        }
    }

    fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(field, format!("{value} is neither true nor false"), "Correct it")),
        }
    }

    /// One id, a list of ids, or nothing. A negative id is some files' way of saying none.
    fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => &[],
            Some(Value::Array(values)) => &values[..],
            Some(value) => std::slice::from_ref(value),
        };
        let values = values.iter().filter(|value| value.as_i64().is_none_or(|id| id >= 0));
        values
            .map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong(field, "not a token id or a list of them", "Correct it"))
    }

    fn refuse_other_models(&self) -> Result<()> {
        let no = |field: &str, problem: String, fix: &str| Err(self.wrong(field, problem, fix));
        match self.get("model_type").map(Value::as_str) {
            Some(Some("llama")) => {}
            Some(Some(other)) => {
                let note = if other.starts_with("qwen") { ", Qwen is not supported yet" } else { "" };
                let problem = format!("\"{other}\" is not the Llama architecture{note}");
                return no("model_type", problem, "Use a model whose model_type is \"llama\"");
            }
            _ => return Err(self.missing("model_type")),
        }
        if let Some(value) = self.get("architectures")
            && !value.as_array().is_some_and(|a| a.iter().any(|a| a == "LlamaForCausalLM"))
        {
            let problem = format!("{value} holds no LlamaForCausalLM");
            return no("architectures", problem, "Use a causal language model");
        }
        for field in ["attention_bias", "mlp_bias"] {
            if self.flag(field)? {
                return no(
                    field,
                    "linear layers with a bias are not supported".into(),
                    "Use a model without biases",
                );
            }
        }
        if let Some(act) = self.get("hidden_act")
            && act != "silu"
        {
            return no("hidden_act", format!("{act} is not supported"), "Use a model with \"silu\"");
        }
        if self.get("quantization_config").is_some() {
            let fix = "Use the model's unquantised weights, or import a GGUF with `rlvr import`";
            return no("quantization_config", "quantised weights are not supported".into(), fix);
        }
        for (field, neutral) in [("attention_dropout", 0.0), ("partial_rotary_factor", 1.0)] {
            if let Some(value) = self.get(field)
                && value.as_f64() != Some(neutral)
            {
                let problem = format!("{value} is not supported, only {neutral}");
                return no(field, problem, "Use a model without it");
            }
        }
        Ok(())
    }

    /// Base and scaling, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.
    fn rope(&self) -> Result<(f64, Option<Llama3Scaling>)> {
        let field = if self.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let Some(value) = self.get(field) else {
            return Ok((self.positive("rope_theta", Some(10_000.0))?, None));
        };
        let Some(map) = value.as_object() else {
            return Err(self.wrong(field, "not an object", "Correct it"));
        };
        let rope = Fields { place: format!("{}: {field}", self.place), map };
        let theta = match rope.get("rope_theta") {
            Some(_) => rope.positive("rope_theta", None)?,
            None => self.positive("rope_theta", Some(10_000.0))?,
        };
        let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str);
        match kind {
            Some("default") => Ok((theta, None)),
            None if field == "rope_parameters" => Ok((theta, None)),
            Some("llama3") => Ok((theta, Some(rope.llama3()?))),
            other => Err(rope.wrong(
                "rope_type",
                format!("\"{}\" is not supported", other.unwrap_or("")),
                "Use a model with plain rotary embeddings or \"llama3\" scaling",
            )),
        }
    }

    fn llama3(&self) -> Result<Llama3Scaling> {
        let scaling = Llama3Scaling {
            factor: self.positive("factor", None)?,
            low_freq_factor: self.positive("low_freq_factor", None)?,
            high_freq_factor: self.positive("high_freq_factor", None)?,
            original_max_position_embeddings: self.size("original_max_position_embeddings", None)?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Err(self.wrong(
                "high_freq_factor",
                "not above low_freq_factor",
                "Correct one of the two",
            ));
        }
        Ok(scaling)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn tiny() -> Value {
        json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 10, "rms_norm_eps": 1e-5, "eos_token_id": [2, 0],
            "bos_token_id": 1, "pad_token_id": -1, "tie_word_embeddings": true,
        })
    }

    /// `tiny` with one field changed.
    pub(crate) fn with(field: &str, value: Value) -> Result<ModelConfig> {
        let mut json = tiny();
        json[field] = value;
        ModelConfig::from_json(&json, "config.json")
    }

    #[test]
    fn absent_fields_take_the_architectures_defaults() {
        let config = ModelConfig::from_json(&tiny(), "config.json").unwrap();
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
            ("model_type", json!("qwen3")),
            ("architectures", json!(["LlamaForSequenceClassification"])),
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("hidden_act", json!("gelu")),
            ("quantization_config", json!({"bits": 4})),
            ("partial_rotary_factor", json!(0.5)),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
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
        let error = ModelConfig::from_json(&json, "config.json").unwrap_err().to_string();
        assert!(error.contains("rope_scaling: low_freq_factor: missing"), "{error}");
    }
}
