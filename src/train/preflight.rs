//! What a run would begin with, found out without its weights: what `rlvr train` refuses is refused here too.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use candle_core::DType;

use super::launch::Fetched;
use super::materials::{Materials, Start};
use super::place::{self, Opened};
use crate::config::{Config, Stage};
use crate::error::Result;
use crate::formats::hf::weights;
use crate::model::config::ModelConfig;
use crate::observe::{Event, Sink, Sinks};
use crate::ops::cuda;
use crate::plan::activations;
use crate::plan::{Plan, Target};
use crate::reward;
use crate::run::RunDirectory;

/// Rows of each file that are looked at first.
pub const FIRST_ROWS: usize = 64;

pub struct Preflight {
    pub materials: Materials,
    pub model: ModelConfig,
    pub cuda: bool,
    pub dtype: DType,
    pub plan: Plan,
    /// Whether more than the first rows were read.
    pub all_rows: bool,
    pub notes: Vec<String>,
}

/// `scratch` is a folder for the tokenizer of a model from the seed.
///
/// # Errors
/// Those of a run before its first step, except that rows after the first [`FIRST_ROWS`] are read only where these alone
/// would be refused, and of weights the names and shapes. `whole` says whether weights are to be there.
pub fn preflight(fetched: &Fetched, whole: bool, scratch: &Path) -> Result<Preflight> {
    let config = &fetched.config;
    if let (Some(name), None) = (&config.run.name, config.run.resume) {
        RunDirectory::check_new(&config.run.root, name)?;
    }
    let Opened { place, fell_back } = place::open_for(config, 0)?;
    let heard = Heard::default();
    let mut sinks = Sinks::default();
    sinks.add(heard.clone());
    let first = Materials::gather(config, &first_rows(config), scratch, &mut sinks);
    let all_rows = first.is_err();
    let (materials, start) = match first {
        Ok(gathered) => gathered,
        // Too few rows to judge by, or what a run would say too.
        Err(_) => {
            heard.0.borrow_mut().clear();
            Materials::gather(config, config, scratch, &mut sinks)?
        }
    };
    let model = start.model()?;
    if let (Start::Folder(dir), true) = (&start, whole) {
        weights::check(dir, &model)?;
    }
    let answers = if config.packs_answers() { materials.task.labels().len() } else { 0 };
    let (on_cuda, dtype) = (place.device.is_cuda(), place.dtype);
    let target = Target { cuda: on_cuda, dtype, answers };
    let card = on_cuda.then(|| cuda::describe(&place.device)).transpose()?;
    let mut settled = config.clone();
    activations::settle(&mut settled, &model, target, card.map(|card| card.memory_total));
    let plan = Plan::new(&model, &settled, target);
    let mut notes = heard.0.take();
    notes.extend(fell_back);
    if config.stages.contains(&Stage::Grpo) {
        match fetched.may.programs {
            true => notes.extend(materials.probe_rewards()?),
            false => notes.extend(reward::not_asked(&materials.task)),
        }
    }
    Ok(Preflight { materials, model, cuda: on_cuda, dtype, plan, all_rows, notes })
}

/// The same config with no more rows than [`FIRST_ROWS`] of each file.
fn first_rows(config: &Config) -> Config {
    let mut config = config.clone();
    let fewer = |rows: usize| if rows == 0 { FIRST_ROWS } else { rows.min(FIRST_ROWS) };
    let data = &mut config.data;
    if let Some(synthetic) = &mut data.synthetic {
        for rows in [&mut synthetic.sft_rows, &mut synthetic.grpo_rows, &mut synthetic.valid_rows] {
            *rows = fewer(*rows);
        }
        return config;
    }
    (data.max_train_rows, data.max_valid_rows) = (fewer(data.max_train_rows), fewer(data.max_valid_rows));
    config
}

/// Keeps warnings and notes.
#[derive(Clone, Default)]
struct Heard(Rc<RefCell<Vec<String>>>);

impl Sink for Heard {
    fn name(&self) -> &str {
        "preflight"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        if let Event::Warning { text } | Event::Note { text } = event {
            self.0.borrow_mut().push(text.clone());
        }
        Ok(())
    }
}
