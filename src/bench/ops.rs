//! Every op in the shapes that one model and the packs of a GRPO step give it.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::ops::adamw::Moment;
use crate::ops::attention;
use crate::ops::elementwise::{add_assign, sum_squares, zero};
use crate::ops::indices::Indices;
use crate::ops::rope::{Direction, RopeTable};
use crate::ops::sampling::{Sampling, sample};
use crate::ops::{adamw, decode_attention, embedding, linear, memory, rms_norm, swiglu, token_logprob};
use crate::plan::cost::{Cost, GroupShape, Layer};
use crate::rng::{Purpose, Stream};

/// One call of an op on one set of inputs.
pub type Run = Box<dyn Fn() -> Result<()>>;

type Make = Box<dyn Fn(&Maker) -> Result<Run>>;

/// An op in one shape.
pub struct Case {
    /// `op.pass` and, for linear layers, which one.
    pub name: String,
    pub shape: String,
    /// The numbers in `shape` by name, of products and attention: for a program that repeats them elsewhere.
    pub sizes: Vec<(&'static str, usize)>,
    pub cost: Cost,
    /// Makes inputs, of which the run that it returns is timed.
    pub make: Make,
}

/// Makes inputs: random values, cheap ones, since no time depends on them.
#[derive(Clone)]
pub struct Maker {
    pub device: Device,
    /// Type of weights and activations; moments and sums over a row are f32.
    pub dtype: DType,
    /// Type of the gradients of matrices.
    pub gradients: DType,
    pool: Arc<Vec<f32>>,
    set: usize,
}

impl Maker {
    pub fn new(device: Device, dtype: DType, gradients: DType) -> Self {
        let stream = Stream::new(1, Purpose::Bench, [0; 3]);
        // A prime length, so that rows of no model line up with it.
        let pool = (0..65_537).map(|i| stream.uniform(i) * 2.0 - 1.0).collect();
        Self { device, dtype, gradients, pool: Arc::new(pool), set: 0 }
    }

    /// The same with other values.
    pub fn set(&self, set: usize) -> Self {
        Self { set, ..self.clone() }
    }

    /// Values that no set of inputs has, so that keys are not values.
    fn other(&self) -> Self {
        self.set(self.set + 500)
    }

    pub fn random(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        memory::cast(&self.f32(shape)?, self.dtype)
    }

    fn gradient(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        memory::cast(&self.f32(shape)?, self.gradients)
    }

    fn f32(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.f32_by(shape, |x| x)
    }

    /// What `f` makes of the values.
    fn f32_by(&self, shape: impl Into<Shape>, f: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
        let shape = shape.into();
        let len = self.pool.len();
        let mut values = vec![0f32; shape.elem_count()];
        values.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| {
            let (tail, head) = self.pool.split_at((self.set * 1009 + i * 31) % len);
            chunk.iter_mut().zip(head.iter().chain(tail)).for_each(|(x, p)| *x = f(*p));
        });
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(&self.device)?)
    }

    fn ids(&self, n: usize, below: usize) -> Vec<u32> {
        let stream = Stream::new(1, Purpose::Bench, [1, self.set as u32, 0]);
        (0..n as u32).map(|i| stream.block(i)[0] % below as u32).collect()
    }
}

fn case(
    name: impl Into<String>,
    shape: String,
    cost: Cost,
    make: impl Fn(&Maker) -> Result<Run> + 'static,
) -> Case {
    Case { name: name.into(), shape, sizes: Vec::new(), cost, make: Box::new(make) }
}

/// `y = x W^T` of this layer, or a gradient of it.
fn product(name: String, layer: Layer, cost: Cost, make: impl Fn(&Maker) -> Result<Run> + 'static) -> Case {
    let Layer { rows, inputs, outputs, .. } = layer;
    let sizes = vec![("rows", rows), ("inputs", inputs), ("outputs", outputs)];
    Case { sizes, ..case(name, format!("{rows} x {inputs} -> {outputs}"), cost, make) }
}

/// A run that throws the op's result away.
fn run<T>(f: impl Fn() -> Result<T> + 'static) -> Result<Run> {
    Ok(Box::new(move || {
        drop(f()?);
        Ok(())
    }))
}

