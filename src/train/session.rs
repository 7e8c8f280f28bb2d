//! A run from its first evaluation to the saved model: stages in order, checkpoints, resume.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::enumerate::EnumerateUpdate;
use super::grpo::GrpoStage;
use super::lora::{Adapters, base_digest, check_base, merged_bound};
use super::materials::{Materials, load_decoder};
use super::place::gradients_dtype;
use super::sft;
use super::state::{self, Cursor, Evaluated};
use super::step::Trainee;
use super::watch::Watch;
use crate::config::optim::OptimConfig;
use crate::config::stages::{Balance, Estimator, PromptOrder};
use crate::config::{Config, Stage};
use crate::data::difficulty::Difficulty;
use crate::data::jsonl::EncodedRow;
use crate::data::order::Order;
use crate::error::{Error, Result};
use crate::eval::{At, Evaluator};
use crate::export::aside::named_when_done;
use crate::model::decoder::Decoder;
use crate::model::gradients::Gradients;
use crate::observe::{Event, Metrics, SampleKind, Sinks, peak_memory_gib};
use crate::ops::memory;
use crate::optim::adamw::{AdamW, Bf16Weights};
use crate::optim::schedule::learning_rate;
use crate::run::Checkpoint;
use crate::run::RunDirectory;

/// A run that is under way.
pub struct Session<'a> {
    config: &'a Config,
    run: &'a RunDirectory,
    materials: Materials,
    sinks: Sinks,
    cursor: Cursor,
    /// Restored with the cursor; `None` at the start of a stage.
    optimizer: Option<AdamW>,
    /// `None`: all weights are trained.
    adapters: Option<Adapters<'a>>,
    watch: Watch,
}

impl<'a> Session<'a> {
    /// A new run.
    pub fn start(config: &'a Config, run: &'a RunDirectory, mut sinks: Sinks) -> Result<Self> {
        let mut materials = Materials::prepare(config, run.path(), &mut sinks)?;
        let mut cursor = Cursor::default();
        if config.lora.is_some() {
            cursor.base = Some(base_digest(&materials.decoder)?);
        }
        let adapters = Adapters::start(config, &mut materials.decoder)?;
        if let Some(adapters) = &adapters {
            sinks.emit(&Event::Note { text: adapters.describe(&materials.decoder) });
        }
        let watch = Watch::default();
        Ok(Self { config, run, materials, sinks, cursor, optimizer: None, adapters, watch })
    }

    /// A run from a checkpoint of its own.
    pub fn resume(
        config: &'a Config,
        run: &'a RunDirectory,
        mut sinks: Sinks,
        checkpoint: &Path,
    ) -> Result<Self> {
        let mut materials = Materials::prepare(config, run.path(), &mut sinks)?;
        let cursor = state::read_cursor(checkpoint)?;
        let decoder = &mut materials.decoder;
        let adapters = if config.lora.is_some() {
            check_base(config, decoder, cursor.base.as_deref())?;
            Adapters::resume(config, decoder, checkpoint)?
        } else {
            *decoder = load_decoder(checkpoint, config.model.max_positions, &decoder.place())?;
            None
        };
        let optimizer = state::read_optimizer(checkpoint, &cursor, decoder)?;
        Ok(Self { config, run, materials, sinks, cursor, optimizer, adapters, watch: Watch::default() })
    }

    /// Runs what is left. Returns the folder of the final model.
    pub fn run(mut self) -> Result<PathBuf> {
        if self.cursor.results.is_empty() {
            self.evaluate("vanilla", 0, Some("vanilla".into()))?;
        }
        let config = self.config;
        while let Some(stage) = config.stages.get(self.cursor.stage).copied() {
            self.run_stage(stage)?;
        }
        let model = save_model(&self.materials, self.run)?;
        if let Some(adapters) = &self.adapters {
            adapters.save(self.config, &self.materials, self.run)?;
        }
        let rows = self.cursor.results.iter().map(Evaluated::row).collect();
        self.sinks.emit(&Event::Finished { rows, run: self.run.path().into() });
        Ok(model)
    }

