//! Ranking by a score: ROC and precision-recall curves, and an operating point for a stated false-positive rate.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How strongly a log was taken for risky, and whether it is. A finite score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    pub score: f64,
    pub risky: bool,
}

/// Both curves have a point for each distinct score, so that equal scores are one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// (false-positive rate, recall), from (0, 0) to (1, 1).
    pub roc: Vec<(f64, f64)>,
    /// (recall, precision), recall rising.
    pub pr: Vec<(f64, f64)>,
    /// Area under the ROC curve: the chance that a risky log scores above a benign one, a tie counting half.
    pub auc: f64,
    /// Precision summed over the steps in recall.
    pub average_precision: f64,
}

/// Flagging all logs with at least this score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    pub threshold: f64,
    pub false_positive_rate: f64,
    pub recall: f64,
    /// None: nothing is flagged.
    pub precision: Option<f64>,
    pub accuracy: f64,
}

/// Flags so far, going down the scores.
#[derive(Clone, Copy)]
struct Step {
    score: f64,
    risky: usize,
    benign: usize,
}

/// # Errors
/// One of the two kinds is missing, so that no curve can be drawn.
fn steps(scored: &[Scored]) -> Result<(Vec<Step>, usize, usize)> {
    let risky = scored.iter().filter(|s| s.risky).count();
    let benign = scored.len() - risky;
    if risky == 0 || benign == 0 {
        let problem = format!("has {risky} risky and {benign} benign logs");
        return Err(Error::input("the data to score", problem, "Give rows of both kinds"));
    }
    if let Some(bad) = scored.iter().position(|s| !s.score.is_finite()) {
        return Err(Error::Compute(format!("the score of row {} is not finite", bad + 1).into()));
    }
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut flags = (0, 0);
    let step = |equal: &[Scored]| {
        flags.0 += equal.iter().filter(|s| s.risky).count();
        flags.1 += equal.iter().filter(|s| !s.risky).count();
        Step { score: equal[0].score, risky: flags.0, benign: flags.1 }
    };
    Ok((sorted.chunk_by(|a, b| a.score == b.score).map(step).collect(), risky, benign))
}

impl Curves {
    /// # Errors
    /// All logs are of one kind, or a score is not finite.
    pub fn new(scored: &[Scored]) -> Result<Self> {
        let (steps, risky, benign) = steps(scored)?;
        let (mut roc, mut pr) = (vec![(0.0, 0.0)], Vec::new());
        let (mut auc, mut average_precision) = (0.0, 0.0);
        for step in steps {
            let (x, y) = (step.benign as f64 / benign as f64, step.risky as f64 / risky as f64);
            let precision = step.risky as f64 / (step.risky + step.benign) as f64;
            let (x0, y0) = roc.last().copied().unwrap_or_default();
            auc += (x - x0) * (y + y0) / 2.0;
            average_precision += (y - y0) * precision;
            roc.push((x, y));
            pr.push((y, precision));
        }
        Ok(Self { roc, pr, auc, average_precision })
    }
}

impl OperatingPoint {
    /// The most recall at a false-positive rate of at most `max_false_positive_rate`; of equal recall the fewest
    /// flags. The threshold lies half-way to the next lower score.
    ///
    /// # Errors
    /// As [`Curves::new`].
    pub fn fit(scored: &[Scored], max_false_positive_rate: f64) -> Result<Self> {
        let (steps, _, benign) = steps(scored)?;
        let allowed = |step: &&Step| step.benign as f64 / benign as f64 <= max_false_positive_rate;
        let kept = steps.iter().take_while(allowed);
        let best = kept.enumerate().fold(None, |best: Option<(usize, &Step)>, (i, step)| match best {
            Some((_, known)) if known.risky >= step.risky => best,
            _ => Some((i, step)),
        });
        let threshold = match best.filter(|(_, step)| step.risky > 0) {
            Some((i, step)) => match steps.get(i + 1) {
                Some(next) => (step.score + next.score) / 2.0,
                None => step.score,
            },
            // Above every score.
            None => steps.first().map_or(1.0, |step| step.score.next_up()),
        };
        Self::at(scored, threshold)
    }

