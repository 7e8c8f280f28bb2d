//! The loop of a run: its stages in order, what comes between their steps, the model at the end.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::best::{self, Candidate, Evaluated, Place};
use super::divergence;
use super::enumerate::Enumerate;
use super::full_disk::{self, patiently};
use super::grpo::Grpo;
use super::keeping::{Keeping, Kept};
use super::learner::Learner;
use super::lora::Adapters;
use super::materials::Materials;
use super::meter::Meter;
use super::objective::{At, Objective, Surroundings};
use super::sft::Sft;
use super::snapshot::{self, OptimizerState};
use super::state::Cursor;
use crate::config::{Config, Stage};
use crate::data::difficulty::Difficulty;
use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::eval::constants::constant_answers;
use crate::eval::{self, Evaluator};
use crate::hub::RUN_ADAPTER;
use crate::model::decoder::Decoder;
use crate::observe::{Event, Metrics, Sinks, TableRow, peak_memory_gib};
use crate::ops::memory;
use crate::optim::adamw::AdamW;
use crate::optim::schedule::learning_rate;
use crate::run::{Checkpoint, RunDirectory};
use crate::stop;
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
    ranks: Ranks,
    meter: Meter,
    keeping: Keeping,
}

impl Training<'_> {
    /// Runs what is left. `optimizer`: of a stage that goes on. Returns the folder of the final model.
    ///
    /// # Errors
    /// [`Error::Stopped`] once every whole step is in a checkpoint, for a wish to stop or a bound of time or cost that is reached, and
    /// [`Error::Unrewarded`] likewise; before the first step there may be none.
    pub fn run(mut self, decoder: Decoder, optimizer: Option<AdamW>) -> Result<PathBuf> {
        let mut ended = self.make(decoder, optimizer);
        if let Err(Error::Stopped) = ended {
            ended = self.record.ranks.stops().and(ended);
        }
        // However the run ends: what is on its way to the disk is kept.
        let settled = self.record.settle();
        ended.and_then(|model| settled.map(|()| model))
    }

    fn make(&mut self, mut decoder: Decoder, mut optimizer: Option<AdamW>) -> Result<PathBuf> {
        let stages = &self.record.config.stages;
        self.record.sinks.emit(&self.materials.held_out_prompts()?);
        if self.record.cursor.results.is_empty() {
            let report = self.record.evaluate(&self.materials, None, &decoder, VANILLA, 0)?;
            self.record.cursor.results.push(Evaluated::new(VANILLA.into(), report.metrics()));
        }
        while let Some(stage) = stages.get(self.record.cursor.stage) {
            decoder = self.stage(*stage, decoder, optimizer.take())?;
        }
        self.record.settle()?;
        self.record.sinks.emit(&Event::phase("writing the final model"));
        let chosen = if self.record.ranks.is_first() { self.save(&decoder)? } else { None };
        // Nobody ends before it is there.
        self.record.ranks.gather(())?;
        let Record { config, run, cursor, sinks, meter, .. } = &mut self.record;
        let mut rows: Vec<TableRow> = cursor.results.iter().map(Evaluated::row).collect();
        if let Some(best) = cursor.choice.best.as_ref().filter(|best| best.total_steps != cursor.total_steps)
        {
            rows.push(TableRow { name: format!("best, {}", best.name()), ..best.result.row() });
        }
        let golds = self.materials.rows.valid.iter().map(|row| row.gold);
        let constants = constant_answers(&self.materials.task, golds).into_iter();
        rows.extend(constants.map(|(name, report)| Evaluated::new(name, report.metrics()).row()));
        if let Some(text) = meter.summary() {
            sinks.emit(&Event::Note { text });
        }
        sinks.emit(&Event::Finished { rows, run: run.path().into(), chosen });
        if cursor.choice.best.is_none() && config.eval.choice().is_some() {
            let (metric, last) = (&config.eval.keep_best, "model/ is that of the last step");
            sinks.warn(format!("no evaluation has a {metric} (eval.keep_best): {last}"));
        }
        full_disk::flush(sinks)?;
        Ok(run.model())
    }

    /// The folders that a run ends with, `model/` last of all; which weights that has.
    fn save(&mut self, last: &Decoder) -> Result<Option<String>> {
        let (Record { config, run, cursor, sinks, .. }, materials) = (&mut self.record, &self.materials);
        let choice = &cursor.choice;
        let other = choice.best.as_ref().filter(|best| best.total_steps != cursor.total_steps);
        let adapter = if other.is_some() { "adapter-last" } else { RUN_ADAPTER };
        if let Some(adapters) = &self.adapters {
            let target = run.path().join(adapter);
            patiently(sinks, || adapters.save(config, materials, last, run, &target))?;
        }
        let data = &materials.rows.valid_name;
        let of = choice.candidates;
        match (&choice.best, other) {
            (_, Some(best)) => {
                patiently(sinks, || materials.save_model(last, &run.model_last(), |_| Ok(())))?;
                let adapters = self.adapters.as_ref();
                patiently(sinks, || best.hand_over(config, materials, adapters, last, run, of))?;
            }
            (best, None) => {
                // Of an earlier end of this run, under another config.
                best::clear([run.model_last(), run.path().join("adapter-last")])?;
                let note = |aside: &Path| match best {
                    Some(best) => best.write_note(aside, of, data),
                    None => Ok(()),
                };
                patiently(sinks, || materials.save_model(last, &run.model(), note))?;
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
        let before = record.cursor.total_steps.saturating_sub(done);
        let stage_index = record.cursor.stage;
        let reference = record.cursor.reference.clone();
        let ranks = record.ranks.clone();
        let around = Surroundings {
            config,
            run: record.run,
            materials,
            adapters,
            ranks: &ranks,
            stage: stage_index,
            done,
            before,
            reference: reference.as_deref(),
            entropy: record.cursor.entropy,
        };
        let difficulty = record.cursor.difficulty.clone();
        let mut objective = objective(stage, around, &decoder, difficulty, &mut record.sinks)?;
        let (steps, optim) = (objective.steps(), objective.optim().clone());
        record.sinks.emit(&Event::StageStarted { stage: stage.name().into(), steps, done, before });
        record.meter.enter_stage(done);
        let mut ended = None;
        if done < steps {
            let activations = config.pack.activations;
            let mut learner = match optimizer {
                Some(optimizer) => Learner::resumed(ranks.clone(), decoder, optimizer, &optim, activations),
                None if done > 0 => return Err(ended_before(stage, done, steps)),
                None => Learner::among(ranks.clone(), decoder, &optim, activations, config.seed)?,
            };
            learner = learner.sharded(config.pack.shard);
            // From here on all ranks end a stage together, with what the optimiser holds.
            ranks.gather(())?;
            ended = match record.steps(stage, &mut *objective, &mut learner, materials, adapters) {
                Err(error @ (Error::Stopped | Error::Unrewarded { .. })) => {
                    ranks.stops()?;
                    record.keep_learner(&*objective, &learner, adapters)?;
                    return Err(error);
                }
                ended => ended?,
            };
            decoder = learner.into_decoder();
        }
        drop(objective);
        let so_far = &config.stages[..=record.cursor.stage];
        let name = so_far.iter().map(|s| s.name().to_uppercase()).collect::<Vec<_>>().join("+");
        let report = match ended {
            Some(report) => report,
            None => {
                // Without the optimiser, and before the evaluation: that may take longer than a stop lets it.
                record.cursor.owes_evaluation = true;
                (record.cursor.optimizer_updates, record.cursor.difficulty) = (None, None);
                (record.cursor.reference, record.cursor.entropy) = (None, None);
                record.keep(adapters, &decoder, None)?;
                record.evaluate(materials, adapters, &decoder, stage.name(), steps)?
            }
        };
        record.cursor.results.push(Evaluated::new(name, report.metrics()));
        record.cursor.enter_next_stage();
        let more = record.cursor.stage < config.stages.len();
        let reached = ranks.decided(record.meter.reached())?.filter(|_| more);
        let stops = reached.is_some();
        reached.into_iter().for_each(|text| record.sinks.warn(text));
        record.keep(adapters, &decoder, None)?;
        if stops {
            return Err(Error::Stopped);
        }
        Ok(decoder)
    }
}

/// The last checkpoint of a stage has no optimiser, and now the stage is to be longer.
fn ended_before(stage: Stage, done: u64, steps: u64) -> Error {
    let problem = format!("{} ended after {done} steps and is to make {steps} now", stage.name());
    let fix = "Put its number of steps back, or resume from a checkpoint within the stage";
    Error::input("config.resolved.toml", problem, fix)
}

/// What a stage does in a step. `difficulty`: what a checkpoint kept of it.
fn objective<'a>(
    stage: Stage,
    around: Surroundings<'a>,
    policy: &Decoder,
    difficulty: Option<Difficulty>,
    sinks: &mut Sinks,
) -> Result<Box<dyn Objective + 'a>> {
    Ok(match stage {
        Stage::Sft => Box::new(Sft::new(around)),
        Stage::Grpo => Box::new(Grpo::new(around, policy, difficulty, sinks)?),
        Stage::Enumerate => Box::new(Enumerate::new(around, policy, sinks)?),
    })
}

