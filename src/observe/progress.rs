//! What a person sees: bars on a terminal, plain lines in a pipe, and the table at the end.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use super::printable::printable;
use super::work::{clock, thousands};
use super::{Event, Metrics, Sink, Work, results_table};
use crate::error::{Error, Result};

/// Least time between two plain lines of one stage; the first and the last step always have theirs.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two frames of a spinner, so that a long step shows that it is alive.
const TICK: Duration = Duration::from_millis(200);

/// Progress goes to stderr, the table to stdout.
pub struct Progress {
    display: Display,
    results: Box<dyn Write>,
    stage: Option<Stage>,
}

enum Display {
    Bars {
        /// The running stage's.
        bar: Option<ProgressBar>,
        /// What the bar says when no work does.
        message: String,
        /// The one of work between stages.
        spinner: Option<ProgressBar>,
    },
    Plain {
        out: Box<dyn Write>,
        interval: Duration,
        last_line: Option<Instant>,
        /// Of work: which, and when its last line was.
        last_work: Option<(String, Instant)>,
    },
}

struct Stage {
    steps: u64,
    done_before: u64,
    started: Instant,
}

impl Progress {
    /// Bars when stderr is a terminal, plain lines otherwise.
    pub fn new() -> Self {
        let results = Box::new(std::io::stdout());
        if std::io::stderr().is_terminal() {
            let display = Display::Bars { bar: None, message: String::new(), spinner: None };
            return Self { display, results, stage: None };
        }
        Self::plain(Box::new(std::io::stderr()), results, PLAIN_INTERVAL)
    }

    /// Plain lines to any writer, no two of a stage's steps closer than `interval`.
    pub fn plain(out: Box<dyn Write>, results: Box<dyn Write>, interval: Duration) -> Self {
        Self {
            display: Display::Plain { out, interval, last_line: None, last_work: None },
            results,
            stage: None,
        }
    }

    fn start_stage(&mut self, name: &str, steps: u64, done_before: u64) -> std::io::Result<()> {
        self.stage = Some(Stage { steps, done_before, started: Instant::now() });
        match &mut self.display {
            Display::Bars { bar, message, spinner } => {
                clear(spinner);
                finish(bar);
                message.clear();
                *bar = Some(stage_bar(name, steps, done_before));
                Ok(())
            }
            Display::Plain { out, last_line, .. } => {
                *last_line = None;
                let resumed = if done_before > 0 { format!(", {done_before} done") } else { String::new() };
                writeln!(out, "{name}: {} steps{resumed}", thousands(steps))
            }
        }
    }

    fn step(&mut self, name: &str, step: u64, metrics: &Metrics) -> std::io::Result<()> {
        let (steps, left) = match &self.stage {
            Some(stage) => (stage.steps, stage.time_left(step)),
            None => (step, None),
        };
        let left = left.filter(|_| step < steps).map_or(String::new(), |left| clock(left) + " left");
        let text = format!("{left:>9}  {}", step_fields(metrics));
        match &mut self.display {
            Display::Bars { bar, message, .. } => {
                if let Some(active) = bar {
                    active.set_position(step);
                    active.set_message(text.clone());
                    *message = text;
                    if step >= steps {
                        finish(bar);
                    }
                }
                Ok(())
            }
            Display::Plain { out, interval, last_line, .. } => {
                if step < steps && last_line.is_some_and(|last| last.elapsed() < *interval) {
                    return Ok(());
                }
                *last_line = Some(Instant::now());
                let width = steps.to_string().len();
                writeln!(out, "{name:<4} {step:>width$}/{steps}  {text}")
            }
        }
    }

    /// A line that stays, above the bar where there is one.
    fn line(&mut self, text: &str) -> std::io::Result<()> {
        let text = printable(text);
        match &mut self.display {
            Display::Bars { bar, message, spinner } => {
                clear(spinner);
                match bar {
                    Some(bar) => {
                        bar.set_message(message.clone());
                        bar.suspend(|| writeln!(std::io::stderr(), "{text}"))
                    }
                    None => writeln!(std::io::stderr(), "{text}"),
                }
            }
            Display::Plain { out, .. } => writeln!(out, "{text}"),
        }
    }

    /// In a pipe, work that is over within an interval says nothing.
    fn work(&mut self, work: &Work) -> std::io::Result<()> {
        match &mut self.display {
            Display::Bars { bar: Some(bar), message, .. } => {
                bar.set_message(if work.is_over() { message.clone() } else { work.to_string() });
            }
            Display::Bars { spinner, .. } if work.is_over() => clear(spinner),
            Display::Bars { spinner, .. } => {
                let bar = spinner.get_or_insert_with(work_bar);
                bar.set_message(work.to_string());
                bar.set_position((work.share * WORK_PARTS) as u64);
            }
            Display::Plain { out, interval, last_work, .. } => {
                let silent = match last_work {
                    Some((what, since)) if *what == work.what => since.elapsed(),
                    _ => work.elapsed,
                };
                if silent >= *interval && !work.is_over() {
                    *last_work = Some((work.what.clone(), Instant::now()));
                    writeln!(out, "{work}")?;
                }
            }
        }
        Ok(())
    }

