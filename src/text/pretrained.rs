//! The small JSON files around a tokenizer: special tokens, chat template, stop tokens.

use std::path::{Path, PathBuf};

use minijinja::Value as JinjaValue;
use serde_json::Value;

use crate::disk;
use crate::error::{Error, Result};

/// `None` where there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = disk::read(path)?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::input(path.display(), format!("is not JSON: {e}"), "Copy the file again"))?;
    if !value.is_object() {
        return Err(Error::input(path.display(), "is not a JSON object", "Copy the file again"));
    }
    Ok(Some(value))
}

/// The special tokens that transformers hands to a chat template, by their names there (`bos_token`, ...).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecialTokens(Vec<(String, String)>);

const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl SpecialTokens {
    /// `tokenizer_config.json`, and for what it does not name `special_tokens_map.json`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let map = read_json(&dir.join("special_tokens_map.json"))?;
        let find = |name: &str| {
            [&config, &map].into_iter().flatten().find_map(|file| {
                // A token is its text, or an object with the text and how to match it.
                let token = file.get(name)?;
                token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_string)
            })
        };
        Ok(Self(NAMES.into_iter().filter_map(|name| Some((name.to_string(), find(name)?))).collect()))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, token)| token.as_str())
    }

    pub(super) fn variables(&self) -> impl Iterator<Item = (String, JinjaValue)> + '_ {
        self.0.iter().map(|(name, token)| (name.clone(), JinjaValue::from(token)))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for SpecialTokens {
    fn from(tokens: [(&str, &str); N]) -> Self {
        Self(tokens.map(|(name, token)| (name.to_string(), token.to_string())).to_vec())
    }
}

/// A chat template and where it stands.
#[derive(Debug)]
pub(super) struct TemplateSource {
    pub place: String,
    pub text: String,
}

/// `override_file` if given, else `chat_template.jinja` in `dir`, else `chat_template` in its
/// `tokenizer_config.json`: transformers' order.
pub(super) fn find_template(dir: &Path, override_file: Option<&Path>) -> Result<TemplateSource> {
    let beside = Some(dir.join("chat_template.jinja")).filter(|path| path.is_file());
    if let Some(path) = override_file.map(Path::to_path_buf).or(beside) {
        return read_template(path);
    }
    let path = dir.join("tokenizer_config.json");
    let fix = "Give a Jinja file in its place with model.chat_template";
    let Some(config) = read_json(&path)? else {
        return Err(Error::input(path.display(), "is missing, so there is no chat template", fix));
    };
    let place = format!("{}: chat_template", path.display());
    let text = match config.get("chat_template") {
        Some(Value::String(text)) => text,
        Some(Value::Array(list)) => named(list, "default").ok_or_else(|| {
            let names: Vec<_> = list.iter().filter_map(|entry| entry.get("name")?.as_str()).collect();
            Error::input(&place, format!("has no template named default, only: {}", names.join(", ")), fix)
        })?,
        None | Some(Value::Null) => return Err(Error::input(place, "the file has none", fix)),
        Some(_) => return Err(Error::input(place, "is neither a text nor a list of templates", fix)),
    };
    Ok(TemplateSource { place, text: text.clone() })
}

/// The text of `find_template`, or `None` where a model has no chat template at all, as base models.
///
/// # Errors
/// The file named is not there, or a template is broken.
pub fn chat_template_text(dir: &Path, override_file: Option<&Path>) -> Result<Option<String>> {
    let beside = dir.join("chat_template.jinja").is_file();
    let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    if override_file.is_none() && !beside && config["chat_template"].is_null() {
        return Ok(None);
    }
    find_template(dir, override_file).map(|source| Some(source.text))
}

