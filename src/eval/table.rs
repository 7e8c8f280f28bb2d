//! An evaluation as text.

use std::fmt::Write;

use super::Summary;
use super::exact::Exact;
use super::roc::OperatingPoint;
use super::threshold::{ScoreKind, Threshold};
use crate::task::{Binary, EvalReport, Interval, LabelId, Task};

/// Both rules side by side, labels, confusion matrix, samples and groups.
pub fn summary_text(summary: &Summary) -> String {
    let mut text = rules(&summary.report);
    text.push('\n');
    text.push_str(&labels(&summary.report));
    text.push('\n');
    text.push_str(&confusion(&summary.report));
    if let Some(samples) = &summary.samples {
        let _ = writeln!(text, "\n{} answers to a prompt", samples.per_prompt);
        for (name, spread) in [
            ("accuracy, strict", samples.accuracy_strict),
            ("accuracy, paper's", samples.accuracy_paper),
            ("exact label (pass@1)", samples.exact_label),
        ] {
            let (mean, std, min, max) = (spread.mean, spread.std, spread.min, spread.max);
            let _ = writeln!(text, "  {name:<22}mean {mean:.3}  std {std:.3}  min {min:.3}  max {max:.3}");
        }
        let _ = writeln!(
            text,
            "  exact in any answer {:.3}, in all {:.3}; majority vote: strict {}, paper's {}, exact {}",
            samples.any_exact,
            samples.all_exact,
            number(samples.majority.strict.accuracy),
            number(samples.majority.paper.accuracy),
            number(samples.majority.exact_label_accuracy)
        );
    }
    if !summary.groups.is_empty() {
        text.push('\n');
        text.push_str(&groups(summary));
    }
    text
}

/// How well a score ranks, and its operating point.
pub fn threshold_text(found: &Threshold, task: &Task) -> String {
    let by = match found.score {
        ScoreKind::FirstToken => "by its first token",
        ScoreKind::Labels => "by the exact answers of the other labels",
    };
    let negative = task.label_text(LabelId::NEGATIVE);
    let mut text =
        format!("{} rows, score: probability of another answer than `{negative}`, {by}\n", found.rows);
    scores(&mut text, Some(found.curves.auc), Some(found.curves.average_precision), Some(&found.point));
    text
}

/// The summary of an exact evaluation, and what its probabilities are worth.
pub fn exact_text(found: &Exact) -> String {
    let mut text = summary_text(&found.summary);
    let _ = writeln!(text, "\nby exact probabilities of the listed answers");
    let _ = writeln!(text, "{:<26}{:.3}", "cross-entropy, nats", found.label_cross_entropy);
    scores(&mut text, found.auc, found.average_precision, found.at_threshold.as_ref());
    text
}

fn scores(text: &mut String, auc: Option<f64>, average_precision: Option<f64>, at: Option<&OperatingPoint>) {
    let mut lines = vec![("AUC", number(auc)), ("average precision", number(average_precision))];
    if let Some(point) = at {
        lines.extend([
            ("threshold", format!("{:.6}", point.threshold)),
            ("  false-positive rate", number(Some(point.false_positive_rate))),
            ("  recall", number(Some(point.recall))),
            ("  precision", number(point.precision)),
            ("  accuracy", number(Some(point.accuracy))),
        ]);
    }
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<26}{value}");
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.3}"))
}

fn with_interval(value: Option<f64>, interval: Option<Interval>) -> String {
    match interval {
        Some(Interval { low, high }) => format!("{} ({low:.3}-{high:.3})", number(value)),
        None => number(value),
    }
}

