//! The files that travel with a model's weights: tokenizer, chat template, generation config.

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::weights::write_json;
use crate::error::{Error, Result};
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
        let eos = match config.eos_token_id[..] {
            [] => None,
            [one] => Some(json!(one)),
            _ => Some(json!(config.eos_token_id)),
        };
        let ids = [
            ("bos_token_id", config.bos_token_id.map(Into::into)),
            ("eos_token_id", eos),
            ("pad_token_id", config.pad_token_id.map(Into::into)),
        ];
        let ids: Map<_, _> = ids.into_iter().filter_map(|(name, id)| Some((name.to_string(), id?))).collect();
        write_json(&generation, &ids.into())
    }
}
