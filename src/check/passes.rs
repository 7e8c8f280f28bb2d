//! Ops that pass over whole arrays: the embedding's rows, AdamW, and sums in place.

use candle_core::{DType, Device, Tensor};

use super::place::{Draw, Place};
use super::reference::add;
use super::{Output, Tolerance, Trial, output};
use crate::error::Result;
use crate::ops::adamw::Moment;
use crate::ops::adamw::blockwise::{BLOCK, Code};
use crate::ops::elementwise::{add_assign, sum_squares, zero};
use crate::ops::indices::Indices;
use crate::ops::{adamw, embedding};

pub fn trials(draw: &Draw) -> Vec<Trial> {
    let [small, moments] = update_int8(draw);
    vec![lookup(draw), collect(draw), update(draw), small, moments, elementwise(draw), squares(draw)]
}

struct Rows {
    table: Vec<f64>,
    values: Vec<f64>,
    rows: Vec<usize>,
    v: usize,
    h: usize,
}

impl Rows {
    fn new(draw: &Draw) -> Self {
        let (v, h, n) = (200 + draw.below(200), 8 * (5 + draw.below(30)), 150 + draw.below(100));
        let mut rows = draw.indices(n, v);
        // One token many times, and the table's ends.
        rows[..20].fill(7);
        (rows[20], rows[21]) = (0, v - 1);
        Self { table: draw.normal(v * h), values: draw.normal(n * h), rows, v, h }
    }

    fn shape(&self) -> String {
        format!("{} of {} x {}", self.rows.len(), self.v, self.h)
    }

    fn row(&self, i: usize) -> std::ops::Range<usize> {
        i * self.h..(i + 1) * self.h
    }
}

fn lookup(draw: &Draw) -> Trial {
    let inputs = Rows::new(draw);
    let shape = inputs.shape();
    let run = |i: &Rows, place: &Place| -> Result<Vec<Output>> {
        let table = place.tensor(&i.table, (i.v, i.h))?;
        let values = place.tensor(&i.values, (i.rows.len(), i.h))?;
        // Each row once: of two values for one row either may stay.
        let order: Indices = (0..i.rows.len()).rev().collect();
        let scattered = place.poison((i.rows.len(), i.h))?;
        place.poison_freed(&[i.values.len(); 2])?;
        let gathered = embedding::gather(&table, &i.rows.iter().copied().collect())?;
        embedding::scatter(&scattered, &order, &values)?;
        Ok(vec![output("gather", place.read(&gathered)?), output("scatter", place.read(&scattered)?)])
    };
    let reference = |i: &Rows| {
        let gathered = i.rows.iter().flat_map(|row| i.table[i.row(*row)].to_vec()).collect();
        let reversed = i.values.chunks(i.h).rev().flatten().copied().collect();
        vec![output("gather", gathered), output("scatter", reversed)]
    };
    Trial::new(("embedding", shape, Tolerance::EXACT), inputs, run, reference)
}

fn collect(draw: &Draw) -> Trial {
    let inputs = Rows::new(draw);
    let shape = inputs.shape();
    let run = |i: &Rows, place: &Place| -> Result<Vec<Output>> {
        let table = place.single(&i.table, (i.v, i.h))?;
        let rows = i.rows.iter().copied().collect();
        embedding::scatter_add(&table, &rows, &place.tensor(&i.values, (i.rows.len(), i.h))?)?;
        Ok(vec![output("scatter_add", place.read(&table)?)])
    };
    let reference = |i: &Rows| {
        let mut table = i.table.clone();
        for (row, value) in i.rows.iter().zip(i.values.chunks(i.h)) {
            table[i.row(*row)].iter_mut().zip(value).for_each(|(t, v)| *t += v);
        }
        vec![output("scatter_add", table)]
    };
    Trial::new(("embedding", shape, Tolerance::ROUNDED), inputs, run, reference)
}

