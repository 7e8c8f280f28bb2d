//! Every op's CUDA side against its CPU side on the same random inputs; `support/cuda.rs` says where it runs.
//!
//! The CPU ops are f32 and held against f64 references elsewhere; bf16 inputs are given to them exactly.

use candle_core::{DType, Device, Tensor};
use rlvr::check::rounding;
use rlvr::ops::adamw::{Moment, Parameter, Precision, Update};
use rlvr::ops::attention::{self, AttentionLayout, Heads};
use rlvr::ops::cuda::upload;
use rlvr::ops::decode_attention::{self, Cache, Readers, SharedPrefix};
use rlvr::ops::indices::Indices;
use rlvr::ops::rope::{Direction, RopeTable};
use rlvr::ops::sampling::Sampling;
use rlvr::ops::token_logprob::cuda::RowGradients;
use rlvr::ops::{
    adamw, elementwise, embedding, linear, memory, rms_norm, rope, sampling, swiglu, token_logprob,
};
use rlvr::rng::{Purpose, Stream};
use rlvr::types::Segment;

use crate::support::cuda::{Bench, TYPES, values};

/// The same values in memory of their own: f32 on the CPU.
fn host(tensor: &Tensor) -> Tensor {
    let copy: Vec<f32> = values(tensor).iter().map(|v| *v as f32).collect();
    Tensor::from_vec(copy, tensor.shape(), &Device::Cpu).unwrap()
}

impl Bench {
    /// Random values on the device, and on the CPU in f32.
    fn pair(&self, rows: usize, cols: usize, dtype: DType) -> (Tensor, Tensor) {
        let there = self.matrix(rows, cols, dtype).0;
        (host(&there), there)
    }

    fn row(&self, cols: usize, dtype: DType) -> (Tensor, Tensor) {
        let (here, there) = self.pair(1, cols, dtype);
        (here.squeeze(0).unwrap(), there.squeeze(0).unwrap())
    }
}

/// A share of the largest value: f32 sums in another order, or a bf16 result rounded once.
#[track_caller]
fn agree(what: &str, got: &Tensor, want: &Tensor) {
    agree_to(what, got, want, 1e-5 + rounding(got.dtype(), 1.));
}

#[track_caller]
fn agree_to(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (values(got), values(want));
    let largest = want.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = (got - want).abs() / largest;
        assert!(error <= tolerance, "{what}[{i}]: {got}, want {want}");
    }
}

#[test]
fn sums_fills_and_casts() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        let (n, h) = (1 + bench.below(5), 1 + bench.below(700));
        let ((sum, there), (term, term_there)) = (bench.pair(n, h, dtype), bench.pair(n, h, dtype));
        let squares: f64 = values(&there).iter().chain(&values(&term_there)).map(|v| v * v).sum();
        let got = elementwise::sum_squares(&[&there, &term_there]).unwrap();
        assert!((got / squares - 1.).abs() < 1e-5, "{got}, want {squares}");
        elementwise::add_assign(&sum, &term).unwrap();
        elementwise::add_assign(&there, &term_there).unwrap();
        agree("add_assign", &there, &sum);
        if dtype == DType::F32 {
            elementwise::scale(&sum, 1.7).unwrap();
            elementwise::scale(&there, 1.7).unwrap();
            agree("scale", &there, &sum);
        }
        memory::cuda::fill(&there, -1.5).unwrap();
        assert!(values(&there).iter().all(|v| *v == -1.5));
        for to in TYPES {
            let cast = memory::cast(&term_there, to).unwrap();
            assert_eq!(values(&cast), values(&term.to_dtype(to).unwrap()));
        }
        let shape = (n, h).into();
        let stream = Stream::new(bench.seed, Purpose::Bench, [1, 2, 3]);
        let normal = memory::Normal { shape, dtype, deviation: 0.5, stream };
        let drawn = memory::normal(&bench.device, &normal).unwrap();
        let want: Vec<f32> = (0..(n * h) as u32).map(|i| 0.5 * stream.normal(i)).collect();
        agree("normal", &drawn, &Tensor::from_vec(want, (n, h), &Device::Cpu).unwrap());
    }
}