fn rules(report: &EvalReport) -> String {
    let mut text = format!(
        "{} answers, {} of them on risky logs; 95% intervals in parentheses\n\n",
        report.count,
        number(report.base_rate),
    );
    let mut both = |name: &str, strict: String, paper: String| {
        let line = format!("{name:<26}{strict:<24}{}", if report.has_paper { &paper } else { "" });
        let _ = writeln!(text, "{}", line.trim_end());
    };
    both("", "strict rule".into(), "paper's rule".into());
    let mut line = |name: &str, cell: &dyn Fn(&Binary) -> String| {
        both(name, cell(&report.strict), cell(&report.paper));
    };
    line("accuracy", &|rule| with_interval(rule.accuracy, rule.accuracy_interval));
    let lines = (number(report.always_flag_accuracy), number(report.never_flag_accuracy));
    line("  always flag, never flag", &|_| format!("{}, {}", lines.0, lines.1));
    line("precision", &|rule| with_interval(rule.precision, rule.precision_interval));
    line("recall", &|rule| with_interval(rule.recall, rule.recall_interval));
    line("F1", &|rule| number(rule.f1));
    line("false-positive rate", &|rule| {
        with_interval(rule.false_positive_rate, rule.false_positive_rate_interval)
    });
    line("TP FP FN TN", &|rule| {
        let Binary { true_positive: tp, false_positive: fp, false_negative: fn_, true_negative: tn, .. } =
            rule;
        format!("{tp} {fp} {fn_} {tn}")
    });
    line("malformed, risky benign", &|rule| {
        format!("{} {}", rule.malformed_on_risky, rule.malformed_on_benign)
    });
    let scores = [
        ("exact label", with_interval(report.exact_label_accuracy, report.exact_label_interval)),
        ("macro F1", number(report.macro_f1)),
        ("malformed", with_interval(report.malformed_rate, report.malformed_interval)),
        ("benign queries answered", with_interval(report.benign_answered, report.benign_answered_interval)),
    ];
    text.push('\n');
    for (name, cell) in scores {
        let _ = writeln!(text, "{name:<26}{cell}");
        if name == "malformed" && report.ungrounded_rate.is_some() {
            let _ = writeln!(text, "{:<26}{}", "  of these ungrounded", number(report.ungrounded_rate));
        }
    }
    if let Some(parsed) = &report.parsed {
        let exact = number(parsed.exact_label_accuracy);
        let (f1, binary) = (number(parsed.macro_f1), number(parsed.binary_macro_f1));
        let kept = report.count - parsed.dropped;
        let _ = writeln!(
            text,
            "of the {kept} parsed answers: exact label {exact}, macro F1 {f1}, binary macro F1 {binary}"
        );
    }
    if let Some(attacks) = report.attacks {
        let (before, behind) = (attacks.success, attacks.residual_success);
        let _ =
            writeln!(text, "{} attacks: success {before:.3}, behind this guard {behind:.3}", attacks.count);
    }
    text
}

fn labels(report: &EvalReport) -> String {
    let width = report.labels.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(5);
    let heads = ["support", "predicted", "precision", "recall", "F1"];
    let mut text = format!("{:<width$}", "label");
    for head in heads {
        let _ = write!(text, "  {head:>9}");
    }
    text.push('\n');
    for scores in &report.per_label {
        let cells = [
            scores.support.to_string(),
            scores.predicted.to_string(),
            number(scores.precision),
            number(scores.recall),
            number(scores.f1),
        ];
        let _ = write!(text, "{:<width$}", scores.label);
        for cell in cells {
            let _ = write!(text, "  {cell:>9}");
        }
        text.push('\n');
    }
    text
}

/// Columns are numbered as the rows are, and end with malformed.
fn confusion(report: &EvalReport) -> String {
    let width = report.labels.iter().map(|name| name.chars().count()).max().unwrap_or(0) + 4;
    let mut text = format!("{:<width$}", "gold \\ verdict");
    let cell = report.confusion.iter().flatten().max().map_or(4, |most| most.to_string().len().max(3) + 1);
    for i in 0..report.labels.len() {
        let _ = write!(text, "{i:>cell$}");
    }
    let _ = writeln!(text, "{:>cell$}", "bad");
    for (i, (name, row)) in report.labels.iter().zip(&report.confusion).enumerate() {
        let _ = write!(text, "{:<width$}", format!("{i:>2} {name}"));
        for count in row {
            let _ = write!(text, "{count:>cell$}");
        }
        text.push('\n');
    }
    text
}

fn groups(summary: &Summary) -> String {
    let width = summary.groups.iter().map(|group| group.value.chars().count()).max().unwrap_or(0).max(5);
    let heads =
        ["answers", "always flag", "strict", "paper's", "recall", "FPR", "exact", "malformed", "answered"];
    let mut text = format!("{:<width$}", "group");
    for head in heads {
        let _ = write!(text, "  {head:>w$}", w = head.len().max(5));
    }
    text.push('\n');
    for group in &summary.groups {
        let report = &group.report;
        let cells = [
            report.count.to_string(),
            number(report.always_flag_accuracy),
            number(report.strict.accuracy),
            number(report.paper.accuracy),
            number(report.strict.recall),
            number(report.strict.false_positive_rate),
            number(report.exact_label_accuracy),
            number(report.malformed_rate),
            number(report.benign_answered),
        ];
        let _ = write!(text, "{:<width$}", group.value);
        for (head, cell) in heads.iter().zip(cells) {
            let _ = write!(text, "  {cell:>w$}", w = head.len().max(5));
        }
        text.push('\n');
    }
    text
}
