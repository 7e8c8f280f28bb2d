//! The table a run ends with.

use std::fmt::Write;

use super::TableRow;

/// Two lines of heading, and the metric. Accuracies name their rule; the other scores are the strict rule's.
const COLUMNS: [([&str; 2], &str); 7] = [
    (["accuracy", "strict"], "verdict/accuracy_strict"),
    (["accuracy", "paper's"], PAPER),
    (["", "precision"], "verdict/precision"),
    (["", "recall"], "verdict/recall"),
    (["false-pos.", "rate"], "verdict/false_positive_rate"),
    (["exact", "label"], "verdict/exact_label_accuracy"),
    (["", "malformed"], "verdict/malformed_rate"),
];

/// Only tasks that say how a paper counts have it.
const PAPER: &str = "verdict/accuracy_paper";

/// Rows aligned under their headings, a line each; `-` stands for a score that is not defined.
pub fn results_table(rows: &[TableRow]) -> String {
    let first = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let is_shown = |metric: &str| metric != PAPER || rows.iter().any(|row| row.metrics.get(metric).is_some());
    let mut line = |name: &str, cells: [String; COLUMNS.len()]| {
        // Writing to a string does not fail.
        let _ = write!(text, "{name:<first$}");
        let shown = COLUMNS.iter().zip(cells).filter(|((_, metric), _)| is_shown(metric));
        for (([above, below], _), cell) in shown {
            let _ = write!(text, "  {cell:>width$}", width = above.len().max(below.len()));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    };
    for i in 0..2 {
        line("", COLUMNS.map(|(headings, _)| headings[i].to_string()));
    }
    for row in rows {
        let cell = |metric| row.metrics.get(metric).map_or("-".into(), |value| format!("{value:.3}"));
        line(&row.name, COLUMNS.map(|(_, metric)| cell(metric)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn cells_stand_under_their_headings() {
        let row = |name: &str, metrics: Metrics| TableRow { name: name.into(), metrics };
        let values = [0.38, 0.82, 0.5, 1.0, 0.987_6, 0.25, 0.0];
        let metrics = COLUMNS.iter().zip(values).map(|((_, name), value)| (*name, value)).collect();
        let table = results_table(&[row("vanilla", Metrics::default()), row("SFT+GRPO", metrics)]);
        let want = [
            "          accuracy  accuracy                     false-pos.  exact",
            "            strict   paper's  precision  recall        rate  label  malformed",
            "vanilla          -         -          -       -           -      -          -",
            "SFT+GRPO     0.380     0.820      0.500   1.000       0.988  0.250      0.000",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), want);
        let strict = [("verdict/accuracy_strict", 0.38)].into_iter().collect();
        let table = results_table(&[row("SFT", strict)]);
        assert!(
            table.lines().nth(1).is_some_and(|line| line.starts_with("       strict  precision")),
            "{table}"
        );
    }
}
