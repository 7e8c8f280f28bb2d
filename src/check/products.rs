//! Matrix products: linear layers, what they are made of on the CPU, and log-probs of tokens through the head.

use super::place::{Draw, Place, narrow, wide};
use super::reference::{add, log_softmax, sigmoid, times, times_transposed, transposed};
use super::{Output, Tolerance, Trial, output};
use crate::error::Result;
use crate::ops::cpu::gemm::{Mat, MatMut, Threads, Write, gemm, product};
use crate::ops::cpu::simd;
use crate::ops::linear;
use crate::ops::token_logprob::{self, Slopes};

pub fn trials(draw: &Draw) -> Vec<Trial> {
    // A prompt's rows, and a decode step's few.
    let many = (65 + draw.below(100), 8 * (9 + draw.below(20)), 8 * (9 + draw.below(20)));
    let few = (1 + draw.below(32), 8 * (9 + draw.below(20)), 8 * (9 + draw.below(20)));
    // More rows of a large vocabulary than one chunk of logits holds.
    let heads = [(3 + draw.below(8), 64, 500 + draw.below(500)), (340 + draw.below(30), 16, 50_021)];
    vec![
        layer(draw, many),
        layer(draw, few),
        strided(draw),
        loops(draw),
        logprobs(draw, heads[0]),
        logprobs(draw, heads[1]),
    ]
}

struct Layer {
    n: usize,
    h: usize,
    o: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    second_w: Vec<f64>,
    residual: Vec<f64>,
    dy: Vec<f64>,
    dw: Vec<f64>,
}

fn layer(draw: &Draw, (n, h, o): (usize, usize, usize)) -> Trial {
    let inputs = Layer {
        n,
        h,
        o,
        x: draw.normal(n * h),
        w: draw.normal(o * h),
        second_w: draw.normal(o * h),
        residual: draw.normal(n * o),
        dy: draw.normal(n * o),
        dw: draw.normal(o * h),
    };
    let run = |i: &Layer, place: &Place| -> Result<Vec<Output>> {
        let Layer { n, h, o, .. } = *i;
        let (x, w) = (place.tensor(&i.x, (n, h))?, place.tensor(&i.w, (o, h))?);
        let (second_w, residual) = (place.tensor(&i.second_w, (o, h))?, place.tensor(&i.residual, (n, o))?);
        let (dy, dw) = (place.tensor(&i.dy, (n, o))?, place.single(&i.dw, (o, h))?);
        place.poison_freed(&[n * o, n * h])?;
        let y = linear::forward(&x, &w)?;
        let sum = linear::forward_add(&residual, &x, &w, None)?;
        let dx = linear::backward_input(&dy, &w)?;
        linear::add_backward_input(&dx, &residual, &second_w)?;
        let bias = place.tensor(&i.residual[..o], o)?;
        let biased = linear::forward_add(&residual, &x, &w, Some(&bias))?;
        let added = place.tensor(&i.residual, (n, o))?;
        linear::add_forward(&added, &x, &w)?;
        let scaled = linear::backward_input_scaled(&dy, &w, 1.5)?;
        linear::backward_weight(&dw, &dy, &x)?;
        Ok(vec![
            output("forward", place.read(&y)?),
            output("forward_add", place.read(&sum)?),
            output("forward_add with a bias", place.read(&biased)?),
            output("add_forward", place.read(&added)?),
            output("backward_input_scaled", place.read(&scaled)?),
            output("backward_input and one more", place.read(&dx)?),
            output("backward_weight", place.read(&dw)?),
        ])
    };
    let reference = |i: &Layer| {
        let y = times_transposed(&i.x, &i.w, i.h);
        let dx = add(&times(&i.dy, &i.w, i.o), &times(&i.residual, &i.second_w, i.o));
        let dw = times(&transposed(&i.dy, i.o), &i.x, i.n);
        let bias: Vec<f64> = (0..y.len()).map(|at| i.residual[at % i.o]).collect();
        vec![
            output("forward", y.clone()),
            output("forward_add", add(&i.residual, &y)),
            output("forward_add with a bias", add(&bias, &add(&i.residual, &y))),
            output("add_forward", add(&i.residual, &y)),
            output("backward_input_scaled", times(&i.dy, &i.w, i.o).iter().map(|x| 1.5 * x).collect()),
            output("backward_input and one more", dx),
            output("backward_weight", add(&i.dw, &dw)),
        ]
    };
    Trial::new(("linear", format!("{n} x {h} -> {o}"), Tolerance::ROUNDED), inputs, run, reference)
}

