//! The table of an ablation, as text and as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::paired::{self, Difference};
use super::results::{Outcome, Query};

/// One arm over its seeds, beside the baseline.
#[derive(Debug, Serialize)]
pub struct Row {
    pub arm: String,
    pub seeds: Vec<Outcome>,
    /// Mean and sample deviation over the seeds, by metric name.
    pub summary: BTreeMap<&'static str, (f64, Option<f64>)>,
    /// Mean hours of training a seed.
    pub hours: f64,
    /// Strict accuracy minus the baseline's, seed by seed: what the luck of training hides. `None` for the baseline.
    pub over_seeds: Option<Difference>,
    /// The same, query by query, a query's seeds averaged first: what the choice of queries hides.
    pub over_queries: Option<Difference>,
    /// Two-sided exact sign test over queries.
    pub p_queries: Option<f64>,
}

pub const STRICT: &str = "verdict/accuracy_strict";
const METRICS: [(&str, &str); 6] = [
    ("strict", STRICT),
    ("paper's", "verdict/accuracy_paper"),
    ("FPR", "verdict/false_positive_rate"),
    ("recall", "verdict/recall"),
    ("exact", "verdict/exact_label_accuracy"),
    ("malformed", "verdict/malformed_rate"),
];

impl Row {
    pub fn new(arm: String, seeds: Vec<Outcome>, baseline: Option<&[Outcome]>) -> Self {
        let mut summary = BTreeMap::new();
        for (_, metric) in METRICS {
            let values: Vec<f64> = seeds.iter().filter_map(|s| s.metrics.get(metric).copied()).collect();
            if let Some(mean) = paired::mean(&values) {
                summary.insert(metric, (mean, paired::deviation(&values)));
            }
        }
        let hours =
            seeds.iter().map(|s| s.training_seconds).sum::<f64>() / 3600.0 / seeds.len().max(1) as f64;
        // Only seeds that both have: the difference is then of equal data, draws and queries.
        let pairs: Vec<(&Outcome, &Outcome)> = baseline
            .into_iter()
            .flat_map(|base| seeds.iter().filter_map(|s| Some((s, base.iter().find(|b| b.seed == s.seed)?))))
            .collect();
        let by_seed: Vec<f64> =
            pairs.iter().filter_map(|(a, b)| Some(a.metrics.get(STRICT)? - b.metrics.get(STRICT)?)).collect();
        let mut by_query: BTreeMap<Query, Vec<f64>> = BTreeMap::new();
        for (a, b) in &pairs {
            for (query, right) in &a.right {
                by_query.entry(*query).or_default().extend(b.right.get(query).map(|other| right - other));
            }
        }
        let by_query: Vec<f64> = by_query.values().filter_map(|d| paired::mean(d)).collect();
        Self {
            arm,
            summary,
            hours,
            over_seeds: paired::t_interval(&by_seed),
            over_queries: paired::t_interval(&by_query),
            p_queries: (!by_query.is_empty()).then(|| paired::sign_test(&by_query)),
            seeds,
        }
    }

    fn cell(&self, metric: &str) -> String {
        match self.summary.get(metric) {
            None => "-".into(),
            Some((mean, None)) => format!("{mean:.3}"),
            Some((mean, Some(deviation))) => format!("{mean:.3} ±{deviation:.3}"),
        }
    }
}

/// A heading and a row an arm, for each of two tables: the scores, and the differences from the baseline.
fn grids(rows: &[Row], baseline: &str, price_per_hour: f64) -> [Vec<Vec<String>>; 2] {
    let mut head: Vec<String> = ["arm", "seeds"].map(String::from).into();
    head.extend(METRICS.map(|(name, _)| name.to_string()));
    head.extend(["tokens", "hours"].map(String::from));
    if price_per_hour > 0.0 {
        head.push("price".into());
    }
    let mut scores = vec![head];
    let difference_head =
        [format!("strict - {baseline}"), "over seeds".into(), "over queries".into(), "p".into()];
    let mut differences = vec![difference_head.into()];
    for row in rows {
        let mut cells = vec![row.arm.clone(), row.seeds.len().to_string()];
        cells.extend(METRICS.map(|(_, metric)| row.cell(metric)));
        let tokens = row.seeds.iter().map(|s| s.tokens).sum::<u64>() / row.seeds.len().max(1) as u64;
        let trained = |text: String| if tokens == 0 { "-".into() } else { text };
        cells.push(trained(format!("{:.2}M", tokens as f64 / 1e6)));
        cells.push(trained(format!("{:.3}", row.hours)));
        if price_per_hour > 0.0 {
            cells.push(trained(format!("{:.2}", row.hours * price_per_hour)));
        }
        scores.push(cells);
        if let (Some(seeds), Some(queries), Some(p)) = (row.over_seeds, row.over_queries, row.p_queries) {
            let p = if p < 1e-4 { "<1e-4".into() } else { format!("{p:.4}") };
            differences.push(vec![row.arm.clone(), difference(seeds), difference(queries), p]);
        }
    }
    [scores, differences]
}

