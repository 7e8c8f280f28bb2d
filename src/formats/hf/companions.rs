//! The files that travel with a model's weights: tokenizer, chat template, generation config.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config_json::eos_token_id;
use crate::error::{Error, Result};
use crate::formats::file::write_json;
use crate::model::config::ModelConfig;
use crate::text::{Date, EncoderFiles};

const GENERATION: &str = "generation_config.json";
const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    GENERATION,
];

/// Where the files that travel with a model lie.
pub struct Companions {
    pub model_dir: PathBuf,
    /// The model's own folder unless another was named.
    pub tokenizer_dir: PathBuf,
    /// A Jinja file in place of the tokenizer's chat template.
    pub chat_template: Option<PathBuf>,
}

impl Companions {
    /// All from one folder.
    pub fn of(model_dir: &Path) -> Self {
        Self { model_dir: model_dir.into(), tokenizer_dir: model_dir.into(), chat_template: None }
    }

    pub fn encoder_files(&self) -> EncoderFiles<'_> {
        EncoderFiles {
            model_dir: &self.model_dir,
            tokenizer_dir: Some(&self.tokenizer_dir),
            chat_template: self.chat_template.as_deref(),
            date: Date::default(),
            template_args: None,
        }
    }

    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer_dir.join("tokenizer.json").is_file()
    }

    /// Copies what there is into the folder `to`. Without a `generation_config.json`, one is made of `config`'s ids.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn copy_to(&self, to: &Path, config: &ModelConfig) -> Result<()> {
        for name in FILES {
            let dir = if name == GENERATION { &self.model_dir } else { &self.tokenizer_dir };
            let (source, target) = (dir.join(name), to.join(name));
            if source.is_file() {
                std::fs::copy(&source, &target).map_err(Error::io(&target, "copy a tokenizer file"))?;
            }
        }
        if let Some(template) = &self.chat_template {
            let target = to.join("chat_template.jinja");
            std::fs::copy(template, &target).map_err(Error::io(&target, "copy the chat template"))?;
        }
        let generation = to.join(GENERATION);
        if generation.exists() {
            return Ok(());
        }
        write_json(&generation, &generation_config(config))
    }
}

/// A `generation_config.json` of the model's special ids; those that it lacks are left out.
pub fn generation_config(config: &ModelConfig) -> Value {
    let ids = [
        ("bos_token_id", config.bos_token_id.into()),
        ("eos_token_id", eos_token_id(config)),
        ("pad_token_id", config.pad_token_id.into()),
    ];
    let known = ids.into_iter().filter(|(_, id): &(_, Value)| !id.is_null());
    Value::Object(known.map(|(name, id)| (name.to_string(), id)).collect())
}
