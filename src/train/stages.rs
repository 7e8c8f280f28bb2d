//! The loop of a run: its stages in order, what comes between their steps, the model at the end.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::enumerate::Enumerate;
use super::grpo::Grpo;
use super::learner::Learner;
use super::lora::{Adapters, merged_bound};
use super::materials::Materials;
use super::objective::{At, Objective, Surroundings};
use super::sft::Sft;
use super::state::{self, Cursor, Evaluated};
use crate::config::{Config, Stage};
use crate::data::difficulty::Difficulty;
use crate::error::Result;
use crate::eval::{self, Evaluator};
use crate::export::aside::named_when_done;
use crate::formats::hf::load_decoder;
use crate::model::decoder::Decoder;
use crate::observe::{Event, Metrics, Sinks, peak_memory_gib};
use crate::ops::memory;
use crate::optim::adamw::AdamW;
use crate::optim::schedule::learning_rate;
use crate::run::{Checkpoint, RunDirectory};

/// A run that is under way.
pub struct Training<'a> {
    pub materials: Materials,
    /// `None`: all weights are trained.
    pub adapters: Option<Adapters<'a>>,
    pub record: Record<'a>,
}

/// What a run is, how far it is, and who is told.
pub struct Record<'a> {
    pub config: &'a Config,
    pub run: &'a RunDirectory,
    pub cursor: Cursor,
    pub sinks: Sinks,
}

impl Training<'_> {
    /// Runs what is left. `optimizer`: of a stage that goes on. Returns the folder of the final model.
    pub fn run(mut self, mut decoder: Decoder, mut optimizer: Option<AdamW>) -> Result<PathBuf> {
        let stages = &self.record.config.stages;
        if self.record.cursor.results.is_empty() {
            self.record.evaluate(&self.materials, &decoder, "vanilla", 0, Some("vanilla".into()))?;
        }
        while let Some(stage) = stages.get(self.record.cursor.stage) {
            decoder = self.stage(*stage, decoder, optimizer.take())?;
        }
        let model = save_model(&self.materials, &decoder, self.record.run)?;
        if let Some(adapters) = &self.adapters {
            adapters.save(self.record.config, &self.materials, &decoder, self.record.run)?;
        }
        let rows = self.record.cursor.results.iter().map(Evaluated::row).collect();
        self.record.sinks.emit(&Event::Finished { rows, run: self.record.run.path().into() });
        Ok(model)
    }

    /// What is left of one stage.
    fn stage(&mut self, stage: Stage, mut decoder: Decoder, optimizer: Option<AdamW>) -> Result<Decoder> {
        let Self { materials, adapters, record } = self;
        let (config, done) = (record.config, record.cursor.step);
        if let (Some(adapters), 0) = (adapters.as_mut(), done) {
            adapters.enter(&mut decoder, record.cursor.stage)?;
        }
        let (materials, adapters) = (&*materials, adapters.as_ref());
        let around =
            Surroundings { config, run: record.run, materials, adapters, stage: record.cursor.stage, done };
        let mut objective = objective(stage, around, &decoder, record.cursor.difficulty.take())?;
        let (steps, optim) = (objective.steps(), objective.optim().clone());
        record.sinks.emit(&Event::StageStarted { stage: stage.name().into(), steps, done });
        let activations = config.pack.activations;
        let mut learner = match optimizer {
            Some(optimizer) => Learner::resumed(decoder, optimizer, &optim, activations),
            None => Learner::new(decoder, &optim, activations, config.seed)?,
        };
        for step in done..steps {
            let start = Instant::now();
            let at = At { step, learning_rate: learning_rate(&optim, step, steps) };
            let metrics = objective.step(&mut learner, at, &mut record.sinks)?;
            record.step(stage, step + 1, metrics, start, learner.decoder())?;
            if step + 1 == steps {
                break; // The end of the stage is evaluated and kept without the optimiser.
            }
            if objective.is_evaluated_within() && is_due(step + 1, config.eval.every_steps) {
                record.evaluate(materials, learner.decoder(), stage.name(), step + 1, None)?;
            }
            if is_due(step + 1, config.checkpoint.every_steps) {
                record.cursor.optimizer_updates = Some(learner.optimizer().updates());
                record.cursor.difficulty = objective.difficulty().cloned();
                record.checkpoint(adapters, learner.decoder(), Some(learner.optimizer()))?;
            }
        }
        let decoder = learner.into_decoder();
        drop(objective);
        let so_far = &config.stages[..=record.cursor.stage];
        let name = so_far.iter().map(|s| s.name().to_uppercase()).collect::<Vec<_>>().join("+");
        record.evaluate(materials, &decoder, stage.name(), steps, Some(name))?;
        record.cursor.enter_next_stage();
        record.checkpoint(adapters, &decoder, None)?;
        Ok(decoder)
    }
}

