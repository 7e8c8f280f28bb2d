//! The page: what `page.html.jinja` shows.

use minijinja::{AutoEscape, Environment, Value, context};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::answers::{Answers, outcome};
use super::charts;
use super::histograms::histograms;
use super::page_data::page_data;
use super::rewards::rewards;
use super::run::{Evaluation, Run};
use super::sources;
use super::svg::{escape, short};
use super::tables::{self, Table};
use crate::error::{Error, Result};
use crate::observe::SampleKind;

const TEMPLATE: &str = include_str!("page.html.jinja");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
/// Answers shown of each kind.
const SAMPLES_OF_A_KIND: usize = 6;
const MOST_CHARACTERS: usize = 900;
const MOST_PROMPT_CHARACTERS: usize = 4000;

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
    let (data, mut cuts) = page_data(runs)?;
    let of_run =
        |run: &Run| run.answers.notes.iter().map(|note| format!("{}: {note}", run.name)).collect::<Vec<_>>();
    cuts.extend(runs.iter().flat_map(of_run));
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let stages = charts::steps(runs).into_iter().map(|(name, mut figures)| {
        figures.extend(sources::steps(runs, &name));
        context! { name, figures }
    });
    let evaluations: Vec<_> =
        charts::evaluations(runs).into_iter().chain(sources::evaluations(runs)).collect();
    let page = context! {
        title => names.join(", "),
        style => STYLE,
        runs => runs.iter().enumerate().map(head).collect::<Vec<_>>(),
        results => tables::results(runs),
        warnings => tables::warnings(runs),
        rewards => rewards(runs),
        evaluations,
        stages => stages.collect::<Vec<_>>(),
        thresholds => tables::thresholds(runs),
        threshold_curves => charts::thresholds(runs),
        label_bars => charts::label_bars(runs),
        labels => runs.iter().enumerate().filter_map(labels).collect::<Vec<_>>(),
        answers => runs.iter().flat_map(answers).collect::<Vec<_>>(),
        histograms => histograms(runs),
        has_differences => runs.iter().map(|run| run.answers.sets.len()).sum::<usize>() > 1,
        cuts => cuts,
        data => data,
        script => SCRIPT,
        script_hash => script_hash(),
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
fn labels((i, run): (usize, &Run)) -> Option<Value> {
    let evaluation = run.last_evaluation()?;
    Some(context! { scores => tables::labels(run), confusion => confusion(i, run, evaluation) })
}

/// A gold label's answers by verdict.
#[derive(Serialize)]
struct Cell {
    count: u64,
    /// Opacity of the cell's colour, from the verdict's share of the label's answers.
    shade: String,
    right: bool,
}

fn confusion(i: usize, run: &Run, evaluation: &Evaluation) -> Option<Value> {
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
    (!rows.is_empty()).then(|| context! { run => i, caption, labels, rows })
}

/// A few of a run's answers of each kind, of its last evaluation and of its last rollouts.
fn answers(run: &Run) -> Vec<Value> {
    let labels = run.last_evaluation().map(|e| e.labels()).unwrap_or_default();
    let negative = labels.first().copied().unwrap_or_default();
    let kinds = [SampleKind::Evaluation, SampleKind::Rollouts].into_iter();
    kinds.filter_map(|kind| Some(cards(run, run.answers.last(kind)?, negative))).collect()
}

fn cards(run: &Run, set: &Answers, negative: &str) -> Value {
    let mut shown: Vec<(&str, usize)> = Vec::new();
    let mut cards = Vec::new();
    for (sample, _) in &set.records {
        let (kind, class) = outcome(sample, negative);
        let at = shown.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            shown.push((kind, 0));
            shown.len() - 1
        });
        shown[at].1 += 1;
        if shown[at].1 > SAMPLES_OF_A_KIND {
            continue;
        }
        let mut said = vec![format!("gold {}", sample.gold)];
        if sample.verdict != sample.gold {
            said.push(format!("judged {}", sample.verdict));
        }
        said.push(format!("reward {}", short(sample.reward.into())));
        said.extend(sample.advantage.map(|advantage| format!("advantage {}", short(advantage.into()))));
        said.extend(sample.tokens.map(|tokens| format!("{tokens} tokens")));
        let text = beginning(&sample.completion, MOST_CHARACTERS);
        let prompt = run.answers.prompt(set.kind, sample.line).map(|p| beginning(p, MOST_PROMPT_CHARACTERS));
        cards.push(context! { class, kind, line => sample.line, said => said.join(", "), text, prompt });
    }
    let counts: Vec<String> = shown.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let what = if set.kind == SampleKind::Rollouts { "rollouts of " } else { "" };
    let summary = format!(
        "{}, {what}{}: {}; at most {SAMPLES_OF_A_KIND} of each",
        run.name,
        set.name,
        counts.join(", ")
    );
    context! { summary, cards, is_open => set.kind == SampleKind::Evaluation }
}

fn beginning(text: &str, most: usize) -> String {
    let mut start: String = text.chars().take(most).collect();
    if start.len() < text.len() {
        start.push_str(" ...");
    }
    start
}

/// The script's hash as a Content-Security-Policy names it: nothing else runs in the page, whatever a text holds.
fn script_hash() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = Sha256::digest(SCRIPT);
    let mut text = String::from("sha256-");
    for three in digest.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn config(run: &Run) -> Value {
    let keys: Table = tables::config(std::slice::from_ref(run));
    context! { name => run.name, keys }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_named_by_its_hash_and_ends_no_element() {
        let hash = script_hash();
        assert_eq!((hash.len(), &hash[50..]), (51, "="), "32 bytes are 43 digits and a sign");
        assert!(!SCRIPT.contains("</") && !SCRIPT.contains("innerHTML"));
    }
}