fn is_due(steps: u64, every: usize) -> bool {
    every > 0 && steps.is_multiple_of(every as u64)
}

impl<'a> Record<'a> {
    /// `last`: the checkpoint that the run goes on from.
    pub fn new(
        config: &'a Config,
        run: &'a RunDirectory,
        cursor: Cursor,
        sinks: Sinks,
        (meter, ranks): (Meter, Ranks),
        last: Option<&Path>,
    ) -> Self {
        let last = last.map(|path| (cursor.clone(), path.into()));
        let keeping = Keeping::new(&config.checkpoint, run, last);
        Self { config, run, cursor, sinks, ranks, meter, keeping }
    }

    /// Makes the steps that a stage has left, with what comes between them. The report of an evaluation that ended it early.
    ///
    /// # Errors
    /// [`Error::Stopped`] too where a bound of time or cost is reached.
    fn steps(
        &mut self,
        stage: Stage,
        objective: &mut dyn Objective,
        learner: &mut Learner,
        materials: &Materials,
        adapters: Option<&Adapters>,
    ) -> Result<Option<EvalReport>> {
        let (config, optim, steps) = (self.config, objective.optim().clone(), objective.steps());
        let (done, mut warned) = (self.cursor.step, false);
        while self.cursor.step < steps {
            let step = self.cursor.step;
            if self.cursor.owes_evaluation {
                let report = self.evaluate(materials, adapters, learner.decoder(), stage.name(), step)?;
                self.cursor.owes_evaluation = false;
                if self.cursor.choice.is_stale(&config.eval) {
                    let text = format!(
                        "{} ends at step {step} of {steps}: {} evaluations without a better {} (eval.patience)",
                        stage.name(),
                        config.eval.patience.unwrap_or_default(),
                        config.eval.keep_best
                    );
                    self.sinks.emit(&Event::Note { text });
                    return Ok(Some(report));
                }
            }
            self.keeping.look(&mut self.sinks)?;
            if self.ranks.decided(self.keeping.is_due(step))? {
                self.keep_learner(objective, learner, adapters)?;
            }
            self.sinks.emit(&Event::StepStarted { stage: stage.name().into(), step: step + 1 });
            let start = Instant::now();
            let at = At { step, learning_rate: learning_rate(&optim, step, steps) };
            let metrics = objective.step(learner, at, &mut self.sinks);
            let metrics = metrics.map_err(|e| self.broken(e.at_step(step + 1), step > done))?;
            let loss = metrics.get("loss");
            self.step(stage, (step + 1, steps), metrics, start, learner.decoder())?;
            self.watch(step + 1, loss, &mut warned)?;
            self.cursor.owes_evaluation =
                objective.is_evaluated_within() && is_due(step + 1, config.eval.every_steps);
            if let Some(text) = self.ranks.decided(self.meter.reached())?.filter(|_| step + 1 < steps) {
                self.sinks.warn(text);
                return Err(Error::Stopped);
            }
        }
        Ok(None)
    }

