//! Rewards and lengths of the answers, a histogram for each evaluation and each step that was kept.

use std::fmt::Write;

use super::charts::{Figure, colour};
use super::run::Run;
use super::svg::{escape, short};
use crate::observe::{SampleKind, SampleRecord};

const WIDTH: f64 = 360.0;
const LEFT: f64 = 84.0;
const BIN_HEIGHT: f64 = 16.0;
/// More distinct values than this share bins of equal width.
const MOST_BINS: usize = 10;

/// Rewards and lengths, of evaluations and of rollouts, by run.
pub fn histograms(runs: &[Run]) -> Vec<Figure> {
    type Measure = (&'static str, fn(&SampleRecord) -> Option<f64>);
    let measures: [Measure; 2] = [
        ("Reward", |record| Some(f64::from(record.reward))),
        ("Length, tokens", |record| record.tokens.map(|tokens| tokens as f64)),
    ];
    let mut figures = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        for (kind, what) in [(SampleKind::Evaluation, "evaluations"), (SampleKind::Rollouts, "rollouts")] {
            for (name, measure) in measures {
                let sets = run.answers.sets.iter().filter(|set| set.kind == kind);
                let columns: Vec<Column> = sets
                    .map(|set| Column {
                        name: set.name.clone(),
                        values: set.records.iter().filter_map(|(record, _)| measure(record)).collect(),
                    })
                    .filter(|column| !column.values.is_empty())
                    .collect();
                let title = match runs.len() {
                    1 => format!("{name}, {what}"),
                    _ => format!("{name}, {what} of {}", run.name),
                };
                let Some(svg) = heat(&title, &columns, colour(i)) else { continue };
                let caption = "A column is a histogram: the stronger the colour, the larger the share. Numbers: per cent of the last.";
                figures.push(Figure { title, svg, caption: caption.into() });
            }
        }
    }
    figures
}

struct Column {
    name: String,
    /// At least one.
    values: Vec<f64>,
}

/// Lower ends, ascending, and names.
struct Bins {
    starts: Vec<f64>,
    names: Vec<String>,
}

impl Bins {
    fn of(columns: &[Column]) -> Option<Self> {
        let mut values: Vec<f64> = columns.iter().flat_map(|c| &c.values).copied().collect();
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        values.dedup();
        if values.len() <= MOST_BINS {
            return Some(Self { names: values.iter().map(|v| short(*v)).collect(), starts: values });
        }
        let width = (high - low) / MOST_BINS as f64;
        // Whole numbers keep whole bins.
        let whole = values.iter().all(|v| v.fract() == 0.0);
        let width = if whole { ((high - low + 1.0) / MOST_BINS as f64).ceil() } else { width };
        let starts: Vec<f64> = (0..MOST_BINS).map(|i| low + i as f64 * width).collect();
        let starts: Vec<f64> = starts.into_iter().filter(|start| *start <= high).collect();
        let end = |start: f64| if whole { (start + width - 1.0).min(high) } else { start + width };
        let name = |start: &f64| format!("{}-{}", short(*start), short(end(*start)));
        Some(Self { names: starts.iter().map(name).collect(), starts })
    }

    /// Share of the values in each bin.
    fn shares(&self, values: &[f64]) -> Vec<f64> {
        let mut shares = vec![0.0; self.starts.len()];
        for value in values.iter().filter(|value| value.is_finite()) {
            let at = self.starts.partition_point(|start| start <= value).saturating_sub(1);
            shares[at] += 1.0 / values.len() as f64;
        }
        shares
    }
}

/// Nothing where there is no value.
fn heat(title: &str, columns: &[Column], colour: usize) -> Option<String> {
    let bins = Bins::of(columns)?;
    let height = bins.starts.len() as f64 * BIN_HEIGHT;
    let right = WIDTH - 32.0;
    let width = (right - LEFT) / columns.len() as f64;
    let mut body = String::new();
    let mut words = format!("{title}.");
    for (i, column) in columns.iter().enumerate() {
        let (x, is_last) = (LEFT + i as f64 * width, i + 1 == columns.len());
        for (bin, share) in bins.shares(&column.values).into_iter().enumerate() {
            let y = height - (bin + 1) as f64 * BIN_HEIGHT;
            let (name, percent) = (escape(&bins.names[bin]), share * 100.0);
            let _ = write!(
                body,
                "<rect class=\"bar s{colour}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" \
                 fill-opacity=\"{:.3}\"><title>{}, {name}: {percent:.0}%</title></rect>",
                x + 0.5,
                y + 0.5,
                (width - 1.0).max(0.5),
                BIN_HEIGHT - 1.0,
                if share > 0.0 { 0.08 + 0.92 * share } else { 0.03 },
                escape(&column.name)
            );
            if is_last {
                let _ = write!(body, "<text x=\"{}\" y=\"{:.1}\">{percent:.0}</text>", right + 4.0, y + 12.0);
                let _ = write!(words, " {}: {percent:.0}%.", bins.names[bin]);
            }
        }
    }
    for (bin, name) in bins.names.iter().enumerate() {
        let y = height - bin as f64 * BIN_HEIGHT - 4.0;
        let _ = write!(
            body,
            "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 5.0,
            escape(name)
        );
    }
    let (first, last) = (&columns.first()?.name, &columns.last()?.name);
    let y = height + 14.0;
    let _ = write!(body, "<text x=\"{LEFT}\" y=\"{y}\">{}</text>", escape(first));
    if columns.len() > 1 {
        let _ = write!(body, "<text x=\"{right}\" y=\"{y}\" text-anchor=\"end\">{}</text>", escape(last));
    }
    let words = format!("{words} At {last}.");
    Some(format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">{body}</svg>",
        height + 20.0,
        escape(&words)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, values: &[f64]) -> Column {
        Column { name: name.into(), values: values.to_vec() }
    }

    #[test]
    fn few_values_are_bins_of_their_own_and_many_share_whole_ones() {
        let rewards = [column("a", &[0.0, 1.0, 1.0, 0.5])];
        let bins = Bins::of(&rewards).unwrap();
        assert_eq!(bins.names, ["0", "0.5", "1"]);
        assert_eq!(bins.shares(&rewards[0].values), [0.25, 0.25, 0.5]);
        let lengths = [column("a", &(3..=27).map(f64::from).collect::<Vec<_>>())];
        let bins = Bins::of(&lengths).unwrap();
        assert_eq!((bins.names[0].as_str(), bins.names.last().unwrap().as_str()), ("3-5", "27-27"));
        assert!((bins.shares(&lengths[0].values).iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(Bins::of(&[]).is_none());
    }

    #[test]
    fn a_drawing_says_its_last_column_in_words() {
        let svg = heat("Reward", &[column("<a>", &[0.0]), column("b", &[0.0, 1.0])], 0).unwrap();
        assert!(svg.contains("Reward. 0: 50%. 1: 50%. At b.") && svg.contains("&lt;a&gt;"), "{svg}");
    }
}
