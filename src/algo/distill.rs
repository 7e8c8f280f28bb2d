//! Distillation over a closed set of answers: the distance of a policy from a recorded judge. Hinton, Vinyals and Dean, "Distilling the
//! Knowledge in a Neural Network", arXiv:1503.02531.
//!
//! An answer's log-prob is the sum of its tokens'. Both distributions are made to sum to 1 over the answers: what else the policy may write
//! has no say, and the form of an answer is what SFT beside it teaches.

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Distilled {
    /// KL(judge || policy) at the temperature, nats.
    pub kl: f64,
    /// `temperature^2` times that, so that its gradient has the same size at every temperature.
    pub loss: f64,
    /// Derivative of the loss by each answer's log-prob, `T (p - q)`. `[K]`
    pub dloss_dlogp: Vec<f64>,
    /// Whether the likeliest answer of both is the same, the first of equal ones.
    pub agrees: bool,
}

/// `logps`: of the answers under the policy, nats. `[K]` `judge`: log-probs of the same answers, of probability 0 negative infinity; one is
/// above. `[K]` `temperature`: above 0.
pub fn distilled(logps: &[f64], judge: &[f64], temperature: f64) -> Distilled {
    let (log_p, log_q) = (log_softmax(logps, temperature), log_softmax(judge, temperature));
    let terms = log_q.iter().zip(&log_p).filter(|(q, _)| **q > f64::NEG_INFINITY);
    let kl: f64 = terms.map(|(q, p)| q.exp() * (q - p)).sum();
    let slope = |(p, q): (&f64, &f64)| temperature * (p.exp() - q.exp());
    Distilled {
        kl,
        loss: temperature * temperature * kl,
        dloss_dlogp: log_p.iter().zip(&log_q).map(slope).collect(),
        agrees: likeliest(logps) == likeliest(judge),
    }
}

fn log_softmax(logps: &[f64], temperature: f64) -> Vec<f64> {
    let most = logps.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scaled: Vec<f64> = logps.iter().map(|l| (l - most) / temperature).collect();
    let sum = scaled.iter().map(|l| l.exp()).sum::<f64>().ln();
    scaled.into_iter().map(|l| l - sum).collect()
}

fn likeliest(logps: &[f64]) -> Option<usize> {
    (0..logps.len()).rev().max_by(|a, b| logps[*a].total_cmp(&logps[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // p = (1/2, 1/4, 1/4) of answers that have half of the mass, q = (3/4, 1/4, 0).
        let logps = [0.25f64, 0.125, 0.125].map(f64::ln);
        let judge = [0.75f64, 0.25, 0.0].map(f64::ln);
        let got = distilled(&logps, &judge, 1.0);
        assert!((got.kl - 0.75 * 1.5f64.ln()).abs() < 1e-15 && got.loss == got.kl && got.agrees);
        let want = [-0.25, 0.0, 0.25];
        assert!(got.dloss_dlogp.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{got:?}");
        let same = distilled(&logps, &logps, 3.0);
        assert!(same.kl.abs() < 1e-15 && same.dloss_dlogp.iter().all(|slope| slope.abs() < 1e-15));
        assert!(!distilled(&logps, &[0.1f64, 0.2, 0.7].map(f64::ln), 1.0).agrees);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (logps, judge) = ([-0.9, -1.9, -2.1, -8.0], [0.1f64, 0.6, 0.3, 0.0].map(f64::ln));
        for temperature in [0.5, 1.0, 4.0] {
            let gradient = distilled(&logps, &judge, temperature).dloss_dlogp;
            for i in 0..logps.len() {
                let at = |shift: f64| {
                    let mut moved = logps;
                    moved[i] += shift;
                    distilled(&moved, &judge, temperature).loss
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((gradient[i] - slope).abs() < 1e-8, "{i}: {} is not {slope}", gradient[i]);
            }
        }
    }
}