    fn finished(&mut self, table: &str, run: &Path, chosen: Option<&str>) -> std::io::Result<()> {
        if let Display::Bars { bar, spinner, .. } = &mut self.display {
            clear(spinner);
            finish(bar);
        }
        writeln!(self.results, "\n{table}\nrun: {}", run.display())?;
        if let Some(chosen) = chosen {
            writeln!(self.results, "{chosen}")?;
        }
        self.results.flush()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for Progress {
    fn name(&self) -> &str {
        "the progress display"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::StageStarted { stage, steps, done, .. } => self.start_stage(stage, *steps, *done),
            Event::Step { stage, step, metrics } => self.step(stage, *step, metrics),
            Event::Evaluation { stage, step, metrics, .. } => {
                let text = evaluation_line(stage, *step, metrics);
                self.line(&text)
            }
            Event::Work(work) => self.work(work),
            Event::Warning { text } => self.line(&format!("warning: {text}")),
            Event::Note { text } => self.line(text),
            Event::StepStarted { .. }
            | Event::Phase { .. }
            | Event::Checkpoint { .. }
            | Event::Samples { .. }
            | Event::Prompts { .. }
            | Event::Tokens { .. } => Ok(()),
            Event::Finished { rows, run, chosen } => {
                self.finished(&results_table(rows), run, chosen.as_deref())
            }
        }
        .map_err(Error::io("stderr", "show the progress"))
    }
}

/// [`Work`] alone, for commands that train nothing.
#[derive(Default)]
pub struct WorkDisplay(Progress);

impl WorkDisplay {
    /// Shows what it is told of work that begins now: how many of how many are done.
    pub fn watch(what: &'static str, unit: &'static str) -> impl FnMut(usize, usize) {
        let (mut display, start) = (Self::default(), Instant::now());
        move |done, total| {
            // A terminal that is gone takes nothing from the work.
            let _ = display.emit(&Event::work(what.into(), unit, done, total, start));
        }
    }
}

impl Sink for WorkDisplay {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Work(_) | Event::Warning { .. } => self.0.emit(event),
            _ => Ok(()),
        }
    }
}

impl Stage {
    fn time_left(&self, step: u64) -> Option<Duration> {
        let done = step.saturating_sub(self.done_before);
        (done > 0).then(|| {
            let each = self.started.elapsed().as_secs_f64() / done as f64;
            Duration::from_secs_f64(each * self.steps.saturating_sub(step) as f64)
        })
    }
}

/// A stage's loss says how it goes until there is a reward to say it.
fn step_fields(metrics: &Metrics) -> String {
    let mut fields = Vec::new();
    match (metrics.get("reward"), metrics.get("loss")) {
        (Some(reward), _) => fields.push(format!("reward {reward:.3}")),
        (None, Some(loss)) => fields.push(format!("loss {loss:.4}")),
        (None, None) => {}
    }
    if let Some(accuracy) = metrics.get("verdict/accuracy_strict") {
        fields.push(format!("strict {accuracy:.3}"));
    }
    match metrics.get("tokens_per_second") {
        Some(0.0) => fields.push("nothing to learn: all groups agree".into()),
        Some(rate) => fields.push(format!("{:>6} tok/s", thousands(rate as u64))),
        None => {}
    }
    if let (Some(cost), Some(more)) = (metrics.get("cost"), metrics.get("cost_to_come")) {
        fields.push(format!("cost {cost:.2} + {more:.2}"));
    }
    fields.join("  ")
}

fn evaluation_line(stage: &str, step: u64, metrics: &Metrics) -> String {
    let after = if step > 0 { format!("{stage} {step}") } else { stage.to_string() };
    let mut text = format!("eval {after:<8}");
    for (label, name) in [
        ("strict accuracy", "verdict/accuracy_strict"),
        ("paper's", "verdict/accuracy_paper"),
        ("FPR", "verdict/false_positive_rate"),
        ("malformed", "verdict/malformed_rate"),
    ] {
        if let Some(value) = metrics.get(name) {
            let _ = write!(text, "  {label} {value:.3}");
        }
    }
    text
}

fn stage_bar(name: &str, steps: u64, done_before: u64) -> ProgressBar {
    let width = steps.to_string().len();
    let template =
        format!("{{spinner}} {{prefix:<4}} {{bar:10.cyan/dim}} {{pos:>{width}}}/{{len}}  {{wide_msg}}");
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr())
        .with_prefix(name.to_string())
        .with_position(done_before)
        .with_finish(ProgressFinish::Abandon);
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("━╸─").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// Steps of a bar of work.
const WORK_PARTS: f64 = 1000.0;