#[test]
fn rms_norms() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        for h in [8, 64, 100, 1032] {
            let n = 1 + bench.below(70);
            let ((x, x_there), (w, w_there)) = (bench.pair(n, h, dtype), bench.row(h, dtype));
            let want = rms_norm::forward(&x, &w, 1e-5).unwrap();
            agree("forward", &rms_norm::forward(&x_there, &w_there, 1e-5).unwrap(), &want);

            let (residual, residual_there) = bench.pair(n, h, dtype);
            let sum = (&x + &residual).unwrap();
            let got = rms_norm::cuda::forward_add(&x_there, Some(&residual_there), &w_there, 1e-5).unwrap();
            agree("sum", &got.sum_nh, &sum);
            agree("forward_add", &got.y_nh, &rms_norm::forward(&sum, &w, 1e-5).unwrap());

            let ((dy, dy_there), (dx, dx_there)) = (bench.pair(n, h, dtype), bench.pair(n, h, dtype));
            let (dw, dw_there) = bench.row(h, DType::F32);
            let norm = |x, w| rms_norm::Input { x_nh: x, w_h: w, eps: 1e-5 };
            rms_norm::backward(norm(&x, &w), &dy, &dx, &dw).unwrap();
            rms_norm::backward(norm(&x_there, &w_there), &dy_there, &dx_there, &dw_there).unwrap();
            agree("backward, dx", &dx_there, &dx);
            agree("backward, dw", &dw_there, &dw);
        }
    }
}

#[test]
fn rotations() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        for half in [4, 32, 64] {
            let (n, heads, positions) = (1 + bench.below(20), 1 + bench.below(4), 50);
            let frequencies: Vec<f64> = (0..half).map(|j| 1e4f64.powf(-(j as f64) / half as f64)).collect();
            let table = RopeTable::new(&frequencies, positions);
            let angles: Vec<f64> =
                (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f)).collect();
            let of = |f: fn(f64) -> f64| -> Vec<f32> { angles.iter().map(|a| f(*a) as f32).collect() };
            let there =
                rope::cuda::DeviceTable::new(&of(f64::cos), &of(f64::sin), half, &bench.device).unwrap();
            let at: Vec<u32> = (0..n).map(|_| bench.below(positions) as u32).collect();
            let at_there = upload(&at, &bench.device).unwrap();
            for direction in [Direction::Forward, Direction::Inverse] {
                let (x, x_there) = bench.pair(n, heads * 2 * half, dtype);
                table.rotate(&x, &Indices::new(at.as_slice()), direction).unwrap();
                there.rotate(&x_there, &at_there, direction).unwrap();
                agree("rotate", &x_there, &x);
            }
        }
    }
}

#[test]
fn heads_side_by_side_and_apart() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        for half in [3, 32, 64] {
            let (n, positions) = (1 + bench.below(20), 50);
            let [query, key] = [2 + bench.below(3), 1 + bench.below(2)].map(|heads| heads * 2 * half);
            let frequencies: Vec<f64> = (0..half).map(|j| 1e4f64.powf(-(j as f64) / half as f64)).collect();
            let table = RopeTable::new(&frequencies, positions);
            let at: Indices = (0..n).map(|_| bench.below(positions)).collect();
            let (x, x_there) = bench.pair(n, query + 2 * key, dtype);
            for rotation in [Some(&at), None] {
                let here = table.split(&x, [query, key], rotation).unwrap();
                let there = table.split(&x_there, [query, key], rotation).unwrap();
                here.iter().zip(&there).for_each(|(here, there)| agree("split", there, here));
                // What was rounded to bf16 on the way is what both sides start from.
                let [q, k, v] = there.each_ref().map(host);
                let joined = table.join([&there[0], &there[1], &there[2]], rotation).unwrap();
                agree("join", &joined, &table.join([&q, &k, &v], rotation).unwrap());
            }
            let rows = n + 3;
            let (k, v) = (bench.poison(rows, key, dtype), bench.poison(rows, key, dtype));
            let slots: Indices = (0..n).map(|row| (row + 2) % rows).collect();
            let q = table.split_into(&x_there, [query, key], &at, [&k, &v], &slots).unwrap();
            let [want_q, want_k, want_v] = table.split(&x, [query, key], Some(&at)).unwrap();
            agree("split_into, q", &q, &want_q);
            for (what, cache, want) in [("k", k, want_k), ("v", v, want_v)] {
                agree(&format!("split_into, {what}"), &embedding::gather(&cache, &slots).unwrap(), &want);
                let untouched = values(&cache).iter().filter(|v| v.is_nan()).count();
                assert_eq!(untouched, 3 * key, "other rows of the cache stay");
            }
            let outside: Indices = (0..n).map(|_| rows).collect();
            assert!(table.split_into(&x_there, [query, key], &at, [&q, &q], &outside).is_err());
        }
    }
}

