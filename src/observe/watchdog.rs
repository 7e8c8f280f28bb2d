//! A thread that looks whether the run goes on: it names a step that takes far longer than the others, and a standstill.
//!
//! It has no clock but its own looks: while the process is stopped, or its machine sleeps, no time passes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::work::clock;
use super::{Event, Sink};
use crate::error::Result;
use crate::{stop, trail};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A step is slow that takes so many times the median of those before it, and no less than so long.
const TIMES: f64 = 10.0;
const LEAST: Duration = Duration::from_secs(10);
/// Steps of a stage that have to be there first, and the most that count: the newest.
const FEWEST_STEPS: usize = 3;
const MOST_STEPS: usize = 101;

/// What there is to say, a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Alarm {
    /// A step takes long; said once of it.
    Slow(String),
    /// Nothing has happened for as long as it may.
    Stalled(String),
}

/// Ends its thread when dropped.
pub struct Watchdog {
    watched: Arc<Mutex<Watched>>,
    _ends_when_dropped: Sender<()>,
}

impl Watchdog {
    /// `stall`: the longest time without a sign of life; `None`: any. `say` is called from a thread of its own.
    pub fn start(stall: Option<Duration>, say: impl Fn(Alarm) + Send + 'static) -> Self {
        let watched = Arc::new(Mutex::new(Watched::new(stall)));
        let (sender, receiver) = channel();
        let shared = Arc::clone(&watched);
        std::thread::spawn(move || watch(&shared, &receiver, say));
        Self { watched, _ends_when_dropped: sender }
    }
}

fn watch(watched: &Mutex<Watched>, dropped: &Receiver<()>, say: impl Fn(Alarm)) {
    let mut before = Instant::now();
    while dropped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let passed = before.elapsed().min(2 * LOOK);
        before = Instant::now();
        let signs = trail::count() + stop::visits();
        let alarm = watched.lock().unwrap_or_else(PoisonError::into_inner).look(passed, signs, trail::last());
        alarm.into_iter().for_each(&say);
    }
}

impl Sink for Watchdog {
    fn name(&self) -> &str {
        "the watchdog"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).hear(event);
        Ok(())
    }
}

/// What is known of the run, and for how long.
struct Watched {
    stall: Option<Duration>,
    phase: String,
    in_phase: Duration,
    stage: String,
    /// Those of the stage that are done.
    step: u64,
    /// Of the step in hand; `None` between steps.
    in_step: Option<Duration>,
    /// The step was said to be slow.
    said: bool,
    /// Seconds of the stage's steps, the newest last.
    times: Vec<f64>,
    /// Time without an event or another sign of life, and the count of the latter.
    quiet: Duration,
    signs: u64,
}

impl Watched {
    fn new(stall: Option<Duration>) -> Self {
        Self {
            stall,
            phase: "starting".into(),
            in_phase: Duration::ZERO,
            stage: String::new(),
            step: 0,
            in_step: None,
            said: false,
            times: Vec::new(),
            quiet: Duration::ZERO,
            signs: 0,
        }
    }

    fn enter(&mut self, phase: &str) {
        if self.phase != phase {
            (self.phase, self.in_phase) = (phase.into(), Duration::ZERO);
        }
        self.in_step = None;
    }

    fn hear(&mut self, event: &Event) {
        self.quiet = Duration::ZERO;
        match event {
            Event::StageStarted { stage, done, .. } => {
                (self.stage, self.step) = (stage.clone(), *done);
                self.times.clear();
                self.enter(stage);
            }
            Event::StepStarted { stage, step } => {
                self.step = step.saturating_sub(1);
                self.enter(stage);
                (self.in_step, self.said) = (Some(Duration::ZERO), false);
            }
            Event::Step { step, metrics, .. } => {
                (self.step, self.in_step) = (*step, None);
                self.times.extend(metrics.get("step_time"));
                if self.times.len() > MOST_STEPS {
                    self.times.remove(0);
                }
            }
            Event::Work(work) => self.enter(&work.what),
            Event::Phase { what } => self.enter(what),
            _ => {}
        }
    }

    /// `passed` since the last look; `signs`: a count that grows while the run goes on; `op`: what it began last.
    fn look(&mut self, passed: Duration, signs: u64, op: &str) -> Option<Alarm> {
        self.in_phase += passed;
        self.quiet += passed;
        if signs != self.signs {
            (self.signs, self.quiet) = (signs, Duration::ZERO);
        }
        if self.stall.is_some_and(|stall| self.quiet >= stall) {
            let (place, quiet) = (self.place(op), clock(self.quiet));
            return Some(Alarm::Stalled(format!(
                "nothing has happened for {quiet} (run.stall_minutes): {place}"
            )));
        }
        let time = self.in_step.as_mut()?;
        *time += passed;
        let time = *time;
        let median = self.median()?;
        if self.said || time < LEAST || time.as_secs_f64() < TIMES * median {
            return None;
        }
        self.said = true;
        let (time, place) = (clock(time), self.place(op));
        Some(Alarm::Slow(format!(
            "a step takes {time} so far, the median of those before is {median:.1} s: {place}"
        )))
    }