/// All ops, in the order a step meets them.
///
/// # Errors
/// As [`GroupShape::layout`].
pub fn all(group: &GroupShape) -> Result<Vec<Case>> {
    let mut cases = linears(group);
    cases.extend(few_rows(group));
    cases.extend(row_ops(group));
    cases.extend(attentions(group)?);
    cases.extend(logprobs(group));
    cases.extend(embeddings(group));
    cases.extend(passes(group));
    cases.extend(sampling(group));
    Ok(cases)
}

fn linears(group: &GroupShape) -> Vec<Case> {
    let mut cases = Vec::new();
    for layer in group.layers() {
        let Layer { name, rows: n, inputs: h, outputs: o } = layer;
        let cost = group.linear(layer);
        cases.push(product(format!("linear.forward.{name}"), layer, cost, move |m| {
            let (x, w) = (m.random((n, h))?, m.random((o, h))?);
            run(move || linear::forward(&x, &w))
        }));
        cases.push(product(format!("linear.backward_input.{name}"), layer, cost, move |m| {
            let (dy, w) = (m.random((n, o))?, m.random((o, h))?);
            run(move || linear::backward_input(&dy, &w))
        }));
        let cost = group.linear_backward_weight(layer);
        cases.push(product(format!("linear.backward_weight.{name}"), layer, cost, move |m| {
            let (dw, dy, x) = (m.gradient((o, h))?, m.random((n, o))?, m.random((n, h))?);
            run(move || linear::backward_weight(&dw, &dy, &x))
        }));
    }
    cases
}

/// Products of a decode step: the weights are read for a few rows. The step's own: those of a pack of its rollout, and
/// of all its groups in one.
fn few_rows(group: &GroupShape) -> Vec<Case> {
    let mut cases = Vec::new();
    let rows = BTreeSet::from([8, 16, 32, group.decode_rows(), group.groups.all * group.completions]);
    for layer in group.layers() {
        for n in rows.iter().copied() {
            let layer = Layer { rows: n, ..layer };
            let Layer { name, inputs: h, outputs: o, .. } = layer;
            cases.push(product(format!("linear.few_rows.{name}"), layer, group.linear(layer), move |m| {
                let (x, w) = (m.random((n, h))?, m.random((o, h))?);
                run(move || linear::forward(&x, &w))
            }));
        }
    }
    cases
}

fn row_ops(group: &GroupShape) -> Vec<Case> {
    let (n, config, heads) = (group.rows, group.config.clone(), group.heads());
    let (h, f) = (config.hidden_size, config.intermediate_size);
    let eps = config.rms_norm_eps as f32;
    let (tokens, inner) = (format!("{n} x {h}"), format!("{n} x {f}"));
    let width = heads.query_width() + heads.key_value_width();
    vec![
        case("rms_norm.forward", tokens.clone(), group.rms_norm_forward(), move |m| {
            let (x, w) = (m.random((n, h))?, m.random(h)?);
            run(move || rms_norm::forward(&x, &w, eps))
        }),
        case("rms_norm.backward", tokens, group.rms_norm_backward(), move |m| {
            let (x, w) = (m.random((n, h))?, m.random(h)?);
            let (dy, dx, dw) = (m.random((n, h))?, m.random((n, h))?, m.f32(h)?);
            run(move || rms_norm::backward(rms_norm::Input { x_nh: &x, w_h: &w, eps }, &dy, &dx, &dw))
        }),
        case("rope.rotate", format!("{n} x {width}, q and k"), group.rope(), move |m| {
            let positions: Indices = (0..n).collect();
            let table = RopeTable::new(&config.rope_inverse_frequencies(), n);
            let (q, k) = (m.random((n, heads.query_width()))?, m.random((n, heads.key_value_width()))?);
            run(move || {
                table.rotate(&q, &positions, Direction::Forward)?;
                table.rotate(&k, &positions, Direction::Forward)
            })
        }),
        case("swiglu.forward", inner.clone(), group.swiglu_forward(), move |m| {
            let gate_up = m.random((n, 2 * f))?;
            run(move || swiglu::forward(&gate_up))
        }),
        case("swiglu.backward", inner, group.swiglu_backward(), move |m| {
            let (gate_up, dact) = (m.random((n, 2 * f))?, m.random((n, f))?);
            run(move || swiglu::backward(&gate_up, &dact))
        }),
    ]
}

