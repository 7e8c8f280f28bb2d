//! What a stronger judge says of a row: a probability of every label, recorded in the row.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::config::distill::{DistillConfig, JudgeValues};
use crate::error::{Error, Result};
use crate::task::{LabelId, Task};

/// How far the probabilities of a row may be from a sum of 1: those that were rounded to two digits are.
const ROUNDED: f64 = 0.01;

/// Log-probs of the task's labels in their order, negative infinity of probability 0, made to sum to 1. `[labels]` None where the row has
/// nothing at `distill.column`, or null.
///
/// # Errors
/// `file:line`: it is no object of label to number, a label is not the task's or is there twice, a number is no probability, or they do not
/// sum to 1.
pub(super) fn read(
    task: &Task,
    distill: &DistillConfig,
    row: &Value,
    (file, line): (&Path, usize),
) -> Result<Option<Arc<[f64]>>> {
    let column = &distill.column;
    let wrong = |problem: String, fix: String| {
        Error::input(format!("{}:{line}", file.display()), format!("`{column}` {problem}"), fix)
    };
    let found = column.split('.').try_fold(row, |value, key| value.get(key)).filter(|found| !found.is_null());
    let Some(found) = found else { return Ok(None) };
    let form = "Give an object of label to number, or leave it out (sft.distill.column)";
    let Some(numbers) = found.as_object() else {
        return Err(wrong("is no object".into(), form.into()));
    };
    let mut logps = vec![f64::NEG_INFINITY; task.labels().len()];
    let mut seen = vec![false; logps.len()];
    for (name, number) in numbers {
        let index = task.label_id(name).map(LabelId::index).filter(|index| *index < logps.len());
        let Some(index) = index else {
            let fix = format!("Use labels of task `{}`: {}", task.name(), task.labels().join(", "));
            return Err(wrong(format!("has `{name}`, which is none of the task's labels"), fix));
        };
        if std::mem::replace(&mut seen[index], true) {
            return Err(wrong(format!("has `{name}` twice"), "Give each label once".into()));
        }
        let (fits, what) = match (distill.values, number.as_f64()) {
            (JudgeValues::Probabilities, Some(p)) => ((0.0..=1.0).contains(&p), "a probability, 0 to 1"),
            (JudgeValues::Logprobs, Some(logp)) => (logp <= 0.0, "a log-prob, 0 or less"),
            (JudgeValues::Probabilities, None) => (false, "a probability, 0 to 1"),
            (JudgeValues::Logprobs, None) => (false, "a log-prob, 0 or less"),
        };
        let number = number.as_f64().filter(|_| fits).ok_or_else(|| {
            let fix = "Correct it, say with sft.distill.values what the numbers are, or leave out labels of probability 0";
            wrong(format!("has {number} for `{name}`, which is not {what}"), fix.into())
        })?;
        logps[index] = if distill.values == JudgeValues::Probabilities { number.ln() } else { number };
    }
    let sum: f64 = logps.iter().map(|logp| logp.exp()).sum();
    if (sum - 1.0).abs() > ROUNDED {
        let fix =
            "Give every label that has one its probability: over the task's labels they sum to 1".into();
        return Err(wrong(format!("has probabilities that sum to {sum:.4}, not to 1"), fix));
    }
    logps.iter_mut().for_each(|logp| *logp -= sum.ln());
    Ok(Some(logps.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(values: JudgeValues, column: &str, row: Value) -> std::result::Result<Option<Vec<f64>>, String> {
        let task = Task::load("demo").unwrap();
        let distill = DistillConfig { values, column: column.into(), ..DistillConfig::default() };
        let read = read(&task, &distill, &row, (Path::new("a.jsonl"), 3));
        read.map(|found| found.map(|logps| logps.to_vec())).map_err(|error| error.to_string())
    }

    #[test]
    fn labels_become_log_probs_in_the_order_of_the_task() {
        use JudgeValues::{Logprobs, Probabilities};
        let row = json!({"judge": {"p": {"Denial-of-Service": 0.25, "Safe": 0.75}}});
        let logps = said(Probabilities, "judge.p", row).unwrap().unwrap();
        let task = Task::load("demo").unwrap();
        let other = task.label_id("Denial-of-Service").unwrap().index();
        assert!((logps[0].exp() - 0.75).abs() < 1e-15 && (logps[other].exp() - 0.25).abs() < 1e-15);
        assert_eq!(logps.iter().filter(|logp| **logp == f64::NEG_INFINITY).count(), 8);
        // Rounded numbers are made to sum to 1.
        let row = json!({"p": {"Safe": (0.6f64).ln(), "Log Explosion Attacks": (0.396f64).ln()}});
        let logps = said(Logprobs, "p", row).unwrap().unwrap();
        assert!((logps.iter().map(|logp| logp.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        for absent in [json!({}), json!({"p": null}), json!({"q": {"Safe": 1}})] {
            assert_eq!(said(Probabilities, "p", absent), Ok(None));
        }
    }

    #[test]
    fn what_is_no_distribution_over_the_labels_is_named() {
        use JudgeValues::{Logprobs, Probabilities};
        for (values, column, want) in [
            (Probabilities, json!("Safe"), "`p` is no object"),
            (Probabilities, json!([1.0]), "`p` is no object"),
            (Probabilities, json!({}), "`p` has probabilities that sum to 0.0000, not to 1"),
            (
                Probabilities,
                json!({"Sfae": 1.0}),
                "`p` has `Sfae`, which is none of the task's labels. Use labels of task `demo`: Safe, ",
            ),
            (
                Probabilities,
                json!({"Safe": null}),
                "`p` has null for `Safe`, which is not a probability, 0 to 1",
            ),
            (Probabilities, json!({"Safe": "1"}), "`p` has \"1\" for `Safe`, which is not a probability"),
            (Probabilities, json!({"Safe": 1.5}), "`p` has 1.5 for `Safe`, which is not a probability"),
            (Probabilities, json!({"Safe": -0.1}), "`p` has -0.1 for `Safe`"),
            (Probabilities, json!({"Safe": 0.5}), "`p` has probabilities that sum to 0.5000, not to 1"),
            (Logprobs, json!({"Safe": 0.5}), "`p` has 0.5 for `Safe`, which is not a log-prob, 0 or less"),
            (Logprobs, json!({"Safe": -0.5}), "`p` has probabilities that sum to 0.6065, not to 1"),
        ] {
            let error = said(values, "p", json!({"p": column})).unwrap_err();
            assert!(error.starts_with("a.jsonl:3: ") && error.contains(want), "{error}");
        }
    }
}
