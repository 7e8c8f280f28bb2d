//! What answers that look at nothing score: a detector has to beat them.

use std::collections::BTreeMap;

use crate::task::{Confusion, EvalReport, LabelId, Task, Verdict};

/// The commonest positive label said to every row, and the negative one said to every row, by name.
pub fn constant_answers(
    task: &Task,
    golds: impl Iterator<Item = LabelId> + Clone,
) -> Vec<(String, EvalReport)> {
    let mut counts = BTreeMap::<LabelId, usize>::new();
    for gold in golds.clone().filter(|gold| !gold.is_negative()) {
        *counts.entry(gold).or_default() += 1;
    }
    // Of equals the first.
    let commonest =
        counts.iter().rev().max_by_key(|(_, rows)| **rows).map_or(LabelId(1), |(label, _)| *label);
    let score = |verdict| {
        let mut confusion = Confusion::new(task);
        golds.clone().for_each(|gold| confusion.add(gold, verdict));
        confusion.report()
    };
    vec![
        (format!("always flag: {}", task.label_text(commonest)), score(Verdict::Positive(commonest))),
        (format!("always {}", task.label_text(LabelId::NEGATIVE)), score(Verdict::Negative)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_answers_score_what_the_labels_shares_are() {
        let task = Task::load("riskcue").unwrap();
        // 3 benign, 2 of label 1, 4 of label 2, 1 of label 3.
        let golds = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3].map(LabelId);
        let [(flag, all), (never, none)] = &constant_answers(&task, golds.into_iter())[..] else { panic!() };
        assert_eq!(flag, &format!("always flag: {}", task.labels()[2]));
        assert_eq!((all.strict.accuracy, all.strict.false_positive_rate), (Some(0.7), Some(1.0)));
        assert_eq!((all.exact_label_accuracy, all.strict.recall), (Some(0.4), Some(1.0)));
        assert_eq!(never, "always Safe");
        assert_eq!((none.strict.accuracy, none.exact_label_accuracy), (Some(0.3), Some(0.3)));
    }
}
