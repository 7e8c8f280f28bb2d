//! The checkpoints of a run: when one is written, by whom, and what becomes of the ones before.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::divergence;
use super::full_disk::{self, pass_unless_stopped, until_there_is_room};
use super::lora::Adapters;
use super::snapshot::{OptimizerState, Snapshot};
use super::state::{self, Cursor};
use crate::config::CheckpointConfig;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::observe::{Event, Sinks};
use crate::run::{Cadence, Checkpoint, Logs, RunDirectory};
use crate::stop;

/// Writes checkpoints beside the run's steps, one at a time.
pub struct Keeping {
    run: RunDirectory,
    cadence: Cadence,
    /// Checkpoints that stay.
    kept: usize,
    /// Whether a copy of what a checkpoint holds is made, and written while the run goes on.
    background: bool,
    /// The last one that is whole, and where the run stood.
    last: Option<(Cursor, PathBuf)>,
    /// When it was begun, or the run began or went on.
    since: Instant,
    advised: bool,
    writing: Option<Writing>,
}

/// A checkpoint on its way to the disk.
struct Writing {
    cursor: Cursor,
    thread: JoinHandle<Result<Checkpoint>>,
    /// What there is to warn of.
    said: Receiver<String>,
}

/// What a run has to keep.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    pub adapters: Option<&'a Adapters<'a>>,
    pub decoder: &'a Decoder,
    /// `None` between stages.
    pub optimizer: Option<OptimizerState<'a>>,
}

impl Keeping {
    /// `last`: the checkpoint that the run goes on from.
    pub fn new(config: &CheckpointConfig, run: &RunDirectory, last: Option<(Cursor, PathBuf)>) -> Self {
        let (cadence, kept, background) = (Cadence::from(config), config.kept(), config.background);
        let (run, since) = (run.clone(), Instant::now());
        Self { run, cadence, kept, background, last, since, advised: false, writing: None }
    }

    /// `step`: of the stage.
    pub fn is_due(&self, step: u64) -> bool {
        step > 0 && self.cadence.is_due(step, self.since.elapsed())
    }

    /// Sees to it that a checkpoint has everything a resume needs, under the number of steps so far; nothing is done where the last one
    /// has it. It is whole when this returns, or is being written: [`Self::settle`] waits for it.
    ///
    /// # Errors
    /// Those of this one or, where it was written in the background, of the one before. Weights that are no numbers.
    pub fn keep(&mut self, cursor: &mut Cursor, seconds: f64, kept: Kept, sinks: &mut Sinks) -> Result<()> {
        divergence::judge(kept.decoder, cursor.total_steps)?;
        let (interval, start) = (self.since.elapsed(), Instant::now());
        self.settle(sinks)?;
        let last = self.last.as_ref();
        if last.is_some_and(|(of, _)| *of == Cursor { seconds: of.seconds, ..cursor.clone() }) {
            return Ok(());
        }
        sinks.emit(&Event::phase("writing a checkpoint"));
        let optimizer = kept.optimizer.filter(|_| cursor.optimizer_updates.is_some());
        let same_step = last.filter(|(of, path)| {
            let has_optimizer = of.optimizer_updates.is_some() || optimizer.is_none();
            of.total_steps == cursor.total_steps && has_optimizer && path.is_dir()
        });
        let background = self.background && !stop::is_asked();
        cursor.seconds = seconds;
        let files = match same_step {
            Some((_, path)) => Files::Linked { path: path.clone(), optimizer: optimizer.is_some() },
            None => Files::Tensors(Snapshot::of(kept.decoder, kept.adapters, optimizer, background)?),
        };
        // What the run has told is part of the checkpoint.
        full_disk::flush(sinks)?;
        let logs = Logs::now(&self.run)?;
        let job = Job { run: self.run.clone(), cursor: cursor.clone(), files, logs, kept: self.kept };
        let within = optimizer.is_some() && !stop::is_asked();
        self.since = Instant::now();
        if background {
            let (say, said) = channel();
            let of = job.cursor.clone();
            // Nobody listens at the end of a run that failed.
            self.run.set_writing(Some(of.total_steps));
            let thread = std::thread::spawn(move || job.run(|text| drop(say.send(text))));
            self.writing = Some(Writing { cursor: of, thread, said });
        } else {
            let of = job.cursor.clone();
            let checkpoint = job.run(|text| sinks.warn(text))?;
            self.written(of, checkpoint, sinks);
            self.since = Instant::now();
        }
        self.advise(start.elapsed(), interval, within, sinks);
        Ok(())
    }

    /// Tells of a checkpoint that has been written by now.
    ///
    /// # Errors
    /// It could not be.
    pub fn look(&mut self, sinks: &mut Sinks) -> Result<()> {
        let Some(writing) = &self.writing else { return Ok(()) };
        writing.said.try_iter().for_each(|text| sinks.warn(text));
        if writing.thread.is_finished() { self.settle(sinks) } else { Ok(()) }
    }

    /// Waits for the checkpoint that is being written.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub fn settle(&mut self, sinks: &mut Sinks) -> Result<()> {
        let Some(Writing { cursor, thread, said }) = self.writing.take() else { return Ok(()) };
        if !thread.is_finished() {
            sinks.emit(&Event::phase("writing a checkpoint"));
        }
        said.iter().for_each(|text| sinks.warn(text));
        let broken = |_| Error::Compute("the thread that wrote the checkpoint broke".into());
        let ended = thread.join();
        self.run.set_writing(None);
        let checkpoint = ended.map_err(broken)??;
        self.written(cursor, checkpoint, sinks);
        Ok(())
    }

    fn written(&mut self, of: Cursor, checkpoint: Checkpoint, sinks: &mut Sinks) {
        self.last = Some((of, checkpoint.path.clone()));
        sinks.emit(&Event::Checkpoint { step: checkpoint.step, path: checkpoint.path });
    }

    /// Says once where the interval costs more than it needs to. `waited`: what the run did not go on for. At the end of a stage, and
    /// at a stop, the interval is not the chosen one.
    fn advise(&mut self, waited: Duration, interval: Duration, within: bool, sinks: &mut Sinks) {
        let advice = Cadence::advice(waited, interval);
        if let Some(text) = advice.filter(|_| within && !self.advised) {
            self.advised = true;
            sinks.emit(&Event::Note { text });
        }
    }
}

/// All that the writing of one checkpoint takes; the run may go on meanwhile.
struct Job {
    run: RunDirectory,
    cursor: Cursor,
    files: Files,
    logs: Logs,
    kept: usize,
}

enum Files {
    Tensors(Snapshot),
    /// A checkpoint of the same step has them.
    Linked {
        path: PathBuf,
        optimizer: bool,
    },
}

impl Job {
    fn run(self, say: impl FnMut(String)) -> Result<Checkpoint> {
        let Self { run, cursor, files, logs, kept } = self;
        let fill = |dir: &Path| {
            cursor.choice.write(&run, dir)?;
            match &files {
                Files::Linked { path, optimizer } => state::link(path, dir, *optimizer)?,
                Files::Tensors(snapshot) => snapshot.write(dir)?,
            }
            state::write(dir, &cursor)
        };
        let write = || {
            run.check_there()?;
            Checkpoint::write(&run, cursor.total_steps, &logs, fill)
        };
        let checkpoint = until_there_is_room(say, pass_unless_stopped, write)?;
        checkpoint.keep_last(&run, kept)?;
        Ok(checkpoint)
    }
}
