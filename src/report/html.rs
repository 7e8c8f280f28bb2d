//! The page: what `page.html.jinja` shows.

use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;

use super::charts;
use super::run::{Evaluation, Run};
use super::svg::escape;
use super::tables::{self, Table};
use crate::error::{Error, Result};
use crate::observe::SampleRecord;

const TEMPLATE: &str = include_str!("page.html.jinja");
const STYLE: &str = include_str!("style.css");
/// Answers shown of each kind.
const SAMPLES_OF_A_KIND: usize = 6;
const MOST_CHARACTERS: usize = 900;

/// One self-contained page about `runs`, at least one.
///
/// # Errors
/// The template is at fault.
pub fn html(runs: &[Run]) -> Result<String> {
    let mut env = Environment::new();
    env.set_keep_trailing_newline(true);
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    // The same escapes as within the drawings.
    env.set_formatter(|out, state, value| match value.as_str() {
        Some(text) if !value.is_safe() => out.write_str(&escape(text)).map_err(minijinja::Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    });
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let stages = charts::steps(runs).into_iter().map(|(name, figures)| context! { name, figures });
    let page = context! {
        title => names.join(", "),
        style => STYLE,
        runs => runs.iter().enumerate().map(head).collect::<Vec<_>>(),
        results => tables::results(runs),
        warnings => tables::warnings(runs),
        evaluations => charts::evaluations(runs),
        stages => stages.collect::<Vec<_>>(),
        thresholds => tables::thresholds(runs),
        threshold_curves => charts::thresholds(runs),
        label_bars => charts::label_bars(runs),
        labels => runs.iter().filter_map(labels).collect::<Vec<_>>(),
        answers => runs.iter().filter(|run| !run.samples.is_empty()).map(answers).collect::<Vec<_>>(),
        cost => tables::cost(runs),
        differences => (runs.len() > 1).then(|| tables::config(runs)),
        configs => runs.iter().map(config).collect::<Vec<_>>(),
    };
    let rendered = env.render_named_str("page.html", TEMPLATE, page);
    rendered.map_err(|e| Error::Compute(format!("the report's template: {e:#}").into()))
}

fn head((i, run): (usize, &Run)) -> Value {
    let task = run.config.get("task").map(|task| task.trim_matches('"')).unwrap_or("unknown task");
    let steps: Vec<String> =
        run.stages().into_iter().map(|s| format!("{} {s} steps", run.curve(s, "loss").len())).collect();
    let steps = if steps.is_empty() { "no steps yet".into() } else { steps.join(", ") };
    let summary = format!("{}: task {task}, {steps}", run.name);
    context! { name => run.name, colour => charts::colour(i), summary, notes => run.notes,
    chosen => run.chosen.as_ref().map(|chosen| chosen.text()) }
}

/// Scores of each label and the confusion of the last evaluation; none without one.
fn labels(run: &Run) -> Option<Value> {
    let evaluation = run.last_evaluation()?;
    Some(context! { scores => tables::labels(run), confusion => confusion(run, evaluation) })
}

/// A gold label's answers by verdict.
#[derive(Serialize)]
struct Cell {
    count: u64,
    /// Opacity of the cell's colour, from the verdict's share of the label's answers.
    shade: String,
    right: bool,
}

fn confusion(run: &Run, evaluation: &Evaluation) -> Option<Value> {
    let (labels, counts) = (evaluation.labels(), evaluation.confusion());
    let row = |(i, row): (usize, &Vec<u64>)| {
        let total: u64 = row.iter().sum();
        let cell = |(j, count): (usize, &u64)| {
            let share = *count as f64 / total.max(1) as f64;
            Cell { count: *count, shade: format!("{:.2}", share * 0.55), right: i == j }
        };
        let cells: Vec<Cell> = row.iter().enumerate().map(cell).collect();
        context! { label => labels.get(i).copied().unwrap_or_default(), cells }
    };
    let caption = format!("{}, {}: gold label (rows) by verdict (columns)", run.name, evaluation.name);
    let rows: Vec<Value> = counts.iter().enumerate().map(row).collect();
    (!rows.is_empty()).then(|| context! { caption, labels, rows })
}

/// What came of an answer, for its colour and its heading.
fn kind(sample: &SampleRecord, negative: &str) -> (&'static str, &'static str) {
    let (gold, verdict) = (sample.gold.as_str(), sample.verdict.as_str());
    match verdict {
        _ if verdict == gold => ("right", "exact"),
        "malformed" => ("malformed", "malformed"),
        _ if gold == negative => ("false alarm", "wrong"),
        _ if verdict == negative => ("missed risk", "wrong"),
        _ => ("another label", "wrong"),
    }
}

/// A few of a run's answers of each kind.
fn answers(run: &Run) -> Value {
    let labels = run.last_evaluation().map(|e| e.labels()).unwrap_or_default();
    let negative = labels.first().copied().unwrap_or_default();
    let mut shown: Vec<(&str, usize)> = Vec::new();
    let mut cards = Vec::new();
    for sample in &run.samples {
        let (kind, class) = kind(sample, negative);
        let at = shown.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            shown.push((kind, 0));
            shown.len() - 1
        });
        shown[at].1 += 1;
        if shown[at].1 > SAMPLES_OF_A_KIND {
            continue;
        }
        let mut text: String = sample.completion.chars().take(MOST_CHARACTERS).collect();
        if text.len() < sample.completion.len() {
            text.push_str(" ...");
        }
        let judged = sample.verdict != sample.gold;
        let said = if judged { format!(", judged {}", sample.verdict) } else { String::new() };
        let (line, gold, reward) = (sample.line, &sample.gold, sample.reward.to_string());
        cards.push(context! { class, kind, line, gold, said, reward, text });
    }
    let counts: Vec<String> = shown.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let summary = format!("{}: {}; at most {SAMPLES_OF_A_KIND} of each", run.name, counts.join(", "));
    context! { summary, cards }
}

fn config(run: &Run) -> Value {
    let keys: Table = tables::config(std::slice::from_ref(run));
    context! { name => run.name, keys }
}