    /// Seconds; of too few steps there is none.
    fn median(&self) -> Option<f64> {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        (times.len() >= FEWEST_STEPS).then(|| times[times.len() / 2])
    }

    /// `stage grpo, phase grpo, in step 8, last op attention`.
    fn place(&self, op: &str) -> String {
        let stage = if self.stage.is_empty() { "none yet" } else { &self.stage };
        let step = match self.in_step {
            Some(_) => format!("in step {}", self.step + 1),
            None => format!("after step {}", self.step),
        };
        format!("stage {stage}, phase {} ({} so far), {step}, last op {op}", self.phase, clock(self.in_phase))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn stage(watched: &mut Watched) {
        watched.hear(&Event::StageStarted { stage: "grpo".into(), steps: 20, done: 0, before: 0 });
    }

    /// A step that has taken so many seconds.
    fn step(watched: &mut Watched, step: u64, seconds: f64) {
        watched.hear(&Event::StepStarted { stage: "grpo".into(), step });
        let metrics = [("step_time", seconds)].into_iter().collect();
        watched.hear(&Event::Step { stage: "grpo".into(), step, metrics });
    }

    #[test]
    fn a_step_far_above_the_median_is_named_once() {
        let mut watched = Watched::new(None);
        stage(&mut watched);
        for (number, seconds) in [(1, 9.0), (2, 3.0), (3, 2.0)] {
            step(&mut watched, number, seconds);
        }
        watched.hear(&Event::StepStarted { stage: "grpo".into(), step: 4 });
        for second in 1..30 {
            assert_eq!(watched.look(LOOK, second, "attention"), None, "{second}");
        }
        let want = "a step takes 0:30 so far, the median of those before is 3.0 s: stage grpo, phase grpo (0:30 so far), in step \
                    4, last op attention";
        assert_eq!(watched.look(LOOK, 30, "attention"), Some(Alarm::Slow(want.into())));
        assert_eq!(watched.look(MINUTE, 31, "attention"), None);
        // The next one is told of again.
        step(&mut watched, 4, 90.0);
        watched.hear(&Event::StepStarted { stage: "grpo".into(), step: 5 });
        assert!(
            matches!(watched.look(2 * MINUTE, 32, "adamw"), Some(Alarm::Slow(text)) if text.contains("in step 5"))
        );
    }

    #[test]
    fn short_steps_few_steps_and_what_comes_between_them_are_not_slow() {
        let mut watched = Watched::new(None);
        stage(&mut watched);
        step(&mut watched, 1, 0.001);
        step(&mut watched, 2, 0.001);
        watched.hear(&Event::StepStarted { stage: "grpo".into(), step: 3 });
        assert_eq!(watched.look(MINUTE, 1, "adamw"), None, "two steps have no median");
        step(&mut watched, 3, 0.001);
        watched.hear(&Event::StepStarted { stage: "grpo".into(), step: 4 });
        assert_eq!(
            watched.look(Duration::from_secs(9), 2, "adamw"),
            None,
            "a thousand times 1 ms is no matter"
        );
        watched.hear(&Event::Phase { what: "writing a checkpoint".into() });
        assert_eq!(watched.look(60 * MINUTE, 3, "adamw"), None);
    }

    #[test]
    fn a_standstill_is_named_in_every_phase_and_a_sign_of_life_is_none() {
        let stall = Some(5 * MINUTE);
        let events = [
            (None, "stage none yet, phase starting (5:00 so far), after step 0, last op read a tensor"),
            (
                Some(Event::Phase { what: "loading weights".into() }),
                "stage none yet, phase loading weights (5:00 so far), after step 0, last op read a tensor",
            ),
            (
                Some(Event::work("evaluating vanilla".into(), "rows", 1, 8, Instant::now())),
                "stage none yet, phase evaluating vanilla (5:00 so far), after step 0, last op read a tensor",
            ),
            (
                Some(Event::StepStarted { stage: "sft".into(), step: 1 }),
                "stage none yet, phase sft (5:00 so far), in step 1, last op read a tensor",
            ),
        ];
        for (event, place) in events {
            let mut watched = Watched::new(stall);
            event.iter().for_each(|event| watched.hear(event));
            for look in 1..300 {
                assert_eq!(watched.look(LOOK, 0, "read a tensor"), None, "{look}");
            }
            let want = format!("nothing has happened for 5:00 (run.stall_minutes): {place}");
            assert_eq!(watched.look(LOOK, 0, "read a tensor"), Some(Alarm::Stalled(want)));
        }
        let mut watched = Watched::new(stall);
        for hour in 1..100 {
            assert_eq!(watched.look(60 * MINUTE, hour, "adamw"), None, "something began since");
        }
        watched.look(4 * MINUTE, 99, "adamw");
        watched.hear(&Event::Note { text: "waiting for room".into() });
        assert_eq!(watched.look(2 * MINUTE, 99, "adamw"), None, "an event is a sign");
        assert_eq!(Watched::new(None).look(9999 * MINUTE, 0, "adamw"), None, "it is off");
    }
}
