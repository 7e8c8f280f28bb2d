//! Packed attention with shared prefixes, and attention of a decode step.

use super::place::{Draw, Place};
use super::reference::log_softmax;
use super::{Output, Tolerance, Trial, output};
use crate::error::Result;
use crate::ops::attention::cuda::DeviceLayout;
use crate::ops::attention::{self, AttentionLayout, Heads, Upstream};
use crate::ops::decode_attention::{self, Cache, Readers, SharedPrefix};
use crate::types::Segment;

pub fn trials(draw: &Draw) -> Vec<Trial> {
    let heads = |query, key_value, dim| Heads { query, key_value, dim };
    let mut trials = Vec::new();
    for heads in [heads(3, 1, 64), heads(8, 2, 128), heads(2, 2, 32)] {
        trials.push(packed(draw, heads));
        trials.push(decode(draw, heads));
    }
    trials
}

fn shape_of(heads: Heads) -> String {
    format!("heads {}/{} x {}", heads.query, heads.key_value, heads.dim)
}

struct Packed {
    segments: Vec<Segment>,
    heads: Heads,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    dout: Vec<f64>,
}

/// A group of completions, some of one token, then a segment alone; longer than any block of rows.
fn packed(draw: &Draw, heads: Heads) -> Trial {
    let mut segments = vec![Segment { start: 0, len: 97 + draw.below(100), prefix: None }];
    for len in [1 + draw.below(70), 1, 1 + draw.below(70), 1 + draw.below(200)] {
        let start = segments.iter().map(|s| s.len).sum();
        segments.push(Segment { start, len, prefix: Some(0) });
    }
    let tokens: usize = segments.iter().map(|s| s.len).sum();
    let alone = 1 + draw.below(150);
    segments.push(Segment { start: tokens, len: alone, prefix: None });
    let n = tokens + alone;
    let (q_width, kv_width) = (heads.query_width(), heads.key_value_width());
    let inputs = Packed {
        segments,
        heads,
        q: draw.scaled(n * q_width, 2.0),
        k: draw.normal(n * kv_width),
        v: draw.normal(n * kv_width),
        dout: draw.normal(n * q_width),
    };
    let run = move |i: &Packed, place: &Place| -> Result<Vec<Output>> {
        let layout = AttentionLayout::new(&i.segments)?;
        let (q, k) = (place.tensor(&i.q, (n, q_width))?, place.tensor(&i.k, (n, kv_width))?);
        let (v, dout) = (place.tensor(&i.v, (n, kv_width))?, place.tensor(&i.dout, (n, q_width))?);
        let inputs = attention::Inputs { layout: &layout, heads, q: &q, k: &k, v: &v };
        place.poison_freed(&[n * q_width, n * kv_width, n * heads.query])?;
        let (out, lse) = attention::forward(inputs)?;
        let upstream = Upstream { out: &out, lse: &lse, dout: &dout };
        let gradients = attention::backward(inputs, upstream)?;
        // On a device, as it is where score gradients have no room.
        let again = match q.device().is_cuda() {
            true => {
                let no_room = DeviceLayout::keeping(0, &layout, heads, q.dtype(), q.device())?;
                attention::cuda::backward(&no_room, inputs, upstream)?.dq
            }
            false => gradients.dq.clone(),
        };
        Ok(vec![
            output("forward", place.read(&out)?),
            output("forward lse", place.read(&lse)?),
            output("backward dq", place.read(&gradients.dq)?),
            output("backward dq of scores worked out again", place.read(&again)?),
            output("backward dk", place.read(&gradients.dk)?),
            output("backward dv", place.read(&gradients.dv)?),
        ])
    };
    let shape = format!("{n} tokens, {}", shape_of(heads));
    Trial::new(("attention", shape, Tolerance::CHAINED), inputs, run, packed_reference)
}

