//! Shapes of attention problems, and how near a result must be.

use rlvr::ops::attention::Heads;
use rlvr::types::Segment;

use super::shim::Element;

pub fn heads(query: usize, key_value: usize, dim: usize) -> Heads {
    Heads { query, key_value, dim }
}

/// Groups of `(prompt tokens, tokens of each completion)`, packed one after the other.
pub fn segments(lengths: &[(usize, &[usize])]) -> Vec<Segment> {
    let (mut all, mut start) = (Vec::<Segment>::new(), 0);
    for (prompt, completions) in lengths {
        let root = all.len();
        let prefixes = [None].into_iter().chain(completions.iter().map(|_| Some(root)));
        for (len, prefix) in [*prompt].iter().chain(*completions).zip(prefixes) {
            all.push(Segment { start, len: *len, prefix });
            start += len;
        }
    }
    all
}

/// `got` is near `want` as a whole, and nowhere far from it: errors relative to the norm and the largest value.
#[track_caller]
pub fn near(what: &str, got: &[f64], want: &[f64], [whole, worst]: [f64; 2]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let of_whole = norm(&mut got.iter().zip(want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
    let largest = want.iter().fold(0f64, |m, w| m.max(w.abs()));
    // Not `max`, which drops NaN.
    let of_worst = got
        .iter()
        .zip(want)
        .map(|(g, w)| (g - w).abs() / largest)
        .fold(0f64, |m, e| if e <= m { m } else { e });
    assert!(
        of_whole <= whole && of_worst <= worst,
        "{what}: error {of_whole:.1e} of the norm, {of_worst:.1e} of the largest value"
    );
}

/// The bound for [`near`] of attention results kept as `e`.
pub fn tolerance(e: Element) -> [f64; 2] {
    match e {
        Element::F32 => [1e-6, 4e-6],
        // P, dS and the results are rounded to 8 bits.
        Element::Bf16 => [6e-3, 1.5e-2],
    }
}
