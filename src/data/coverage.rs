//! Labels that rows do not have: nothing is learned of them.

use crate::task::{LabelId, Task};

/// Labels that a sentence names.
const NAMED: usize = 12;

/// Rows of each label, in the task's order; a row of several labels counts for each.
pub fn count(task: &Task, golds: impl Iterator<Item = LabelId>) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = task.labels().iter().map(|label| (label.clone(), 0)).collect();
    golds.flat_map(LabelId::members).for_each(|label| counts[label].1 += 1);
    counts
}

/// Rows of each label over several counts.
pub fn sum(counts: &[Vec<(String, usize)>]) -> Vec<(String, usize)> {
    let mut all = counts.first().cloned().unwrap_or_default();
    for other in counts.iter().skip(1) {
        all.iter_mut().zip(other).for_each(|((_, rows), (_, more))| *rows += more);
    }
    all
}

/// What to say of rows to learn from, `what`, by their labels; `held_out`: of those they are evaluated on.
pub fn remarks(what: &str, counts: &[(String, usize)], held_out: Option<&[(String, usize)]>) -> Vec<String> {
    let absent: Vec<usize> = (0..counts.len()).filter(|label| counts[*label].1 == 0).collect();
    let rows = |label: &usize| held_out.and_then(|counts| counts.get(*label)).map_or(0, |(_, rows)| *rows);
    let (asked, never): (Vec<usize>, Vec<usize>) = absent.iter().partition(|label| rows(label) > 0);
    let mut said = Vec::new();
    let present = counts.len() - absent.len();
    if let (1, Some((label, _))) = (present, counts.iter().find(|(_, rows)| *rows > 0)) {
        said.push(format!(
            "every row of {what} is labelled `{label}`: what tells it from the others is not in them"
        ));
    }
    let names = |labels: &[usize], of: &dyn Fn(&usize) -> String| {
        let mut names: Vec<String> = labels.iter().take(NAMED).map(of).collect();
        if labels.len() > NAMED {
            names.push(format!("{} labels more", labels.len() - NAMED));
        }
        names.join(", ")
    };
    if !asked.is_empty() {
        let names = names(&asked, &|label| format!("`{}` ({} rows)", counts[*label].0, rows(label)));
        said.push(format!("no row of {what} has a label that validation rows have: {names}"));
    }
    if !never.is_empty() && present > 1 {
        let names = names(&never, &|label| format!("`{}`", counts[*label].0));
        said.push(format!("no row of {what} is labelled {names}"));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rows: [usize; 4]) -> Vec<(String, usize)> {
        ["a", "b", "c", "d"].map(String::from).into_iter().zip(rows).collect()
    }

    #[test]
    fn one_class_and_labels_without_a_row_are_named() {
        let say =
            |rows, held_out: Option<[usize; 4]>| remarks("x", &counts(rows), held_out.map(counts).as_deref());
        assert!(say([1, 2, 3, 4], Some([0, 0, 0, 1])).is_empty());
        assert_eq!(say([1, 2, 0, 4], None), ["no row of x is labelled `c`"]);
        let both = [
            "no row of x has a label that validation rows have: `d` (7 rows)",
            "no row of x is labelled `c`",
        ];
        assert_eq!(say([1, 2, 0, 0], Some([1, 0, 0, 7])), both);
        let one = say([0, 5, 0, 0], Some([2, 1, 0, 0]));
        assert_eq!(one.len(), 2);
        assert!(
            one[0].starts_with("every row of x is labelled `b`:") && one[1].ends_with("`a` (2 rows)"),
            "{one:?}"
        );
        assert!(say([0, 0, 0, 0], None).is_empty());
    }

    #[test]
    fn rows_of_several_labels_count_for_each() {
        let task = Task::load("demo").unwrap();
        let golds = [LabelId::NEGATIVE, LabelId(2), LabelId(2)];
        let counts = count(&task, golds.into_iter());
        assert_eq!(counts.iter().map(|(_, rows)| *rows).take(4).collect::<Vec<_>>(), [1, 0, 2, 0]);
    }
}