fn named<'a>(list: &'a [Value], name: &str) -> Option<&'a String> {
    let entry = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?;
    match entry.get("template")? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn read_template(path: PathBuf) -> Result<TemplateSource> {
    if path.is_dir() {
        return Err(Error::input(path.display(), "is a folder, not a chat template", "Name a Jinja file"));
    }
    let text = disk::read_text(&path)?;
    Ok(TemplateSource { place: path.display().to_string(), text })
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`: a number or a list of them. Empty
/// where neither has it.
pub(super) fn end_token_ids(dir: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let Some(file) = read_json(&path)? else { continue };
        let ids = match file.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            Some(one) => id(one).map(|id| vec![id]),
        };
        return ids.ok_or_else(|| {
            let place = format!("{}: eos_token_id", path.display());
            Error::input(place, "is not a token id or a list of them", "Write numbers, 0 or above")
        });
    }
    Ok(Vec::new())
}

/// `vocab_size` of `config.json`, the rows of the embedding. `None` where the file does not say; what is wrong with a
/// broken one, the loader of the weights says better.
pub(super) fn vocab_size(dir: &Path) -> Option<usize> {
    let config = read_json(&dir.join("config.json")).ok()??;
    config.get("vocab_size")?.as_u64().and_then(|rows| usize::try_from(rows).ok())
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn special_tokens_are_texts_or_objects_and_the_map_fills_gaps() {
        let dir = dir_with(&[
            (
                "tokenizer_config.json",
                r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null}"#,
            ),
            ("special_tokens_map.json", r#"{"bos_token": "other", "eos_token": "</s>"}"#),
        ]);
        let tokens = SpecialTokens::from_dir(dir.path()).unwrap();
        assert_eq!(tokens, [("bos_token", "<s>"), ("eos_token", "</s>")].into());
        assert_eq!(tokens.get("pad_token"), None);
    }

    #[test]
    fn end_ids_come_from_the_first_file_that_has_them() {
        let config = ("config.json", r#"{"eos_token_id": 7}"#);
        for (generation, want) in [
            (r#"{"eos_token_id": 3}"#, vec![3]),
            (r#"{"eos_token_id": [3, 4]}"#, vec![3, 4]),
            (r#"{"eos_token_id": null}"#, vec![7]),
            ("{}", vec![7]),
        ] {
            let dir = dir_with(&[config, ("generation_config.json", generation)]);
            assert_eq!(end_token_ids(dir.path()).unwrap(), want, "{generation}");
        }
        assert_eq!(end_token_ids(dir_with(&[config]).path()).unwrap(), [7]);
        assert_eq!(end_token_ids(dir_with(&[]).path()).unwrap(), [0; 0]);
        for bad in [r#"{"eos_token_id": -1}"#, r#"{"eos_token_id": ["x"]}"#, "[]", "{"] {
            let dir = dir_with(&[("generation_config.json", bad)]);
            let error = end_token_ids(dir.path()).unwrap_err().to_string();
            assert!(error.contains("generation_config.json"), "{error}");
        }
    }

    #[test]
    fn the_template_is_the_override_then_the_file_then_the_config() {
        let dir = dir_with(&[
            ("tokenizer_config.json", r#"{"chat_template": "config"}"#),
            ("chat_template.jinja", "beside"),
            ("mine.jinja", "mine"),
        ]);
        let mine = dir.path().join("mine.jinja");
        assert_eq!(find_template(dir.path(), Some(&mine)).unwrap().text, "mine");
        assert_eq!(find_template(dir.path(), None).unwrap().text, "beside");
        std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
        assert_eq!(find_template(dir.path(), None).unwrap().text, "config");
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        let dir = dir_with(&[("tokenizer_config.json", list)]);
        assert_eq!(find_template(dir.path(), None).unwrap().text, "d");
    }

    #[test]
    fn a_missing_template_says_where_it_was_looked_for() {
        let error =
            |files: &[(&str, &str)]| find_template(dir_with(files).path(), None).unwrap_err().to_string();
        assert!(error(&[]).contains("tokenizer_config.json: is missing"));
        for (config, want) in [
            ("{}", "the file has none"),
            (r#"{"chat_template": null}"#, "the file has none"),
            (r#"{"chat_template": 3}"#, "neither a text nor a list"),
            (r#"{"chat_template": [{"name": "rag", "template": "t"}]}"#, "only: rag"),
            ("[]", "not a JSON object"),
            ("{", "is not JSON"),
        ] {
            let error = error(&[("tokenizer_config.json", config)]);
            assert!(error.contains("tokenizer_config.json") && error.contains(want), "{error}");
        }
        let dir = dir_with(&[("latin1.jinja", "x")]);
        std::fs::write(dir.path().join("latin1.jinja"), [0xE9]).unwrap();
        let overridden = |file: &Path| find_template(dir.path(), Some(file)).unwrap_err().to_string();
        assert!(overridden(&dir.path().join("latin1.jinja")).contains("is not UTF-8"));
        assert!(overridden(&dir.path().join("absent.jinja")).contains("absent.jinja: cannot read"));
        assert!(overridden(dir.path()).contains("is a folder"));
    }
}
