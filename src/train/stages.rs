//! The loop of a run: its stages in order, what comes between their steps, the model at the end.

use std::path::PathBuf;
use std::time::Instant;

use super::best::{self, Candidate, Evaluated};
use super::enumerate::Enumerate;
use super::grpo::Grpo;
use super::learner::Learner;
use super::lora::Adapters;
use super::materials::Materials;
use super::objective::{At, Objective, Surroundings};
use super::sft::Sft;
use super::state::{self, Cursor};
use crate::config::{Config, Stage};
use crate::data::difficulty::Difficulty;
use crate::error::Result;
use crate::eval::constants::constant_answers;
use crate::eval::{self, Evaluator};
use crate::hub::RUN_ADAPTER;
use crate::model::decoder::Decoder;
use crate::observe::{Event, Metrics, Sinks, TableRow, peak_memory_gib};
use crate::ops::memory;
use crate::optim::adamw::AdamW;
use crate::optim::schedule::learning_rate;
use crate::run::{Checkpoint, RunDirectory};
use crate::task::EvalReport;

/// The evaluation before any training.
const VANILLA: &str = "vanilla";

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
        self.record.sinks.emit(&self.materials.held_out_prompts()?);
        if self.record.cursor.results.is_empty() {
            let report = self.record.evaluate(&self.materials, None, &decoder, VANILLA, 0)?;
            self.record.cursor.results.push(Evaluated::new(VANILLA.into(), report.metrics()));
        }
        while let Some(stage) = stages.get(self.record.cursor.stage) {
            decoder = self.stage(*stage, decoder, optimizer.take())?;
        }
        let chosen = self.save(&decoder)?;
        let Record { config, run, cursor, sinks } = &mut self.record;
        let mut rows: Vec<TableRow> = cursor.results.iter().map(Evaluated::row).collect();
        if let Some(best) = cursor.choice.best.as_ref().filter(|best| best.total_steps != cursor.total_steps)
        {
            rows.push(TableRow { name: format!("best, {}", best.name()), ..best.result.row() });
        }
        let golds = self.materials.rows.valid.iter().map(|row| row.gold);
        let constants = constant_answers(&self.materials.task, golds).into_iter();
        rows.extend(constants.map(|(name, report)| Evaluated::new(name, report.metrics()).row()));
        sinks.emit(&Event::Finished { rows, run: run.path().into(), chosen });
        if cursor.choice.best.is_none() && config.eval.choice().is_some() {
            let (metric, last) = (&config.eval.keep_best, "model/ is that of the last step");
            sinks.warn(format!("no evaluation has a {metric} (eval.keep_best): {last}"));
        }
        Ok(run.model())
    }

    /// The folders that a run ends with, `model/` last of all; which weights that has.
    fn save(&self, last: &Decoder) -> Result<Option<String>> {
        let (Record { config, run, cursor, .. }, materials) = (&self.record, &self.materials);
        let choice = &cursor.choice;
        let other = choice.best.as_ref().filter(|best| best.total_steps != cursor.total_steps);
        let adapter = if other.is_some() { "adapter-last" } else { RUN_ADAPTER };
        if let Some(adapters) = &self.adapters {
            adapters.save(config, materials, last, run, &run.path().join(adapter))?;
        }
        let data = &materials.rows.valid_name;
        let of = choice.candidates;
        match (&choice.best, other) {
            (_, Some(best)) => {
                materials.save_model(last, &run.model_last(), |_| Ok(()))?;
                best.hand_over(config, materials, self.adapters.as_ref(), last, run, of)?;
            }
            (best, None) => {
                // Of an earlier end of this run, under another config.
                best::clear([run.model_last(), run.path().join("adapter-last")])?;
                materials.save_model(last, &run.model(), |aside| match best {
                    Some(best) => best.write_note(aside, of, data),
                    None => Ok(()),
                })?;
            }
        }
        // The checkpoints keep theirs.
        best::clear([best::folder(run)])?;
        let Some(best) = &choice.best else { return Ok(None) };
        let model = run.model();
        let beside = match other {
            Some(_) => format!("; the last step's is {}", run.model_last().display()),
            None => String::new(),
        };
        Ok(Some(format!(
            "model: {} is that of {}, {}, the best of {of} evaluations{beside}\nIt was chosen on {data}, which flatters \
             its score there: test it on rows that chose nothing.",
            model.display(),
            best.name(),
            best.score()
        )))
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
        let before = record.cursor.total_steps.saturating_sub(done);
        record.sinks.emit(&Event::StageStarted { stage: stage.name().into(), steps, done, before });
        let activations = config.pack.activations;
        let mut learner = match optimizer {
            Some(optimizer) => Learner::resumed(decoder, optimizer, &optim, activations),
            None => Learner::new(decoder, &optim, activations, config.seed)?,
        };
        let mut ended = None;
        for step in done..steps {
            let start = Instant::now();
            let at = At { step, learning_rate: learning_rate(&optim, step, steps) };
            let metrics =
                objective.step(&mut learner, at, &mut record.sinks).map_err(|e| e.at_step(step + 1))?;
            record.step(stage, step + 1, metrics, start, learner.decoder())?;
            if step + 1 == steps {
                break; // The end of the stage is evaluated and kept without the optimiser.
            }
            if objective.is_evaluated_within() && is_due(step + 1, config.eval.every_steps) {
                let report =
                    record.evaluate(materials, adapters, learner.decoder(), stage.name(), step + 1)?;
                if record.cursor.choice.is_stale(&config.eval) {
                    let text = format!(
                        "{} ends at step {} of {steps}: {} evaluations without a better {} (eval.patience)",
                        stage.name(),
                        step + 1,
                        config.eval.patience.unwrap_or_default(),
                        config.eval.keep_best
                    );
                    record.sinks.emit(&Event::Note { text });
                    ended = Some(report);
                    break;
                }
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
        let report = match ended {
            Some(report) => report,
            None => record.evaluate(materials, adapters, &decoder, stage.name(), steps)?,
        };
        record.cursor.results.push(Evaluated::new(name, report.metrics()));
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

    /// After some training, the weights are kept where they are the best so far.
    fn evaluate(
        &mut self,
        materials: &Materials,
        adapters: Option<&Adapters>,
        decoder: &Decoder,
        stage: &str,
        step: u64,
    ) -> Result<EvalReport> {
        let evaluator = Evaluator {
            task: &materials.task,
            encoder: &materials.encoder,
            rows: &materials.rows.valid,
            config: &self.config.eval,
            pack: &self.config.pack,
            seed: self.config.seed,
        };
        let at = eval::At { stage, step };
        let report = evaluator.evaluate(decoder, at, &mut self.sinks).map_err(|e| e.at_step(step))?;
        if stage != VANILLA {
            let candidate = Candidate { report: &report, stage, step, total_steps: self.cursor.total_steps };
            self.cursor.choice.consider(candidate, self.config, materials, adapters, decoder, self.run)?;
        }
        Ok(report)
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
            self.cursor.choice.write(self.run, dir)?;
            state::write(dir, &self.cursor, decoder, optimizer)
        })?;
        checkpoint.keep_last(self.run, self.config.checkpoint.keep_last)?;
        self.sinks.emit(&Event::Checkpoint { step, path: checkpoint.path });
        Ok(())
    }
}
