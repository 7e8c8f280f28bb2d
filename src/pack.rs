//! Cuts SFT rows and GRPO groups into packed batches. A group's prompt appears once.

use std::ops::Range;

use crate::types::{Group, PackedBatch, Segment, Target};

impl PackedBatch {
    /// One SFT row: a segment `[prompt][target]` whose loss is on the target's tokens only.
    ///
    /// The last target token is predicted but predicts nothing, so it is not an input.
    pub fn push_sequence(&mut self, prompt: &[u32], target: &[u32]) {
        let start = self.tokens.len();
        let inputs = target.len().saturating_sub(1);
        self.tokens.extend_from_slice(prompt);
        self.tokens.extend_from_slice(&target[..inputs]);
        self.positions.extend(0..(prompt.len() + inputs) as u32);
        self.segments.push(Segment { start, len: prompt.len() + inputs, prefix: None });
        let first_row = start + prompt.len() - 1;
        self.targets
            .extend(target.iter().enumerate().map(|(i, token)| Target { row: first_row + i, token: *token }));
        self.target_counts.push(target.len());
    }

    /// One GRPO group: the prompt's segment, then a segment a completion with the prompt as prefix.
    ///
    /// A completion's first token is predicted from the prompt's last row; a completion of one token adds no
    /// segment at all.
    pub fn push_group<'a>(&mut self, prompt: &[u32], completions: impl Iterator<Item = &'a [u32]>) {
        let prompt_start = self.tokens.len();
        let prefix = self.segments.len();
        self.tokens.extend_from_slice(prompt);
        self.positions.extend(0..prompt.len() as u32);
        self.segments.push(Segment { start: prompt_start, len: prompt.len(), prefix: None });
        for completion in completions {
            let start = self.tokens.len();
            let inputs = completion.len().saturating_sub(1);
            self.tokens.extend_from_slice(&completion[..inputs]);
            self.positions.extend((0..inputs).map(|i| (prompt.len() + i) as u32));
            if inputs > 0 {
                self.segments.push(Segment { start, len: inputs, prefix: Some(prefix) });
            }
            self.targets.extend(completion.iter().enumerate().map(|(i, token)| Target {
                row: if i == 0 { prompt_start + prompt.len() - 1 } else { start + i - 1 },
                token: *token,
            }));
            self.target_counts.push(completion.len());
        }
    }

    /// [`Self::push_group`] of a prompt and its rollouts.
    pub fn push(&mut self, group: &Group) {
        let completions = group.rollouts.iter().map(|rollout| rollout.token_ids.as_slice());
        self.push_group(&group.prompt.token_ids, completions);
    }

    /// Ranges of `targets` of each sequence, in order.
    pub fn target_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.target_counts.iter().scan(0, |end, count| {
            let start = *end;
            *end += count;
            Some(start..*end)
        })
    }
}

/// Splits items of `tokens[i]` tokens, in order, into runs of at most `max_tokens` each. An item larger than
/// that gets a run of its own: callers refuse what cannot fit before.
pub fn runs(tokens: impl IntoIterator<Item = usize>, max_tokens: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (i, count) in tokens.into_iter().enumerate() {
        match runs.last_mut() {
            Some(run) if filled + count <= max_tokens => {
                run.end = i + 1;
                filled += count;
            }
            _ => {
                runs.push(i..i + 1);
                filled = count;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_holds_its_prompt_once() {
        let mut batch = PackedBatch::default();
        let completions: [&[u32]; 3] = [&[10, 11, 12], &[20], &[30, 31]];
        batch.push_group(&[1, 2, 3], completions.into_iter());
        assert_eq!(batch.tokens, [1, 2, 3, 10, 11, 30]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3]);
        let segment = |start, len, prefix| Segment { start, len, prefix };
        assert_eq!(batch.segments, [segment(0, 3, None), segment(3, 2, Some(0)), segment(5, 1, Some(0))]);
        let rows: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token)).collect();
        assert_eq!(rows, [(2, 10), (3, 11), (4, 12), (2, 20), (2, 30), (5, 31)]);
        assert_eq!(batch.target_ranges().collect::<Vec<_>>(), [0..3, 3..4, 4..6]);
    }

    #[test]
    fn a_row_trains_its_answer_only() {
        let mut batch = PackedBatch::default();
        batch.push_sequence(&[1, 2], &[7, 8]);
        batch.push_sequence(&[3], &[9]);
        assert_eq!(batch.tokens, [1, 2, 7, 3]);
        assert_eq!(batch.positions, [0, 1, 2, 0]);
        let rows: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token)).collect();
        assert_eq!(rows, [(1, 7), (2, 8), (3, 9)]);
    }

    #[test]
    fn runs_fill_up_in_order() {
        assert_eq!(runs([4, 4, 4, 9, 1], 8), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(runs([9, 1, 7], 8), [0..1, 1..3]);
        assert!(runs([], 8).is_empty());
    }
}
