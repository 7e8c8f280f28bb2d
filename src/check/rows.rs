//! Ops on rows: RMSNorm, rotary positions, SwiGLU.

use super::place::{Draw, Place};
use super::reference::sigmoid;
use super::{Output, Tolerance, Trial, output};
use crate::error::Result;
use crate::ops::indices::Indices;
use crate::ops::rope::{Direction, RopeTable};
use crate::ops::{rms_norm, swiglu};

pub fn trials(draw: &Draw) -> Vec<Trial> {
    let narrow = 8 * (5 + draw.below(30));
    let wide = 8 * (300 + draw.below(300));
    vec![
        norm(draw, 65 + draw.below(100), narrow),
        norm(draw, 3, wide),
        // More than a block of the backward kernel holds at once.
        norm(draw, 2, 8 * (1030 + draw.below(100))),
        rotation(draw, 64),
        rotation(draw, 128),
        side_by_side(draw, 64),
        side_by_side(draw, 128),
        gated(draw),
    ]
}

struct Norm {
    n: usize,
    h: usize,
    x: Vec<f64>,
    w: Vec<f64>,
    dy: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

const EPS: f32 = 1e-3;

fn norm(draw: &Draw, n: usize, h: usize) -> Trial {
    let [x, dy, dx] = [0; 3].map(|_| draw.normal(n * h));
    let inputs = Norm { n, h, x, w: draw.normal(h), dy, dx, dw: draw.normal(h) };
    let run = |i: &Norm, place: &Place| -> Result<Vec<Output>> {
        let all = |values: &[f64]| place.tensor(values, (i.n, i.h));
        let (x, w, dy, dx) = (all(&i.x)?, place.tensor(&i.w, i.h)?, all(&i.dy)?, all(&i.dx)?);
        let dw = place.single(&i.dw, i.h)?;
        place.poison_freed(&[i.n * i.h, i.n])?;
        let y = rms_norm::forward(&x, &w, EPS)?;
        rms_norm::backward(rms_norm::Input { x_nh: &x, w_h: &w, eps: EPS }, &dy, &dx, &dw)?;
        Ok(vec![
            output("forward", place.read(&y)?),
            output("backward dx", place.read(&dx)?),
            output("backward dw", place.read(&dw)?),
        ])
    };
    let reference = |i: &Norm| {
        let (mut y, mut dx, mut dw) = (Vec::new(), i.dx.clone(), i.dw.clone());
        let rows = i.x.chunks(i.h).zip(i.dy.chunks(i.h)).zip(dx.chunks_mut(i.h));
        for ((x, dy), dx) in rows {
            let h = i.h as f64;
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / h + f64::from(EPS)).sqrt();
            y.extend(x.iter().zip(&i.w).map(|(x, w)| x * r * w));
            let mean: f64 = (0..i.h).map(|j| dy[j] * i.w[j] * x[j]).sum::<f64>() / h;
            for j in 0..i.h {
                dx[j] += r * dy[j] * i.w[j] - x[j] * r.powi(3) * mean;
                dw[j] += dy[j] * x[j] * r;
            }
        }
        vec![output("forward", y), output("backward dx", dx), output("backward dw", dw)]
    };
    Trial::new(("rms_norm", format!("{n} x {h}"), Tolerance::ROUNDED), inputs, run, reference)
}

struct Rotation {
    x: Vec<f64>,
    width: usize,
    positions: Vec<u32>,
    frequencies: Vec<f64>,
}

const POSITIONS: usize = 4096;

fn rotation(draw: &Draw, dim: usize) -> Trial {
    let (n, heads) = (17 + draw.below(50), 1 + draw.below(5));
    let inputs = Rotation {
        x: draw.normal(n * heads * dim),
        width: heads * dim,
        positions: draw.indices(n, POSITIONS).into_iter().map(|p| p as u32).collect(),
        frequencies: (0..dim / 2).map(|j| 1e4f64.powf(-2.0 * j as f64 / dim as f64)).collect(),
    };
    let run = |i: &Rotation, place: &Place| -> Result<Vec<Output>> {
        let table = RopeTable::new(&i.frequencies, POSITIONS);
        let rotated = |direction| -> Result<Vec<f64>> {
            let x = place.tensor(&i.x, (i.positions.len(), i.width))?;
            table.rotate(&x, &Indices::new(i.positions.as_slice()), direction)?;
            place.read(&x)
        };
        Ok(vec![
            output("forward", rotated(Direction::Forward)?),
            output("inverse", rotated(Direction::Inverse)?),
        ])
    };
    let reference = |i: &Rotation| {
        vec![output("forward", turned(i, &i.x, 1.0)), output("inverse", turned(i, &i.x, -1.0))]
    };
    let shape = format!("{n} rows, {heads} x {dim}");
    Trial::new(("rope", shape, Tolerance::ROUNDED), inputs, run, reference)
}

/// Every head of `x` turned by its row's position, forth or back.
fn turned(i: &Rotation, x: &[f64], sign: f64) -> Vec<f64> {
    let mut y = x.to_vec();
    let half = i.frequencies.len();
    let width = x.len() / i.positions.len();
    for (row, position) in y.chunks_mut(width).zip(&i.positions) {
        for head in row.chunks_mut(2 * half) {
            for j in 0..half {
                let (sin, cos) = (f64::from(*position) * i.frequencies[j]).sin_cos();
                let (a, b) = (head[j], head[j + half]);
                head[j] = a * cos - sign * b * sin;
                head[j + half] = b * cos + sign * a * sin;
            }
        }
    }
    y
}

