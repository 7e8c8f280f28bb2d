//! `[[data.mix]]` and `[[data.valid_files]]`: several data files in the place of one.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A file of `[[data.mix]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixSource {
    /// As `data.train`.
    pub path: PathBuf,
    /// How often its rows are drawn, against the weights of the other sources.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: f64,
    /// What metrics call it. Default: the file's name without its ending, the data set's without its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A file of `[[data.valid_files]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidFile {
    /// As `data.valid`.
    pub path: PathBuf,
    /// What metrics call it. Default: the file's name without its ending, the data set's without its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// A data file of a config.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFile<'a> {
    /// The key that names it, and its source where it is one of several: `data.mix.NAME`.
    pub key: String,
    pub path: &'a Path,
    /// None where it is the only one.
    pub source: Option<String>,
}

/// Rows after which the shares of the sources repeat: each has a whole number of them.
pub const CYCLE: usize = 4096;

/// What metrics call a file that has no name of its own.
fn name_of(path: &Path, given: Option<&String>) -> String {
    if let Some(name) = given {
        return name.clone();
    }
    let text = path.to_string_lossy();
    match text.strip_prefix("hf:") {
        Some(set) => {
            let repo = set.split(['@', ':']).next().unwrap_or_default();
            repo.rsplit('/').next().unwrap_or_default().into()
        }
        None => {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.split_once('.').map_or(file.as_ref(), |(stem, _)| stem).into()
        }
    }
}

fn file<'a>(key: &str, path: &'a Path, name: Option<&String>) -> DataFile<'a> {
    let source = name_of(path, name);
    DataFile { key: format!("{key}.{source}"), path, source: Some(source) }
}

pub(super) fn sources(mix: &[MixSource]) -> Vec<DataFile<'_>> {
    mix.iter().map(|source| file("data.mix", &source.path, source.name.as_ref())).collect()
}

pub(super) fn valid_files(files: &[ValidFile]) -> Vec<DataFile<'_>> {
    files.iter().map(|of| file("data.valid_files", &of.path, of.name.as_ref())).collect()
}

/// Paths and names, of the list that `key` is.
fn check_names(key: &str, files: &[DataFile]) -> Result<()> {
    for (at, file) in files.iter().enumerate() {
        if file.path.as_os_str().is_empty() {
            let key = format!("{key}[{at}].path");
            return Err(Error::config(&key, "\"\"", "a path", "an empty one names nothing"));
        }
        let (name, key) = (file.source.as_deref().unwrap_or_default(), format!("{key}[{at}].name"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            let want = "letters, digits, `.`, `_` and `-`";
            return Err(Error::config(&key, format!("{name:?}"), want, "metrics are called source/NAME/..."));
        }
        if let Some(other) = files[..at].iter().find(|other| other.source == file.source) {
            let problem =
                format!("{} and {} are both called `{name}`", other.path.display(), file.path.display());
            return Err(Error::input(key, problem, "Give each a `name` of its own"));
        }
    }
    Ok(())
}

pub(super) fn validate(mix: &[MixSource], valid: &[ValidFile]) -> Result<()> {
    check_names("data.mix", &sources(mix))?;
    check_names("data.valid_files", &valid_files(valid))?;
    let all: f64 = mix.iter().map(|source| source.weight).sum();
    for (at, source) in mix.iter().enumerate() {
        let key = format!("data.mix[{at}].weight");
        if !(source.weight > 0.0 && source.weight.is_finite()) {
            let why = "a source that is never drawn is left out of the list";
            return Err(Error::config(&key, source.weight, "above 0", why));
        }
        if all.is_finite() && source.weight / all * CYCLE as f64 <= 0.5 {
            let why = format!("a source has at least one of {CYCLE} rows");
            let least = all / CYCLE as f64;
            return Err(Error::config(
                &key,
                source.weight,
                format!("{least:.3e} or more beside the others"),
                why,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_its_name_its_stem_or_its_data_set() {
        for (path, name, want) in [
            ("a/b.jsonl", None, "b"),
            ("a/b.jsonl.gz", None, "b"),
            ("b", None, "b"),
            ("hf:org/set-1:train", None, "set-1"),
            ("hf:org/set-1@0f2:en/train", None, "set-1"),
            ("hf:org/set-1:train", Some("x".to_string()), "x"),
        ] {
            assert_eq!(name_of(Path::new(path), name.as_ref()), want, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_mixed_is_named_with_its_key() {
        let said = |sources: &[(&str, f64, Option<&str>)]| {
            let source = |(path, weight, name): &(&str, f64, Option<&str>)| MixSource {
                path: path.into(),
                weight: *weight,
                name: name.map(String::from),
            };
            let mix: Vec<MixSource> = sources.iter().map(source).collect();
            validate(&mix, &[]).map_err(|error| error.to_string())
        };
        assert_eq!(said(&[("a.jsonl", 1.0, None), ("b.jsonl", 1e-3, None)]), Ok(()));
        for (sources, want) in [
            (vec![("a.jsonl", 0.0, None)], "data.mix[0].weight = 0: must be above 0"),
            (
                vec![("a.jsonl", 1.0, None), ("b.jsonl", -1.0, None)],
                "data.mix[1].weight = -1: must be above 0",
            ),
            (vec![("a.jsonl", f64::NAN, None)], "data.mix[0].weight = NaN: must be above 0"),
            (
                vec![("a.jsonl", 1.0, None), ("b.jsonl", 1e-5, None)],
                "data.mix[1].weight = 0.00001: must be 2.44",
            ),
            (
                vec![("x/a.jsonl", 1.0, None), ("y/a.csv", 1.0, None)],
                "x/a.jsonl and y/a.csv are both called `a`",
            ),
            (vec![("a b.jsonl", 1.0, None)], "data.mix[0].name = \"a b\": must be letters"),
            (vec![("a.jsonl", 1.0, Some("p/q"))], "data.mix[0].name = \"p/q\": must be letters"),
            (vec![("", 1.0, Some("p"))], "data.mix[0].path = \"\": must be a path"),
        ] {
            let error = said(&sources).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