    /// [`Self::keep`], within a stage.
    fn keep_learner(
        &mut self,
        objective: &dyn Objective,
        learner: &Learner,
        adapters: Option<&Adapters>,
    ) -> Result<()> {
        if self.cursor.step > 0 {
            self.cursor.optimizer_updates = Some(learner.optimizer().updates());
            self.cursor.difficulty = objective.difficulty().cloned();
            self.cursor.reference = objective.reference().map(Into::into);
            self.cursor.entropy = objective.entropy();
        }
        self.keep(adapters, learner.decoder(), Some(learner.optimizer()))
    }

    /// Counts a step of so many, and tells of it.
    fn step(
        &mut self,
        stage: Stage,
        (step, steps): (u64, u64),
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
        metrics.extend(self.meter.metrics(step, steps).iter());
        self.cursor.step = step;
        self.cursor.total_steps += 1;
        self.sinks.emit(&Event::Step { stage: stage.name().into(), step, metrics });
        Ok(())
    }

    /// Says once that the loss is far above that of the stage's first step.
    ///
    /// # Errors
    /// It is, and that is to end the run.
    fn watch(&mut self, step: u64, loss: Option<f64>, warned: &mut bool) -> Result<()> {
        let Some(loss) = loss else { return Ok(()) };
        let first = *self.cursor.first_loss.get_or_insert(loss);
        let Some(text) = divergence::far_above(first, loss).filter(|_| !*warned) else { return Ok(()) };
        *warned = true;
        self.sinks.warn(format!("step {step}: {text}"));
        match self.config.run.stop_on_divergence {
            true => Err(divergence::halted(step, text)),
            false => Ok(()),
        }
    }