/// Rows of one product as queries, keys and values, and their gradients back: two heads of queries to one of keys.
fn side_by_side(draw: &Draw, dim: usize) -> Trial {
    let (n, kv_heads) = (17 + draw.below(50), 1 + draw.below(3));
    let inputs = Rotation {
        x: draw.normal(n * 4 * kv_heads * dim),
        width: 4 * kv_heads * dim,
        positions: draw.indices(n, POSITIONS).into_iter().map(|p| p as u32).collect(),
        frequencies: (0..dim / 2).map(|j| 1e4f64.powf(-2.0 * j as f64 / dim as f64)).collect(),
    };
    let run = |i: &Rotation, place: &Place| -> Result<Vec<Output>> {
        let table = RopeTable::new(&i.frequencies, POSITIONS);
        let positions = Indices::new(i.positions.as_slice());
        let (n, key) = (i.positions.len(), i.width / 4);
        let qkv = place.tensor(&i.x, (n, i.width))?;
        let [dq, dk, dv] = columns(&i.x, i.width);
        let (dq, dk) = (place.tensor(&dq, (n, 2 * key))?, place.tensor(&dk, (n, key))?);
        let dv = place.tensor(&dv, (n, key))?;
        place.poison_freed(&[i.x.len(), i.x.len() / 2])?;
        let [q, k, v] = table.split(&qkv, [2 * key, key], Some(&positions))?;
        let joined = table.join([&dq, &dk, &dv], Some(&positions))?;
        Ok(vec![
            output("split q", place.read(&q)?),
            output("split k", place.read(&k)?),
            output("split v", place.read(&v)?),
            output("join", place.read(&joined)?),
        ])
    };
    let reference = |i: &Rotation| {
        let [q, k, v] = columns(&i.x, i.width);
        let key = i.width / 4;
        let [dq, dk] = [&q, &k].map(|x| turned(i, x, -1.0));
        let rows = dq.chunks(2 * key).zip(dk.chunks(key)).zip(v.chunks(key));
        let joined = rows.flat_map(|((q, k), v)| [q, k, v].concat()).collect();
        vec![
            output("split q", turned(i, &q, 1.0)),
            output("split k", turned(i, &k, 1.0)),
            output("split v", v),
            output("join", joined),
        ]
    };
    let shape = format!("{n} rows, {kv_heads} x 4 x {dim} side by side");
    Trial::new(("rope", shape, Tolerance::ROUNDED), inputs, run, reference)
}

/// The left half, the third and the fourth quarter of rows of `width`.
fn columns(x: &[f64], width: usize) -> [Vec<f64>; 3] {
    let part = |from: usize, to: usize| x.chunks(width).flat_map(|row| row[from..to].to_vec()).collect();
    [part(0, width / 2), part(width / 2, width / 4 * 3), part(width / 4 * 3, width)]
}

struct Gated {
    shape: (usize, usize),
    gate: Vec<f64>,
    up: Vec<f64>,
    dact: Vec<f64>,
}

fn gated(draw: &Draw) -> Trial {
    let shape = (33 + draw.below(60), 8 * (40 + draw.below(60)));
    let count = shape.0 * shape.1;
    let mut gate = draw.scaled(count, 3.0);
    // Where a careless exponential overflows.
    (gate[0], gate[1]) = (-128.0, 128.0);
    let inputs = Gated { shape, gate, up: draw.normal(count), dact: draw.normal(count) };
    let run = |i: &Gated, place: &Place| -> Result<Vec<Output>> {
        let rows = i.gate.chunks(i.shape.1).zip(i.up.chunks(i.shape.1));
        let gate_up: Vec<f64> = rows.flat_map(|(gate, up)| [gate, up].concat()).collect();
        let gate_up = place.tensor(&gate_up, (i.shape.0, 2 * i.shape.1))?;
        let dact = place.tensor(&i.dact, i.shape)?;
        place.poison_freed(&[i.gate.len(); 2])?;
        let act = swiglu::forward(&gate_up)?;
        let backward = swiglu::backward(&gate_up, &dact)?;
        Ok(vec![
            output("forward", place.read(&act)?),
            output("backward act", place.read(&backward.act_nf)?),
            output("backward dgate, dup", place.read(&backward.dgate_up_n2f)?),
        ])
    };
    let reference = |i: &Gated| {
        let each = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..i.gate.len()).map(|at| f(i.gate[at], i.up[at], i.dact[at])).collect()
        };
        let act = each(&|g, u, _| g * sigmoid(g) * u);
        let slope = |g: f64| sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g)));
        let dgate = each(&|g, u, d| d * u * slope(g));
        let dup = each(&|g, _, d| d * g * sigmoid(g));
        let rows = dgate.chunks(i.shape.1).zip(dup.chunks(i.shape.1));
        vec![
            output("forward", act.clone()),
            output("backward act", act),
            output("backward dgate, dup", rows.flat_map(|(dgate, dup)| [dgate, dup].concat()).collect()),
        ]
    };
    let name = format!("{} x {}", shape.0, shape.1);
    Trial::new(("swiglu", name, Tolerance::ROUNDED), inputs, run, reference)
}
