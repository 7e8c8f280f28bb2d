//! What the tokenizer of a model from the seed is built from.

use std::path::Path;

use crate::config::Config;
use crate::data::raw;
use crate::data::synthetic::{self, Spec, Split};
use crate::error::{Error, Result};
use crate::task::Task;

/// Rows of a file that are read at most.
const MOST_ROWS: usize = 10_000;

/// Texts, and phrases that become one token each: of the synthetic logs, or of the first rows of `data.train` or of each source of
/// `data.mix`.
pub fn of(config: &Config, task: &Task) -> Result<(Vec<String>, Vec<&'static str>)> {
    if let Some(data) = &config.data.synthetic {
        let spec =
            Spec { safe_share: data.sft_safe_share, ..Spec::new(config.seed, Split::Train, data.sft_rows) };
        let texts = synthetic::rows(&spec).into_iter().flat_map(|row| {
            let messages = row["prompt"].as_array().into_iter().flatten();
            let texts = messages.filter_map(|m| m["content"].as_str()).chain(row["chosen"].as_str());
            texts.map(String::from).collect::<Vec<_>>()
        });
        return Ok((texts.collect(), synthetic::phrases()));
    }
    let files = config.data.train_files();
    if files.is_empty() {
        return config.data.validate().and(Err(Error::Compute("no data".into())));
    }
    let texts = files.iter().map(|file| of_file(file.path, task)).collect::<Result<Vec<_>>>()?;
    Ok((texts.concat(), Vec::new()))
}

/// Texts of the first rows of a file.
pub fn of_file(path: &Path, task: &Task) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for (place, row) in raw::rows(path, MOST_ROWS)? {
        let sample = task.sample(&row, &place.file, place.line)?;
        let messages = sample.conversation.messages;
        texts.extend(messages.iter().map(|message| message.text().into_owned()).chain(sample.target));
    }
    Ok(texts)
}
