//! adamw.cu on the CPU: against f64, and bit for bit against the CPU op where the arithmetic is the same; see
//! support/shim.rs.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use rlvr::ops::adamw::blockwise::{BLOCK, Code};
use rlvr::ops::adamw::{Moment, Parameter, Precision, Update, update};
use rlvr::rng::{Purpose, Stream};

use crate::support::shim::{Argument, Element, Program, Random, array, close, f32s, real, scalar};

const NUMBERS: Update = Update {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 3,
    gradient_scale: 0.5,
};

/// The scalars at the end of every kernel's arguments.
fn scalars(stream: Option<Stream>, count: usize) -> Vec<Argument> {
    let u = NUMBERS;
    let correction = |beta: f64| 1. - beta.powi(u.step as i32);
    let reals = [
        1. - u.learning_rate * u.weight_decay,
        u.learning_rate / correction(u.beta1),
        1. / correction(u.beta2).sqrt(),
        u.eps,
        u.beta1,
        u.beta2,
        u.gradient_scale,
    ];
    let ([key0, key1], [id0, id1, id2]) = stream.map_or(([0; 2], [0; 3]), |s| s.words());
    let mut all: Vec<Argument> = reals.into_iter().map(real).collect();
    all.extend([key0, key1, id0, id1, id2].map(scalar));
    all.push(Argument::Scalar((count as u64).to_le_bytes().to_vec()));
    all
}

/// New weight, first and second moment in f64.
fn reference(w: f64, g: f64, m: f64, v: f64) -> [f64; 3] {
    let u = NUMBERS;
    let g = g * u.gradient_scale;
    let (m, v) = (u.beta1 * m + (1. - u.beta1) * g, u.beta2 * v + (1. - u.beta2) * g * g);
    let (bias1, bias2) = (1. - u.beta1.powi(u.step as i32), 1. - u.beta2.powi(u.step as i32));
    let moved = u.learning_rate * (m / bias1) / ((v / bias2).sqrt() + u.eps);
    [w * (1. - u.learning_rate * u.weight_decay) - moved, m, v]
}

/// More than one block of 256 for some warps, and a last block that is not whole.
const COUNT: usize = 5 * BLOCK + 77;

