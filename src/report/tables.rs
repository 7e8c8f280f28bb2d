//! The report's tables, for both HTML and Markdown.

use serde::Serialize;

use super::run::{Evaluation, Run};
use super::svg::short;

#[derive(Serialize)]
pub struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

pub(super) fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn score(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.3}"))
}

fn with_interval(evaluation: &Evaluation, rule: &str) -> String {
    let bound = |end: &str| evaluation.number(&[rule, "accuracy_interval", end]);
    match (evaluation.number(&[rule, "accuracy"]), bound("low"), bound("high")) {
        (Some(value), Some(low), Some(high)) => format!("{value:.3} ({low:.3}-{high:.3})"),
        (value, ..) => score(value),
    }
}

/// Scores before training and at the end of each stage.
pub fn results(runs: &[Run]) -> Table {
    let head = [
        "run",
        "evaluation",
        "answers",
        "always flag",
        "never flag",
        "accuracy, strict (95%)",
        "accuracy, paper's (95%)",
        "precision",
        "recall",
        "false-positive rate",
        "exact label",
        "macro F1",
        "malformed",
        "benign answered",
    ];
    let row = |run: &Run, e: &Evaluation| {
        let count = e.number(&["count"]).map_or("-".into(), |n| format!("{n:.0}"));
        let mut cells = vec![run.name.clone(), e.name.clone(), count];
        cells.extend(["always_flag_accuracy", "never_flag_accuracy"].map(|key| score(e.number(&[key]))));
        cells.extend(["strict", "paper"].map(|rule| with_interval(e, rule)));
        let strict = ["precision", "recall", "false_positive_rate"];
        cells.extend(strict.map(|key| score(e.number(&["strict", key]))));
        let rest = ["exact_label_accuracy", "macro_f1", "malformed_rate", "benign_answered"];
        cells.extend(rest.map(|key| score(e.number(&[key]))));
        cells
    };
    Table {
        caption: "Precision, recall and false-positive rate by the strict rule, where a malformed answer is wrong. The \
                  paper's rule counts it as \"not flagged\", and so as right on a benign log."
            .into(),
        head: strings(&head),
        rows: runs.iter().flat_map(|run| run.milestones().into_iter().map(|e| row(run, e))).collect(),
    }
}

/// Each label of the last evaluation.
pub fn labels(run: &Run) -> Option<Table> {
    let evaluation = run.last_evaluation()?;
    let scores = evaluation.report["per_label"].as_array()?;
    let row = |label: &serde_json::Value| {
        let count = |key: &str| label[key].as_u64().map_or("-".into(), |n| n.to_string());
        let name = label["label"].as_str().unwrap_or_default().to_string();
        let rest = ["precision", "recall", "f1"].map(|key| score(label[key].as_f64()));
        [name, count("support"), count("predicted")].into_iter().chain(rest).collect()
    };
    Some(Table {
        caption: format!("{}, {}: exact labels", run.name, evaluation.name),
        head: strings(&["label", "support", "predicted", "precision", "recall", "F1"]),
        rows: scores.iter().map(row).collect(),
    })
}

/// Time and memory of each stage.
pub fn cost(runs: &[Run]) -> Option<Table> {
    let all: Vec<(String, Vec<(String, f64)>)> = runs
        .iter()
        .flat_map(|run| run.stages().into_iter().map(|s| (format!("{}, {s}", run.name), run.cost(s))))
        .collect();
    let mut names: Vec<&String> = Vec::new();
    for name in all.iter().flat_map(|(_, cost)| cost.iter().map(|(name, _)| name)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let head = |name: &&String| match name.as_str() {
        "step_time" => "all steps, s".into(),
        name if name.starts_with("time/") => format!("{}, s", &name[5..]),
        name if name.starts_with("memory/") => format!("{}, most", &name[7..].replace('_', " ")),
        name => name.to_string(),
    };
    let row = |(name, cost): &(String, Vec<(String, f64)>)| {
        let value = |wanted: &&String| cost.iter().find(|(name, _)| name == *wanted).map(|(_, value)| *value);
        let cells = names.iter().map(|wanted| value(wanted).map_or("-".into(), short));
        std::iter::once(name.clone()).chain(cells).collect()
    };
    (!all.is_empty()).then(|| Table {
        caption: "Sums over the steps of a stage; prefill and decode are parts of rollout. Evaluations are not in it."
            .into(),
        head: std::iter::once("stage".to_string()).chain(names.iter().map(head)).collect(),
        rows: all.iter().map(row).collect(),
    })
}

/// Keys in which the runs' configs differ; all keys of a single run.
pub fn config(runs: &[Run]) -> Table {
    let mut keys: Vec<&String> = runs.iter().flat_map(|run| run.config.keys()).collect();
    keys.sort();
    keys.dedup();
    let cell = |run: &Run, key: &String| run.config.get(key).cloned().unwrap_or_else(|| "-".into());
    let differs =
        |key: &&String| runs.len() == 1 || runs.iter().any(|run| cell(run, key) != cell(&runs[0], key));
    let kept = keys.iter().filter(|key| differs(key) && key.as_str() != "run.name");
    Table {
        caption: match runs.len() {
            1 => "All keys".into(),
            _ => "Keys in which the runs differ".into(),
        },
        head: std::iter::once("key".to_string()).chain(runs.iter().map(|run| run.name.clone())).collect(),
        rows: kept
            .map(|key| {
                std::iter::once(key.to_string()).chain(runs.iter().map(|run| cell(run, key))).collect()
            })
            .collect(),
    }
}

/// What the runs warned of while they trained.
pub fn warnings(runs: &[Run]) -> Option<Table> {
    let of_run = |run: &Run| -> Vec<Vec<String>> {
        let row = |(after, text): &(String, String)| vec![run.name.clone(), after.clone(), text.clone()];
        run.warnings.iter().map(row).collect()
    };
    let rows: Vec<Vec<String>> = runs.iter().flat_map(of_run).collect();
    (!rows.is_empty()).then(|| Table {
        caption: "As the runs printed them; docs/reward-audit.md says what those about rewards look at."
            .into(),
        head: strings(&["run", "after", "warning"]),
        rows,
    })
}

/// The operating point of each run that has one.
pub fn thresholds(runs: &[Run]) -> Option<Table> {
    let row = |run: &Run| {
        let found = run.threshold.as_ref()?;
        let at = |path: &[&str]| path.iter().try_fold(found, |value, key| value.get(*key))?.as_f64();
        let score_name = found["score"].as_str().unwrap_or("-").to_string();
        let cells = [
            at(&["threshold"]),
            at(&["max_false_positive_rate"]),
            at(&["false_positive_rate"]),
            at(&["recall"]),
            at(&["accuracy"]),
            at(&["auc"]),
            at(&["average_precision"]),
        ];
        Some([run.name.clone(), score_name].into_iter().chain(cells.map(score)).collect())
    };
    let rows: Vec<Vec<String>> = runs.iter().filter_map(row).collect();
    let head =
        ["run", "score", "threshold", "wanted FPR", "FPR", "recall", "accuracy", "AUC", "average precision"];
    (!rows.is_empty()).then(|| Table {
        caption: "Fitted on validation rows; the operating point is marked in the drawing.".into(),
        head: strings(&head),
        rows,
    })
}
