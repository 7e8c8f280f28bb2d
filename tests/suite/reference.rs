//! What is written from the types that read configs and task files: the page of all keys, and the schemas that editors
//! complete by. `RLVR_UPDATE=1 cargo test --release --test suite reference` writes them.

use std::path::PathBuf;

use rlvr::config::{keys, reference, schema};
use rlvr::task::Task;
use serde_json::Value;

use crate::support::made::hold;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_page_of_all_keys_is_current() {
    hold("docs/config-reference.md", reference::page(&keys::CONFIG));
}

#[test]
fn the_schemas_are_current() {
    let all = [("config", schema::config()), ("task", Task::schema()), ("ablation", schema::ablation())];
    for (kind, schema) in all {
        hold(&format!("docs/schema/{kind}.schema.json"), format!("{schema:#}\n"));
    }
}

#[test]
fn every_shipped_file_names_its_schema() {
    for (folder, kind) in [("configs", "config"), ("tasks", "task")] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let ablation = path.file_name().unwrap().to_str().unwrap().starts_with("ablate-");
            let kind = if ablation { "ablation" } else { kind };
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.lines().next().unwrap().strip_prefix("#:schema ").unwrap_or_default();
            let file = path.parent().unwrap().join(named);
            assert!(file.is_file(), "{}: its first line names no schema that is here", path.display());
            assert_eq!(file.file_name().unwrap().to_str().unwrap(), format!("{kind}.schema.json"));
            let schema = match kind {
                "task" => Task::schema(),
                "ablation" => schema::ablation(),
                _ => schema::config(),
            };
            let file: toml::Table = text.parse().unwrap();
            fits(&serde_json::to_value(file).unwrap(), &schema, "")
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// So much of a schema as ours use.
fn fits(value: &Value, schema: &Value, key: &str) -> Result<(), String> {
    let wrong = |want: &str| Err(format!("{key} = {value}: {want}"));
    for alternatives in ["oneOf", "anyOf"] {
        if let Some(all) = schema[alternatives].as_array()
            && all.iter().all(|one| fits(value, one, key).is_err())
        {
            return wrong(&format!("none of {alternatives} {all:?}"));
        }
    }
    if schema.get("const").is_some_and(|constant| constant != value) {
        return wrong("another constant");
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        return wrong("not in the list");
    }
    match schema["type"].as_str() {
        Some("integer") if !(value.is_i64() || value.is_u64()) => wrong("no whole number"),
        Some("number") if !value.is_number() => wrong("no number"),
        Some("string") if !value.is_string() => wrong("no text"),
        Some("boolean") if !value.is_boolean() => wrong("no boolean"),
        Some("array") => {
            let Some(items) = value.as_array() else { return wrong("no list") };
            let of = &schema["items"];
            items.iter().filter(|_| of.is_object()).try_for_each(|item| fits(item, of, key))
        }
        Some("object") => {
            let Some(table) = value.as_object() else { return wrong("no table") };
            for name in schema["required"].as_array().into_iter().flatten() {
                if !table.contains_key(name.as_str().unwrap()) {
                    return wrong(&format!("lacks {name}"));
                }
            }
            table.iter().try_for_each(|(name, value)| {
                let key = format!("{key}.{name}");
                match (&schema["properties"][name], &schema["additionalProperties"]) {
                    (Value::Null, Value::Bool(true)) => Ok(()),
                    (Value::Null, other @ Value::Object(_)) => fits(value, other, &key),
                    (Value::Null, _) => Err(format!("{key} is not in the schema")),
                    (property, _) => fits(value, property, &key),
                }
            })
        }
        _ => Ok(()),
    }
}

#[test]
fn what_does_not_fit_a_schema_is_found() {
    let schema = schema::config();
    for (text, wrong) in [
        ("[grpo]\ngroup_sise = 4", "grpo.group_sise"),
        ("[grpo.loss]\ntype = \"sapo\"\nepsilon_high = 0.3", "grpo.loss"),
        ("[model]\ndtype = \"f16\"", "model.dtype"),
        ("stages = [\"ppo\"]", "stages"),
        ("[data.synthetic]\nsft_rows = 4", "lacks"),
    ] {
        let file: toml::Table = text.parse().unwrap();
        let error = fits(&serde_json::to_value(file).unwrap(), &schema, "").unwrap_err();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn every_key_says_what_it_is() {
    let bare: Vec<&str> = keys::all()
        .filter(|key| key.doc.is_empty() && !key.path.ends_with(".type"))
        .map(|key| key.path.as_str())
        .collect();
    assert!(bare.is_empty(), "keys without a doc comment: {bare:?}");
    assert!(keys::all().count() > 90, "the schema lost its keys");
}

#[test]
fn every_default_that_is_printed_is_the_default() {
    let whole = rlvr::config::Config::default().to_toml().unwrap();
    let defaults = rlvr::config::keys_of("defaults", &whole).unwrap();
    for (key, value) in &defaults {
        let known = keys::all()
            .find(|known| known.path == *key)
            .unwrap_or_else(|| panic!("{key} is not in the schema"));
        let same = |text: &str| text.parse::<f64>().ok();
        let said = known.default.as_deref();
        let equal = said == Some(value) || said.and_then(same).is_some_and(|said| Some(said) == same(value));
        // A section of several types says its type, not a default.
        assert!(equal || key.ends_with(".type"), "{key}: {said:?}, and it is {value}");
    }
}