#[test]
fn adamw_with_full_moments_on_the_cpu() {
    let Some(program) = Program::of_file("adamw") else { return };
    let (r, n, full) = (Random::new(), COUNT, Element::F32);
    for e in Element::ALL {
        let (w, g, m) = (r.values(full, n, 1.), r.values(e, n, 2.), r.values(full, n, 1.));
        let v: Vec<f64> = r.values(full, n, 1.).iter().map(|v| v.abs()).collect();
        let launch = |kernel: &str, weight, master, stream| {
            let mut arguments = vec![weight, master, array(e, &g), f32s(&m), f32s(&v)];
            arguments.extend(scalars(stream, n));
            program.launch(&e.kernel(kernel), [2, 1, 1], 64, arguments)
        };
        let check = |what: &str, w: &[f64], got: [&Vec<u8>; 3]| {
            let want: Vec<[f64; 3]> = (0..n).map(|i| reference(w[i], g[i], m[i], v[i])).collect();
            for (c, got) in got.into_iter().enumerate() {
                let want: Vec<f64> = want.iter().map(|row| row[c]).collect();
                close(&format!("{} [{c}]", e.kernel(what)), full, &full.values(got), &want, 4e-6);
            }
        };
        let host = |weight: &Tensor, precision: Precision| {
            let moments = [&m, &v].map(|x| Moment::F32(tensor(full, x)));
            let [first, second] = &moments;
            let parameter = Parameter { weight, precision, gradient: &tensor(e, &g), first, second };
            update(&parameter, &NUMBERS).unwrap();
            bytes(weight)
        };
        let plain = launch("adamw_w32_m32", f32s(&w), Argument::Null, None);
        check("adamw_w32_m32", &w, [&plain[0], &plain[2], &plain[3]]);
        assert!(plain[0] == host(&tensor(full, &w), Precision::Full), "host, full");

        let half = Element::Bf16;
        let old = half.values(&half.bytes(&w));
        let got = launch("adamw_w16_m32", array(half, &old), f32s(&w), None);
        check("adamw_w16_m32 with masters", &w, [&got[1], &got[3], &got[4]]);
        assert!(got[1] == plain[0], "the master is an f32 weight");
        let rounded: Vec<u8> =
            full.values(&got[1]).iter().flat_map(|x| bf16::from_f32(*x as f32).to_le_bytes()).collect();
        assert!(got[0] == rounded, "the weight is the master's rounding");
        let master = tensor(full, &w);
        let weight = host(&tensor(half, &old), Precision::Master(&master));
        assert!(got[0] == weight && got[1] == bytes(&master), "host, master");

        let stream = Stream::new(r.seed, Purpose::Rounding, [3, 5, 0]);
        let got = launch("adamw_w16_m32", array(half, &old), Argument::Null, Some(stream));
        let exact = launch("adamw_w32_m32", f32s(&old), Argument::Null, None);
        let want: Vec<u8> = exact[0]
            .chunks_exact(4)
            .enumerate()
            .flat_map(|(i, b)| {
                let bits = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let word = stream.block((i / 8) as u32)[i % 8 / 2];
                let random = (if i % 2 == 0 { word } else { word >> 16 }) & 0xffff;
                (((bits + random) >> 16) as u16).to_le_bytes()
            })
            .collect();
        assert!(got[0] == want, "stochastic rounding");
        let weight = host(&tensor(half, &old), Precision::Stochastic(stream));
        assert!(weight == want, "host, stochastic");
        // On average the rounding error is nothing: here below 4 of its standard deviations.
        let errors: Vec<f64> =
            half.values(&want).iter().zip(full.values(&exact[0])).map(|(a, b)| a - b).collect();
        let spread = errors.iter().map(|e| e * e).sum::<f64>().sqrt();
        assert!(errors.iter().sum::<f64>().abs() < 5. * spread, "biased");
    }
}

fn tensor(e: Element, values: &[f64]) -> Tensor {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Tensor::new(values, &Device::Cpu).unwrap().to_dtype(e.dtype()).unwrap().copy().unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    match tensor.dtype() {
        DType::F32 => tensor.to_vec1::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => tensor.to_vec1::<bf16>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => tensor.to_vec1::<u8>().unwrap(),
    }
}

/// Codes and scales of one moment, and the values they stand for.
struct Coded {
    codes: Vec<u8>,
    scales: Vec<f64>,
    code: Code,
}

impl Coded {
    fn random(r: &Random, code: Code) -> Self {
        let codes = (0..COUNT).map(|_| r.below(256) as u8).collect();
        let scales = r.values(Element::F32, COUNT.div_ceil(BLOCK), 1.).iter().map(|s| s.abs()).collect();
        Self { codes, scales, code }
    }

    fn values(&self) -> Vec<f64> {
        let value =
            |(i, c): (usize, &u8)| f64::from(self.code.values()[*c as usize]) * self.scales[i / BLOCK];
        self.codes.iter().enumerate().map(value).collect()
    }

    fn arguments(&self) -> [Argument; 2] {
        [Argument::Array(self.codes.clone()), f32s(&self.scales)]
    }

    fn moment(&self) -> Moment {
        let codes = Tensor::new(self.codes.as_slice(), &Device::Cpu).unwrap();
        Moment::Int8 { codes, scales: tensor(Element::F32, &self.scales) }
    }