#[test]
fn gated_activations() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        for f in [8 * (1 + bench.below(90)), 1 + bench.below(30)] {
            let n = 1 + bench.below(9);
            let ((both, both_there), (d, d_there)) = (bench.pair(n, 2 * f, dtype), bench.pair(n, f, dtype));
            agree("forward", &swiglu::forward(&both_there).unwrap(), &swiglu::forward(&both).unwrap());
            let want = swiglu::backward(&both, &d).unwrap();
            let got = swiglu::backward(&both_there, &d_there).unwrap();
            agree("act", &got.act_nf, &want.act_nf);
            agree("dgate, dup", &got.dgate_up_n2f, &want.dgate_up_n2f);
        }
    }
}

#[test]
fn embeddings() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        let (v, h, n) = (3 + bench.below(9), 8 * (1 + bench.below(20)), 1 + bench.below(40));
        let rows: Indices = (0..n).map(|_| bench.below(v)).collect();
        let (table, there) = bench.pair(v, h, dtype);
        let got = embedding::gather(&there, &rows).unwrap();
        assert_eq!(values(&got), values(&embedding::gather(&table, &rows).unwrap()));
        let (d, d_there) = bench.pair(n, h, dtype);
        embedding::scatter_add(&table, &rows, &d).unwrap();
        embedding::scatter_add(&there, &rows, &d_there).unwrap();
        agree("scatter_add", &there, &table);
        embedding::scatter(&table, &rows, &d).unwrap();
        embedding::scatter(&there, &rows, &d_there).unwrap();
        agree("scatter", &there, &table);
        let (table, there) = bench.pair(v, h, DType::F32);
        embedding::scatter_add(&table, &rows, &d).unwrap();
        embedding::scatter_add(&there, &rows, &d_there).unwrap();
        agree("scatter_add into f32", &there, &table);
        let runs = embedding::Runs::new(vec![
            embedding::RowRun { part: 1, start: n - 1, len: 1 },
            embedding::RowRun { part: 0, start: 1, len: v - 1 },
            embedding::RowRun { part: 1, start: 0, len: n },
        ]);
        let (table, there) = bench.pair(v, h, dtype);
        let got = embedding::gather_runs([&there, &d_there], &runs).unwrap();
        assert_eq!(values(&got), values(&embedding::gather_runs([&table, &d], &runs).unwrap()));
        assert!(
            embedding::gather_runs([&d_there, &there.narrow(0, 0, 1).unwrap()], &runs).is_err() || n == 1
        );
        let outside = embedding::gather(&there, &Indices::new([v as u32])).unwrap_err().to_string();
        assert!(outside.contains("tokenizer"), "{outside}");
    }
}

/// The LM head's ops as one: logits of all rows, then each row's log-prob, entropy and gradient.
#[test]
fn token_logprobs() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        let (r, h, v) = (1 + bench.below(6), 32, 50 + bench.below(3000));
        let ((hidden, hidden_there), (head, head_there)) = (bench.pair(r, h, dtype), bench.pair(v, h, dtype));
        let targets: Vec<u32> = (0..r).map(|_| bench.below(v) as u32).collect();
        let inputs = token_logprob::Inputs {
            hidden_rh: &hidden,
            head_vh: &head,
            targets: &targets,
            temperature: 0.7,
            missing: &[],
        };
        let want = token_logprob::forward(inputs).unwrap();
        let list = |v: Vec<f32>| Tensor::from_vec(v, r, &Device::Cpu).unwrap();

        let targets_r = upload(&targets, &bench.device).unwrap();
        let logits = linear::logits(&hidden_there, &head_there).unwrap();
        let got = token_logprob::cuda::forward_rows(&logits, &targets_r, 0.7).unwrap();
        agree("log-probs", &got.logprobs, &list(want.logprobs));
        agree("entropies", &got.entropies, &list(want.entropies));

        let (d, d_there) = bench.row(r, DType::F32);
        let (dhead, dhead_there) = bench.pair(v, h, DType::F32);
        let dhidden = token_logprob::backward(inputs, &d.to_vec1().unwrap(), &dhead).unwrap();
        let gradients =
            RowGradients { targets_r: &targets_r, log_sums_r: &got.log_sums, dlogprobs_r: &d_there };
        token_logprob::cuda::backward_rows(&logits, gradients, 0.7).unwrap();
        let dlogits = memory::cast(&logits, dtype).unwrap();
        let got = linear::backward_input(&dlogits, &head_there).unwrap();
        agree("dhidden", &got, &dhidden);
        linear::backward_weight(&dhead_there, &dlogits, &hidden_there).unwrap();
        let tolerance = 1e-5 + rounding(dtype, 1.);
        agree_to("dhead", &dhead_there, &dhead, tolerance);

        // The same as one call, into the gradient that is there: dhead grows by as much again.
        let there = token_logprob::Inputs { hidden_rh: &hidden_there, head_vh: &head_there, ..inputs };
        let want = token_logprob::forward(inputs).unwrap();
        let got = token_logprob::forward(there).unwrap();
        agree("log-probs at once", &list(got.logprobs), &list(want.logprobs));
        agree("entropies at once", &list(got.entropies), &list(want.entropies));
        let d = d.to_vec1().unwrap();
        token_logprob::backward(inputs, &d, &dhead).unwrap();
        let got = token_logprob::backward(there, &d, &dhead_there).unwrap();
        agree("dhidden at once", &got, &dhidden);
        agree_to("dhead at once", &dhead_there, &dhead, tolerance);
    }
}

