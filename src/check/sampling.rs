//! Drawing a token from a row of logits.

use super::place::{Draw, Place};
use super::reference::log_softmax;
use super::{Output, Tolerance, Trial, output};
use crate::error::Result;
use crate::ops::sampling::{Sampling, sample};

const ROWS: usize = 40;

pub fn trials(draw: &Draw) -> Vec<Trial> {
    [
        ("plain", 0.7, 0, 1.0, 0.0),
        ("top-k", 1.0, 20, 1.0, 0.0),
        ("top-p", 1.3, 0, 0.9, 0.0),
        ("min-p", 1.1, 0, 1.0, 0.05),
        ("greedy", 0.0, 0, 1.0, 0.0),
    ]
    .map(|(what, temperature, top_k, top_p, min_p)| {
        trial(draw, what, Sampling { temperature, top_k, top_p, min_p, replay_truncation: false })
    })
    .into()
}

struct Rows {
    config: Sampling,
    vocab: usize,
    logits: Vec<f64>,
    /// Numbers in [0, 1): which of the tokens left to take, by rank in the vocabulary's order.
    picks: Vec<f64>,
}

fn trial(draw: &Draw, what: &str, config: Sampling) -> Trial {
    let vocab = 100 + draw.below(900);
    let picks = draw.indices(ROWS, 1000).iter().map(|i| *i as f64 / 1000.0).collect();
    let inputs = Rows { config, vocab, logits: draw.scaled(ROWS * vocab, 2.0), picks };
    let run = |i: &Rows, place: &Place| -> Result<Vec<Output>> {
        let mut drawn = Vec::new();
        for (row, e) in i.logits.chunks(i.vocab).zip(expected(i)) {
            drawn.extend(sample(&place.tensor(row, (1, i.vocab))?, &e.config, &[e.uniform as f32])?);
        }
        Ok(vec![
            output("tokens", drawn.iter().map(|s| s.token.into()).collect()),
            output("log-probs", drawn.iter().map(|s| s.logprob.into()).collect()),
        ])
    };
    let reference = |i: &Rows| {
        let expected = expected(i);
        vec![
            output("tokens", expected.iter().map(|e| e.token as f64).collect()),
            output("log-probs", expected.iter().map(|e| e.logprob).collect()),
        ]
    };
    Trial::new(("sampling", format!("{what}, {ROWS} x {vocab}"), Tolerance::ROUNDED), inputs, run, reference)
}

struct Expected {
    token: usize,
    logprob: f64,
    /// `top_p` and `min_p` are such that no rounding can move the cut to another token.
    config: Sampling,
    /// A number whose inverse transform is the token, far from where rounding could make it another.
    uniform: f64,
}

fn expected(i: &Rows) -> Vec<Expected> {
    let Sampling { temperature, top_k, top_p, min_p, .. } = i.config;
    let scale = if temperature == 0.0 { 1.0 } else { 1.0 / f64::from(temperature) };
    let row = |(logits, pick): (&[f64], &f64)| {
        let log_p = log_softmax(&logits.iter().map(|l| l * scale).collect::<Vec<_>>());
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| log_p[*b].total_cmp(&log_p[*a]).then(a.cmp(b)));
        if temperature == 0.0 {
            order.truncate(1);
        }
        if top_k > 0 {
            order.truncate(top_k);
        }
        let kept = |order: &[usize]| order.iter().map(|t| log_p[*t].exp()).sum::<f64>();
        let all = kept(&order);
        let mut config = i.config;
        if top_p < 1.0 {
            let enough = (1..order.len()).find(|n| kept(&order[..*n]) >= f64::from(top_p) * all);
            order.truncate(enough.unwrap_or(order.len()));
            // Half of the last token that is kept has to be needed.
            let needed = kept(&order) - 0.5 * order.last().map_or(0.0, |t| log_p[*t].exp());
            config.top_p = (needed / all) as f32;
        }
        if min_p > 0.0 {
            // Between two tokens that rounding cannot confuse.
            let share = |n: usize| (log_p[order[n]] - log_p[order[0]]).exp();
            let cut = (1..order.len()).find(|n| share(*n) < f64::from(min_p).min(0.99 * share(n - 1)));
            if let Some(n) = cut {
                config.min_p = (share(n - 1) * share(n)).sqrt() as f32;
                order.truncate(n);
            }
        }
        order.sort_unstable();
        let total = kept(&order);
        // A token that is likely enough for its middle to be unmistakable.
        let likely: Vec<usize> = (0..order.len()).filter(|n| log_p[order[*n]].exp() / total > 1e-4).collect();
        let at = likely[(pick * likely.len() as f64) as usize];
        let token = order[at];
        let below = kept(&order[..at]) + 0.5 * log_p[token].exp();
        Expected { token, logprob: log_p[token], config, uniform: below / total }
    };
    i.logits.chunks(i.vocab).zip(&i.picks).map(row).collect()
}
