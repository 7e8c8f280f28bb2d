//! The page.

use std::fmt::Write;

use super::charts::{self, Figure};
use super::run::{Evaluation, Run};
use super::svg::escape;
use super::tables::{self, Table};
use crate::observe::SampleRecord;

const STYLE: &str = include_str!("style.css");
/// Answers shown of each kind.
const SAMPLES_OF_A_KIND: usize = 6;
const MOST_CHARACTERS: usize = 900;

/// One self-contained page about `runs`, at least one.
pub fn html(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let title = escape(&names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>rlvr: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    for run in runs {
        let task = run.config.get("task").map(|task| task.trim_matches('"')).unwrap_or("unknown task");
        let steps: Vec<String> =
            run.stages().into_iter().map(|s| format!("{} {s} steps", run.curve(s, "loss").len())).collect();
        let steps = if steps.is_empty() { "no steps yet".into() } else { steps.join(", ") };
        let text = format!("{}: task {task}, {steps}", run.name);
        let _ = writeln!(page, "<p class=\"soft\">{}</p>", escape(&text));
        for note in &run.notes {
            let _ = writeln!(page, "<p class=\"wrong\">{}</p>", escape(&format!("{}: {note}", run.name)));
        }
    }
    if runs.len() > 1 {
        page.push_str(&charts::legend(runs));
    }
    section(&mut page, "Results", &table(&tables::results(runs), ""));
    let warnings = tables::warnings(runs).map(|found| table(&found, "texts"));
    section(&mut page, "Warnings", &warnings.unwrap_or_default());
    section(&mut page, "Evaluations over the run", &figures(&charts::evaluations(runs)));
    for (stage, curves) in charts::steps(runs) {
        let body =
            format!("<p class=\"soft\">Faint: as measured. Strong: smoothed.</p>\n{}", figures(&curves));
        section(&mut page, &format!("Training, {stage}"), &body);
    }
    let mut thresholds = figures(&charts::thresholds(runs));
    if let Some(found) = tables::thresholds(runs) {
        thresholds = table(&found, "") + &thresholds;
    }
    section(&mut page, "Threshold", &thresholds);
    section(&mut page, "Labels", &labels(runs));
    section(&mut page, "Answers", &samples(runs));
    section(&mut page, "Time and memory", &tables::cost(runs).map(|t| table(&t, "")).unwrap_or_default());
    section(&mut page, "Config", &config(runs));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Nothing where the body is empty.
fn section(page: &mut String, heading: &str, body: &str) {
    if !body.is_empty() {
        let _ = writeln!(page, "<section>\n<h2>{}</h2>\n{body}</section>", escape(heading));
    }
}

fn table(table: &Table, class: &str) -> String {
    let mut out = format!(
        "<p class=\"soft\">{0}</p>\n<div class=\"wide\" tabindex=\"0\"><table class=\"{class}\" aria-label=\"{0}\"><thead><tr>",
        escape(&table.caption)
    );
    for name in &table.head {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(name));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escape(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn figures(figures: &[Figure]) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let mut out = "<div class=\"grid-of-cards\">\n".to_string();
    for figure in figures {
        let _ = write!(out, "<figure class=\"card\"><h3>{}</h3>{}", escape(&figure.title), figure.svg);
        if !figure.caption.is_empty() {
            let _ = write!(out, "<figcaption>{}</figcaption>", escape(&figure.caption));
        }
        out.push_str("</figure>\n");
    }
    out.push_str("</div>\n");
    out
}

fn labels(runs: &[Run]) -> String {
    let mut out = figures(&charts::label_bars(runs));
    for run in runs {
        if let Some(found) = tables::labels(run) {
            out.push_str(&table(&found, ""));
        }
        if let Some(evaluation) = run.last_evaluation() {
            out.push_str(&confusion(run, evaluation));
        }
    }
    out
}

/// Shares of a gold label's answers, as shades; right ones are framed.
fn confusion(run: &Run, evaluation: &Evaluation) -> String {
    let (labels, counts) = (evaluation.labels(), evaluation.confusion());
    if counts.is_empty() {
        return String::new();
    }
    let caption = format!("{}, {}: gold label (rows) by verdict (columns)", run.name, evaluation.name);
    let mut out = format!(
        "<p class=\"soft\">{0}</p>\n<div class=\"wide\" tabindex=\"0\"><table class=\"matrix\" aria-label=\"{0}\"><thead><tr><th scope=\"col\">gold</th>",
        escape(&caption)
    );
    for (i, label) in labels.iter().enumerate() {
        let _ = write!(out, "<th scope=\"col\"><abbr title=\"{}\">{i}</abbr></th>", escape(label));
    }
    out.push_str("<th scope=\"col\">malformed</th></tr></thead><tbody>");
    for (i, row) in counts.iter().enumerate() {
        let label = labels.get(i).copied().unwrap_or_default();
        let _ = write!(out, "<tr><th scope=\"row\">{i} {}</th>", escape(label));
        let total: u64 = row.iter().sum();
        for (j, count) in row.iter().enumerate() {
            let share = *count as f64 / total.max(1) as f64;
            let class = if i == j { " class=\"right\"" } else { "" };
            let shade = format!("background: rgba(var(--heat), {:.2})", share * 0.55);
            let _ = write!(out, "<td{class} style=\"{shade}\">{count}</td>");
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>\n");
    out
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

fn samples(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs.iter().filter(|run| !run.samples.is_empty()) {
        let labels = run.last_evaluation().map(|e| e.labels()).unwrap_or_default();
        let negative = labels.first().copied().unwrap_or_default();
        let mut shown: Vec<(&str, usize)> = Vec::new();
        let mut cards = String::new();
        for sample in &run.samples {
            let (name, class) = kind(sample, negative);
            match shown.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => shown.push((name, 1)),
            }
            if shown.iter().any(|(known, count)| *known == name && *count > SAMPLES_OF_A_KIND) {
                continue;
            }
            let text: String = sample.completion.chars().take(MOST_CHARACTERS).collect();
            let more = if text.len() < sample.completion.len() { " ..." } else { "" };
            let said = if sample.verdict == sample.gold {
                String::new()
            } else {
                format!(", judged {}", sample.verdict)
            };
            let _ = writeln!(
                cards,
                "<div class=\"card\"><span class=\"chip {class}\">{name}</span> <span class=\"soft\">row {}, {}{}, reward {}</span><pre>{}{more}</pre></div>",
                sample.line,
                escape(&sample.gold),
                escape(&said),
                sample.reward,
                escape(&text)
            );
        }
        let counts: Vec<String> = shown.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let text = format!("{}: {}; at most {SAMPLES_OF_A_KIND} of each", run.name, counts.join(", "));
        let open = if runs.len() == 1 { " open" } else { "" };
        let _ = writeln!(
            out,
            "<details{open}><summary>{}</summary>\n<div class=\"grid-of-cards\">\n{cards}</div></details>",
            escape(&text)
        );
    }
    out
}

fn config(runs: &[Run]) -> String {
    let mut out = String::new();
    if runs.len() > 1 {
        let differences = tables::config(runs);
        out = if differences.rows.is_empty() {
            "<p>The runs have equal configs.</p>\n".into()
        } else {
            table(&differences, "texts")
        };
    }
    for run in runs {
        let all = table(&tables::config(std::slice::from_ref(run)), "texts");
        let _ = writeln!(out, "<details><summary>{}: all keys</summary>{all}</details>", escape(&run.name));
    }
    out
}