/// What a stage does in a step. `difficulty`: what a checkpoint kept of it.
fn objective<'a>(
    stage: Stage,
    around: Surroundings<'a>,
    policy: &Decoder,
    difficulty: Option<Difficulty>,
) -> Result<Box<dyn Objective + 'a>> {
    Ok(match stage {
        Stage::Sft => Box::new(Sft::new(around)),
        Stage::Grpo => Box::new(Grpo::new(around, policy, difficulty)?),
        Stage::Enumerate => Box::new(Enumerate::new(around, policy)?),
    })
}

fn is_due(steps: u64, every: usize) -> bool {
    every > 0 && steps.is_multiple_of(every as u64)
}

impl Record<'_> {
    /// Counts a step, and tells of it.
    fn step(
        &mut self,
        stage: Stage,
        step: u64,
        mut metrics: Metrics,
        start: Instant,
        decoder: &Decoder,
    ) -> Result<()> {
        let seconds = start.elapsed().as_secs_f64();
        metrics.insert("step_time", seconds);
        if let Some(tokens) = metrics.get("num_tokens") {
            metrics.insert("tokens_per_second", tokens / seconds);
            // TRL's counter runs over the whole training.
            self.cursor.num_tokens += tokens as u64;
            metrics.insert("num_tokens", self.cursor.num_tokens as f64);
        }
        if let Some(gib) = peak_memory_gib() {
            metrics.insert("memory/peak_gib", gib);
        }
        if let Some(bytes) = memory::device_peak(decoder.device())? {
            metrics.insert("memory/device_peak_gib", bytes as f64 / (1u64 << 30) as f64);
        }
        self.cursor.step = step;
        self.cursor.total_steps += 1;
        self.sinks.emit(&Event::Step { stage: stage.name().into(), step, metrics });
        Ok(())
    }

    /// `result` names a row of the final table.
    fn evaluate(
        &mut self,
        materials: &Materials,
        decoder: &Decoder,
        stage: &str,
        step: u64,
        result: Option<String>,
    ) -> Result<()> {
        let evaluator = Evaluator {
            task: &materials.task,
            encoder: &materials.encoder,
            rows: &materials.rows.valid,
            config: &self.config.eval,
            pack: &self.config.pack,
            seed: self.config.seed,
        };
        let report = evaluator.evaluate(decoder, eval::At { stage, step }, &mut self.sinks)?;
        if let Some(name) = result {
            self.cursor.results.push(Evaluated::new(name, report.metrics()));
        }
        Ok(())
    }

    /// Everything that a resume needs, under the number of steps so far.
    fn checkpoint(
        &mut self,
        adapters: Option<&Adapters>,
        decoder: &Decoder,
        optimizer: Option<&AdamW>,
    ) -> Result<()> {
        let step = self.cursor.total_steps;
        let checkpoint = Checkpoint::write(self.run, step, |dir| {
            match adapters {
                Some(adapters) => adapters.write(dir, decoder)?,
                None => state::save_weights(dir, decoder)?,
            }
            state::write(dir, &self.cursor, decoder, optimizer)
        })?;
        checkpoint.keep_last(self.run, self.config.checkpoint.keep_last)?;
        self.sinks.emit(&Event::Checkpoint { step, path: checkpoint.path });
        Ok(())
    }
}

/// Writes the model folder aside, loads it back, compares log-probs on a probe, and only then gives it its name.
fn save_model(materials: &Materials, decoder: &Decoder, run: &RunDirectory) -> Result<PathBuf> {
    let target = run.model();
    named_when_done(&target, |aside: &Path| {
        materials.write_model(decoder, aside)?;
        let again = load_decoder(aside, decoder.max_positions(), &decoder.place())?;
        // An adapter is merged into the folder's weights, which rounds other sums.
        let bound = if decoder.adapter().is_some() { merged_bound(decoder) } else { 0.0 };
        materials.compare(decoder, &again, bound, &target)
    })?;
    Ok(target)
}