    /// What ended a step. Where training had brought the weights to it (`moved`), a checkpoint of them is no place to go on
    /// from.
    fn broken(&mut self, error: Error, moved: bool) -> Error {
        let Error::Diverged { step, problem, mut fix } = error else { return error };
        if let Err(error) = self.settle() {
            self.sinks.warn(error.to_string());
        }
        let total = self.cursor.total_steps;
        if !self.ranks.is_first() {
            return self.ended(Error::Diverged { step, problem, fix });
        }
        if moved {
            match Checkpoint::condemn(self.run, total) {
                Ok(Some(aside)) => {
                    let path = aside.display();
                    self.sinks.warn(format!("the checkpoint of step {total} is broken, and is now {path}"));
                }
                Ok(None) => {}
                Err(error) => self.sinks.warn(error.to_string()),
            }
        } else if total > 0 {
            fix +=
                &format!("; if it stays so, move checkpoints/step-{total} away to go on from an older one");
        }
        self.ended(Error::Diverged { step, problem, fix })
    }

    /// As the config wants a run to end where it diverges.
    fn ended(&self, error: Error) -> Error {
        match error {
            Error::Diverged { step, problem, .. } if self.config.run.stop_on_divergence => {
                divergence::halted(step, problem)
            }
            other => other,
        }
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
        let report = evaluator.evaluate_among(&self.ranks, decoder, at, &mut self.sinks);
        let report = report.map_err(|e| self.broken(e.at_step(step), true))?;
        if stage != VANILLA {
            // The evaluation has been told: what follows from it is not left half done.
            let _whole = stop::hold();
            // A checkpoint takes the best model so far from where the next one will lie.
            self.settle()?;
            self.sinks.emit(&Event::phase("keeping the best model"));
            let candidate = Candidate { report: &report, stage, step, total_steps: self.cursor.total_steps };
            let at = Place { config: self.config, materials, adapters, run: self.run };
            if self.ranks.is_first() {
                self.cursor.choice.consider(candidate, at, decoder, &mut self.sinks)?;
            }
            self.cursor.choice = self.ranks.decided(self.cursor.choice.clone())?;
        }
        Ok(report)
    }

    /// [`Keeping::keep`] on rank 0, with what the others have of the optimiser.
    fn keep(
        &mut self,
        adapters: Option<&Adapters>,
        decoder: &Decoder,
        optimizer: Option<&AdamW>,
    ) -> Result<()> {
        let gathered = match optimizer.filter(|_| self.cursor.optimizer_updates.is_some()) {
            Some(optimizer) => snapshot::gathered(&self.ranks, optimizer, decoder)?,
            None => None,
        };
        if !self.ranks.is_first() {
            return Ok(());
        }
        let here = optimizer.map(OptimizerState::Here);
        let optimizer = gathered.as_ref().map(OptimizerState::Gathered).or(here);
        let seconds = self.meter.seconds();
        let Self { cursor, sinks, keeping, .. } = self;
        let kept = Kept { adapters, decoder, optimizer };
        let kept = keeping.keep(cursor, seconds, kept, sinks);
        kept.map_err(|error| self.ended(error))
    }

    /// [`Keeping::settle`].
    fn settle(&mut self) -> Result<()> {
        self.keeping.settle(&mut self.sinks)
    }
}
