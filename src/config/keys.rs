//! Every key of a config, out of the schema of the types that read it.

use std::sync::LazyLock;

use serde_json::Value;
use toml::Table;

use super::range::{self, Outside, Range};
use super::schema;
use crate::error::{Error, Result};

/// One key, and what is known of it without a config.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// `section.key`
    pub path: String,
    pub doc: String,
    /// What it takes, in words.
    pub takes: String,
    /// Values that it may have, each with what it means, where they are few.
    pub values: Vec<(String, String)>,
    /// As TOML writes it. None: absent unless given.
    pub default: Option<String>,
    /// Of a section of several types: the types that have this key. Empty: all.
    pub types: Vec<String>,
    /// Whether the user names the keys below it.
    pub open: bool,
    /// Of its number, or of each in its list.
    pub range: Option<Range>,
}

impl Key {
    /// What holds where the key is not given, in the words of its doc.
    pub fn when_absent(&self) -> String {
        let starts = ["Default", "Absent"].iter().filter_map(|word| self.doc.find(word)).min();
        let said = starts.map(|at| &self.doc[at..]).unwrap_or_default();
        let end = said.find(". ").map_or(said.len(), |end| end + 1);
        let said = said[..end].trim_end_matches('.').to_string();
        if said.is_empty() { "absent".into() } else { said }
    }
}

/// A table of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    pub path: String,
    pub doc: String,
    pub keys: Vec<Key>,
}

/// Sections of a training config as the types declare them; the first has the keys without a section.
pub static CONFIG: LazyLock<Vec<Section>> = LazyLock::new(|| sections(&schema::config()));

/// All keys of [`CONFIG`].
pub fn all() -> impl Iterator<Item = &'static Key> {
    CONFIG.iter().flat_map(|section| &section.keys)
}

/// Range of the number that a key takes.
pub fn range(path: &str) -> Option<Range> {
    all().find(|key| key.path == path)?.range
}

/// # Errors
/// A number of the table, or of a list in it, lies outside of its key's range.
pub(super) fn check(table: &Table) -> Result<()> {
    static SCHEMA: LazyLock<Value> = LazyLock::new(schema::config);
    match range::outside(&SCHEMA, &toml::Value::Table(table.clone())) {
        None => Ok(()),
        Some(Outside { path, value, range }) => {
            let why = "docs/config-reference.md states this range";
            Err(Error::config(&path, written(&value), format!("from {range}"), why))
        }
    }
}

/// Sections of the object that `schema` describes.
pub fn sections(schema: &Value) -> Vec<Section> {
    let mut out = Vec::new();
    collect("", "", schema, &mut out);
    out
}

fn text(schema: &Value, name: &str) -> String {
    schema[name].as_str().unwrap_or_default().to_string()
}

/// The sections' own keys first, then the sections below.
fn collect(path: &str, doc: &str, schema: &Value, out: &mut Vec<Section>) {
    let at = out.len();
    out.push(Section { path: path.into(), doc: doc.into(), keys: Vec::new() });
    let full = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    for (name, types, property) in properties(schema) {
        let below = full(name);
        if is_section(property) {
            collect(&below, &text(property, "description"), property, out);
            continue;
        }
        if let Some(known) = out[at].keys.iter_mut().find(|key| key.path == below) {
            known.types.extend(types);
            continue;
        }
        let mut key = key(below, property);
        key.types = types;
        if name == "type" {
            key.values = tagged(schema).map(|(tag, variant)| (tag, text(variant, "description"))).collect();
            key.takes = one_of(&key.values);
        }
        out[at].keys.push(key);
    }
    let every = tagged(schema).count();
    for key in &mut out[at].keys {
        if key.types.len() == every {
            key.types.clear();
        }
    }
}

/// Name, types that have it, and schema of each property.
fn properties(schema: &Value) -> Vec<(&String, Vec<String>, &Value)> {
    let mut found: Vec<(&String, Vec<String>, &Value)> = Vec::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        found.push((name, Vec::new(), property));
    }
    for (tag, variant) in tagged(schema) {
        for (name, property) in variant["properties"].as_object().into_iter().flatten() {
            found.push((name, vec![tag.clone()], property));
        }
    }
    found
}

/// The variants of a section that `type` chooses between.
fn tagged(schema: &Value) -> impl Iterator<Item = (String, &Value)> {
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    variants.filter_map(|variant| {
        let tag = variant["properties"]["type"]["const"].as_str()?;
        Some((tag.to_string(), variant))
    })
}

fn is_section(schema: &Value) -> bool {
    schema["properties"].is_object() || tagged(schema).next().is_some()
}

fn key(path: String, schema: &Value) -> Key {
    let values = choices(schema);
    let open = schema["type"] == "object";
    let takes = match schema["type"].as_str() {
        _ if !values.is_empty() => one_of(&values),
        Some("array") => list(schema),
        Some("integer") => ranged("whole number", schema),
        Some("number") => ranged("number", schema),
        Some("boolean") => "true or false".into(),
        Some("object") => "table".into(),
        Some("string") => "text".into(),
        Some(other) => other.to_string(),
        None => alternatives(schema),
    };
    let default = schema.get("default").map(toml_text);
    let (doc, range) = (text(schema, "description"), Range::of(schema));
    Key { path, doc, takes, values, default, types: Vec::new(), open, range }
}

fn ranged(kind: &str, schema: &Value) -> String {
    Range::of(schema).map_or_else(|| kind.into(), |range| format!("{kind}, {range}"))
}

fn one_of(values: &[(String, String)]) -> String {
    values.iter().map(|(value, _)| format!("\"{value}\"")).collect::<Vec<_>>().join(", ")
}

/// Texts that a key may have: those with words of their own are in `oneOf`, the others in `enum`.
fn choices(schema: &Value) -> Vec<(String, String)> {
    let plain = |value: &Value| value.as_str().map(|text| (text.to_string(), String::new()));
    let mut found: Vec<_> = schema["enum"].as_array().into_iter().flatten().filter_map(plain).collect();
    found.extend(plain(&schema["const"]));
    for choice in schema["oneOf"].as_array().into_iter().flatten() {
        found.extend(choices(choice).into_iter().map(|(value, _)| (value, text(choice, "description"))));
    }
    found
}

fn list(schema: &Value) -> String {
    let items = &schema["items"];
    let each = Range::of(items).map_or(String::new(), |range| format!(", each {range}"));
    let one = match items {
        Value::Array(several) => return format!("list of {} numbers{each}", several.len()),
        item => key(String::new(), item).takes,
    };
    let one = one.split(',').next().filter(|_| !each.is_empty()).map_or(one.clone(), String::from);
    match schema["minItems"].as_u64().filter(|least| schema["maxItems"].as_u64() == Some(*least)) {
        Some(count) => format!("list of {count} numbers{each}"),
        None if one.contains('"') => format!("list of {one}"),
        None => format!("list of {one}s{each}"),
    }
}

fn alternatives(schema: &Value) -> String {
    let all = schema["anyOf"].as_array().into_iter().flatten();
    all.map(|choice| key(String::new(), choice).takes).collect::<Vec<_>>().join(", or ")
}

/// A JSON value as TOML writes it.
fn toml_text(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| written(&value))
}

/// A value as TOML writes it, a small number with its exponent.
pub fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::Float(x) if *x != 0.0 && x.abs() < 1e-3 => format!("{x:e}"),
        other => other.to_string(),
    }
}
