//! JSON schemas of the files that users write, made from the types that read them: editors complete by them.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Config;
use super::ablate::AblationConfig;

/// Schema of a training config, with the key `preset`, which [`super::Loaded`] reads before the rest.
pub fn config() -> Value {
    let mut schema = of::<Config>();
    let names: Vec<&str> = super::PRESETS.iter().map(|(name, _)| *name).collect();
    let preset = serde_json::json!({
        "description": "Start from this shipped config; the keys of the file lie on top.",
        "type": "string",
        "enum": names,
    });
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.shift_insert(0, "preset".into(), preset);
    }
    schema
}

/// Schema of an ablation.
pub fn ablation() -> Value {
    of::<AblationConfig>()
}

/// Schema of the TOML or JSON that `T` is read from, in one piece: draft 7, which editors of TOML know.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// Takes out what says nothing to a reader: defaults of whole sections, widths of numbers, line breaks of the source;
/// and gives f32 the digits it was written with.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(schema) => {
            let single = schema.get("format").is_some_and(|format| format == "float");
            if let Some(default) = schema.get_mut("default") {
                let written = default.as_f64().filter(|_| single).map(|x| (x as f32).to_string());
                if let Some(number) = written.and_then(|text| text.parse::<f64>().ok()) {
                    *default = number.into();
                }
            }
            hand_down(schema);
            if schema.get("default").is_some_and(|default| default.is_object() || default.is_null()) {
                schema.remove("default");
            }
            schema.remove("format");
            if let Some(Value::String(text)) = schema.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            not_null(schema);
            for (word, value) in schema {
                match (word.as_str(), value) {
                    // Names of keys, not words of the schema.
                    ("properties", Value::Object(properties)) => properties.values_mut().for_each(tidy),
                    ("default" | "const" | "enum", _) => {}
                    (_, value) => tidy(value),
                }
            }
        }
        _ => {}
    }
}

/// A section's default says what its keys are by default there; the type alone does not (`eval.sampling` is greedy).
fn hand_down(schema: &mut Map<String, Value>) {
    let Some(Value::Object(default)) = schema.get("default").cloned() else { return };
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for (name, value) in default {
        if let Some(Value::Object(property)) = properties.get_mut(&name) {
            property.insert("default".into(), value);
        }
    }
}

/// TOML has no null: a key that may be absent is left out.
fn not_null(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    let Some(Value::Array(choices)) = schema.get_mut("anyOf") else { return };
    choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        for (key, value) in only {
            // The field's own words come before those of its type.
            schema.entry(key).or_insert(value);
        }
    }
}
