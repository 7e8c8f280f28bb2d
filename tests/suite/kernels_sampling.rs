//! sampling.cu on the CPU: against sorting in f64, and against the CPU op; see support/shim.rs.

use rlvr::ops::sampling::{Sampling, sample_row};

use crate::support::shim::{Argument, Element, Program, Random, array, f32s, real, scalar};

struct Drawn {
    token: usize,
    logprob: f32,
}

const DRAWS: usize = 2;

/// Two draws from each row.
fn draw(program: &Program, e: Element, logits: &[f64], c: &Sampling, uniforms: &[f64]) -> Vec<Drawn> {
    let vocab = logits.len() * DRAWS / uniforms.len();
    let greedy = c.temperature == 0.;
    let reach = if c.min_p > 0. { -f64::from(c.min_p.ln() * c.temperature) } else { f64::INFINITY };
    let arguments = vec![
        array(e, logits),
        f32s(uniforms),
        Argument::Array(vec![0xff; 8 * uniforms.len()]),
        scalar(vocab as u32),
        scalar(DRAWS as u32),
        real(if greedy { 1. } else { f64::from(1. / c.temperature) }),
        scalar(u32::from(greedy)),
        scalar(c.top_k as u32),
        real(f64::from(c.top_p)),
        real(reach),
    ];
    let got = program.launch(&e.kernel("sampling"), [uniforms.len() as u32, 1, 1], 96, arguments);
    got[2]
        .chunks_exact(8)
        .map(|b| Drawn {
            token: u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize,
            logprob: f32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect()
}

/// Tokens that the cuts leave, in vocabulary order, with their probabilities, by sorting.
fn left(logits: &[f64], c: &Sampling) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scale = f64::from(1. / c.temperature);
    let mut sorted: Vec<(usize, f64)> =
        logits.iter().map(|x| ((x - largest) * scale).exp()).enumerate().collect();
    // By logit: -0 lies below 0.
    sorted.sort_by(|a, b| logits[b.0].total_cmp(&logits[a.0]).then(a.0.cmp(&b.0)));
    if c.top_k > 0 {
        sorted.truncate(c.top_k);
    }
    let need = f64::from(c.top_p) * sorted.iter().map(|t| t.1).sum::<f64>();
    let mut mass = 0.;
    let last = sorted.iter().position(|t| {
        mass += t.1;
        mass >= need
    });
    if c.top_p < 1. {
        sorted.truncate(last.map_or(sorted.len(), |last| last + 1));
    }
    sorted.retain(|t| t.1 >= f64::from(c.min_p));
    sorted.sort_by_key(|t| t.0);
    let total: f64 = sorted.iter().map(|t| t.1).sum();
    sorted.into_iter().map(|(token, weight)| (token, weight / total)).collect()
}

#[test]
fn sampling_on_the_cpu() {
    let Some(program) = Program::of_file("sampling") else { return };
    let r = Random::new();
    let config = |temperature, top_k, top_p, min_p| Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        replay_truncation: false,
    };
    let cuts = [
        config(1.0, 0, 1.0, 0.0),
        config(0.7, 40, 1.0, 0.0),
        config(1.0, 1, 1.0, 0.0),
        config(2.0, 300, 0.8, 0.0),
        config(1.5, 0, 0.9, 0.0),
        config(2.0, 0, 0.95, 0.02),
        config(1.0, 0, 1.0, 0.1),
    ];
    // A vocabulary that 16 bytes do not divide, and one that they do; many tiles, and fewer tokens than threads.
    for vocab in [1027, 2048, 61] {
        for e in Element::ALL {
            let rows = 4;
            let mut logits = r.values(e, rows * vocab, 5.);
            // Many equal logits in row 1; row 2 lies high; row 3 is masked but for five tokens.
            logits[vocab..2 * vocab].iter_mut().for_each(|x| *x = x.round());
            logits[2 * vocab..3 * vocab].iter_mut().for_each(|x| *x = (x.round() * 4.) + 400.);
            for (i, x) in logits[3 * vocab..].iter_mut().enumerate() {
                *x = if i % (vocab / 5) == 7 { *x } else { f64::NEG_INFINITY };
            }
            let mut uniforms: Vec<f64> =
                (0..rows * DRAWS).map(|_| f64::from(r.below(1 << 24)) / 2f64.powi(24)).collect();
            (uniforms[0], uniforms[2]) = (0., 1. - 2f64.powi(-24));
            for c in &cuts {
                let drawn = draw(&program, e, &logits, c, &uniforms);
                for (i, (d, u)) in drawn.iter().zip(&uniforms).enumerate() {
                    let what = format!("{e:?} {c:?} vocabulary {vocab}, draw {i}");
                    let row = &logits[i / DRAWS * vocab..][..vocab];
                    let left = left(row, c);
                    let Some(at) = left.iter().position(|t| t.0 == d.token) else {
                        panic!("{what}: token {} is cut away", d.token)
                    };
                    let before: f64 = left[..at].iter().map(|t| t.1).sum();
                    let (low, high) = (before - 1e-6, before + left[at].1 + 1e-6);
                    assert!(low <= *u && *u <= high, "{what}: {u} is not in {low} .. {high}");
                    let full = config(c.temperature, 0, 1., 0.);
                    let want = self::left(row, &full).iter().find(|t| t.0 == d.token).unwrap().1.ln();
                    assert!((f64::from(d.logprob) - want).abs() < 1e-5, "{what}: {} not {want}", d.logprob);
                    // The CPU op draws the same token, but where the uniform falls on a boundary.
                    let host = sample_row(&row.iter().map(|x| *x as f32).collect::<Vec<_>>(), c, *u as f32);
                    let boundary = (u - before).abs() < 1e-6 || (u - before - left[at].1).abs() < 1e-6;
                    assert!(boundary || host.token as usize == d.token, "{what}: host {}", host.token);
                    assert!((host.logprob - d.logprob).abs() < 1e-5 || boundary, "{what}");
                }
            }
            let drawn = draw(&program, e, &logits, &config(0., 0, 1., 0.), &uniforms);
            for (i, d) in drawn.iter().enumerate() {
                let row = &logits[i / DRAWS * vocab..][..vocab];
                let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert_eq!(Some(d.token), row.iter().position(|x| *x == largest), "greedy {e:?} {i}");
            }
        }
    }
}

#[test]
fn a_row_that_is_no_distribution_has_no_logprob() {
    let Some(program) = Program::of_file("sampling") else { return };
    let (r, vocab) = (Random::new(), 100);
    for e in Element::ALL {
        let mut logits = r.values(e, 3 * vocab, 5.);
        logits[40] = f64::NAN;
        logits[vocab + 99] = f64::INFINITY;
        logits[2 * vocab..].fill(f64::NEG_INFINITY);
        let c = Sampling { top_p: 0.5, ..Sampling::default() };
        for d in draw(&program, e, &logits, &c, &[0.5; 6]) {
            assert!(d.token == 0 && d.logprob.is_nan(), "{e:?}: {} {}", d.token, d.logprob);
        }
    }
}