/// Products of matrices inside larger ones, transposed, on one thread and on all.
fn strided(draw: &Draw) -> Trial {
    let (n, k, m, gap) = (20 + draw.below(60), 20 + draw.below(60), 20 + draw.below(60), 7);
    let inputs = (draw.normal(n * k), draw.normal(m * k), draw.normal(n * m));
    let run = move |(a, b, c): &(Vec<f64>, Vec<f64>, Vec<f64>), place: &Place| -> Result<Vec<Output>> {
        place.poison_freed(&[n * m, m * n])?;
        let (a, b) = (narrow(a), narrow(b));
        let (a, b) = (Mat::row_major(&a, n, k), Mat::row_major(&b, m, k));
        let mut wide_rows = vec![f32::NAN; n * (m + gap)];
        for (row, c) in wide_rows.chunks_mut(m + gap).zip(narrow(c).chunks(m)) {
            row[..m].copy_from_slice(c);
        }
        let out = MatMut { data: &mut wide_rows, row_stride: m + gap };
        gemm(a, b.t(), out, Write::Accumulate, Threads::One);
        let accumulated: Vec<f32> =
            wide_rows.chunks(m + gap).flat_map(|row| row[..m].iter().copied()).collect();
        let mut overwritten = vec![f32::NAN; n * m];
        let out = MatMut { data: &mut overwritten, row_stride: m };
        gemm(a, b.t(), out, Write::Overwrite, Threads::Pool);
        Ok(vec![
            output("product", wide(&product(a, b.t(), Threads::Pool))),
            output("transposed", wide(&product(b, a.t(), Threads::One))),
            output("overwrite", wide(&overwritten)),
            output("accumulate", wide(&accumulated)),
        ])
    };
    let reference = move |(a, b, c): &(Vec<f64>, Vec<f64>, Vec<f64>)| {
        let ab = times_transposed(a, b, k);
        vec![
            output("product", ab.clone()),
            output("transposed", transposed(&ab, m)),
            output("overwrite", ab.clone()),
            output("accumulate", add(&ab, c)),
        ]
    };
    Trial::new(("gemm", format!("{n} x {k} x {m}"), Tolerance::ROUNDED), inputs, run, reference).cpu_only()
}

/// The loops other ops are made of.
fn loops(draw: &Draw) -> Trial {
    const SCALE: f32 = 0.75;
    const SHIFT: f32 = 1.5;
    let n = 100 + draw.below(400);
    let inputs = (draw.scaled(n, 4.0), draw.normal(n));
    let run = |(x, y): &(Vec<f64>, Vec<f64>), _: &Place| -> Result<Vec<Output>> {
        let (x, y) = (narrow(x), narrow(y));
        Ok(simd::vectorize!({
            let mut scaled = x.clone();
            let sum = simd::exp_scaled_in_place(&mut scaled, SCALE, SHIFT);
            let (total, weighted) = simd::exp_sums(&x, SCALE, SHIFT);
            vec![
                output("exp", x.iter().map(|x| simd::exp(*x).into()).collect()),
                output("sigmoid", x.iter().map(|x| simd::sigmoid(*x).into()).collect()),
                output("dot", vec![simd::dot(&x, &y).into(), x.len() as f64]),
                output("max", vec![simd::max(&x).into()]),
                output("exp_scaled_in_place", wide(&scaled)),
                output("exp sums", wide(&[sum, total, weighted])),
            ]
        }))
    };
    let reference = |(x, y): &(Vec<f64>, Vec<f64>)| {
        let each = |f: &dyn Fn(f64) -> f64| -> Vec<f64> { x.iter().map(|x| f(*x)).collect() };
        let z = |x: f64| x * f64::from(SCALE) - f64::from(SHIFT);
        let scaled = each(&|x| z(x).exp());
        let total: f64 = scaled.iter().sum();
        let weighted: f64 = x.iter().map(|x| z(*x).exp() * z(*x)).sum();
        // Beside the length, since a dot product near zero has no relative error.
        let dot = x.iter().zip(y).map(|(x, y)| x * y).sum();
        vec![
            output("exp", each(&f64::exp)),
            output("sigmoid", each(&sigmoid)),
            output("dot", vec![dot, x.len() as f64]),
            output("max", vec![x.iter().copied().fold(f64::NEG_INFINITY, f64::max)]),
            output("exp_scaled_in_place", scaled),
            output("exp sums", vec![total, total, weighted]),
        ]
    };
    Trial::new(("simd", format!("{n} numbers"), Tolerance::ROUNDED), inputs, run, reference).cpu_only()
}