struct Weights {
    weight: Vec<f64>,
    gradient: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

const UPDATE: adamw::Update = adamw::Update {
    learning_rate: 0.03,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-6,
    weight_decay: 0.1,
    step: 5,
    gradient_scale: 0.3,
};

fn update(draw: &Draw) -> Trial {
    // Longer than a chunk, and its end is short.
    let n = (1 << 14) + 1 + draw.below(9000);
    let second = draw.normal(n).iter().map(|v| v * v).collect();
    let inputs = Weights { weight: draw.normal(n), gradient: draw.normal(n), first: draw.normal(n), second };
    let run = move |i: &Weights, place: &Place| -> Result<Vec<Output>> {
        let (weight, gradient) = (place.tensor(&i.weight, n)?, place.single(&i.gradient, n)?);
        let (first, second) = (place.single(&i.first, n)?, place.single(&i.second, n)?);
        let master = place.single(&i.weight, n)?;
        let parameter = adamw::Parameter {
            weight: &weight,
            precision: precision(place, &master),
            gradient: &gradient,
            first: &adamw::Moment::F32(first.clone()),
            second: &adamw::Moment::F32(second.clone()),
        };
        adamw::update(&parameter, &UPDATE)?;
        Ok(vec![
            output("weight", place.read(&weight)?),
            output("first moment", place.read(&first)?),
            output("second moment", place.read(&second)?),
        ])
    };
    Trial::new(("adamw", format!("{n} weights"), Tolerance::ROUNDED), inputs, run, updated)
}

fn updated(i: &Weights) -> Vec<Output> {
    let (mut weight, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
    let correction = |beta: f64| 1.0 - beta.powi(UPDATE.step as i32);
    for at in 0..i.weight.len() {
        let g = i.gradient[at] * UPDATE.gradient_scale;
        let m = UPDATE.beta1 * i.first[at] + (1.0 - UPDATE.beta1) * g;
        let v = UPDATE.beta2 * i.second[at] + (1.0 - UPDATE.beta2) * g * g;
        let denominator = (v / correction(UPDATE.beta2)).sqrt() + UPDATE.eps;
        let decayed = i.weight[at] * (1.0 - UPDATE.learning_rate * UPDATE.weight_decay);
        weight.push(decayed - UPDATE.learning_rate * m / correction(UPDATE.beta1) / denominator);
        first.push(m);
        second.push(v);
    }
    vec![output("weight", weight), output("first moment", first), output("second moment", second)]
}

/// An 8-bit moment before an update.
struct Coded {
    code: Code,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Coded {
    fn new(draw: &Draw, code: Code, n: usize) -> Self {
        let codes = draw.indices(n, 256).into_iter().map(|c| c as u8).collect();
        let scales = draw.normal(n.div_ceil(BLOCK)).into_iter().map(|s| 0.1 + s.abs() as f32).collect();
        Self { code, codes, scales }
    }

    fn values(&self, codes: &[u8], scales: &[f32]) -> Vec<f64> {
        let value = |(at, c): (usize, &u8)| self.code.values()[usize::from(*c)] * scales[at / BLOCK];
        codes.iter().enumerate().map(|at| f64::from(value(at))).collect()
    }

    fn at(&self, place: &Place) -> Result<Moment> {
        let codes = Tensor::from_slice(&self.codes, self.codes.len(), &Device::Cpu)?;
        let scales = Tensor::from_slice(&self.scales, self.scales.len(), &Device::Cpu)?;
        Ok(Moment::Int8 { codes: codes.to_device(&place.device)?, scales: scales.to_device(&place.device)? })
    }

    fn read(&self, moment: &Moment) -> Result<Vec<f64>> {
        let Moment::Int8 { codes, scales } = moment else { return Ok(Vec::new()) };
        let codes = codes.to_device(&Device::Cpu)?.to_vec1::<u8>()?;
        Ok(self.values(&codes, &scales.to_device(&Device::Cpu)?.to_vec1::<f32>()?))
    }
}

/// The update from 8-bit moments: the weight, which sees them before they are rounded again, and then the moments.
fn update_int8(draw: &Draw) -> [Trial; 2] {
    let (moments, tolerance) = (Tolerance::EIGHT_BITS, Tolerance::ROUNDED);
    [("int8 weight", 0..1, tolerance), ("int8 moments", 1..3, moments)].map(|(what, parts, tolerance)| {
        let n = 40 * BLOCK + 1 + draw.below(900);
        let (first, second) = (Coded::new(draw, Code::Signed, n), Coded::new(draw, Code::Unsigned, n));
        let inputs = Weights {
            weight: draw.normal(n),
            gradient: draw.normal(n),
            first: first.values(&first.codes, &first.scales),
            second: second.values(&second.codes, &second.scales),
        };
        let chosen = parts.clone();
        let run = move |i: &Weights, place: &Place| -> Result<Vec<Output>> {
            let (weight, master) = (place.tensor(&i.weight, n)?, place.single(&i.weight, n)?);
            let (m, v) = (first.at(place)?, second.at(place)?);
            let parameter = adamw::Parameter {
                weight: &weight,
                precision: precision(place, &master),
                gradient: &place.single(&i.gradient, n)?,
                first: &m,
                second: &v,
            };
            adamw::update(&parameter, &UPDATE)?;
            let all = [
                output("weight", place.read(&weight)?),
                output("first moment", first.read(&m)?),
                output("second moment", second.read(&v)?),
            ];
            Ok(all.into_iter().skip(chosen.start).take(chosen.len()).collect())
        };
        let reference =
            move |i: &Weights| updated(i).into_iter().skip(parts.start).take(parts.len()).collect();
        Trial::new(("adamw", format!("{what}, {n} weights"), tolerance), inputs, run, reference)
    })
}

fn precision<'a>(place: &Place, master: &'a Tensor) -> adamw::Precision<'a> {
    match place.dtype {
        DType::BF16 => adamw::Precision::Master(master),
        _ => adamw::Precision::Full,
    }
}

fn elementwise(draw: &Draw) -> Trial {
    let n = (1 << 16) + 1 + draw.below(9000);
    let inputs = (draw.normal(n), draw.normal(n));
    let run = move |(sum, term): &(Vec<f64>, Vec<f64>), place: &Place| -> Result<Vec<Output>> {
        let (sum, term) = (place.tensor(sum, n)?, place.tensor(term, n)?);
        let cleared = place.poison(n)?;
        add_assign(&sum, &term)?;
        zero(&cleared)?;
        Ok(vec![output("add_assign", place.read(&sum)?), output("zero", place.read(&cleared)?)])
    };
    let reference = |(sum, term): &(Vec<f64>, Vec<f64>)| {
        vec![output("add_assign", add(sum, term)), output("zero", vec![0.0; sum.len()])]
    };
    Trial::new(("elementwise", format!("{n} numbers"), Tolerance::ROUNDED), inputs, run, reference)
}

fn squares(draw: &Draw) -> Trial {
    let n = (1 << 16) + 1 + draw.below(9000);
    let run = move |x: &Vec<f64>, place: &Place| -> Result<Vec<Output>> {
        Ok(vec![output("sum", vec![sum_squares(&[&place.single(x, n)?])?])])
    };
    let reference = |x: &Vec<f64>| vec![output("sum", vec![x.iter().map(|x| x * x).sum()])];
    Trial::new(("sum_squares", format!("{n} numbers"), Tolerance::ROUNDED), draw.normal(n), run, reference)
}
