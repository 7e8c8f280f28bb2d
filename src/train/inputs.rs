//! What a run reads beside its config, by digest: a run that goes on is to go on with the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::config::mix::DataFile;
use crate::disk;
use crate::error::Result;
use crate::hub::data_files;
use crate::run::{hex, sha256};
use crate::task::{RewardKind, Task};

/// SHA-256 by name, of whole files. Empty in the checkpoints of earlier versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(BTreeMap<String, String>);

/// What a tokenizer's folder may have that prompts depend on.
const TEXT: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
const SHAPE: [&str; 2] = ["config.json", "generation_config.json"];

impl Inputs {
    /// Data files, task, files in the commands of its rewards, tokenizer, chat template, and the shape of the base model. Its weights with `[lora]` only: without, a checkpoint
    /// has all weights, and nothing depends on the base any more. What is no file, a pipe for instance, is left out.
    ///
    /// `run`: the run's folder, where a model from the seed has its tokenizer.
    pub fn of(config: &Config, run: &Path) -> Result<Self> {
        let mut files: Vec<(String, PathBuf)> = Vec::new();
        let mut add = |name: &str, path: PathBuf| {
            if path.is_file() {
                files.push((name.into(), path));
            }
        };
        let data = config.data.train_files().into_iter().chain(config.data.held_out_files());
        for DataFile { key: name, path, .. } in data {
            match data_files(path)?.as_slice() {
                [single] => add(&name, single.clone()),
                // Of a data set of the hub.
                several => {
                    for (at, file) in several.iter().enumerate() {
                        add(&format!("{name}, file {}", at + 1), file.clone());
                    }
                }
            }
        }
        config.model.chat_template.iter().for_each(|path| add("model.chat_template", path.clone()));
        let model = config.model.path.as_deref();
        let own = run.join("tokenizer");
        let text = config.model.tokenizer.as_deref().or(model).unwrap_or(&own);
        TEXT.iter().for_each(|name| add(&format!("{TOKENIZER}{name}"), text.join(name)));
        if let Some(model) = model {
            SHAPE.iter().for_each(|name| add(&format!("model/{name}"), model.join(name)));
            if config.lora.is_some() {
                for path in disk::entries(model)? {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if name.ends_with(".safetensors") {
                        add(&format!("model/{name}"), path);
                    }
                }
            }
        }
        for named in Task::load(&config.task)?.rewards() {
            let RewardKind::Program(program) = &named.kind else { continue };
            program
                .files()
                .for_each(|(word, path)| add(&format!("extra_rewards.{}/{word}", named.name), path));
        }
        let mut all = files
            .into_par_iter()
            .map(|(name, path)| Ok((name, sha256(&path)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        all.insert("task".into(), hex(&Sha256::digest(Task::text(&config.task)?.as_bytes())));
        Ok(Self(all))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is not as it was in `then`. `makes_tokenizer`: the run makes one where it has none.
    pub fn changed(&self, then: &Self, makes_tokenizer: bool) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(then.0.keys()).collect();
        let made = |name: &str| makes_tokenizer && name.starts_with(TOKENIZER) && !self.0.contains_key(name);
        let changed = names.into_iter().filter(|name| self.0.get(*name) != then.0.get(*name) && !made(name));
        let how = |name: &String| match (then.0.contains_key(name), self.0.contains_key(name)) {
            (true, false) => format!("{name} (gone)"),
            (false, true) => format!("{name} (new)"),
            _ => name.clone(),
        };
        changed.map(how).collect()
    }
}

const TOKENIZER: &str = "tokenizer/";

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(pairs: &[(&str, &str)]) -> Inputs {
        Inputs(pairs.iter().map(|(name, digest)| (name.to_string(), digest.to_string())).collect())
    }

    #[test]
    fn what_changed_went_or_came_is_named() {
        let then = inputs(&[("data.train", "1"), ("task", "2"), ("tokenizer/tokenizer.json", "3")]);
        let now = inputs(&[("data.train", "9"), ("data.valid", "4"), ("task", "2")]);
        assert_eq!(now.changed(&then, true), ["data.train", "data.valid (new)"]);
        let all = ["data.train", "data.valid (new)", "tokenizer/tokenizer.json (gone)"];
        assert_eq!(now.changed(&then, false), all);
        assert!(then.changed(&then, false).is_empty());
    }
}
