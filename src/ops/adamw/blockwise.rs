//! One byte an element and one f32 scale for 256: block-wise dynamic quantisation, as Dettmers et al.,
//! arXiv:2110.02861, for the moments of AdamW, with a code of our own that needs no search.
//!
//! A magnitude `c` in `1..2^(top + 1)` with `i = floor(log2 c)` lies in decade `[0.1, 1) 10^(i - top)`, cut into `2^i`
//! cells of equal width, at the middle of cell `c - 2^i`; 0 is zero. So the relative precision is finest in the
//! top decade, and each decade below has half as many cells. The first moment has `top` 6 and bit 7 as its sign (7
//! decades), the second `top` 7 (8 decades). A block's scale is its largest magnitude over the largest code
//! value: the largest is kept exactly, however often it is written back.

use std::sync::LazyLock;

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// Which moment of AdamW a byte codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Sign and magnitude.
    Signed,
    /// Never negative. What is not 0 does not become 0, because the step divides by its root.
    Unsigned,
}

impl Code {
    fn top(self) -> u32 {
        match self {
            Self::Signed => 6,
            Self::Unsigned => 7,
        }
    }

    /// Values of the codes 0 to 255 at scale 1.
    pub fn values(self) -> &'static [f32; 256] {
        static VALUES: LazyLock<[[f32; 256]; 2]> =
            LazyLock::new(|| [table(Code::Signed), table(Code::Unsigned)]);
        &VALUES[usize::from(self == Self::Unsigned)]
    }

    /// `x` (at most [`BLOCK`]) into codes; returns their scale. `x` must be finite.
    #[inline(always)]
    pub fn encode(self, x: &[f32], codes: &mut [u8]) -> f32 {
        match self {
            Self::Signed => encode::<6>(x, codes),
            Self::Unsigned => encode::<7>(x, codes),
        }
    }

    #[inline(always)]
    pub fn decode(self, codes: &[u8], scale: f32, x: &mut [f32]) {
        let values = self.values();
        for (x, code) in x.iter_mut().zip(codes) {
            *x = values[usize::from(*code)] * scale;
        }
    }
}

fn largest_value(top: u32) -> f32 {
    0.1 + 0.9 * (1.0 - 0.5 / (1u32 << top) as f32)
}

fn table(code: Code) -> [f32; 256] {
    let signed = code == Code::Signed;
    std::array::from_fn(|byte| {
        let magnitude = if signed { byte & 127 } else { byte };
        if magnitude == 0 {
            return 0.0;
        }
        let decade = magnitude.ilog2();
        let cells = f64::from(1u32 << decade);
        let middle = (0.1 + 0.9 * (magnitude as f64 - cells + 0.5) / cells)
            * 10f64.powi(decade as i32 - code.top() as i32);
        (if signed && byte > 127 { -middle } else { middle }) as f32
    })
}

#[inline(always)]
fn encode<const TOP: u32>(x: &[f32], codes: &mut [u8]) -> f32 {
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    let (code_lanes, code_rest) = codes.as_chunks_mut::<LANES>();
    let mut last = [0f32; LANES];
    last[..x_rest.len()].copy_from_slice(x_rest);
    let mut largest = [0f32; LANES];
    for x in x_lanes.iter().chain([&last]) {
        for j in 0..LANES {
            let size = x[j].abs();
            largest[j] = if size > largest[j] { size } else { largest[j] };
        }
    }
    let scale = largest.iter().fold(0f32, |a, b| a.max(*b)) / largest_value(TOP);
    let inverse = if scale > 1e-37 { 1.0 / scale } else { 0.0 }; // 1 over less is not finite
    for (x, codes) in x_lanes.iter().zip(code_lanes) {
        *codes = encode_lanes::<TOP>(x, inverse);
    }
    code_rest.copy_from_slice(&encode_lanes::<TOP>(&last, inverse)[..code_rest.len()]);
    scale
}

const LANES: usize = 16;

#[inline(always)]
fn encode_lanes<const TOP: u32>(x: &[f32; LANES], inverse: f32) -> [u8; LANES] {
    let mut share = [0f32; LANES];
    let mut cells = [(1u32 << TOP) as f32; LANES];
    for j in 0..LANES {
        share[j] = x[j].abs() * inverse;
    }
    for _ in 0..TOP {
        for j in 0..LANES {
            let small = share[j] < 0.1;
            share[j] *= if small { 10.0 } else { 1.0 };
            cells[j] *= if small { 0.5 } else { 1.0 };
        }
    }
    let mut codes = [0u8; LANES];
    for j in 0..LANES {
        let cell = ((share[j] - 0.1) * (cells[j] * (1.0 / 0.9))).min(cells[j] - 1.0);
        // Adding 2^23 rounds to an integer, held in the lowest bits; half less makes that the floor.
        let magnitude = if share[j] < 0.1 { 0.0 } else { cells[j] + cell - 0.499_99 };
        let bits = (magnitude + 8_388_608.0).to_bits();
        codes[j] = if TOP == 6 {
            (bits as u8 & 127) | (u8::from(x[j] < 0.0) << 7)
        } else {
            (bits as u8).max(u8::from(x[j] > 0.0))
        };
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_codes_to_itself_and_values_ascend() {
        for code in [Code::Signed, Code::Unsigned] {
            let values = code.values();
            let top = if code == Code::Signed { 127 } else { 255 };
            assert!(values[..=top].windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(values[top], largest_value(code.top()));
            let mut codes = [0u8; 256];
            let scale = code.encode(values, &mut codes);
            assert!((scale - 1.0).abs() < 1e-6);
            for byte in (0..=255u8).filter(|b| *b != 128 || code == Code::Unsigned) {
                assert_eq!(codes[usize::from(byte)], byte, "{code:?}");
            }
        }
    }

    #[test]
    fn errors_are_half_a_cell_and_the_largest_stays() {
        let x: Vec<f32> = (0..256).map(|i| 3.0 * 0.95f32.powi(i) * [1.0, -1.0][i as usize % 2]).collect();
        for (code, x) in [(Code::Signed, x.clone()), (Code::Unsigned, x.iter().map(|x| x.abs()).collect())] {
            let (mut codes, mut back) = ([0u8; 256], [0f32; 256]);
            let scale = code.encode(&x, &mut codes);
            code.decode(&codes, scale, &mut back);
            assert!((back[0] - x[0]).abs() < 1e-6);
            let cells = f64::from(1u32 << code.top());
            for (x, back) in x.iter().zip(&back) {
                let share = f64::from((x / x.abs()) * x / scale);
                // Decade 0 has `cells` cells, decade -1 half as many of a tenth the width, and so on.
                let decade = share.log10().floor() + 1.0;
                let cell = 0.9 * 10f64.powf(decade) / (cells * 2f64.powf(decade));
                let error = f64::from((x - back) / scale).abs();
                assert!(error < 0.51 * cell, "{code:?} {x} {back}");
            }
        }
        let mut codes = [7u8; 3];
        assert_eq!(Code::Unsigned.encode(&[1.0, 1e-30, 0.0], &mut codes), 1.0 / largest_value(7));
        assert_eq!(codes, [255, 1, 0], "what is not 0 stays so");
        assert_eq!(Code::Signed.encode(&[0.0; 3], &mut codes), 0.0);
        assert_eq!(codes, [0; 3]);
    }
}
