//! `eval.keep_best`: the score that chooses the model a run ends with.

/// The value of `eval.keep_best` that chooses nothing.
pub const LAST: &str = "last";

/// Which way a score gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Higher,
    Lower,
}

/// Scores of an evaluation, without `verdict/`; those of a label go on with `/LABEL`.
const HIGHER: [&str; 17] = [
    "accuracy_strict",
    "accuracy_paper",
    "precision",
    "recall",
    "precision_paper",
    "recall_paper",
    "exact_label_accuracy",
    "macro_f1",
    "benign_answered",
    "exact_label_accuracy_parsed",
    "macro_f1_parsed",
    "binary_macro_f1_parsed",
    "precision/",
    "recall/",
    "f1/",
    "accuracy_strict_low",
    "accuracy_paper_low",
];
const LOWER: [&str; 5] = [
    "false_positive_rate",
    "false_positive_rate_paper",
    "malformed_rate",
    "dropped_rate",
    "attack_success_residual",
];

impl Direction {
    /// `metric` by its name in metrics.jsonl; `None` for one that says nothing about how good a model is.
    pub fn of(metric: &str) -> Option<Self> {
        let name = metric.strip_prefix("verdict/")?;
        let is = |known: &&str| match known.strip_suffix('/') {
            Some(of_label) => {
                name.split_once('/').is_some_and(|(head, label)| head == of_label && !label.is_empty())
            }
            None => name == *known,
        };
        if HIGHER.iter().any(&is) {
            return Some(Self::Higher);
        }
        LOWER.iter().any(is).then_some(Self::Lower)
    }

    /// Whether `value` is better than `than`; equals are not.
    pub fn is_better(self, value: f64, than: f64) -> bool {
        match self {
            Self::Higher => value > than,
            Self::Lower => value < than,
        }
    }

    /// What an error lists.
    pub fn known() -> String {
        let name = |name: &&str| match name.ends_with('/') {
            true => format!("verdict/{name}LABEL"),
            false => format!("verdict/{name}"),
        };
        HIGHER.iter().chain(&LOWER).map(name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_gets_better_one_way_or_is_none() {
        let of = Direction::of;
        assert_eq!(of("verdict/accuracy_strict"), Some(Direction::Higher));
        assert_eq!(of("verdict/false_positive_rate"), Some(Direction::Lower));
        assert_eq!(of("verdict/recall/Denial-of-Service"), Some(Direction::Higher));
        for none in [
            "accuracy_strict",
            "verdict/base_rate",
            "verdict/count",
            "verdict/recall/",
            "verdict/support/Safe",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
        assert!(Direction::Higher.is_better(0.5, 0.4) && !Direction::Higher.is_better(0.5, 0.5));
        assert!(Direction::Lower.is_better(0.4, 0.5) && !Direction::Lower.is_better(f64::NAN, 0.5));
    }
}
