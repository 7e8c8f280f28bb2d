//! Rotary embeddings in `config.json`: the base and the scaling, read and written.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::Result;
use crate::model::rope_scaling::{Llama3Scaling, RopeScaling, YarnScaling};

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

/// Base and scaling, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`.
///
/// transformers 5 takes `rope_scaling` where both are there, other programs the newer one: files in which they differ mean
/// one thing here and another there, and are refused. So is a `rope_theta` beside another one within.
pub(super) fn read(config: &Fields, max_positions: usize) -> Result<(f64, Option<RopeScaling>)> {
    let [new, old] = ["rope_parameters", "rope_scaling"];
    // An empty object is an absent one, as transformers reads it.
    let get = |field| config.get(field).filter(|value| value.as_object().is_none_or(|map| !map.is_empty()));
    match (get(new), get(old)) {
        (None, None) => Ok((config.positive("rope_theta", Some(10_000.0))?, None)),
        (Some(value), None) => read_field(config, new, value, max_positions),
        (None, Some(value)) => read_field(config, old, value, max_positions),
        (Some(newer), Some(older)) => {
            let found = read_field(config, new, newer, max_positions)?;
            if read_field(config, old, older, max_positions)? != found {
                let problem = format!("says something else than {old}");
                return Err(config.wrong(new, problem, "Remove the one of the two that is not meant"));
            }
            Ok(found)
        }
    }
}

fn read_field(
    config: &Fields,
    field: &str,
    value: &Value,
    max_positions: usize,
) -> Result<(f64, Option<RopeScaling>)> {
    let Some(map) = value.as_object() else {
        return Err(config.wrong(field, "not an object", "Correct it"));
    };
    let rope = Fields { place: format!("{}: {field}", config.place), map };
    let theta = match rope.get("rope_theta") {
        Some(_) => {
            let within = rope.positive("rope_theta", None)?;
            let beside = config.positive("rope_theta", Some(within))?;
            if beside != within {
                let problem = format!("{within}, but {beside} beside {field}");
                return Err(rope.wrong("rope_theta", problem, "Remove the one of the two that is not meant"));
            }
            within
        }
        None => config.positive("rope_theta", Some(10_000.0))?,
    };
    if let Some((name, _)) = map.iter().find(|(_, value)| value.is_object()) {
        let problem = "an object: numbers for one kind of layer only are not supported";
        return Err(rope.wrong(name, problem, "Use a model whose layers all turn by the same angles"));
    }
    let kind = rope.get("rope_type").or(rope.get("type")).and_then(Value::as_str);
    let kind = if field == "rope_parameters" { kind.or(Some("default")) } else { kind };
    let (known, scaling): (&[&str], _) = match kind {
        Some("default") => (&[], None),
        Some("linear") => (&["factor"], Some(RopeScaling::Linear { factor: rope.positive("factor", None)? })),
        Some("llama3") => {
            let original = original_positions(config, &rope, field, max_positions)?;
            (&LLAMA3_FIELDS, Some(RopeScaling::Llama3(llama3(&rope, original)?)))
        }
        Some("yarn") => {
            let original = original_positions(config, &rope, field, max_positions)?;
            (&YARN_FIELDS, Some(RopeScaling::Yarn(yarn(&rope, original, theta)?)))
        }
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

/// The positions that the scaling starts from: within the scaling, or beside it, where transformers lets it win, so the
/// two have to agree. Where neither says it, `max_position_embeddings`.
fn original_positions(config: &Fields, rope: &Fields, field: &str, max_positions: usize) -> Result<usize> {
    let name = "original_max_position_embeddings";
    let within = rope.size(name, Some(config.size(name, Some(max_positions))?))?;
    let beside = config.size(name, Some(within))?;
    if beside != within {
        let problem = format!("{beside}, but {within} within {field}");
        return Err(config.wrong(name, problem, "Remove the one of the two that is not meant"));
    }
    Ok(within)
}

fn llama3(rope: &Fields, original_max_position_embeddings: usize) -> Result<Llama3Scaling> {
    let scaling = Llama3Scaling {
        factor: rope.positive("factor", None)?,
        low_freq_factor: rope.positive("low_freq_factor", None)?,
        high_freq_factor: rope.positive("high_freq_factor", None)?,
        original_max_position_embeddings,
    };
    if scaling.high_freq_factor <= scaling.low_freq_factor {
        return Err(rope.wrong("high_freq_factor", "not above low_freq_factor", "Correct one of the two"));
    }
    Ok(scaling)
}

fn yarn(rope: &Fields, original: usize, theta: f64) -> Result<YarnScaling> {
    let optional = |field: &str| rope.get(field).map(|_| rope.positive(field, None)).transpose();
    let scaling = YarnScaling {
        factor: rope.positive("factor", None)?,
        original_max_position_embeddings: original,
        beta_fast: optional("beta_fast")?,
        beta_slow: optional("beta_slow")?,
        truncate: rope.get("truncate").map(|_| rope.flag("truncate")).transpose()?,
        attention_factor: optional("attention_factor")?,
        mscale: optional("mscale")?,
        mscale_all_dim: optional("mscale_all_dim")?,
        attn_factor: optional("attn_factor")?,
    };
    if scaling.beta_fast.unwrap_or(32.0) < scaling.beta_slow.unwrap_or(1.0) {
        return Err(rope.wrong("beta_fast", "below beta_slow", "Correct one of the two"));
    }
    if theta <= 1.0 {
        return Err(rope.wrong("rope_theta", format!("{theta} is not above 1"), "Correct it"));
    }
    Ok(scaling)
}

/// The `rope_scaling` of a `config.json`; what the source left out stays out.
pub(super) fn to_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3(s) => json!({
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_position_embeddings,
        }),
        RopeScaling::Yarn(s) => {
            let optional = [
                ("beta_fast", s.beta_fast),
                ("beta_slow", s.beta_slow),
                ("attention_factor", s.attention_factor),
                ("mscale", s.mscale),
                ("mscale_all_dim", s.mscale_all_dim),
                ("attn_factor", s.attn_factor),
            ];
            let mut map = Map::new();
            map.insert("rope_type".into(), "yarn".into());
            map.insert("factor".into(), s.factor.into());
            map.insert("original_max_position_embeddings".into(), s.original_max_position_embeddings.into());
            map.extend(optional.into_iter().filter_map(|(name, x)| Some((name.into(), x?.into()))));
            map.extend(s.truncate.map(|truncate| ("truncate".into(), truncate.into())));
            map.into()
        }
    }
}