    fn run_stage(&mut self, stage: Stage) -> Result<()> {
        let config = self.config;
        let steps = self.steps_of(stage);
        let done = self.cursor.step;
        if let (Some(adapters), 0) = (&mut self.adapters, done) {
            adapters.enter(&mut self.materials.decoder, self.cursor.stage)?;
        }
        self.sinks.emit(&Event::StageStarted { stage: stage.name().into(), steps, done });
        let mut reference = self.reference(stage)?;
        if stage == Stage::Grpo
            && config.grpo.order == PromptOrder::Difficulty
            && self.cursor.difficulty.is_none()
        {
            self.cursor.difficulty = Some(Difficulty::new(self.materials.grpo_rows.len()));
        }
        let optim = match stage {
            Stage::Sft => &config.sft.optim,
            Stage::Grpo => &config.grpo.optim,
        };
        let mut gradients = self.materials.decoder.zero_gradients_in(gradients_dtype(optim.gradients));
        let mut optimizer = match self.optimizer.take() {
            Some(optimizer) => optimizer,
            None => {
                let rounding = Bf16Weights::new(optim.bf16_weights, config.seed);
                AdamW::with(&self.materials.decoder, optim.moments, rounding)?
            }
        };
        let order = self.order(stage)?;
        for step in done..steps {
            let start = Instant::now();
            let mut metrics = match stage {
                Stage::Sft => self.sft_step(&order, step, &mut gradients, &mut optimizer)?,
                Stage::Grpo => {
                    self.grpo_step(&order, step, reference.as_ref(), &mut gradients, &mut optimizer)?
                }
            };
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
            if let Some(bytes) = memory::device_peak(self.materials.decoder.device())? {
                metrics.insert("memory/device_peak_gib", bytes as f64 / (1u64 << 30) as f64);
            }
            if stage == Stage::Grpo
                && config.grpo.reference_sync_steps.is_some_and(|n| (step + 1) % n as u64 == 0)
            {
                reference = Some(self.keep_reference(step + 1)?);
            }
            self.cursor.step = step + 1;
            self.cursor.total_steps += 1;
            self.cursor.optimizer_updates = Some(optimizer.updates());
            self.sinks.emit(&Event::Step { stage: stage.name().into(), step: step + 1, metrics });
            let last = step + 1 == steps;
            let every = config.eval.every_steps as u64;
            if stage == Stage::Grpo && every > 0 && (step + 1) % every == 0 && !last {
                self.evaluate(stage.name(), step + 1, None)?;
            }
            let every = config.checkpoint.every_steps as u64;
            if every > 0 && (step + 1) % every == 0 && !last {
                self.checkpoint(Some(&optimizer))?;
            }
        }
        drop((optimizer, gradients));
        let done: Vec<String> =
            config.stages[..=self.cursor.stage].iter().map(|s| s.name().to_uppercase()).collect();
        self.evaluate(stage.name(), steps, Some(done.join("+")))?;
        self.cursor.stage += 1;
        self.cursor.step = 0;
        self.cursor.optimizer_updates = None;
        self.checkpoint(None)
    }

    fn steps_of(&self, stage: Stage) -> u64 {
        match stage {
            Stage::Grpo => self.config.grpo.steps as u64,
            Stage::Sft if self.config.sft.steps > 0 => self.config.sft.steps as u64,
            Stage::Sft => {
                let rows = self.config.sft.epochs * self.materials.sft_rows.len() as f64;
                ((rows / self.config.sft.rows_per_step as f64).ceil() as u64).max(1)
            }
        }
    }

    fn order(&self, stage: Stage) -> Result<Order> {
        let seed = self.config.seed;
        match stage {
            Stage::Sft => Ok(Order::shuffled(self.materials.sft_rows.len(), seed, stage as u32)),
            Stage::Grpo if self.config.grpo.balance == Balance::LabelSign => {
                let negative = self.materials.grpo_rows.iter().map(|row| row.gold.is_negative());
                Order::balanced(negative, seed, stage as u32)
            }
            Stage::Grpo => Ok(Order::shuffled(self.materials.grpo_rows.len(), seed, stage as u32)),
        }
    }

    /// The weights the KL penalty holds on to: those at the start of the stage, or of the last step that the
    /// reference was synced after, kept in the run's directory so that a resumed run has the same.
    fn reference(&self, stage: Stage) -> Result<Option<Decoder>> {
        let config = &self.config.grpo;
        if stage != Stage::Grpo || config.kl_coef == 0.0 {
            return Ok(None);
        }
        let step = self.cursor.step;
        if step == 0 {
            return self.keep_reference(0).map(Some);
        }
        let of = config.reference_sync_steps.map_or(0, |n| step - step % n as u64);
        let (decoder, dir) = (&self.materials.decoder, self.reference_dir(of));
        if let Some(adapters) = &self.adapters {
            return adapters.load_reference(decoder, self.cursor.stage, of, &dir).map(Some);
        }
        load_decoder(&dir, self.config.model.max_positions, &decoder.place()).map(Some)
    }