struct Head {
    r: usize,
    h: usize,
    v: usize,
    hidden: Vec<f64>,
    head: Vec<f64>,
    targets: Vec<u32>,
    dlogprobs: Vec<f64>,
    dhead: Vec<f64>,
}

const TEMPERATURE: f32 = 0.7;

fn logprobs(draw: &Draw, (r, h, v): (usize, usize, usize)) -> Trial {
    let inputs = Head {
        r,
        h,
        v,
        hidden: draw.normal(r * h),
        head: draw.scaled(v * h, 2.0 / (h as f64).sqrt()),
        targets: draw.indices(r, v).into_iter().map(|t| t as u32).collect(),
        dlogprobs: draw.normal(r),
        dhead: draw.scaled(v * h, 0.1),
    };
    let run = |i: &Head, place: &Place| -> Result<Vec<Output>> {
        let Head { r, h, v, .. } = *i;
        let (hidden, head) = (place.tensor(&i.hidden, (r, h))?, place.tensor(&i.head, (v, h))?);
        let dhead = place.single(&i.dhead, (v, h))?;
        let inputs = token_logprob::Inputs {
            hidden_rh: &hidden,
            head_vh: &head,
            targets: &i.targets,
            temperature: TEMPERATURE,
            missing: &[],
        };
        place.poison_freed(&[r * h, r * v])?;
        let forward = token_logprob::forward(inputs)?;
        let dlogprobs = narrow(&i.dlogprobs);
        let dhidden = token_logprob::backward(inputs, &dlogprobs, &dhead)?;
        let slopes = Slopes { log_sums: &forward.log_sums, ..dlogprobs.as_slice().into() };
        let of_known_sums = token_logprob::backward(inputs, slopes, None)?;
        Ok(vec![
            output("log-probs", wide(&forward.logprobs)),
            output("entropies", wide(&forward.entropies)),
            output("backward dhidden", place.read(&dhidden)?),
            output("backward dhidden of known log-sums", place.read(&of_known_sums)?),
            output("backward dhead", place.read(&dhead)?),
        ])
    };
    let reference = |i: &Head| {
        let logits = times_transposed(&i.hidden, &i.head, i.h);
        let (mut logprobs, mut entropies, mut dlogits) = (Vec::new(), Vec::new(), Vec::new());
        let temperature = f64::from(TEMPERATURE);
        for ((row, target), d) in logits.chunks(i.v).zip(&i.targets).zip(&i.dlogprobs) {
            let row: Vec<f64> = row.iter().map(|l| l / temperature).collect();
            let log_p = log_softmax(&row);
            logprobs.push(log_p[*target as usize]);
            entropies.push(-log_p.iter().map(|l| l.exp() * l).sum::<f64>());
            let hit = |token: usize| f64::from(u8::from(token == *target as usize));
            dlogits.extend(log_p.iter().enumerate().map(|(t, l)| (hit(t) - l.exp()) * d / temperature));
        }
        let dhead = times(&transposed(&dlogits, i.v), &i.hidden, i.r);
        vec![
            output("log-probs", logprobs),
            output("entropies", entropies),
            output("backward dhidden", times(&dlogits, &i.head, i.v)),
            output("backward dhidden of known log-sums", times(&dlogits, &i.head, i.v)),
            output("backward dhead", add(&i.dhead, &dhead)),
        ]
    };
    let shape = format!("{r} x {h} -> {v}");
    Trial::new(("token_logprob", shape, Tolerance::CHAINED), inputs, run, reference)
}
