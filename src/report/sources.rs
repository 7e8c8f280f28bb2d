//! Curves of a run by the sources of its rows, where `data.mix` or `data.valid_files` has several.

use std::collections::BTreeSet;

use super::charts::{Figure, colour};
use super::run::Run;
use super::svg::{Chart, Drawn, Line};

/// Of an axis.
type Range = Option<(f64, f64)>;
/// Title, the metric's last part, range of the axis.
type Curve = (&'static str, &'static str, Range);
/// Name and points.
type Named = (String, Vec<(f64, f64)>);

const CURVES: [Curve; 4] = [
    ("Loss by source", "loss", None),
    ("Reward by source", "reward", None),
    ("Strict accuracy of rollouts by source", "accuracy_strict", Some((0.0, 1.0))),
    ("Share of dead groups by source", "frac_reward_zero_std", Some((0.0, 1.0))),
];

/// Metrics of a run's steps that are of a source, `source/NAME/WHAT`.
pub fn metrics(run: &Run) -> Vec<String> {
    let all = run.steps.iter().flat_map(|step| step.metrics.keys());
    all.filter(|name| name.starts_with("source/")).collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

/// A line a run and source, coloured one after the other.
fn figure(title: &str, x: &str, range: Range, lines: Vec<Named>) -> Option<Figure> {
    let lines = lines.into_iter().filter(|(_, points)| !points.is_empty()).enumerate();
    let lines: Vec<Line> =
        lines.map(|(i, (name, points))| Line { name, colour: colour(i), dashed: false, points }).collect();
    let drawn = if x == "step" { Drawn::Smoothed } else { Drawn::Marked };
    let svg = Chart { title, x, lines: &lines, drawn, range, baseline: None }.svg()?;
    Some(Figure { title: title.into(), svg, caption: String::new() })
}

/// Curves of a stage's steps.
pub fn steps(runs: &[Run], stage: &str) -> Vec<Figure> {
    let of = |(title, what, range): &Curve| {
        let of_run = |run: &Run| -> Vec<Named> {
            let names = metrics(run).into_iter().filter_map(|metric| {
                let source = metric.strip_prefix("source/")?.strip_suffix(&format!("/{what}"))?.to_string();
                Some((format!("{}, {source}", run.name), run.curve(stage, &metric)))
            });
            names.collect()
        };
        figure(title, "step", *range, runs.iter().flat_map(of_run).collect())
    };
    CURVES.iter().filter_map(of).collect()
}

/// Strict accuracy on each of several validation files.
pub fn evaluations(runs: &[Run]) -> Option<Figure> {
    let of_run = |run: &Run| -> Vec<Named> {
        let sources = run.evaluations.iter().filter_map(|e| e.report["sources"].as_object());
        let names: BTreeSet<&String> = sources.flat_map(|sources| sources.keys()).collect();
        let line = |name: &String| {
            (format!("{}, {name}", run.name), run.evaluation_curve(&["sources", name, "accuracy_strict"]))
        };
        names.into_iter().map(line).collect()
    };
    let lines = runs.iter().flat_map(of_run).collect();
    figure("Strict accuracy by validation file", "step of the run", Some((0.0, 1.0)), lines)
}