    /// Weights of the reference that counts from `step` on.
    fn reference_dir(&self, step: u64) -> PathBuf {
        match step {
            0 => self.run.path().join("reference"),
            step => self.run.path().join("reference").join(format!("step-{step}")),
        }
    }

    fn keep_reference(&self, step: u64) -> Result<Decoder> {
        let dir = self.reference_dir(step);
        if let Some(adapters) = &self.adapters {
            return adapters.keep_reference(&self.materials.decoder, self.cursor.stage, step, &dir);
        }
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir, "create the folder of reference weights"))?;
        state::save_weights(&dir, &self.materials.decoder)?;
        self.materials.decoder.deep_copy()
    }

    /// References that no checkpoint needs any more, of a run whose oldest checkpoint within the stage is `oldest`.
    fn drop_references(&self, oldest: u64) -> Result<()> {
        let Some(every) = self.config.grpo.reference_sync_steps.map(|n| n as u64) else { return Ok(()) };
        let mut step = oldest - oldest % every;
        while step > every {
            step -= every;
            let dir = self.reference_dir(step);
            if !dir.exists() {
                break;
            }
            std::fs::remove_dir_all(&dir).map_err(Error::io(&dir, "remove an old reference"))?;
        }
        Ok(())
    }

    fn trainee<'t>(&'t self, gradients: &'t Gradients) -> Trainee<'t> {
        let activations = self.config.pack.activations;
        Trainee { decoder: &self.materials.decoder, gradients, activations }
    }

    fn sft_step(
        &mut self,
        order: &Order,
        step: u64,
        gradients: &mut Gradients,
        optimizer: &mut AdamW,
    ) -> Result<Metrics> {
        let config = &self.config.sft;
        let all = &self.materials.sft_rows;
        let rows: Vec<&EncodedRow> =
            order.indices(step, config.rows_per_step).into_iter().map(|i| &all[i]).collect();
        let mut metrics = sft::accumulate(self.trainee(gradients), &rows, &self.config.pack)?;
        self.update(&config.optim, step, self.steps_of(Stage::Sft), gradients, optimizer, &mut metrics)?;
        metrics.insert("epoch", ((step + 1) * config.rows_per_step as u64) as f64 / all.len() as f64);
        Ok(metrics)
    }

    fn grpo_step(
        &mut self,
        order: &Order,
        step: u64,
        reference: Option<&Decoder>,
        gradients: &mut Gradients,
        optimizer: &mut AdamW,
    ) -> Result<Metrics> {
        let config = &self.config.grpo;
        if config.estimator == Estimator::Enumerate {
            return self.enumerate_step(order, step, reference, gradients, optimizer);
        }
        let stage = GrpoStage {
            task: &self.materials.task,
            encoder: &self.materials.encoder,
            config,
            pack: &self.config.pack,
            seed: self.config.seed,
            reference,
        };
        let all = &self.materials.grpo_rows;
        let by_difficulty = self.cursor.difficulty.as_ref().map(|d| d.order(step, self.config.seed));
        let mut taken = 0;
        let mut prompts = |round: u32, wanted: usize| -> Vec<usize> {
            taken += wanted;
            match &by_difficulty {
                // As many as a step wants may be more than there are rows.
                Some(rows) => (taken - wanted..taken).map(|i| rows[i % rows.len()]).collect(),
                None if round == 0 => order.indices(step, wanted),
                None => {
                    let mut rows = order.redrawn(step, config.prompts_per_step, round);
                    rows.truncate(wanted);
                    rows
                }
            }
        };
        let scored = stage.roll_out(&self.materials.decoder, all, &mut prompts, step)?;
        if let Some(difficulty) = &mut self.cursor.difficulty {
            scored.tried.iter().for_each(|(row, result)| difficulty.add(*row, *result));
        }
        let mut metrics = scored.metrics;
        let start = Instant::now();
        let mut old_logps = Vec::new();
        let mut tapes = scored.tapes;
        for _ in 0..config.updates_per_rollout {
            let tapes = std::mem::take(&mut tapes);
            let learned = stage.policy_update().accumulate(
                self.trainee(gradients),
                &scored.groups,
                tapes,
                &mut old_logps,
            )?;
            // Of several updates the last is reported, except for what only the first one has.
            metrics.extend(learned.iter().map(|(name, value)| (name.to_string(), value)));
            self.update(&config.optim, step, config.steps as u64, gradients, optimizer, &mut metrics)?;
        }
        metrics.insert("time/update", start.elapsed().as_secs_f64());
        metrics.insert("epoch", ((step + 1) * config.prompts_per_step as u64) as f64 / all.len() as f64);
        let worst = metrics.get("sampling/sampling_logp_difference/max").unwrap_or(0.0);
        if worst > f64::from(config.max_logprob_difference) {
            self.sinks.warn(format!(
                "grpo step {}: sampler and trainer log-probs differ by up to {worst:.2e}, above \
                 grpo.max_logprob_difference = {}",
                step + 1,
                config.max_logprob_difference
            ));
        }
        for text in self.watch.observe(&self.materials.task, &scored.samples) {
            self.sinks.warn(format!("grpo step {}: {text}", step + 1));
        }
        self.sinks.emit(&Event::Samples {
            kind: SampleKind::Rollouts,
            stage: "grpo".into(),
            step: step + 1,
            samples: scored.samples,
        });
        Ok(metrics)
    }

    fn enumerate_step(
        &self,
        order: &Order,
        step: u64,
        reference: Option<&Decoder>,
        gradients: &mut Gradients,
        optimizer: &mut AdamW,
    ) -> Result<Metrics> {
        let config = &self.config.grpo;
        let all = &self.materials.grpo_rows;
        let indices = order.indices(step, config.prompts_per_step);
        let rows: Vec<&EncodedRow> = indices.into_iter().map(|i| &all[i]).collect();
        let update = EnumerateUpdate {
            task: &self.materials.task,
            config,
            max_tokens_per_pack: self.config.pack.max_tokens_per_pack,
            reference,
        };
        let start = Instant::now();
        let mut metrics = update.accumulate(self.trainee(gradients), &rows)?;
        self.update(&config.optim, step, config.steps as u64, gradients, optimizer, &mut metrics)?;
        metrics.insert("time/update", start.elapsed().as_secs_f64());
        metrics.insert("epoch", ((step + 1) * config.prompts_per_step as u64) as f64 / all.len() as f64);
        Ok(metrics)
    }

    fn update(
        &self,
        optim: &OptimConfig,
        step: u64,
        steps: u64,
        gradients: &mut Gradients,
        optimizer: &mut AdamW,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let rate = learning_rate(optim, step, steps);
        let grad_norm = optimizer.step(&self.materials.decoder, gradients, optim, rate)?;
        memory::synchronize(self.materials.decoder.device())?; // for the clock
        // Now and not at the next update: the rollout before it has use for the memory.
        gradients.clear();
        metrics.insert("grad_norm", grad_norm);
        metrics.insert("learning_rate", rate);
        Ok(())
    }

    /// `result` names a row of the final table.
    fn evaluate(&mut self, stage: &str, step: u64, result: Option<String>) -> Result<()> {
        let evaluator = Evaluator {
            task: &self.materials.task,
            encoder: &self.materials.encoder,
            rows: &self.materials.valid_rows,
            config: &self.config.eval,
            pack: &self.config.pack,
            seed: self.config.seed,
        };
        let report = evaluator.evaluate(&self.materials.decoder, At { stage, step }, &mut self.sinks)?;
        if let Some(name) = result {
            self.cursor.results.push(Evaluated::new(name, report.metrics()));
        }
        Ok(())
    }

    fn checkpoint(&mut self, optimizer: Option<&AdamW>) -> Result<()> {
        let step = self.cursor.total_steps;
        let decoder = &self.materials.decoder;
        let write = |dir: &Path| {
            match &self.adapters {
                Some(adapters) => adapters.write(dir, decoder)?,
                None => state::save_weights(dir, decoder)?,
            }
            state::write(dir, &self.cursor, decoder, optimizer)
        };
        let checkpoint = Checkpoint::write(self.run, step, write)?;
        checkpoint.keep_last(self.run, self.config.checkpoint.keep_last)?;
        let kept =
            (self.config.checkpoint.keep_last.max(1) as u64 - 1) * self.config.checkpoint.every_steps as u64;
        self.drop_references(self.cursor.step.saturating_sub(kept))?;
        self.sinks.emit(&Event::Checkpoint { step, path: checkpoint.path });
        Ok(())
    }
}

/// Writes the model folder aside, loads it back, compares log-probs on a probe, and only then gives it its name.
fn save_model(materials: &Materials, run: &RunDirectory) -> Result<PathBuf> {
    let target = run.model();
    named_when_done(&target, |aside| {
        let decoder = &materials.decoder;
        materials.write_model(decoder, aside)?;
        let again = load_decoder(aside, decoder.max_positions(), &decoder.place())?;
        // An adapter is merged into the folder's weights, which rounds other sums.
        let bound = if decoder.adapter().is_some() { merged_bound(decoder) } else { 0.0 };
        materials.compare(decoder, &again, bound, &target)
    })?;
    Ok(target)
}