#[test]
fn samples() {
    let Some(bench) = Bench::new() else { return };
    let plain = Sampling::default();
    for dtype in TYPES {
        for config in [
            plain,
            Sampling { temperature: 0., ..plain },
            Sampling { temperature: 0.6, top_k: 5, ..plain },
            Sampling { top_p: 0.8, ..plain },
            Sampling { temperature: 1.3, top_k: 50, top_p: 0.9, min_p: 0.05, ..Sampling::default() },
        ] {
            let (r, v) = (1 + bench.below(4), 100 + bench.below(900));
            let (logits, there) = bench.pair(r, v, dtype);
            // Away from 0 and 1, where a sum's last bits decide.
            let uniforms: Vec<f32> = (0..3 * r).map(|_| 0.01 + bench.below(980) as f32 / 1e3).collect();
            let want = sampling::sample(&logits, &config, &uniforms).unwrap();
            let got = sampling::sample(&there, &config, &uniforms).unwrap();
            let same = got.iter().zip(&want).filter(|(a, b)| a.token == b.token).count();
            // A uniform may fall on the border of two tokens.
            assert!(same + 1 >= want.len(), "{config:?}: {got:?}, want {want:?}");
            for (got, want) in got.iter().zip(&want).filter(|(a, b)| a.token == b.token) {
                assert!((got.logprob - want.logprob).abs() < 1e-4, "{got:?}, {want:?}");
            }
        }
    }
}

#[test]
fn optimiser_steps() {
    let Some(bench) = Bench::new() else { return };
    let count = 300 + bench.below(600);
    let make = |dtype| bench.row(count, dtype);
    let stream = Stream::new(bench.seed, Purpose::Bench, [4, 5, 6]);
    for (bits, moments) in [(DType::F32, 32), (DType::F32, 8), (DType::BF16, 32), (DType::BF16, 8)] {
        for stochastic in [false, true] {
            if stochastic && bits == DType::F32 {
                continue;
            }
            let (master, master_there) = make(DType::F32);
            let (weight, there) =
                (master.to_dtype(bits).unwrap(), memory::cast(&master_there, bits).unwrap());
            let moment = |of: &Tensor| match moments {
                32 => Moment::zeros(of).unwrap(),
                _ => Moment::zeros_int8(of).unwrap(),
            };
            let here_moments = (moment(&weight), moment(&weight));
            let there_moments = (moment(&there), moment(&there));
            for step in 1..4 {
                let (gradient, gradient_there) = make(bits);
                let gradient = gradient.to_dtype(bits).unwrap();
                let update = Update {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.99,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step,
                    gradient_scale: 0.5,
                };
                let run = |weight, master, gradient, moments: &(Moment, Moment)| {
                    let precision = match (bits, stochastic) {
                        (DType::F32, _) => Precision::Full,
                        (_, true) => Precision::Stochastic(stream),
                        _ => Precision::Master(master),
                    };
                    let (first, second) = (&moments.0, &moments.1);
                    adamw::update(&Parameter { weight, precision, gradient, first, second }, &update)
                        .unwrap();
                };
                run(&weight, &master, &gradient, &here_moments);
                run(&there, &master_there, &gradient_there, &there_moments);
                agree("weight", &there, &weight);
                agree("master", &master_there, &master);
            }
        }
    }
}