fn difference(d: Difference) -> String {
    match (d.low, d.high) {
        (Some(low), Some(high)) => format!("{:+.3} [{low:+.3}, {high:+.3}]", d.mean),
        _ => format!("{:+.3}", d.mean),
    }
}

pub fn text(rows: &[Row], baseline: &str, price_per_hour: f64) -> String {
    grids(rows, baseline, price_per_hour).map(|grid| aligned(&grid)).join("\n")
}

fn aligned(grid: &[Vec<String>]) -> String {
    let width = |column: usize| grid.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..grid[0].len()).map(width).collect();
    let mut text = String::new();
    for row in grid {
        let cell = |(i, (cell, width)): (usize, (&String, &usize))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        };
        let line: Vec<String> = row.iter().zip(&widths).enumerate().map(cell).collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end()); // a string takes all
    }
    text
}

pub fn markdown(rows: &[Row], baseline: &str, price_per_hour: f64) -> String {
    let table = |grid: Vec<Vec<String>>| {
        let mut text = String::new();
        for (i, row) in grid.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if i == 0 {
                let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
            }
        }
        text
    };
    grids(rows, baseline, price_per_hour).map(table).join("\n")
}

/// What the columns mean; stands under every table.
pub fn legend(baseline: &str, base_rate: Option<f64>) -> String {
    let mut text = String::from(
        "Means over seeds, ± sample deviation. strict: a malformed answer is wrong; paper's: MCP-RiskCue's own rule.\n\
         Differences of strict accuracy: over seeds with Student's t interval (the luck of training), over queries with\n\
         seeds averaged first (the choice of queries), p of the exact sign test over queries. hours: optimiser steps\n\
         only. An arm that another passes through is read from that run.\n",
    );
    let _ = writeln!(text, "Intervals are 95%. Baseline: {baseline}.");
    if let Some(rate) = base_rate {
        let _ = writeln!(
            text,
            "Flagging every log scores {rate:.3}, flagging none {:.3}, by either rule.",
            1.0 - rate
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(seed: u64, right: [f64; 4]) -> Outcome {
        let accuracy = right.iter().sum::<f64>() / 4.0;
        Outcome {
            seed,
            metrics: [(STRICT.to_string(), accuracy)].into(),
            training_seconds: 36.0,
            tokens: 2_000_000,
            right: right.into_iter().enumerate().map(|(i, r)| ((None, i), r)).collect(),
        }
    }

    #[test]
    fn arms_are_compared_on_the_seeds_and_queries_both_have() {
        let base = [outcome(1, [1., 0., 0., 0.]), outcome(2, [0., 0., 0., 1.])];
        let seeds = vec![outcome(1, [1., 1., 1., 0.]), outcome(2, [0., 1., 1., 1.]), outcome(9, [0.; 4])];
        let row = Row::new("sft+grpo".into(), seeds, Some(&base));
        let over_seeds = row.over_seeds.unwrap();
        assert_eq!((over_seeds.mean, over_seeds.low, over_seeds.pairs), (0.5, Some(0.5), 2));
        // Queries 1 and 2 are won on both seeds, 0 and 3 are equal: mean 1/2, sign test 2 * 1/4.
        assert_eq!(row.over_queries.unwrap().mean, 0.5);
        assert!((row.p_queries.unwrap() - 0.5).abs() < 1e-12);
        let text = text(&[row], "sft", 3.0);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split("  ").filter(|c| !c.is_empty()).collect();
        assert_eq!((cells[0], cells[1].trim(), cells[2].trim()), ("sft+grpo", "3", "0.500 ±0.433"), "{text}");
        assert!(text.contains("2.00M") && text.contains("0.010") && text.contains("0.03"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        assert!(text.contains("sft+grpo") && text.contains("+0.500 [+0.500, +0.500]"), "{text}");
    }
}
