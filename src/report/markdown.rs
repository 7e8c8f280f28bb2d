//! The report as Markdown: the tables, and the ends of the curves.

use std::fmt::Write;

use super::rewards::rewards;
use super::run::Run;
use super::sources;
use super::svg::short;
use super::tables::{self, Table};

/// `runs`: at least one.
pub fn markdown(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut out = format!("# {}\n", escape(&names.join(", ")));
    for run in runs {
        for note in &run.notes {
            let _ = writeln!(out, "\n**{}: {}**", escape(&run.name), escape(note));
        }
    }
    for run in runs {
        if let Some(chosen) = &run.chosen {
            let _ = writeln!(out, "\n{}: {}", escape(&run.name), escape(&chosen.text()));
        }
    }
    section(&mut out, "Results", Some(tables::results(runs)));
    section(&mut out, "Warnings", tables::warnings(runs));
    section(&mut out, "Curves", Some(curves(runs)));
    for (i, table) in rewards(runs).into_iter().enumerate() {
        section(&mut out, if i == 0 { "Rewards" } else { "" }, Some(table));
    }
    section(&mut out, "Threshold", tables::thresholds(runs));
    for run in runs {
        section(&mut out, "Labels", tables::labels(run));
        section(&mut out, "Confusion", confusion(run));
    }
    section(&mut out, "Time and memory", tables::cost(runs));
    section(&mut out, "Config", Some(tables::config(runs)));
    out
}

fn section(out: &mut String, heading: &str, table: Option<Table>) {
    let Some(table) = table.filter(|table| !table.rows.is_empty()) else { return };
    if !heading.is_empty() {
        let _ = writeln!(out, "\n## {heading}");
    }
    let _ = writeln!(out, "\n{}\n", escape(&table.caption));
    let line = |cells: &[String]| cells.iter().map(|cell| format!(" {} |", escape(cell))).collect::<String>();
    let _ = writeln!(out, "|{}", line(&table.head));
    let _ = writeln!(out, "|{}", "---|".repeat(table.head.len()));
    for row in &table.rows {
        let _ = writeln!(out, "|{}", line(row));
    }
}

/// Text within a table's cell.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '|' | '`' | '*' | '_' | '<' | '[' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn curves(runs: &[Run]) -> Table {
    let metrics = ["reward", "loss", "verdict/accuracy_strict", "completions/mean_length", "entropy", "kl"];
    let mut rows = Vec::new();
    for run in runs {
        for stage in run.stages() {
            for metric in metrics.into_iter().map(String::from).chain(sources::metrics(run)) {
                let curve = run.curve(stage, &metric);
                let Some(last) = super::svg::smooth(&curve).last().copied() else { continue };
                let values = || curve.iter().map(|point| point.1);
                let ends = [
                    curve[0].1,
                    values().fold(f64::INFINITY, f64::min),
                    values().fold(f64::NEG_INFINITY, f64::max),
                    last.1,
                ];
                let name = [run.name.clone(), stage.to_string(), metric, curve.len().to_string()];
                rows.push(name.into_iter().chain(ends.map(short)).collect());
            }
        }
    }
    Table {
        caption: "Of the training steps; the last value is smoothed over a twentieth of the steps.".into(),
        head: ["run", "stage", "metric", "steps", "first", "least", "most", "last"]
            .map(String::from)
            .to_vec(),
        rows,
    }
}

fn confusion(run: &Run) -> Option<Table> {
    let evaluation = run.last_evaluation()?;
    let labels = evaluation.labels();
    let row = |(i, counts): (usize, Vec<u64>)| {
        let name = format!("{i} {}", labels.get(i).copied().unwrap_or_default());
        std::iter::once(name).chain(counts.iter().map(u64::to_string)).collect()
    };
    Some(Table {
        caption: format!("{}, {}: gold label by verdict", run.name, evaluation.name),
        head: std::iter::once("gold".to_string())
            .chain((0..labels.len()).map(|i| i.to_string()))
            .chain(["malformed".to_string()])
            .collect(),
        rows: evaluation.confusion().into_iter().enumerate().map(row).collect(),
    })
}
