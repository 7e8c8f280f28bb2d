//! Flags that say which tokenizer and chat template a model gets.

use std::path::{Path, PathBuf};

use anyhow::Result;
use toml::{Table, Value};

use super::hub::folder;
use crate::error::Error;
use crate::hub::Parts;
use crate::text::{Date, EncoderFiles, PromptEncoder};

/// The keys of `[model]` in a config.
#[derive(Debug, clap::Args)]
pub struct TextArgs {
    /// Folder with the tokenizer, when it is not the model's own.
    #[arg(long, value_name = "DIR", requires = "model")]
    tokenizer: Option<PathBuf>,
    /// Jinja file in place of the tokenizer's chat template.
    #[arg(long, value_name = "FILE", requires = "model")]
    chat_template: Option<PathBuf>,
    /// Variable for the chat template, as in enable_thinking=false. May be given many times.
    #[arg(long = "template-arg", value_name = "NAME=VALUE", requires = "model")]
    template_args: Vec<String>,
}

impl TextArgs {
    /// What is read in the place of the model's own.
    pub fn files(&self) -> Vec<PathBuf> {
        let tokenizer = self.tokenizer.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten());
        let files = tokenizer.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
        files.chain(self.chat_template.clone()).collect()
    }

    /// # Errors
    /// As [`PromptEncoder::load`]; a `--template-arg` without `=`.
    pub fn encoder(&self, model: &Path) -> Result<PromptEncoder> {
        let model = folder(model, Parts::Text)?.dir;
        let tokenizer = self.tokenizer.as_deref().map(|path| folder(path, Parts::Text)).transpose()?;
        let encoder = PromptEncoder::load(&EncoderFiles {
            model_dir: &model,
            tokenizer_dir: tokenizer.as_ref().map(|found| found.dir.as_path()),
            chat_template: self.chat_template.as_deref(),
            date: Date::default(),
            template_args: Some(&self.table()?),
        })?;
        if let Some(note) = encoder.note() {
            eprintln!("{note}");
        }
        Ok(encoder)
    }

    /// As `--set` reads values: TOML, or else a bare text.
    fn table(&self) -> Result<Table> {
        let read = |text: &String| {
            let Some((name, value)) = text.split_once('=') else {
                let place = format!("--template-arg {text}");
                return Err(Error::input(place, "has no `=`", "Write --template-arg name=value").into());
            };
            let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
            Ok((name.trim().to_string(), parsed.unwrap_or_else(|| Value::String(value.into()))))
        };
        self.template_args.iter().map(read).collect()
    }
}