/// Row by row: `p = softmax(scale q k^T)`, `ds = p (dout v^T - sum(p dout v^T))`.
fn packed_reference(i: &Packed) -> Vec<Output> {
    let Heads { query, dim, .. } = i.heads;
    let (q_width, kv_width) = (i.heads.query_width(), i.heads.key_value_width());
    let scale = 1.0 / (dim as f64).sqrt();
    let (mut out, mut lse) = (vec![0.0; i.q.len()], Vec::new());
    let (mut dq, mut dk, mut dv) = (vec![0.0; i.q.len()], vec![0.0; i.k.len()], vec![0.0; i.v.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for segment in &i.segments {
        for row in segment.start..segment.start + segment.len {
            let prefix =
                segment.prefix.map_or(0..0, |p| i.segments[p].start..i.segments[p].start + i.segments[p].len);
            let keys: Vec<usize> = prefix.chain(segment.start..row + 1).collect();
            for head in 0..query {
                let at = row * q_width + head * dim..row * q_width + (head + 1) * dim;
                let of = |key: usize| {
                    let start = key * kv_width + head / i.heads.sharing() * dim;
                    start..start + dim
                };
                let scores: Vec<f64> =
                    keys.iter().map(|k| scale * dot(&i.q[at.clone()], &i.k[of(*k)])).collect();
                let log_p = log_softmax(&scores);
                lse.push(scores[0] - log_p[0]);
                let p: Vec<f64> = log_p.iter().map(|l| l.exp()).collect();
                let dp: Vec<f64> = keys.iter().map(|k| dot(&i.dout[at.clone()], &i.v[of(*k)])).collect();
                let mean = dot(&p, &dp);
                for ((key, p), dp) in keys.iter().zip(&p).zip(&dp) {
                    let ds = p * (dp - mean) * scale;
                    for (j, kv) in of(*key).enumerate() {
                        let q = at.start + j;
                        out[q] += p * i.v[kv];
                        dq[q] += ds * i.k[kv];
                        dk[kv] += ds * i.q[q];
                        dv[kv] += p * i.dout[q];
                    }
                }
            }
        }
    }
    vec![
        output("forward", out),
        output("forward lse", lse),
        output("backward dq", dq.clone()),
        output("backward dq of scores worked out again", dq),
        output("backward dk", dk),
        output("backward dv", dv),
    ]
}

struct Decode {
    heads: Heads,
    prefixes: Vec<SharedPrefix>,
    sequences: Vec<usize>,
    len: usize,
    capacity: usize,
    q: Vec<f64>,
    prefix_k: Vec<f64>,
    prefix_v: Vec<f64>,
    own_k: Vec<f64>,
    own_v: Vec<f64>,
}

/// Two groups of which some sequences have left; their places in the cache, and those not filled yet, are NaN.
fn decode(draw: &Draw, heads: Heads) -> Trial {
    let lens = [65 + draw.below(300), 1 + draw.below(100)];
    let rows = [1 + draw.below(9), 1 + draw.below(4)];
    let prefixes = vec![
        SharedPrefix { start: 0, len: lens[0], rows: rows[0] },
        SharedPrefix { start: lens[0], len: lens[1], rows: rows[1] },
    ];
    // Every second sequence is still active.
    let sequences: Vec<usize> = (0..rows[0] + rows[1]).map(|r| 2 * r).collect();
    let len = 1 + draw.below(40);
    let capacity = len + draw.below(10);
    let (q_width, width) = (heads.query_width(), heads.key_value_width());
    let cache = || {
        let mut own = draw.normal(2 * sequences.len() * capacity * width);
        for (at, place) in own.chunks_mut(width).enumerate() {
            if at % capacity >= len || at / capacity % 2 == 1 {
                place.fill(f64::NAN);
            }
        }
        own
    };
    let inputs = Decode {
        heads,
        len,
        capacity,
        q: draw.scaled(sequences.len() * q_width, 2.0),
        prefix_k: draw.normal((lens[0] + lens[1]) * width),
        prefix_v: draw.normal((lens[0] + lens[1]) * width),
        own_k: cache(),
        own_v: cache(),
        prefixes,
        sequences,
    };
    let n = inputs.sequences.len();
    let run = move |i: &Decode, place: &Place| -> Result<Vec<Output>> {
        let prefix = |values: &[f64]| place.tensor(values, (values.len() / width, width));
        let own = |values: &[f64]| place.tensor(values, (2 * n, i.capacity, width));
        let q = place.tensor(&i.q, (n, q_width))?;
        let (prefix_k, prefix_v) = (prefix(&i.prefix_k)?, prefix(&i.prefix_v)?);
        let (own_k, own_v) = (own(&i.own_k)?, own(&i.own_v)?);
        let cache = Cache { prefix_k: &prefix_k, prefix_v: &prefix_v, own_k: &own_k, own_v: &own_v };
        let readers = Readers::new(i.prefixes.clone(), i.sequences.clone());
        place.poison_freed(&[n * q_width; 2])?;
        let (out, lse) = decode_attention::forward(heads, &q, cache, &readers, i.len)?;
        Ok(vec![output("forward", place.read(&out)?), output("forward lse", place.read(&lse)?)])
    };
    let shape = format!("{n} rows, {}", shape_of(heads));
    Trial::new(("decode_attention", shape, Tolerance::ROUNDED), inputs, run, decode_reference)
}

fn decode_reference(i: &Decode) -> Vec<Output> {
    let Heads { query, dim, .. } = i.heads;
    let (q_width, width) = (i.heads.query_width(), i.heads.key_value_width());
    let mut out = vec![0.0; i.q.len()];
    let mut lse = Vec::new();
    let owners = i.prefixes.iter().flat_map(|p| std::iter::repeat_n(p, p.rows));
    for (row, (prefix, sequence)) in owners.zip(&i.sequences).enumerate() {
        for head in 0..query {
            let column = head / i.heads.sharing() * dim;
            let q = &i.q[row * q_width + head * dim..][..dim];
            // Every key and value that this row sees, wherever it is kept.
            let seen: Vec<(&[f64], &[f64])> = (prefix.start..prefix.start + prefix.len)
                .map(|at| {
                    (&i.prefix_k[at * width + column..][..dim], &i.prefix_v[at * width + column..][..dim])
                })
                .chain((0..i.len).map(|t| {
                    let at = (sequence * i.capacity + t) * width + column;
                    (&i.own_k[at..][..dim], &i.own_v[at..][..dim])
                }))
                .collect();
            let score = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
            let scores: Vec<f64> = seen.iter().map(|(k, _)| score(k)).collect();
            let log_p = log_softmax(&scores);
            lse.push(scores[0] - log_p[0]);
            for (log_p, (_, v)) in log_p.iter().zip(&seen) {
                for (j, v) in v.iter().enumerate() {
                    out[row * q_width + head * dim + j] += log_p.exp() * v;
                }
            }
        }
    }
    vec![output("forward", out), output("forward lse", lse)]
}
