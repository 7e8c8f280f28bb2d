//! Which curves a report draws.

use serde::Serialize;

use super::run::Run;
use super::svg::{Bar, Chart, Drawn, Line, bars};

/// A drawing with its heading.
#[derive(Serialize)]
pub struct Figure {
    pub title: String,
    pub svg: String,
    pub caption: String,
}

/// Title, metric, range of the axis.
type Curve = (&'static str, &'static str, Option<(f64, f64)>);
/// Title, the lines' names and where their scores are in a report, caption.
type Scores = (&'static str, Vec<(&'static str, Vec<&'static str>)>, &'static str);

/// Metrics of training steps.
const CURVES: [Curve; 15] = [
    ("Reward", "reward", None),
    ("Loss", "loss", None),
    ("Strict accuracy of rollouts", "verdict/accuracy_strict", Some((0.0, 1.0))),
    ("Malformed share of rollouts", "verdict/malformed_rate", Some((0.0, 1.0))),
    ("Mean length, tokens", "completions/mean_length", None),
    ("Share cut by the token budget", "completions/clipped_ratio", Some((0.0, 1.0))),
    ("Entropy, nats", "entropy", None),
    ("KL to the reference, nats", "kl", None),
    ("Share of clipped ratios", "clip_ratio/region_mean", None),
    ("Share of groups that are all right", "zero_std/all_right", Some((0.0, 1.0))),
    ("Share of groups that are all wrong", "zero_std/all_wrong", Some((0.0, 1.0))),
    ("Deviation of the rewards", "reward_std", None),
    ("Gradient norm", "grad_norm", None),
    ("Learning rate", "learning_rate", None),
    ("Seconds a step", "step_time", None),
];

/// Which colour of the page a run has.
pub fn colour(run: usize) -> usize {
    run % 8
}

/// Accuracy by both rules over the run, and other scores of the evaluations.
pub fn evaluations(runs: &[Run]) -> Vec<Figure> {
    let line = |run: usize, name: &str, path: &[&str], dashed: bool| Line {
        name: format!("{}, {name}", runs[run].name),
        colour: colour(run),
        dashed,
        points: runs[run].evaluation_curve(path),
    };
    let last = runs.iter().find_map(Run::last_evaluation);
    let always = last.and_then(|e| e.number(&["always_flag_accuracy"]));
    let always = always.map(|value| (value, "always flag"));
    let scores: [Scores; 5] = [
        (
            "Accuracy",
            vec![("strict", vec!["strict", "accuracy"]), ("paper's", vec!["paper", "accuracy"])],
            "Solid: strict rule. Dashed: the paper's. Where they part, answers are malformed.",
        ),
        ("Exact label", vec![("exact", vec!["exact_label_accuracy"])], ""),
        (
            "Recall and false-positive rate",
            vec![("recall", vec!["strict", "recall"]), ("FPR", vec!["strict", "false_positive_rate"])],
            "Solid: recall. Dashed: false-positive rate. Strict rule.",
        ),
        ("Macro F1", vec![("macro F1", vec!["macro_f1"])], ""),
        (
            "Malformed, and benign queries answered",
            vec![("malformed", vec!["malformed_rate"]), ("answered", vec!["benign_answered"])],
            "Solid: malformed share. Dashed: share of benign queries that got an answer.",
        ),
    ];
    let figure = |(title, parts, caption): &Scores| {
        let lines: Vec<Line> = (0..runs.len())
            .flat_map(|run| {
                parts.iter().enumerate().map(move |(i, (name, path))| line(run, name, path, i == 1))
            })
            .filter(|line| !line.points.is_empty())
            .collect();
        let baseline = if *title == "Accuracy" { always } else { None };
        let range = Some((0.0, 1.0));
        let chart =
            Chart { title, x: "step of the run", lines: &lines, drawn: Drawn::Marked, range, baseline };
        Some(Figure { title: title.to_string(), svg: chart.svg()?, caption: caption.to_string() })
    };
    scores.iter().filter_map(figure).collect()
}