fn attentions(group: &GroupShape) -> Result<Vec<Case>> {
    let (heads, layout) = (group.heads(), group.layout()?);
    let (p, g, own) = (group.prompt, group.completions, group.new_tokens);
    let (n, q_width, kv_width) = (layout.tokens(), heads.query_width(), heads.key_value_width());
    let (packed_groups, sampled, rows) = (group.groups.packed, group.groups.sampled, group.decode_rows());
    let of_heads = format!("heads {}/{} x {}", heads.query, heads.key_value, heads.dim);
    let shape = format!("{packed_groups} x ({p} + {g} x {}), {of_heads}", own - 1);
    let sizes = |groups| {
        let [q, kv, dim] = [("heads", heads.query), ("key_value_heads", heads.key_value), ("dim", heads.dim)];
        vec![("groups", groups), ("prompt", p), ("completions", g), ("new_tokens", own), q, kv, dim]
    };
    let (forward, backward) = (group.attention_forward(&layout), group.attention_backward(&layout));
    let decode = group.decode_attention();
    let packed = move |m: &Maker| -> Result<[Tensor; 3]> {
        Ok([m.random((n, q_width))?, m.random((n, kv_width))?, m.other().random((n, kv_width))?])
    };
    let layout_b = layout.clone();
    let mut cases = vec![
        case("attention.forward", shape.clone(), forward, move |m| {
            let ([q, k, v], layout) = (packed(m)?, layout.clone());
            run(move || attention::forward(attention::Inputs { layout: &layout, heads, q: &q, k: &k, v: &v }))
        }),
        case("attention.backward", shape, backward, move |m| {
            let ([q, k, v], layout) = (packed(m)?, layout_b.clone());
            let inputs = attention::Inputs { layout: &layout, heads, q: &q, k: &k, v: &v };
            let (out, lse) = attention::forward(inputs)?;
            let dout = m.random((n, q_width))?;
            run(move || {
                let inputs = attention::Inputs { layout: &layout, heads, q: &q, k: &k, v: &v };
                attention::backward(inputs, attention::Upstream { out: &out, lse: &lse, dout: &dout })
            })
        }),
        case("decode_attention.forward", format!("{rows} rows, {p} + {own} keys"), decode, move |m| {
            let q = m.random((rows, q_width))?;
            let prompts = (sampled * p, kv_width);
            let (prefix_k, prefix_v) = (m.random(prompts)?, m.other().random(prompts)?);
            let caches = (rows, own, kv_width);
            let (own_k, own_v) = (m.random(caches)?, m.other().random(caches)?);
            let prefix = |i| decode_attention::SharedPrefix { start: i * p, len: p, rows: g };
            let readers =
                decode_attention::Readers::new((0..sampled).map(prefix).collect(), (0..rows).collect());
            run(move || {
                let cache = decode_attention::Cache {
                    prefix_k: &prefix_k,
                    prefix_v: &prefix_v,
                    own_k: &own_k,
                    own_v: &own_v,
                };
                decode_attention::forward(heads, &q, cache, &readers, own)
            })
        }),
    ];
    for (case, groups) in cases.iter_mut().zip([packed_groups, packed_groups, sampled]) {
        case.sizes = sizes(groups);
    }
    Ok(cases)
}

fn logprobs(group: &GroupShape) -> Vec<Case> {
    let (r, h, v) = (group.targets(), group.config.hidden_size, group.config.vocab_size);
    let shape = format!("{r} x {h} -> {v}");
    let make = move |m: &Maker| -> Result<(Tensor, Tensor, Vec<u32>)> {
        // Logits of about 1, as models have: far larger ones would make subnormal probabilities, which are slow.
        let size = (3.0 / h as f32).sqrt();
        let head = memory::cast(&m.other().f32_by((v, h), |x| x * size)?, m.dtype)?;
        Ok((m.random((r, h))?, head, m.ids(r, v)))
    };
    vec![
        case("token_logprob.forward", shape.clone(), group.token_logprob_forward(), move |m| {
            let (hidden, head, targets) = make(m)?;
            run(move || {
                let (hidden_rh, head_vh, targets) = (&hidden, &head, &targets[..]);
                token_logprob::forward(token_logprob::Inputs {
                    hidden_rh,
                    head_vh,
                    targets,
                    temperature: 1.0,
                    missing: &[],
                })
            })
        }),
        case("token_logprob.backward", shape, group.token_logprob_backward(), move |m| {
            let (hidden, head, targets) = make(m)?;
            let dhead = m.gradient((v, h))?;
            let dlogprobs = vec![0.01f32; r];
            run(move || {
                let (hidden_rh, head_vh, targets) = (&hidden, &head, &targets[..]);
                let inputs =
                    token_logprob::Inputs { hidden_rh, head_vh, targets, temperature: 1.0, missing: &[] };
                token_logprob::backward(inputs, &dlogprobs, &dhead)
            })
        }),
    ]
}

