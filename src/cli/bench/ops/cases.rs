//! Every op with the shapes one model gives it, and what it has to do.
//!
//! FLOP: a multiplication, addition, division or exponential is one, and what a backward pass must compute again
//! counts. Matrix products and attention count their products only. Bytes: every input read once, every result
//! written once, what is added to read and written; no more, so an op that reads twice shows a lower rate.

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor};
use rayon::prelude::*;

use crate::model::config::ModelConfig;
use crate::ops::adamw::Moment;
use crate::ops::attention::{self, AttentionLayout, Heads};
use crate::ops::elementwise::{add_assign, sum_squares, zero};
use crate::ops::indices::Indices;
use crate::ops::rope::{Direction, RopeTable};
use crate::ops::sampling::{Sampling, sample};
use crate::ops::{adamw, decode_attention, embedding, linear, memory, rms_norm, swiglu, token_logprob};
use crate::rng::{Purpose, Stream};
use crate::types::Segment;

/// One call of an op on one set of inputs.
pub type Run = Box<dyn Fn() -> Result<()>>;

type Make = Box<dyn Fn(&Maker) -> Result<Run>>;

/// An op in one shape.
pub struct Case {
    /// `op.pass` and, for linear layers, which one.
    pub name: String,
    pub shape: String,
    pub flop: f64,
    pub bytes: f64,
    pub make: Make,
}

/// Makes inputs: random values, cheap ones, since no time depends on them.
#[derive(Clone)]
pub struct Maker {
    pub device: Device,
    /// Of weights and activations; gradients of weights, moments and sums over a row are f32.
    pub dtype: DType,
    pool: std::sync::Arc<Vec<f32>>,
    set: usize,
}