/// Curves of the training steps, by stage.
pub fn steps(runs: &[Run]) -> Vec<(String, Vec<Figure>)> {
    let mut stages: Vec<&str> = Vec::new();
    for stage in runs.iter().flat_map(Run::stages) {
        if !stages.contains(&stage) {
            stages.push(stage);
        }
    }
    let figures = |stage: &str| {
        let figure = |(title, metric, range): &(&str, &str, Option<(f64, f64)>)| {
            let lines: Vec<Line> = (0..runs.len())
                .map(|run| Line {
                    name: runs[run].name.clone(),
                    colour: colour(run),
                    dashed: false,
                    points: runs[run].curve(stage, metric),
                })
                .filter(|line| !line.points.is_empty())
                .collect();
            let chart = Chart {
                title,
                x: "step",
                lines: &lines,
                drawn: if *metric == "learning_rate" { Drawn::Marked } else { Drawn::Smoothed },
                range: *range,
                baseline: None,
            };
            Some(Figure { title: title.to_string(), svg: chart.svg()?, caption: String::new() })
        };
        CURVES.iter().filter_map(figure).collect::<Vec<_>>()
    };
    stages.into_iter().map(|stage| (stage.to_string(), figures(stage))).collect()
}

/// False alarms and misses of each label in the last evaluation, as in MCP-RiskCue's figures.
pub fn label_bars(runs: &[Run]) -> Vec<Figure> {
    let figure = |(title, caption, misses): (&str, &str, bool)| {
        let first = runs.iter().find_map(Run::last_evaluation)?;
        let labels = first.labels();
        let count = |run: &Run, label: usize| -> f64 {
            let Some(confusion) = run.last_evaluation().map(|e| e.confusion()) else { return 0.0 };
            let gold: u64 = confusion.get(label).map_or(0, |row| row.iter().sum());
            let verdicts: u64 = confusion.iter().filter_map(|row| row.get(label)).sum();
            let hits = confusion.get(label).and_then(|row| row.get(label)).copied().unwrap_or(0);
            (if misses { gold } else { verdicts }).saturating_sub(hits) as f64
        };
        let rows: Vec<Bar> = labels
            .iter()
            .enumerate()
            .map(|(i, label)| Bar {
                label,
                values: runs.iter().enumerate().map(|(run, r)| (colour(run), count(r, i))).collect(),
            })
            .collect();
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        let svg = bars(title, &names, &rows);
        Some(Figure { title: title.to_string(), svg, caption: caption.to_string() })
    };
    [
        (
            "Misses (FN) by label",
            "Answers on logs of this label that do not give it; malformed ones too.",
            true,
        ),
        ("False alarms (FP) by label", "Answers that give this label on logs of another.", false),
    ]
    .into_iter()
    .filter_map(figure)
    .collect()
}

/// ROC and precision-recall curves of the runs that have a fitted threshold.
pub fn thresholds(runs: &[Run]) -> Vec<Figure> {
    let points = |value: &serde_json::Value| -> Vec<(f64, f64)> {
        let pairs = value.as_array().into_iter().flatten();
        pairs.filter_map(|pair| Some((pair.get(0)?.as_f64()?, pair.get(1)?.as_f64()?))).collect()
    };
    let figure = |(title, x, key, at): (&str, &str, &str, [&str; 2])| {
        let mut lines = Vec::new();
        for (i, run) in runs.iter().enumerate() {
            let Some(found) = &run.threshold else { continue };
            let curve = points(&found[key]);
            let line = |name: String, points| Line { name, colour: colour(i), dashed: false, points };
            lines.push(line(run.name.clone(), curve));
            if let (Some(a), Some(b)) = (found[at[0]].as_f64(), found[at[1]].as_f64()) {
                lines.push(line(format!("{}, operating point", run.name), vec![(a, b)]));
            }
        }
        if lines.is_empty() {
            return None;
        }
        if key == "roc" {
            let points = (0..=40).map(|i| (f64::from(i) / 40.0, f64::from(i) / 40.0)).collect();
            lines.push(Line { name: "chance".into(), colour: 6, dashed: true, points });
        }
        let range = Some((0.0, 1.0));
        let chart = Chart { title, x, lines: &lines, drawn: Drawn::Marked, range, baseline: None };
        let caption = "The ring is the operating point.".to_string();
        Some(Figure { title: title.to_string(), svg: chart.svg()?, caption })
    };
    [
        ("ROC: recall", "false-positive rate", "roc", ["false_positive_rate", "recall"]),
        ("Precision", "recall", "pr", ["recall", "precision"]),
    ]
    .into_iter()
    .filter_map(figure)
    .collect()
}
