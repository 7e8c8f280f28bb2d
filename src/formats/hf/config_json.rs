//! Reading `config.json` in Hugging Face layout: what rlvr cannot compute is refused by its field's name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::config::{Family, ModelConfig};
use crate::model::rope_scaling::{Llama3Scaling, RopeScaling, YarnScaling};

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
        let family = fields.family()?;
        fields.refuse_unknown_computations()?;
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
        let (rope_theta, rope_scaling) = fields.rope(max_position_embeddings)?;
        let num_hidden_layers = fields.size("num_hidden_layers", None)?;
        fields.refuse_sliding_windows(num_hidden_layers)?;
        let config = Self {
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

    fn family(&self) -> Result<Family> {
        let Some(Value::String(model_type)) = self.get("model_type") else {
            return Err(self.missing("model_type"));
        };
        let Some(family) = Family::ALL.into_iter().find(|family| family.model_type() == model_type) else {
            let known = Family::ALL.map(|family| format!("\"{}\"", family.model_type())).join(", ");
            let problem = format!("\"{model_type}\" is not one of the architectures computed here: {known}");
            return Err(self.wrong("model_type", problem, "Use a model of one of them"));
        };
        if let Some(value) = self.get("architectures")
            && !value.as_array().is_some_and(|a| a.iter().any(|a| a == family.architecture()))
        {
            let problem = format!("{value} holds no {}", family.architecture());
            return Err(self.wrong("architectures", problem, "Use a causal language model"));
        }
        if family == Family::Qwen2 && self.get("attention_bias").is_some_and(|bias| bias == false) {
            let problem = "false, but this architecture always has a bias on queries, keys and values";
            return Err(self.wrong("attention_bias", problem, "Remove the field, or correct model_type"));
        }
        Ok(family)
    }

    /// Some layers that attend to the last tokens only would change the result.
    fn refuse_sliding_windows(&self, layers: usize) -> Result<()> {
        let fix = "Use a model whose layers all attend to the whole context";
        if let Some(types) = self.get("layer_types") {
            let other = types.as_array().map(|types| types.iter().find(|kind| *kind != "full_attention"));
            return match other {
                Some(None) => Ok(()),
                Some(Some(kind)) => {
                    Err(self.wrong("layer_types", format!("{kind} layers are not supported"), fix))
                }
                None => Err(self.wrong("layer_types", "not a list", "Correct it")),
            };
        }
        let from = self.size("max_window_layers", Some(28))?;
        if self.flag("use_sliding_window")? && self.get("sliding_window").is_some() && from < layers {
            let problem =
                format!("true: layers from {from} on would see a sliding window, which is not supported");
            return Err(self.wrong("use_sliding_window", problem, fix));
        }
        Ok(())
    }

    fn refuse_unknown_computations(&self) -> Result<()> {
        let no = |field: &str, problem: String, fix: &str| Err(self.wrong(field, problem, fix));
        if self.flag("mlp_bias")? {
            let problem = "a bias on the MLP's layers is not supported".into();
            return no("mlp_bias", problem, "Use a model without it");
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
    fn rope(&self, max_positions: usize) -> Result<(f64, Option<RopeScaling>)> {
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
        let kind = if field == "rope_parameters" { kind.or(Some("default")) } else { kind };
        let (known, scaling): (&[&str], _) = match kind {
            Some("default") => (&[], None),
            Some("linear") => {
                (&["factor"], Some(RopeScaling::Linear { factor: rope.positive("factor", None)? }))
            }
            Some("llama3") => (&LLAMA3_FIELDS, Some(RopeScaling::Llama3(rope.llama3()?))),
            Some("yarn") => (&YARN_FIELDS, Some(RopeScaling::Yarn(rope.yarn(max_positions, theta)?))),
            other => {
                let problem = format!("\"{}\" is not supported", other.unwrap_or(""));
                let fix =
                    "Use a model with plain rotary embeddings, or \"linear\", \"llama3\" or \"yarn\" scaling";
                return Err(rope.wrong("rope_type", problem, fix));
            }
        };
        if rope.get("partial_rotary_factor").is_some_and(|x| x.as_f64() != Some(1.0)) {
            return Err(rope.wrong("partial_rotary_factor", "only 1 is supported", "Use a model without it"));
        }
        let common = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        let unknown = |name: &&String| !common.contains(&name.as_str()) && !known.contains(&name.as_str());
        match map.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).find(unknown) {
            // Left behind by other kinds; plain angles read none of them.
            Some(_) if scaling.is_none() => Ok((theta, None)),
            Some(name) => Err(rope.wrong(name, "an unknown number of the scaling", "Use a model without it")),
            None => Ok((theta, scaling)),
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

    fn yarn(&self, max_positions: usize, theta: f64) -> Result<YarnScaling> {
        let optional = |field: &str| self.get(field).map(|_| self.positive(field, None)).transpose();
        let original = self.size("original_max_position_embeddings", Some(max_positions))?;
        let scaling = YarnScaling {
            factor: self.positive("factor", Some(max_positions as f64 / original as f64))?,
            original_max_position_embeddings: original,
            beta_fast: optional("beta_fast")?,
            beta_slow: optional("beta_slow")?,
            truncate: self.get("truncate").map(|_| self.flag("truncate")).transpose()?,
            attention_factor: optional("attention_factor")?,
            mscale: optional("mscale")?,
            mscale_all_dim: optional("mscale_all_dim")?,
            attn_factor: optional("attn_factor")?,
        };
        if scaling.beta_fast.unwrap_or(32.0) < scaling.beta_slow.unwrap_or(1.0) {
            return Err(self.wrong("beta_fast", "below beta_slow", "Correct one of the two"));
        }
        if theta <= 1.0 {
            return Err(self.wrong("rope_theta", format!("{theta} is not above 1"), "Correct it"));
        }
        Ok(scaling)
    }
}

const LLAMA3_FIELDS: [&str; 4] =
    ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
const YARN_FIELDS: [&str; 9] = [
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "truncate",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "attn_factor",
];

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
        let error = ModelConfig::from_json(&json, "config.json").unwrap_err().to_string();
        assert!(error.contains("rope_scaling: low_freq_factor: missing"), "{error}");
    }
}