impl Maker {
    pub fn new(device: Device, dtype: DType) -> Self {
        let stream = Stream::new(1, Purpose::Bench, [0; 3]);
        // A prime length, so that rows of no model line up with it.
        let pool = (0..65_537).map(|i| stream.uniform(i) * 2.0 - 1.0).collect();
        Self { device, dtype, pool: std::sync::Arc::new(pool), set: 0 }
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
        Ok(memory::cast(&self.f32(shape)?, self.dtype)?)
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

/// One GRPO group on one model.
#[derive(Clone)]
pub struct Work {
    pub config: ModelConfig,
    pub prompt: usize,
    pub completions: usize,
    pub new_tokens: usize,
    /// Rows of the ops that see every packed token.
    pub rows: usize,
    /// Bytes of a weight or activation.
    pub size: usize,
}

impl Work {
    /// Tokens of the packed group: a completion's last token predicts nothing and is no input.
    pub fn packed(&self) -> usize {
        self.prompt + self.completions * (self.new_tokens - 1)
    }

    fn targets(&self) -> usize {
        self.completions * self.new_tokens
    }

    fn heads(&self) -> Heads {
        let c = &self.config;
        Heads { query: c.num_attention_heads, key_value: c.num_key_value_heads, dim: c.head_dim }
    }

    /// Name, inputs and outputs of every linear layer.
    fn layers(&self) -> [(&'static str, usize, usize); 8] {
        let (h, f, heads) = (self.config.hidden_size, self.config.intermediate_size, self.heads());
        let (q, kv) = (heads.query_width(), heads.key_value_width());
        [
            ("q", h, q),
            ("k", h, kv),
            ("v", h, kv),
            ("o", q, h),
            ("gate", h, f),
            ("up", h, f),
            ("down", f, h),
            ("head", h, self.config.vocab_size),
        ]
    }

    fn segments(&self) -> Vec<Segment> {
        let (p, r) = (self.prompt, self.new_tokens - 1);
        let prompt = Segment { start: 0, len: p, prefix: None };
        let completion = |i| Segment { start: p + i * r, len: r, prefix: Some(0) };
        let completions = if r == 0 { 0 } else { self.completions };
        std::iter::once(prompt).chain((0..completions).map(completion)).collect()
    }
}

/// Counts and how to make the inputs of one op.
struct Count {
    flop: usize,
    bytes: usize,
}

fn case(
    name: impl Into<String>,
    shape: String,
    count: Count,
    make: impl Fn(&Maker) -> Result<Run> + 'static,
) -> Case {
    let Count { flop, bytes } = count;
    Case { name: name.into(), shape, flop: flop as f64, bytes: bytes as f64, make: Box::new(make) }
}

/// A run that throws the op's result away.
fn run<T>(f: impl Fn() -> crate::error::Result<T> + 'static) -> Result<Run> {
    Ok(Box::new(move || {
        drop(f()?);
        Ok(())
    }))
}

/// All ops, in the order a step meets them.
pub fn all(work: &Work) -> Result<Vec<Case>> {
    let mut cases = linears(work);
    cases.extend(few_rows(work));
    cases.extend(row_ops(work));
    cases.extend(attentions(work)?);
    cases.extend(logprobs(work));
    cases.extend(embeddings(work));
    cases.extend(passes(work));
    cases.extend(sampling(work));
    Ok(cases)
}

fn linears(work: &Work) -> Vec<Case> {
    let mut cases = Vec::new();
    let size = work.size;
    for (name, h, o) in work.layers() {
        // The head sees only rows that predict something.
        let n = if name == "head" { work.targets().min(work.rows) } else { work.rows };
        let shape = format!("{n} x {h} -> {o}");
        let count = |bytes| Count { flop: 2 * n * h * o, bytes };
        let all = n * h + o * h + n * o;
        cases.push(case(format!("linear.forward.{name}"), shape.clone(), count(size * all), move |m| {
            let (x, w) = (m.random((n, h))?, m.random((o, h))?);
            run(move || linear::forward(&x, &w))
        }));
        let pass = format!("linear.backward_input.{name}");
        cases.push(case(pass, shape.clone(), count(size * all), move |m| {
            let (dy, w) = (m.random((n, o))?, m.random((o, h))?);
            run(move || linear::backward_input(&[(&dy, &w)]))
        }));
        let bytes = size * (n * h + n * o) + 8 * o * h;
        cases.push(case(format!("linear.backward_weight.{name}"), shape, count(bytes), move |m| {
            let (dw, dy, x) = (m.f32((o, h))?, m.random((n, o))?, m.random((n, h))?);
            run(move || linear::backward_weight(&dw, &dy, &x))
        }));
    }
    cases
}

/// Products of a decode step: the weights are read for a few rows.
fn few_rows(work: &Work) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, h, o) in work.layers().into_iter().filter(|(name, ..)| !matches!(*name, "k" | "v" | "up")) {
        for n in [8, 16, 32] {
            let count = Count { flop: 2 * n * h * o, bytes: work.size * (n * h + o * h + n * o) };
            let shape = format!("{n} x {h} -> {o}");
            cases.push(case(format!("linear.few_rows.{name}"), shape, count, move |m| {
                let (x, w) = (m.random((n, h))?, m.random((o, h))?);
                run(move || linear::forward(&x, &w))
            }));
        }
    }
    cases
}

fn row_ops(work: &Work) -> Vec<Case> {
    let (n, size, config) = (work.rows, work.size, work.config.clone());
    let (h, f, heads) = (config.hidden_size, config.intermediate_size, work.heads());
    let eps = config.rms_norm_eps as f32;
    let (tokens, inner) = (format!("{n} x {h}"), format!("{n} x {f}"));
    let width = heads.query_width() + heads.key_value_width();
    let table_bytes = 4 * n * heads.dim;
    vec![
        case(
            "rms_norm.forward",
            tokens.clone(),
            Count { flop: 4 * n * h, bytes: size * 2 * n * h },
            move |m| {
                let (x, w) = (m.random((n, h))?, m.random(h)?);
                run(move || rms_norm::forward(&x, &w, eps))
            },
        ),
        case("rms_norm.backward", tokens, Count { flop: 14 * n * h, bytes: size * 4 * n * h }, move |m| {
            let (x, w) = (m.random((n, h))?, m.random(h)?);
            let (dy, dx, dw) = (m.random((n, h))?, m.random((n, h))?, m.f32(h)?);
            run(move || rms_norm::backward(rms_norm::Input { x_nh: &x, w_h: &w, eps }, &dy, &dx, &dw))
        }),
        case(
            "rope.rotate",
            format!("{n} x {width}, q and k"),
            Count { flop: 3 * n * width, bytes: size * 2 * n * width + table_bytes },
            move |m| {
                let positions: Indices = (0..n).collect();
                let table = RopeTable::new(&config.rope_inverse_frequencies(), n);
                let (q, k) = (m.random((n, heads.query_width()))?, m.random((n, heads.key_value_width()))?);
                run(move || {
                    table.rotate(&q, &positions, Direction::Forward)?;
                    table.rotate(&k, &positions, Direction::Forward)
                })
            },
        ),
        case("swiglu.forward", inner.clone(), Count { flop: 6 * n * f, bytes: size * 3 * n * f }, move |m| {
            let (gate, up) = (m.random((n, f))?, m.random((n, f))?);
            run(move || swiglu::forward(&gate, &up))
        }),
        case("swiglu.backward", inner, Count { flop: 12 * n * f, bytes: size * 6 * n * f }, move |m| {
            let (gate, up, dact) = (m.random((n, f))?, m.random((n, f))?, m.random((n, f))?);
            run(move || swiglu::backward(&gate, &up, &dact))
        }),
    ]
}

fn attentions(work: &Work) -> Result<Vec<Case>> {
    let (heads, size) = (work.heads(), work.size);
    let (p, g, own) = (work.prompt, work.completions, work.new_tokens);
    let layout = AttentionLayout::new(&work.segments())?;
    let (n, q_width, kv_width) = (layout.tokens(), heads.query_width(), heads.key_value_width());
    let product = 2 * q_width * layout.pairs();
    let shape = format!("{p} + {g} x {}, heads {}/{} x {}", own - 1, heads.query, heads.key_value, heads.dim);
    let inputs = n * (q_width + 2 * kv_width);
    let lse = 4 * n * heads.query;
    let forward = Count { flop: 2 * product, bytes: size * (inputs + n * q_width) + lse };
    let backward = Count { flop: 5 * product, bytes: size * (2 * inputs + 2 * n * q_width) + lse };
    let packed = move |m: &Maker| -> Result<[Tensor; 3]> {
        Ok([m.random((n, q_width))?, m.random((n, kv_width))?, m.other().random((n, kv_width))?])
    };
    let layout_b = layout.clone();
    let decode = Count {
        flop: 4 * q_width * g * (p + own),
        bytes: size * (2 * kv_width * (p + g * own) + 2 * g * q_width),
    };
    Ok(vec![
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
        case("decode_attention.forward", format!("{g} rows, {p} + {own} keys"), decode, move |m| {
            let q = m.random((g, q_width))?;
            let (prefix_k, prefix_v) = (m.random((p, kv_width))?, m.random((p, kv_width))?);
            let (own_k, own_v) = (m.random((g, own, kv_width))?, m.random((g, own, kv_width))?);
            let prefixes = vec![decode_attention::SharedPrefix { start: 0, len: p, rows: g }];
            let readers = decode_attention::Readers::new(prefixes, (0..g).collect());
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
    ])
}

fn logprobs(work: &Work) -> Vec<Case> {
    let (r, h, v) = (work.targets().min(work.rows), work.config.hidden_size, work.config.vocab_size);
    let shape = format!("{r} x {h} -> {v}");
    let product = 2 * r * h * v;
    let inputs = work.size * (r * h + v * h);
    let forward = Count { flop: product, bytes: inputs + 12 * r };
    let backward = Count { flop: 3 * product, bytes: inputs + work.size * r * h + 8 * v * h + 8 * r };
    let make = move |m: &Maker| -> Result<(Tensor, Tensor, Vec<u32>)> {
        // Logits of about 1, as models have: far larger ones would make subnormal probabilities, which are slow.
        let size = (3.0 / h as f32).sqrt();
        let head = memory::cast(&m.other().f32_by((v, h), |x| x * size)?, m.dtype)?;
        Ok((m.random((r, h))?, head, m.ids(r, v)))
    };
    vec![
        case("token_logprob.forward", shape.clone(), forward, move |m| {
            let (hidden, head, targets) = make(m)?;
            run(move || {
                let (hidden_rh, head_vh, targets) = (&hidden, &head, &targets[..]);
                token_logprob::forward(token_logprob::Inputs {
                    hidden_rh,
                    head_vh,
                    targets,
                    temperature: 1.0,
                })
            })
        }),
        case("token_logprob.backward", shape, backward, move |m| {
            let (hidden, head, targets) = make(m)?;
            let dhead = m.f32((v, h))?;
            let dlogprobs = vec![0.01f32; r];
            run(move || {
                let (hidden_rh, head_vh, targets) = (&hidden, &head, &targets[..]);
                let inputs = token_logprob::Inputs { hidden_rh, head_vh, targets, temperature: 1.0 };
                token_logprob::backward(inputs, &dlogprobs, &dhead)
            })
        }),
    ]
}

fn embeddings(work: &Work) -> Vec<Case> {
    let (n, h, v, size) = (work.rows, work.config.hidden_size, work.config.vocab_size, work.size);
    let rows = move |m: &Maker| -> Indices { Indices::new(m.ids(n, v)) };
    let shape = format!("{n} of {v} x {h}");
    let gather = Count { flop: 0, bytes: size * 2 * n * h };
    let scatter = Count { flop: n * h, bytes: (size + 8) * n * h };
    vec![
        case("embedding.gather", shape.clone(), gather, move |m| {
            let (table, rows) = (m.random((v, h))?, rows(m));
            run(move || embedding::gather(&table, &rows))
        }),
        case("embedding.scatter_add", shape, scatter, move |m| {
            let (table, rows, values) = (m.f32((v, h))?, rows(m), m.random((n, h))?);
            run(move || embedding::scatter_add(&table, &rows, &values))
        }),
    ]
}

/// Passes over one weight of the largest layer and its gradient.
fn passes(work: &Work) -> Vec<Case> {
    let (h, f) = (work.config.hidden_size, work.config.intermediate_size);
    let n = h * f;
    let shape = format!("{f} x {h}");
    vec![
        case(
            "adamw.update",
            shape.clone(),
            Count { flop: 16 * n, bytes: (2 * work.size + 20) * n },
            move |m| {
                let (weight, gradient) = (m.random((f, h))?, m.other().f32((f, h))?);
                let (first, second) =
                    (Moment::F32(m.f32((f, h))?), Moment::F32(m.f32_by((f, h), |x| x * x)?));
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
                        DType::BF16 => {
                            adamw::Precision::Stochastic(Stream::new(1, Purpose::Rounding, [0; 3]))
                        }
                        _ => adamw::Precision::Full,
                    };
                    let parameter =
                        adamw::Parameter { weight: &weight, precision, gradient: &gradient, first, second };
                    adamw::update(&parameter, &update)
                })
            },
        ),
        case("sum_squares", shape.clone(), Count { flop: 2 * n, bytes: 4 * n }, move |m| {
            let gradient = m.f32((f, h))?;
            run(move || sum_squares(&[&gradient]))
        }),
        case("add_assign", shape.clone(), Count { flop: n, bytes: 12 * n }, move |m| {
            let (sum, term) = (m.f32((f, h))?, m.f32((f, h))?);
            run(move || add_assign(&sum, &term))
        }),
        case("zero", shape, Count { flop: 0, bytes: 4 * n }, move |m| {
            let gradient = m.f32((f, h))?;
            run(move || zero(&gradient))
        }),
    ]
}

/// One token for each completion of the group: over the whole vocabulary, and with top-k and top-p.
fn sampling(work: &Work) -> Vec<Case> {
    let (g, v) = (work.completions, work.config.vocab_size);
    let settings = [("plain", 0, 1.0), ("top_k", 50, 1.0), ("top_p", 0, 0.95)];
    let one = |(name, top_k, top_p): (&str, usize, f32)| {
        let sampling = Sampling { temperature: 0.7, top_k, top_p, ..Sampling::default() };
        let count = Count { flop: 4 * g * v, bytes: 4 * g * v };
        case(format!("sampling.{name}"), format!("{g} x {v}"), count, move |m| {
            let logits = m.f32((g, v))?;
            let uniforms = vec![0.5; g];
            run(move || sample(&logits, &sampling, &uniforms))
        })
    };
    settings.map(one).into()
}