fn work_bar() -> ProgressBar {
    let target = ProgressDrawTarget::stderr();
    let bar =
        ProgressBar::with_draw_target(Some(WORK_PARTS as u64), target).with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:10.cyan/dim} {wide_msg}") {
        bar.set_style(style.progress_chars("━╸─").tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ "));
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// Leaves the bar on the screen as it stands.
fn finish(bar: &mut Option<ProgressBar>) {
    if let Some(bar) = bar.take() {
        bar.abandon();
    }
}

fn clear(spinner: &mut Option<ProgressBar>) {
    if let Some(spinner) = spinner.take() {
        spinner.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::observe::TableRow;

    #[derive(Clone, Default)]
    struct Screen(Rc<RefCell<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Screen {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.borrow().clone()).unwrap().lines().map(String::from).collect()
        }
    }

    fn plain(interval: Duration) -> (Progress, Screen, Screen) {
        let (progress, results) = (Screen::default(), Screen::default());
        let sink = Progress::plain(Box::new(progress.clone()), Box::new(results.clone()), interval);
        (sink, progress, results)
    }

    fn start(sink: &mut Progress, steps: u64) {
        sink.emit(&Event::StageStarted { stage: "grpo".into(), steps, done: 0, before: 0 }).unwrap();
    }

    fn step(sink: &mut Progress, step: u64) {
        let metrics = [
            ("loss", 0.0),
            ("reward", 0.5),
            ("verdict/accuracy_strict", 0.625),
            ("tokens_per_second", 12_345.6),
        ];
        let metrics = metrics.into_iter().collect();
        sink.emit(&Event::Step { stage: "grpo".into(), step, metrics }).unwrap();
    }

    #[test]
    fn plain_lines_keep_their_columns() {
        let (mut sink, screen, _) = plain(Duration::ZERO);
        start(&mut sink, 10);
        step(&mut sink, 9);
        step(&mut sink, 10);
        let metrics = [("verdict/accuracy_strict", 0.38), ("verdict/accuracy_paper", 0.82)];
        sink.emit(&Event::Evaluation {
            stage: "grpo".into(),
            step: 10,
            metrics: metrics.into_iter().collect(),
            report: serde_json::Value::Null,
        })
        .unwrap();
        assert_eq!(
            screen.lines(),
            [
                "grpo: 10 steps",
                "grpo  9/10  0:00 left  reward 0.500  strict 0.625  12,345 tok/s",
                "grpo 10/10             reward 0.500  strict 0.625  12,345 tok/s",
                "eval grpo 10   strict accuracy 0.380  paper's 0.820",
            ]
        );
    }

    #[test]
    fn long_work_shows_in_a_pipe_and_short_work_does_not() {
        let work = |done, seconds| {
            let mut work = Work::new("evaluating vanilla".into(), "rows", done, 8, Instant::now());
            work.elapsed = Duration::from_secs(seconds);
            Event::Work(work)
        };
        let (mut sink, screen, _) = plain(Duration::from_secs(5));
        for (done, seconds) in [(0, 0), (2, 2), (4, 6), (6, 6), (8, 90)] {
            sink.emit(&work(done, seconds)).unwrap();
        }
        assert_eq!(screen.lines(), ["evaluating vanilla: 4 of 8 rows, 0.7 rows/s, 0:06 left"]);
    }

    #[test]
    fn a_step_of_dead_groups_has_no_rate() {
        let metrics = [("reward", 1.0), ("tokens_per_second", 0.0)].into_iter().collect();
        assert_eq!(step_fields(&metrics), "reward 1.000  nothing to learn: all groups agree");
    }

    #[test]
    fn a_step_with_a_price_says_what_it_cost_so_far_and_what_is_to_come() {
        let metrics = [("loss", 1.0), ("cost", 1.234), ("cost_to_come", 0.5)].into_iter().collect();
        assert_eq!(step_fields(&metrics), "loss 1.0000  cost 1.23 + 0.50");
    }

    #[test]
    fn fast_steps_do_not_flood_a_pipe() {
        let (mut sink, screen, _) = plain(Duration::from_secs(3600));
        start(&mut sink, 100);
        (1..=100).for_each(|i| step(&mut sink, i));
        let lines = screen.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[1].contains("  1/100") && lines[2].contains("100/100"), "{lines:?}");
    }

    #[test]
    fn the_table_goes_to_the_results_with_the_runs_path() {
        let (mut sink, screen, results) = plain(Duration::ZERO);
        let rows = vec![TableRow { name: "vanilla".into(), metrics: Metrics::default() }];
        sink.emit(&Event::Finished { rows, run: "runs/a-001".into(), chosen: Some("model: x".into()) })
            .unwrap();
        assert!(screen.lines().is_empty());
        let lines = results.lines();
        assert!(lines[1].contains("accuracy") && lines[3].starts_with("vanilla"), "{lines:?}");
        assert_eq!(lines[lines.len() - 2..], ["run: runs/a-001", "model: x"]);
    }

    #[test]
    fn time_left_follows_the_steps_of_this_process() {
        // Steps 11 to 20 took 10 s, so 80 more take 80 s; the 10 before the resume do not count.
        let started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let stage = Stage { steps: 100, done_before: 10, started };
        assert_eq!(stage.time_left(20).unwrap().as_secs(), 80);
        assert_eq!(stage.time_left(10), None);
    }
}
