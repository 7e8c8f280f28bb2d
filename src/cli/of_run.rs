//! What a run says of its model where a flag of `rlvr eval` or `rlvr predict` does not.

use std::path::Path;

use super::hub::adapter;
use crate::config::Config;
use crate::data::near::NEAR;
use crate::data::overlap;
use crate::error::Result;
use crate::hub::{RUN_CONFIG, here, run_of};
use crate::task::Task;

/// Task of a model that is of no run.
const TASK: &str = "riskcue";
/// Tokens of an answer where the model is of no run.
const COMPLETION_TOKENS: usize = 64;

/// The model, or the adapter beside it, that a command was given.
#[derive(Clone, Copy, Default)]
pub struct Given<'a> {
    pub model: Option<&'a Path>,
    pub adapter: Option<&'a Path>,
}

impl Given<'_> {
    /// `named`, or the task that the run was trained on, which is said.
    ///
    /// # Errors
    /// As [`Task::load`] and [`Config::load`].
    pub fn task(self, named: Option<&str>) -> Result<Task> {
        let source = self.task_source(named)?;
        if named.is_none() && self.config()?.is_some() {
            eprintln!("task {source}, the run's");
        }
        Task::load(&source)
    }

    /// What [`Self::task`] loads.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn task_source(self, named: Option<&str>) -> Result<String> {
        match named {
            Some(named) => Ok(named.into()),
            None => Ok(self.config()?.map_or(TASK.into(), |of_run| of_run.task)),
        }
    }

    /// `asked`, or the budget of the run's evaluations.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn max_completion_tokens(self, asked: Option<usize>) -> Result<usize> {
        match asked {
            Some(asked) => Ok(asked),
            None => Ok(self.config()?.map_or(COMPLETION_TOKENS, |of_run| of_run.eval.max_completion_tokens)),
        }
    }

    /// What to say of rows that a threshold is fitted on and the run was trained on.
    pub fn trained_on(self, task: &Task, data: &Path) -> Option<String> {
        let of_run = self.config().ok().flatten()?;
        of_run.data.train_files().iter().find_map(|train| leaked(task, data, train.path))
    }

    /// Config of the run that the adapter, or else the model, is of.
    fn config(self) -> Result<Option<Config>> {
        let folder = match (self.adapter, self.model) {
            (Some(named), _) => Some(adapter(named)?),
            (None, model) => model.and_then(here),
        };
        let run = folder.and_then(|folder| run_of(&folder));
        run.map(|run| Config::load(&run.join(RUN_CONFIG).to_string_lossy(), &[])).transpose()
    }
}

fn leaked(task: &Task, data: &Path, train: &Path) -> Option<String> {
    let leaks = match overlap::leaks(task, data, train, NEAR) {
        Ok(leaks) => leaks,
        Err(error) => {
            return Some(format!("whether rows of {} were trained on is not known: {error}", data.display()));
        }
    };
    let exact = leaks.iter().filter(|leak| leak.similarity == 1.0).count();
    let first = leaks.first()?;
    Some(format!(
        "{} rows of {} are training rows of the run too ({}), {exact} of them word for word, the first in line {}: a \
             model is surer of those than of new ones, which will be flagged more often than this rate says. Fit it on rows \
             that nothing was trained on",
        leaks.len(),
        data.display(),
        train.display(),
        first.line
    ))
}
