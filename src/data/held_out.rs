//! The rows that a config evaluates on.

use std::path::Path;

use super::jsonl::{Dataset, Source, Watch};
use super::limits::{Limits, Targets};
use super::synthetic::{self, Spec, Split};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::task::Task;
use crate::text::PromptEncoder;

/// What `[data]` says is kept of a file.
pub fn limits(config: &Config, max_rows: usize, targets: Targets) -> Limits {
    let data = &config.data;
    Limits {
        max_prompt_tokens: data.max_prompt_tokens,
        max_target_tokens: data.max_target_tokens,
        max_rows,
        targets,
    }
}

/// Rows of `data.valid` or `data.valid_files`, or the synthetic ones in their place.
///
/// # Errors
/// As [`Source::load`]; the config has no data.
pub fn held_out(config: &Config, task: &Task, encoder: &PromptEncoder, watch: Watch) -> Result<Dataset> {
    let data = &config.data;
    let source = |max_rows| Source {
        task,
        encoder,
        limits: limits(config, max_rows, Targets::Ignored),
        distill: None,
    };
    match &data.synthetic {
        Some(made) => {
            let spec = Spec::new(config.seed, Split::Test, made.valid_rows);
            source(0).encode(Path::new("synthetic logs"), &synthetic::rows(&spec))
        }
        None if data.held_out_files().is_empty() => {
            data.validate().and(Err(Error::Compute("no data".into())))
        }
        None => source(data.max_valid_rows).load_all(&data.held_out_files(), watch),
    }
}