    /// How a threshold does.
    ///
    /// # Errors
    /// As [`Curves::new`].
    pub fn at(scored: &[Scored], threshold: f64) -> Result<Self> {
        let (steps, risky, benign) = steps(scored)?;
        let last = steps.iter().take_while(|step| step.score >= threshold).last();
        let (hits, alarms) = last.map_or((0, 0), |step| (step.risky, step.benign));
        Ok(Self {
            threshold,
            false_positive_rate: alarms as f64 / benign as f64,
            recall: hits as f64 / risky as f64,
            precision: (hits + alarms > 0).then(|| hits as f64 / (hits + alarms) as f64),
            accuracy: (hits + benign - alarms) as f64 / scored.len() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scored(pairs: &[(f64, u8)]) -> Vec<Scored> {
        pairs.iter().map(|(score, risky)| Scored { score: *score, risky: *risky == 1 }).collect()
    }

    #[test]
    fn curves_of_six_logs_by_hand() {
        // Down the scores: risky, benign and risky tied, benign, risky, benign.
        let logs = scored(&[(0.9, 1), (0.8, 0), (0.8, 1), (0.5, 0), (0.4, 1), (0.1, 0)]);
        let curves = Curves::new(&logs).unwrap();
        let third = 1.0 / 3.0;
        let want = [
            (0.0, 0.0),
            (0.0, third),
            (third, 2.0 * third),
            (2.0 * third, 2.0 * third),
            (2.0 * third, 1.0),
            (1.0, 1.0),
        ];
        for (got, want) in curves.roc.iter().zip(want) {
            assert!((got.0 - want.0).abs() < 1e-12 && (got.1 - want.1).abs() < 1e-12, "{:?}", curves.roc);
        }
        // Pairs: .9 beats three, .8 beats two and ties one, .4 beats one.
        assert!((curves.auc - 6.5 / 9.0).abs() < 1e-12);
        // sklearn.metrics.average_precision_score: 1/3 * 1 + 1/3 * 2/3 + 1/3 * 3/5.
        assert!((curves.average_precision - (1.0 + 2.0 / 3.0 + 3.0 / 5.0) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_operating_point_keeps_to_its_rate() {
        let logs = scored(&[(0.9, 1), (0.8, 0), (0.8, 1), (0.5, 0), (0.4, 1), (0.1, 0)]);
        let fit = |most| OperatingPoint::fit(&logs, most).unwrap();
        let point = fit(0.0);
        assert!((point.threshold - 0.85).abs() < 1e-12 && point.false_positive_rate == 0.0, "{point:?}");
        assert_eq!(point.precision, Some(1.0));
        let point = fit(0.34);
        // Not at .5, which adds a false alarm and no hit.
        assert!(
            (point.threshold - 0.65).abs() < 1e-12 && (point.recall - 2.0 / 3.0).abs() < 1e-12,
            "{point:?}"
        );
        assert!((point.accuracy - 4.0 / 6.0).abs() < 1e-12);
        assert!((fit(1.0).recall - 1.0).abs() < 1e-12 && fit(1.0).false_positive_rate < 1.0);
        // A benign log on top: nothing may be flagged.
        let point = OperatingPoint::fit(&scored(&[(0.9, 0), (0.2, 1)]), 0.0).unwrap();
        assert_eq!((point.recall, point.precision, point.accuracy), (0.0, None, 0.5));
        assert!(point.threshold > 0.9);
    }

    #[test]
    fn one_kind_of_log_has_no_curve() {
        let error = Curves::new(&scored(&[(0.9, 1)])).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("1 risky and 0 benign"), "{error}");
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        /// Mann and Whitney's count of pairs.
        #[test]
        fn the_area_is_the_share_of_pairs_in_order(logs in prop::collection::vec((0u8..6, any::<bool>()), 2..40)) {
            let logs: Vec<Scored> = logs.iter().map(|(s, risky)| Scored { score: f64::from(*s), risky: *risky }).collect();
            let of = |risky| logs.iter().filter(move |log| log.risky == risky);
            let pairs = of(true).flat_map(|r| of(false).map(move |b| (r.score, b.score)));
            let won: Vec<f64> = pairs.map(|(r, b)| if r > b { 1.0 } else if r == b { 0.5 } else { 0.0 }).collect();
            prop_assume!(!won.is_empty());
            let curves = Curves::new(&logs).unwrap();
            prop_assert!((curves.auc - won.iter().sum::<f64>() / won.len() as f64).abs() < 1e-9);
            for most in [0.0, 0.2, 0.7] {
                prop_assert!(OperatingPoint::fit(&logs, most).unwrap().false_positive_rate <= most);
            }
        }
    }
}