fn embeddings(group: &GroupShape) -> Vec<Case> {
    let (n, h, v) = (group.rows, group.config.hidden_size, group.config.vocab_size);
    let rows = move |m: &Maker| -> Indices { Indices::new(m.ids(n, v)) };
    let shape = format!("{n} of {v} x {h}");
    vec![
        case("embedding.gather", shape.clone(), group.embedding_gather(), move |m| {
            let (table, rows) = (m.random((v, h))?, rows(m));
            run(move || embedding::gather(&table, &rows))
        }),
        case("embedding.scatter_add", shape, group.embedding_scatter_add(), move |m| {
            let (table, rows, values) = (m.f32((v, h))?, rows(m), m.random((n, h))?);
            run(move || embedding::scatter_add(&table, &rows, &values))
        }),
    ]
}

/// Both moments of a weight.
type Moments = fn(&Maker, &Tensor) -> Result<[Moment; 2]>;

/// Passes over one weight of the largest layer and its gradient.
fn passes(group: &GroupShape) -> Vec<Case> {
    let (h, f) = (group.config.hidden_size, group.config.intermediate_size);
    let shape = format!("{f} x {h}");
    // Coded moments begin at zero, and hold an update's values after the run that is not timed.
    let moments: [(&str, Cost, Moments); 2] = [
        ("adamw.update", group.adamw(), |m, weight| {
            Ok([Moment::F32(m.f32(weight.shape())?), Moment::F32(m.f32_by(weight.shape(), |x| x * x)?)])
        }),
        ("adamw.update_int8", group.adamw_int8(), |_, weight| {
            Ok([Moment::zeros_int8(weight)?, Moment::zeros_int8(weight)?])
        }),
    ];
    let updates = moments.into_iter().map(|(name, cost, moments)| {
        case(name, shape.clone(), cost, move |m| {
            let (weight, gradient) = (m.random((f, h))?, m.other().gradient((f, h))?);
            let [first, second] = moments(m, &weight)?;
            let update = adamw::Update {
                learning_rate: 1e-6,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                step: 10,
                gradient_scale: 0.5,
            };
            run(move || {
                let (first, second) = (&first, &second);
                let precision = match weight.dtype() {
                    DType::BF16 => adamw::Precision::Stochastic(Stream::new(1, Purpose::Rounding, [0; 3])),
                    _ => adamw::Precision::Full,
                };
                let parameter =
                    adamw::Parameter { weight: &weight, precision, gradient: &gradient, first, second };
                adamw::update(&parameter, &update)
            })
        })
    });
    let mut cases: Vec<Case> = updates.collect();
    cases.extend([
        case("sum_squares", shape.clone(), group.sum_squares(), move |m| {
            let gradient = m.gradient((f, h))?;
            run(move || sum_squares(&[&gradient]))
        }),
        case("add_assign", shape.clone(), group.add_assign(), move |m| {
            let (sum, term) = (m.f32((f, h))?, m.f32((f, h))?);
            run(move || add_assign(&sum, &term))
        }),
        case("zero", shape, group.zero(), move |m| {
            let gradient = m.f32((f, h))?;
            run(move || zero(&gradient))
        }),
    ]);
    cases
}

/// One token for each completion of a rollout's pack: over the whole vocabulary, and with top-k and top-p.
fn sampling(group: &GroupShape) -> Vec<Case> {
    let (g, v, cost) = (group.decode_rows(), group.config.vocab_size, group.sampling());
    let settings = [("plain", 0, 1.0), ("top_k", 50, 1.0), ("top_p", 0, 0.95)];
    let one = |(name, top_k, top_p): (&str, usize, f32)| {
        let sampling = Sampling { temperature: 0.7, top_k, top_p, ..Sampling::default() };
        case(format!("sampling.{name}"), format!("{g} x {v}"), cost, move |m| {
            let logits = m.f32((g, v))?;
            let uniforms = vec![0.5; g];
            run(move || sample(&logits, &sampling, &uniforms))
        })
    };
    settings.map(one).into()
}