const GROUPS: [Segment; 5] = [
    Segment { start: 0, len: 70, prefix: None },
    Segment { start: 70, len: 9, prefix: Some(0) },
    Segment { start: 79, len: 3, prefix: Some(0) },
    Segment { start: 82, len: 17, prefix: None },
    Segment { start: 99, len: 20, prefix: Some(3) },
];

#[test]
fn packed_attention() {
    let Some(bench) = Bench::new() else { return };
    let layout = AttentionLayout::new(&GROUPS).unwrap();
    let tokens = layout.tokens();
    for dtype in TYPES {
        for dim in [16, 64, 128] {
            let heads = Heads { query: 4, key_value: 2, dim };
            let there_layout =
                attention::cuda::DeviceLayout::new(&layout, heads, dtype, &bench.device).unwrap();
            let (q, q_there) = bench.pair(tokens, heads.query_width(), dtype);
            let (k, k_there) = bench.pair(tokens, heads.key_value_width(), dtype);
            let (v, v_there) = bench.pair(tokens, heads.key_value_width(), dtype);
            let inputs = attention::Inputs { layout: &layout, heads, q: &q, k: &k, v: &v };
            let inputs_there = attention::Inputs { q: &q_there, k: &k_there, v: &v_there, ..inputs };
            let (out, lse) = attention::forward(inputs).unwrap();
            let (out_there, lse_there) = attention::cuda::forward(&there_layout, inputs_there).unwrap();
            agree("out", &out_there, &out);
            agree("lse", &lse_there, &lse);

            let (dout, dout_there) = bench.pair(tokens, heads.query_width(), dtype);
            let upstream = attention::Upstream { out: &out, lse: &lse, dout: &dout };
            let want = attention::backward(inputs, upstream).unwrap();
            let upstream = attention::Upstream { out: &out_there, lse: &lse_there, dout: &dout_there };
            let got = attention::cuda::backward(&there_layout, inputs_there, upstream).unwrap();
            let tolerance = if dtype == DType::BF16 { 0.02 } else { 1e-5 };
            agree_to(&format!("dq, {dtype:?} {dim}"), &got.dq, &want.dq, tolerance);
            agree_to("dk", &got.dk, &want.dk, tolerance);
            agree_to("dv", &got.dv, &want.dv, tolerance);
        }
    }
}

#[test]
fn decode_attention_of_groups() {
    let Some(bench) = Bench::new() else { return };
    let prefixes =
        [SharedPrefix { start: 0, len: 90, rows: 3 }, SharedPrefix { start: 90, len: 33, rows: 2 }];
    let sequences = [0, 4, 2, 5, 1];
    let (all, capacity, own_len) = (6, 10, 7);
    for dtype in TYPES {
        for dim in [16, 64, 128] {
            let heads = Heads { query: 4, key_value: 2, dim };
            let width = heads.key_value_width();
            let device = &bench.device;
            let layout =
                decode_attention::cuda::DecodeLayout::new(heads, dtype, &prefixes, &sequences, device);
            let layout = layout.unwrap();
            let (q, q_there) = bench.pair(sequences.len(), heads.query_width(), dtype);
            let [pk, pv] = [0; 2].map(|_| bench.pair(123, width, dtype));
            let own = |(here, there): (Tensor, Tensor)| {
                let shape = (all, capacity, width);
                (here.reshape(shape).unwrap(), there.reshape(shape).unwrap())
            };
            let [ok, ov] = [0; 2].map(|_| own(bench.pair(all * capacity, width, dtype)));
            let here = Cache { prefix_k: &pk.0, prefix_v: &pv.0, own_k: &ok.0, own_v: &ov.0 };
            let there = Cache { prefix_k: &pk.1, prefix_v: &pv.1, own_k: &ok.1, own_v: &ov.1 };
            let readers = Readers::new(prefixes.to_vec(), sequences.to_vec());
            let (want, want_lse) = decode_attention::forward(heads, &q, here, &readers, own_len).unwrap();
            let (got, lse) = decode_attention::cuda::forward(&layout, &q_there, there, own_len).unwrap();
            agree(&format!("decode attention, {dtype:?} {dim}"), &got, &want);
            agree("lse", &lse, &want_lse);
        }
    }
}
