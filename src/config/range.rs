//! The range of every number that a config or a flag takes, out of the schema of the types that read a config.

use std::fmt;

use serde_json::Value;

/// Both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    pub least: f64,
    pub most: f64,
}

impl Range {
    /// None of a schema that is no number, or has one end only.
    pub fn of(schema: &Value) -> Option<Self> {
        let of_list = || Self::of(schema.get("items")?);
        let of_choice = || schema.get("anyOf")?.as_array()?.iter().find_map(Self::of);
        let own = || Some(Self { least: schema["minimum"].as_f64()?, most: schema["maximum"].as_f64()? });
        own().or_else(of_list).or_else(of_choice)
    }

    pub fn contains(self, number: f64) -> bool {
        (self.least..=self.most).contains(&number)
    }
}

/// A number of a file that lies outside of its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Outside {
    /// `section.key`
    pub path: String,
    pub value: toml::Value,
    pub range: Range,
}

/// The first such number of `value`, by the `schema` of the type that reads it; of tables whose keys the user names, and of lists of
/// tables, too.
pub fn outside(schema: &Value, value: &toml::Value) -> Option<Outside> {
    within("", schema, value)
}

fn within(path: &str, schema: &Value, value: &toml::Value) -> Option<Outside> {
    let number = match value {
        toml::Value::Integer(whole) => *whole as f64,
        toml::Value::Float(number) => *number,
        toml::Value::Array(list) => {
            let of = |i: usize| match &schema["items"] {
                Value::Array(several) => several.get(i),
                Value::Null => None,
                each => Some(each),
            };
            let found = list.iter().enumerate().find_map(|(i, value)| within(path, of(i)?, value));
            return found.or_else(|| choices(schema).find_map(|choice| within(path, choice, value)));
        }
        toml::Value::Table(table) => {
            let of = |key: &str| {
                let named = schema["properties"].get(key);
                named.or_else(|| schema.get("additionalProperties").filter(|open| open.is_object()))
            };
            let full = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            let found = table.iter().find_map(|(key, value)| within(&full(key), of(key)?, value));
            return found.or_else(|| choices(schema).find_map(|choice| within(path, choice, value)));
        }
        _ => return None,
    };
    let range = Range::of(schema).filter(|range| !range.contains(number))?;
    Some(Outside { path: path.into(), value: value.clone(), range })
}

fn choices(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].into_iter().filter_map(|word| schema[word].as_array()).flatten()
}

/// Every schema of a number, with its key, wherever it stands.
#[cfg(test)]
pub(crate) fn numbers(path: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
    if matches!(schema["type"].as_str(), Some("integer" | "number")) {
        found.push((path.into(), schema.clone()));
    }
    for word in ["items", "anyOf", "oneOf", "additionalProperties"] {
        match &schema[word] {
            Value::Null | Value::Bool(_) => {}
            Value::Array(several) => several.iter().for_each(|one| numbers(path, one, found)),
            one => numbers(path, one, found),
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        numbers(&path, property, found);
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |x: f64| if x.abs() > 1e15 { format!("{x:e}") } else { x.to_string() };
        write!(f, "{} to {}", end(self.least), end(self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, keys, schema};

    #[test]
    fn every_number_of_a_config_and_an_ablation_has_a_range() {
        let mut found = Vec::new();
        numbers("", &schema::config(), &mut found);
        numbers("", &schema::ablation(), &mut found);
        assert!(found.len() > 60, "{}", found.len());
        let without: Vec<&String> =
            found.iter().filter(|(_, schema)| Range::of(schema).is_none()).map(|(path, _)| path).collect();
        assert!(without.is_empty(), "write #[schemars(range(min = .., max = ..))] at: {without:?}");
    }

    #[test]
    fn numbers_are_found_wherever_they_lie() {
        let number = |most: i64| serde_json::json!({"type": "integer", "minimum": 0, "maximum": most});
        let schema = serde_json::json!({
            "properties": {
                "plain": number(9),
                "pair": {"items": [number(1), number(2)]},
                "list": {"items": number(5)},
                "rules": {"items": {"properties": {"weight": number(3)}}},
                "named": {"additionalProperties": {"properties": {"weight": number(3)}}},
                "tagged": {"oneOf": [{"properties": {"a": number(1)}}, {"properties": {"b": number(2)}}]},
            },
            "additionalProperties": false,
        });
        let found = |text: &str| outside(&schema, &toml::from_str::<toml::Value>(text).unwrap());
        let path = |text: &str| found(text).map(|outside| outside.path);
        for inside in
            ["plain = 9", "pair = [1, 2]", "list = []", "tagged = {b = 2}", "other = 99", "named.x = {}"]
        {
            assert_eq!(path(inside), None, "{inside}");
        }
        for (text, want) in [
            ("plain = -1", "plain"),
            ("pair = [1, 3]", "pair"),
            ("list = [1, 6]", "list"),
            ("rules = [{weight = 1}, {weight = 4}]", "rules.weight"),
            ("named.x.weight = 4", "named.x.weight"),
            ("tagged = {b = 3}", "tagged.b"),
        ] {
            assert_eq!(path(text).as_deref(), Some(want), "{text}");
        }
        assert_eq!(found("plain = nan").unwrap().range, Range { least: 0.0, most: 9.0 });
    }

    #[test]
    fn what_lies_outside_of_a_range_is_refused_and_its_ends_are_heard_out() {
        let list = ["run.dump_steps"];
        for key in keys::all().filter(|key| key.range.is_some()) {
            let Range { least, most } = key.range.unwrap();
            let whole = !key.takes.starts_with("number") && !key.takes.contains("numbers, each 0 to 1");
            let mut values: Vec<String> = [i64::MAX, i64::MIN, -1, 1 << 62, 4_294_967_295, 4_000_000_000]
                .iter()
                .map(ToString::to_string)
                .collect();
            values.push("18446744073709551615".into());
            if !whole {
                values.extend(
                    ["1.7976931348623157e308", "-1.7e308", "inf", "-inf", "nan", "5e-324"].map(String::from),
                );
            }
            values.extend(
                [least, most].map(|end| if whole { format!("{}", end as i64) } else { format!("{end:?}") }),
            );
            for value in values {
                let written = match (key.path.as_str(), key.path.ends_with("betas")) {
                    (_, true) => format!("[{value}, {value}]"),
                    (path, _) if list.contains(&path) => format!("[{value}]"),
                    _ => value.clone(),
                };
                let set = [format!("{}={written}", key.path)];
                let number: f64 = value.parse().unwrap();
                match Config::load("demo", &set) {
                    Ok(_) => assert!(Range { least, most }.contains(number), "{set:?} was taken"),
                    Err(error) => assert!(error.is_input(), "{set:?}: {error}"),
                }
            }
        }
    }

    #[test]
    fn the_message_names_key_value_and_range() {
        let refused = |set: &str| Config::load("demo", &[set.into()]).unwrap_err().to_string();
        let said = refused("threads=4294967295");
        assert!(said.starts_with("threads = 4294967295: must be from 0 to 1024, because docs/"), "{said}");
        let said = refused("data.synthetic.sft_rows=4000000000");
        assert!(
            said.starts_with("data.synthetic.sft_rows = 4000000000: must be from 0 to 100000,"),
            "{said}"
        );
        assert!(refused("run.dump_steps=[1, 9000000000]").starts_with("run.dump_steps = 9000000000:"));
        assert!(refused("pack.max_reused_tokens=99999999999").starts_with("pack.max_reused_tokens = "));
        assert!(refused("sft.epochs=inf").starts_with("sft.epochs = inf: must be"));
    }
}
