//! Rewards that a program or an address says: asked while the next completions are drawn, answered in the order of asking
//! (docs/rewards.md).

mod endpoint;
mod guard;
mod pool;
mod process;
mod question;
mod stderr;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use question::{Answer, Question, Subject};

use crate::error::{Error, Result};
use crate::task::{NamedReward, OnError, RewardKind, Task};
use pool::Pool;

/// All asked rewards of a task, with their processes.
pub struct Judges {
    parts: Vec<Part>,
}

struct Part {
    name: String,
    /// In [`Task::rewards`].
    index: usize,
    on_error: OnError,
    pool: Pool,
    has_warned: bool,
}

/// What one of the asked rewards says of a completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// In [`Task::rewards`].
    pub index: usize,
    /// Unweighted.
    pub value: f32,
    /// Where it was said in parts.
    pub named: Vec<(String, f32)>,
    /// Nobody could say: `value` is `on_error`'s.
    pub failed: bool,
}

/// Why one could not say.
#[derive(Clone, Debug, PartialEq)]
struct Fault {
    /// A clause.
    problem: String,
    fix: String,
}

impl Judges {
    /// With processes that start at their first question; none of a task that asks nobody.
    ///
    /// # Errors
    /// A header's variable is not set; threads cannot be had.
    pub fn open(task: &Task) -> Result<Option<Self>> {
        let asked = task.rewards().iter().enumerate().filter(|(_, named)| named.is_asked());
        let parts = asked.map(|(index, named)| Part::open(index, named)).collect::<Result<Vec<_>>>()?;
        Ok(Some(parts).filter(|parts| !parts.is_empty()).map(|parts| Self { parts }))
    }

    /// Nobody's silence counts as a value from now on.
    pub fn stop_on_error(&mut self) {
        self.parts.iter_mut().for_each(|part| part.on_error = OnError::Stop);
    }

    /// Has a completion judged in the background.
    pub fn ask(&self, question: Question) {
        let question = Arc::new(question);
        self.parts.iter().for_each(|part| part.pool.ask(Arc::clone(&question)));
    }

    /// Waits for the answers to all questions since the last call: by question in the order of asking, then by reward. And what there is
    /// to warn of.
    ///
    /// # Errors
    /// [`Error::Unrewarded`] of the first question that nobody could answer, where that ends the run; [`Error::Stopped`].
    pub fn take(&mut self) -> Result<(Vec<Vec<Said>>, Vec<String>)> {
        let mut all: Vec<Vec<Said>> = Vec::new();
        let mut warnings = Vec::new();
        for part in &mut self.parts {
            let answers = part.pool.open_questions();
            all.resize_with(answers.len(), Vec::new);
            for (said, question) in all.iter_mut().zip(answers) {
                said.push(part.said(&question, &mut warnings)?);
            }
        }
        Ok((all, warnings))
    }

    /// Lets all processes end by themselves. What they did beside answering.
    pub fn finish(self) -> Vec<String> {
        let name = |part: Part| {
            let name = part.name.clone();
            part.pool
                .finish()
                .into_iter()
                .map(move |fault| format!("extra_rewards.{name}: {}. {}", fault.problem, fault.fix))
        };
        self.parts.into_iter().flat_map(name).collect()
    }
}

impl Part {
    fn open(index: usize, named: &NamedReward) -> Result<Self> {
        let place = format!("extra_rewards.{}", named.name);
        let (pool, on_error) = match &named.kind {
            RewardKind::Program(spec) => (Pool::of_program(spec)?, spec.on_error),
            RewardKind::Http(spec) => (Pool::of_address(spec, &place)?, spec.on_error),
            RewardKind::Outcomes(_) | RewardKind::Regex(_) | RewardKind::Length(_) => {
                return Err(Error::Compute(format!("{place} is not asked for").into()));
            }
        };
        Ok(Self { name: named.name.clone(), index, on_error, pool, has_warned: false })
    }

    fn said(&mut self, question: &Question, warnings: &mut Vec<String>) -> Result<Said> {
        let fault = match self.pool.take()? {
            Ok(Answer { value, named }) => {
                return Ok(Said { index: self.index, value, named, failed: false });
            }
            Err(fault) => fault,
        };
        let place = format!("extra_rewards.{}, {}", self.name, question.place);
        match self.on_error {
            OnError::Stop => Err(Error::Unrewarded { place, problem: fault.problem, fix: fault.fix }),
            OnError::Value(value) => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    warnings.push(format!(
                        "{place}: {}. It counts as {value} (on_error), as further ones will; \
                         rewards/{}/failed is their share",
                        fault.problem, self.name
                    ));
                }
                Ok(Said { index: self.index, value, named: Vec::new(), failed: true })
            }
        }
    }
}

/// What a task starts and asks, a line each.
pub fn listed(task: &Task) -> Vec<String> {
    let line = |named: &NamedReward| {
        let name = &named.name;
        match &named.kind {
            RewardKind::Program(spec) => Some(format!("{name} runs `{}`", spec.line())),
            RewardKind::Http(spec) => {
                let variables: Vec<&str> = spec.headers.values().map(String::as_str).collect();
                let with = if variables.is_empty() {
                    String::new()
                } else {
                    format!(" with {}", variables.join(", "))
                };
                Some(format!("{name} sends rows to {}{with}", spec.url))
            }
            RewardKind::Outcomes(_) | RewardKind::Regex(_) | RewardKind::Length(_) => None,
        }
    };
    task.rewards().iter().filter_map(line).collect()
}

/// What to say where nobody is asked.
pub fn not_asked(task: &Task) -> Option<String> {
    let listed = listed(task);
    (!listed.is_empty())
        .then(|| format!("{}: not tried; add --allow-programs to see that it answers", listed.join("; ")))
}

/// # Errors
/// The task starts programs or asks addresses, and nobody allowed it.
pub fn permitted(task: &Task, allowed: bool) -> Result<()> {
    match listed(task) {
        listed if listed.is_empty() || allowed => Ok(()),
        listed => {
            let problem = format!("its rewards run what somebody wrote: {}", listed.join("; "));
            let fix = "Read it, then add --allow-programs";
            Err(Error::input(format!("task `{}`", task.name()), problem, fix))
        }
    }
}

/// Asks everyone one question and lets the processes end: a line for each answer.
///
/// # Errors
/// Somebody cannot answer, whatever `on_error` says, or does more than that.
pub fn probe(task: &Task, question: Question) -> Result<Vec<String>> {
    let Some(mut judges) = Judges::open(task)? else { return Ok(Vec::new()) };
    let place = question.place.clone();
    judges.stop_on_error();
    judges.ask(question);
    let said = judges.take().map_err(Error::as_input)?.0;
    let lines = said.into_iter().flatten().map(|said| {
        let name = task.rewards().get(said.index).map_or("", |named| named.name.as_str());
        let parts: Vec<String> = said.named.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        format!("{name} says {}{parts} of the answer to {place}", said.value)
    });
    let lines = lines.collect();
    match judges.finish().into_iter().next() {
        None => Ok(lines),
        Some(text) => Err(Error::input(place, text, "Correct the program")),
    }
}