    /// These codes stand for `want`: within half a cell of the scale's decade, and the scale is the largest's.
    fn close(&self, what: &str, want: &[f64]) {
        let top = if self.code == Code::Signed { 6 } else { 7 };
        for (b, block) in want.chunks(BLOCK).enumerate() {
            let largest = block.iter().fold(0f64, |a, x| a.max(x.abs()));
            let scale = self.scales[b];
            assert!(
                (largest / scale - (0.1 + 0.9 * (1. - 0.5 / f64::from(1 << top)))).abs() < 1e-5,
                "{what}"
            );
            for (i, (x, got)) in block.iter().zip(&self.values()[b * BLOCK..]).enumerate() {
                if self.code == Code::Unsigned && x / scale < 1e-8 && *x > 0. {
                    assert_eq!(self.codes[b * BLOCK + i], 1, "{what}: not 0 stays so");
                    continue;
                }
                let decade = ((x.abs() / scale).log10().floor() + 1.).max(-f64::from(top));
                let cell = 0.9 * 10f64.powf(decade) / 2f64.powf(f64::from(top) + decade) * scale;
                assert!((x - got).abs() < 0.51 * cell, "{what}, block {b} [{i}]: {got} for {x}, cell {cell}");
            }
        }
    }
}

#[test]
fn adamw_with_coded_moments_on_the_cpu() {
    let Some(program) = Program::of_file("adamw") else { return };
    let (r, n, full, half) = (Random::new(), COUNT, Element::F32, Element::Bf16);
    for e in Element::ALL {
        let mut g = r.values(e, n, 2.);
        let (first, mut second) = (Coded::random(&r, Code::Signed), Coded::random(&r, Code::Unsigned));
        // Beside the block's largest, the first element's second moment is below all codes, but not zero.
        (g[0], second.codes[0], second.scales[0]) = (0., 1, 2f64.powi(-20));
        let (m, v) = (first.values(), second.values());
        for kernel in ["adamw_w32_m8", "adamw_w16_m8"] {
            let what = e.kernel(kernel);
            let narrow = kernel.contains("w16");
            let w = r.values(if narrow { half } else { full }, n, 1.);
            // bf16 weights have masters here; stochastic rounding is the other test's.
            let mut arguments =
                if narrow { vec![array(half, &w), f32s(&w)] } else { vec![f32s(&w), Argument::Null] };
            arguments.push(array(e, &g));
            arguments.extend(first.arguments().into_iter().chain(second.arguments()));
            arguments.extend(scalars(None, n));
            let got = program.launch(&e.kernel(kernel), [2, 1, 1], 64, arguments);
            let at = usize::from(narrow);
            let want: Vec<[f64; 3]> = (0..n).map(|i| reference(w[i], g[i], m[i], v[i])).collect();
            let column = |c: usize| -> Vec<f64> { want.iter().map(|row| row[c]).collect() };
            close(&what, full, &full.values(&got[at]), &column(0), 4e-6);
            let coded =
                |i: usize, code| Coded { codes: got[i].clone(), scales: full.values(&got[i + 1]), code };
            coded(at + 2, Code::Signed).close(&format!("{what} first"), &column(1));
            coded(at + 4, Code::Unsigned).close(&format!("{what} second"), &column(2));

            let (weight, master) = (tensor(if narrow { half } else { full }, &w), tensor(full, &w));
            let (m, v) = (first.moment(), second.moment());
            let precision = if narrow { Precision::Master(&master) } else { Precision::Full };
            let gradient = tensor(e, &g);
            let parameter =
                Parameter { weight: &weight, precision, gradient: &gradient, first: &m, second: &v };
            update(&parameter, &NUMBERS).unwrap();
            let updated = if narrow { &master } else { &weight };
            close(&format!("{what} host"), full, &full.values(&bytes(updated)), &column(0), 4e-6);
            for (moment, i, code) in [(&m, 1, Code::Signed), (&v, 2, Code::Unsigned)] {
                let Moment::Int8 { codes, scales } = moment else { panic!("coded") };
                let host = Coded { codes: bytes(codes), scales: full.values(&bytes(scales)), code };
                host.close(&format!("{what} host"), &column(i));
                // The tables' last bits may differ, and with them a code at the edge of its cell.
                let kernel = &got[at + 2 * i];
                let equal = host.codes.iter().zip(kernel).filter(|(a, b)| a == b).count();
                assert!(equal * 1000 > n * 998, "{what}: {equal} of {n} codes as on the host");
            }
        }
    }
}
