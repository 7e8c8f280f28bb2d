//! Each op's forward and backward against plain candle operations and candle's autograd, and the gradients
//! against finite differences of the same composition in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use rlvr::ops::attention::{self, AttentionLayout, Heads, Inputs, Upstream};
use rlvr::ops::decode_attention::{self, Cache, Readers, SharedPrefix};
use rlvr::ops::indices::Indices;
use rlvr::ops::rope::{Direction, RopeTable};
use rlvr::ops::sampling::Sampling;
use rlvr::ops::{linear, rms_norm, swiglu, token_logprob};
use rlvr::rng::{Purpose, Stream};
use rlvr::types::Segment;

use crate::support::tensors::{floats, relative_error};

/// Normal values, f64, the same for a given `id`.
fn random(id: u32, shape: &[usize]) -> Tensor {
    let stream = Stream::new(5, Purpose::Bench, [id, 0, 0]);
    let values: Vec<f64> =
        (0..shape.iter().product::<usize>() as u32).map(|i| f64::from(stream.normal(i))).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn single(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F32).unwrap()
}

fn close(name: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    let error = relative_error(&floats(got), &floats(want));
    println!("{name}: relative error {error:.1e} (tolerance {tolerance:.0e})");
    assert!(error < tolerance, "{name}: {error:e}");
}

/// Gradients of `sum(f(inputs) * weight)` by candle in f64, spot-checked by central differences of `f` itself.
fn oracle(f: &dyn Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], weight: &Tensor) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let scalar = |xs: &[Tensor]| (f(xs).unwrap() * weight).unwrap().sum_all().unwrap();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let store = scalar(&tensors).backward().unwrap();
    let gradients: Vec<Tensor> = vars.iter().map(|v| store.get(v).unwrap().clone()).collect();
    for (i, (input, gradient)) in inputs.iter().zip(&gradients).enumerate() {
        let values: Vec<f64> = input.flatten_all().unwrap().to_vec1().unwrap();
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        for at in [0, values.len() / 2, values.len() - 1] {
            let shifted = |by: f64| {
                let mut moved = values.clone();
                moved[at] += by;
                let mut xs = inputs.to_vec();
                xs[i] = Tensor::from_vec(moved, input.shape(), &Device::Cpu).unwrap();
                scalar(&xs).to_scalar::<f64>().unwrap()
            };
            let difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            let scale = difference.abs().max(1e-3);
            assert!((difference - gradient[at]).abs() / scale < 1e-5, "input {i}[{at}]");
        }
    }
    gradients
}

#[test]
fn linear_forward_and_gradients() {
    let (x, w, dy) = (random(1, &[7, 33]), random(2, &[19, 33]), random(3, &[7, 19]));
    let f = |xs: &[Tensor]| xs[0].matmul(&xs[1].t()?);
    let want = oracle(&f, &[x.clone(), w.clone()], &dy);
    let (x32, w32, dy32) = (single(&x), single(&w), single(&dy));
    close("y", &linear::forward(&x32, &w32).unwrap(), &f(&[x.clone(), w.clone()]).unwrap(), 1e-6);
    let residual = random(4, &[7, 19]);
    let sum = (f(&[x, w]).unwrap() + &residual).unwrap();
    close("y + residual", &linear::forward_add(&single(&residual), &x32, &w32, None).unwrap(), &sum, 1e-6);
    close("dx", &linear::backward_input(&dy32, &w32).unwrap(), &want[0], 1e-6);
    let dw = random(5, &[19, 33]);
    let got = single(&dw).copy().unwrap();
    linear::backward_weight(&got, &dy32, &x32).unwrap();
    close("dw accumulates", &got, &(dw + &want[1]).unwrap(), 1e-6);
}

#[test]
fn rms_norm_forward_and_gradients() {
    for (n, h) in [(1, 8), (130, 40)] {
        let (x, w, dy) = (random(1, &[n, h]), random(2, &[h]), random(3, &[n, h]));
        let f = |xs: &[Tensor]| {
            let mean = (xs[0].sqr()?.mean_keepdim(1)? + 1e-5)?;
            xs[0].broadcast_div(&mean.sqrt()?)?.broadcast_mul(&xs[1])
        };
        let want = oracle(&f, &[x.clone(), w.clone()], &dy);
        let (x32, w32) = (single(&x), single(&w));
        close("y", &rms_norm::forward(&x32, &w32, 1e-5).unwrap(), &f(&[x, w]).unwrap(), 1e-6);
        let (residual, dw0) = (random(4, &[n, h]), random(5, &[h]));
        let (dx, dw) = (single(&residual).copy().unwrap(), single(&dw0).copy().unwrap());
        let input = rms_norm::Input { x_nh: &x32, w_h: &w32, eps: 1e-5 };
        rms_norm::backward(input, &single(&dy), &dx, &dw).unwrap();
        close("dx on top of the residual's", &dx, &(residual + &want[0]).unwrap(), 1e-5);
        close("dw on top of what was there", &dw, &(dw0 + &want[1]).unwrap(), 1e-5);
    }
}

#[test]
fn swiglu_forward_and_gradients() {
    let (g, u, dy) = (random(1, &[5, 40]), random(2, &[5, 40]), random(3, &[5, 40]));
    let f = |xs: &[Tensor]| {
        let sigmoid = (xs[0].neg()?.exp()? + 1.0)?.recip()?;
        (&xs[0] * sigmoid)? * &xs[1]
    };
    let want = oracle(&f, &[g.clone(), u.clone()], &dy);
    let both = single(&Tensor::cat(&[&g, &u], 1).unwrap());
    let act = f(&[g, u]).unwrap();
    close("act", &swiglu::forward(&both).unwrap(), &act, 1e-6);
    let got = swiglu::backward(&both, &single(&dy)).unwrap();
    close("act again", &got.act_nf, &act, 1e-6);
    close("dgate, dup", &got.dgate_up_n2f, &Tensor::cat(&want, 1).unwrap(), 1e-6);
    assert!(swiglu::backward(&both, &both).is_err(), "of another width");
}

/// What one product gave, apart and rotated, is what its columns are by themselves; and the way back is the transpose.
#[test]
fn heads_side_by_side_are_those_apart() {
    let table = RopeTable::new(&[1.0, 0.5], 9);
    let positions = Indices::new([3, 0, 8]);
    let x = single(&random(4, &[3, 16]));
    let part = |start, width| x.narrow(1, start, width).unwrap().contiguous().unwrap();
    for rotation in [Some(&positions), None] {
        let want = [part(0, 8), part(8, 4), part(12, 4)];
        if rotation.is_some() {
            want[..2].iter().for_each(|x| table.rotate(x, &positions, Direction::Forward).unwrap());
        }
        let [q, k, v] = table.split(&x, [8, 4], rotation).unwrap();
        for (got, want) in [&q, &k, &v].into_iter().zip(&want) {
            assert_eq!(got.to_vec2::<f32>().unwrap(), want.to_vec2::<f32>().unwrap());
        }
        close("there and back", &table.join([&q, &k, &v], rotation).unwrap(), &x, 1e-6);
    }
    let [k, v] = [0; 2].map(|_| Tensor::zeros((5, 4), DType::F32, &Device::Cpu).unwrap());
    let q = table.split_into(&x, [8, 4], &positions, [&k, &v], &Indices::new([4, 0, 2])).unwrap();
    let [want_q, want_k, want_v] = table.split(&x, [8, 4], Some(&positions)).unwrap();
    assert_eq!(q.to_vec2::<f32>().unwrap(), want_q.to_vec2::<f32>().unwrap());
    for (cache, want) in [(k, want_k), (v, want_v)] {
        let want = want.to_vec2::<f32>().unwrap();
        let cache = cache.to_vec2::<f32>().unwrap();
        assert_eq!([&cache[4], &cache[0], &cache[2]], [&want[0], &want[1], &want[2]]);
        assert!(cache[1].iter().chain(&cache[3]).all(|x| *x == 0.0), "other rows stay");
    }
    assert!(table.split(&x, [8, 8], None).is_err() && table.split(&x, [6, 5], None).is_err());
    assert!(table.split(&x, [8, 4], Some(&Indices::new([1, 2]))).is_err(), "a position for each row");
}

/// Ops read columns of a wider matrix and write them, in f32 and bf16; the others stay.
#[test]
fn columns_are_matrices_too() {
    let (x, w) = (single(&random(5, &[3, 6])), single(&random(6, &[4, 6])));
    for dtype in [DType::F32, DType::BF16] {
        let wide = random(7, &[3, 9]).to_dtype(dtype).unwrap();
        let before = wide.to_dtype(DType::F64).unwrap();
        linear::add_forward(&wide.narrow(1, 2, 4).unwrap(), &x, &w).unwrap();
        let sum =
            before.narrow(1, 2, 4).unwrap() + linear::forward(&x, &w).unwrap().to_dtype(DType::F64).unwrap();
        let want = Tensor::cat(
            &[&before.narrow(1, 0, 2).unwrap(), &sum.unwrap(), &before.narrow(1, 6, 3).unwrap()],
            1,
        );
        let bound = if dtype == DType::F32 { 1e-6 } else { 2e-2 };
        close("columns", &wide, &want.unwrap(), bound);
        let columns = wide.narrow(1, 1, 6).unwrap();
        let alone = linear::forward(&columns.contiguous().unwrap(), &w.to_dtype(dtype).unwrap()).unwrap();
        let read = linear::forward(&columns, &w.to_dtype(dtype).unwrap()).unwrap();
        let f32s = |x: &Tensor| x.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(f32s(&read), f32s(&alone));
    }
    assert!(linear::forward(&x.t().unwrap(), &w).is_err(), "rows whose elements are apart");
}

#[test]
fn rope_rotates_pairs_and_its_inverse_undoes_it() {
    // Two frequencies, 1 and 0.5, at position 3: pair (x0, x2) turns by 3, pair (x1, x3) by 1.5 radians.
    let table = RopeTable::new(&[1.0, 0.5], 4);
    let x = Tensor::from_vec(vec![1f32, 2., 3., 4.], (1, 4), &Device::Cpu).unwrap();
    table.rotate(&x, &Indices::new([3]), Direction::Forward).unwrap();
    let want = [
        3f32.cos() - 3.0 * 3f32.sin(),
        2.0 * 1.5f32.cos() - 4.0 * 1.5f32.sin(),
        3.0 * 3f32.cos() + 3f32.sin(),
        4.0 * 1.5f32.cos() + 2.0 * 1.5f32.sin(),
    ];
    assert!(relative_error(&floats(&x), &want) < 1e-6);
    table.rotate(&x, &Indices::new([3]), Direction::Inverse).unwrap();
    assert!(relative_error(&floats(&x), &[1., 2., 3., 4.]) < 1e-6);
    let error = table.rotate(&x, &Indices::new([4]), Direction::Forward).unwrap_err().to_string();
    assert!(error.contains("position 4"), "{error}");
}

#[test]
fn token_logprob_entropy_and_gradients() {
    let (r, h, v) = (6, 12, 50);
    let (hidden, head) = (random(1, &[r, h]), random(2, &[v, h]));
    let targets: Vec<u32> = vec![0, 49, 7, 7, 30, 1];
    let temperature = 0.7;
    let index = Tensor::new(&targets[..], &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let log_softmax = |xs: &[Tensor]| {
        let logits = (xs[0].matmul(&xs[1].t()?)? / f64::from(temperature))?;
        logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)
    };
    let f = |xs: &[Tensor]| log_softmax(xs)?.gather(&index, 1)?.squeeze(1);
    let dlogp = random(3, &[r]);
    let inputs64 = [hidden.clone(), head.clone()];
    let want = oracle(&f, &inputs64, &dlogp);
    let (hidden32, head32) = (single(&hidden), single(&head));
    let inputs = token_logprob::Inputs {
        hidden_rh: &hidden32,
        head_vh: &head32,
        targets: &targets,
        temperature,
        missing: &[],
    };
    let got = token_logprob::forward(inputs).unwrap();
    assert!(relative_error(&got.logprobs, &floats(&f(&inputs64).unwrap())) < 1e-5);
    let log_p = log_softmax(&inputs64).unwrap();
    let entropy = (log_p.exp().unwrap() * log_p).unwrap().sum(1).unwrap().neg().unwrap();
    assert!(relative_error(&got.entropies, &floats(&entropy)) < 1e-5);
    let dhead = Tensor::zeros((v, h), DType::F32, &Device::Cpu).unwrap();
    let dhidden = token_logprob::backward(inputs, &floats(&dlogp), &dhead).unwrap();
    close("dhidden", &dhidden, &want[0], 1e-5);
    close("dhead", &dhead, &want[1], 1e-5);

    // A loss that depends on the entropies too, in rows 1 and on.
    let both = |xs: &[Tensor]| {
        let log_p = log_softmax(xs)?;
        let entropy = (log_p.exp()? * &log_p)?.sum(1)?.neg()?;
        Tensor::cat(&[f(xs)?, entropy], 0)
    };
    let mut dentropies = floats(&random(4, &[r]));
    dentropies[0] = 0.0;
    let slopes = [floats(&dlogp), dentropies.clone()].concat();
    let slopes: Vec<f64> = slopes.into_iter().map(f64::from).collect();
    let want = oracle(&both, &inputs64, &Tensor::new(slopes, &Device::Cpu).unwrap());
    let dhead = Tensor::zeros((v, h), DType::F32, &Device::Cpu).unwrap();
    let slopes = token_logprob::Slopes {
        dlogprobs: &floats(&dlogp),
        dentropies: &dentropies,
        cut: None,
        log_sums: &[],
    };
    let dhidden = token_logprob::backward(inputs, slopes, &dhead).unwrap();
    close("dhidden with entropies", &dhidden, &want[0], 1e-5);
    close("dhead with entropies", &dhead, &want[1], 1e-5);
    let short = token_logprob::Slopes {
        dlogprobs: &floats(&dlogp),
        dentropies: &dentropies[1..],
        cut: None,
        log_sums: &[],
    };
    assert!(token_logprob::backward(inputs, short, &dhead).is_err());
}

#[test]
fn cut_logprobs_are_the_samplers_and_differentiate_the_kept_tokens_only() {
    let (r, h, v) = (40, 12, 50);
    let (hidden, head) = (random(5, &[r, h]), random(6, &[v, h]));
    let config = Sampling { temperature: 0.7, top_k: 9, top_p: 0.8, min_p: 0.02, replay_truncation: true };
    let (hidden32, head32) = (single(&hidden), single(&head));
    let logits = hidden32.matmul(&head32.t().unwrap()).unwrap();
    let uniforms = floats(&random(7, &[r])).iter().map(|x| x.abs().fract()).collect::<Vec<_>>();
    let sampled = rlvr::ops::sampling::sample(&logits, &config, &uniforms).unwrap();
    let targets: Vec<u32> = sampled.iter().map(|s| s.token).collect();
    let inputs = token_logprob::Inputs {
        hidden_rh: &hidden32,
        head_vh: &head32,
        targets: &targets,
        temperature: 0.7,
        missing: &[],
    };
    let got = token_logprob::forward_within(inputs, Some(&config)).unwrap();
    let mut kept = Vec::new();
    for (row, logits) in floats(&logits).chunks(v).enumerate() {
        assert!((got.logprobs[row] - sampled[row].logprob).abs() < 1e-5);
        // The definition, on a sorted vocabulary.
        let mut order: Vec<usize> = (0..v).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let largest = logits[order[0]];
        let weight = |t: usize| f64::from((logits[t] - largest) / 0.7).exp();
        order.truncate(9);
        let total: f64 = order.iter().map(|t| weight(*t)).sum();
        let mut before = 0.0;
        order.retain(|t| {
            let keep = before < 0.8 * total;
            before += weight(*t);
            keep && weight(*t) >= 0.02
        });
        let mass: f64 = order.iter().map(|t| weight(*t)).sum();
        let want = (weight(targets[row] as usize) / mass).ln();
        assert!(
            (f64::from(got.logprobs[row]) - want).abs() < 1e-5,
            "row {row}: {} {want}",
            got.logprobs[row]
        );
        kept.extend((0..v).map(|t| if order.contains(&t) { 0.0 } else { -1e4 }));
    }
    // What is cut off is cut off for good: the oracle masks the same tokens.
    let mask = Tensor::from_vec(kept, (r, v), &Device::Cpu).unwrap();
    let index = Tensor::new(&targets[..], &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let f = |xs: &[Tensor]| {
        let logits = ((xs[0].matmul(&xs[1].t()?)? / 0.7)? + &mask)?;
        let log_p = logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)?;
        log_p.gather(&index, 1)?.squeeze(1)
    };
    let dlogp = random(8, &[r]);
    let want = oracle(&f, &[hidden.clone(), head.clone()], &dlogp);
    let dhead = Tensor::zeros((v, h), DType::F32, &Device::Cpu).unwrap();
    let slopes = token_logprob::Slopes {
        dlogprobs: &floats(&dlogp),
        dentropies: &[],
        cut: Some(&config),
        log_sums: &[],
    };
    let dhidden = token_logprob::backward(inputs, slopes, &dhead).unwrap();
    close("dhidden", &dhidden, &want[0], 1e-5);
    close("dhead", &dhead, &want[1], 1e-5);
}

fn heads() -> Heads {
    Heads { query: 4, key_value: 2, dim: 8 }
}

/// A prompt longer than one block with completions, then a segment alone.
fn segments() -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start = 0;
    for (len, prefix) in [(130, None), (3, Some(0)), (100, Some(0)), (1, Some(0)), (17, None), (2, Some(4))] {
        segments.push(Segment { start, len, prefix });
        start += len;
    }
    segments
}

/// `[T, T]` of 0 where row may see column and -inf elsewhere: what the op never forms.
fn mask(segments: &[Segment]) -> Tensor {
    let total = segments.iter().map(|s| s.len).sum::<usize>();
    let mut mask = vec![f64::NEG_INFINITY; total * total];
    for s in segments {
        for row in s.start..s.start + s.len {
            let prefix = s.prefix.map_or(0..0, |p| segments[p].start..segments[p].start + segments[p].len);
            for column in prefix.chain(s.start..row + 1) {
                mask[row * total + column] = 0.0;
            }
        }
    }
    Tensor::from_vec(mask, (total, total), &Device::Cpu).unwrap()
}

fn naive_attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let heads = heads();
    let mut columns = Vec::new();
    for head in 0..heads.query {
        let kv = head / heads.sharing() * heads.dim;
        let q = q.narrow(1, head * heads.dim, heads.dim)?;
        let (k, v) = (k.narrow(1, kv, heads.dim)?, v.narrow(1, kv, heads.dim)?);
        let scores = (q.matmul(&k.t()?)? * (heads.dim as f64).powf(-0.5))?;
        let e = (scores + mask)?.exp()?;
        columns.push(e.broadcast_div(&e.sum_keepdim(1)?)?.matmul(&v.contiguous()?)?);
    }
    Tensor::cat(&columns, 1)
}

#[test]
fn packed_attention_forward_and_gradients() {
    let segments = segments();
    let layout = AttentionLayout::new(&segments).unwrap();
    let mask = mask(&segments);
    let n = layout.tokens();
    let (q, k, v) = (random(1, &[n, 32]), random(2, &[n, 16]), random(3, &[n, 16]));
    let dout = random(4, &[n, 32]);
    let f = |xs: &[Tensor]| naive_attention(&xs[0], &xs[1], &xs[2], &mask);
    let want = oracle(&f, &[q.clone(), k.clone(), v.clone()], &dout);
    let (q32, k32, v32) = (single(&q), single(&k), single(&v));
    let inputs = Inputs { layout: &layout, heads: heads(), q: &q32, k: &k32, v: &v32 };
    let (out, lse) = attention::forward(inputs).unwrap();
    close("out", &out, &f(&[q, k, v]).unwrap(), 1e-5);
    let dout32 = single(&dout);
    let got = attention::backward(inputs, Upstream { out: &out, lse: &lse, dout: &dout32 }).unwrap();
    close("dq", &got.dq, &want[0], 1e-5);
    close("dk", &got.dk, &want[1], 1e-5);
    close("dv", &got.dv, &want[2], 1e-5);
    let again = attention::backward(inputs, Upstream { out: &out, lse: &lse, dout: &dout32 }).unwrap();
    assert_eq!(floats(&got.dk), floats(&again.dk), "the same sums in the same order");
}

#[test]
fn decode_attention_is_the_last_row_of_packed_attention() {
    // Two prompts (9 and 4 tokens); sequences 0 and 2 of the first, 3 of the second; 3 own tokens each.
    let segment = |start, len, prefix| Segment { start, len, prefix };
    let segments = [
        segment(0, 9, None),
        segment(9, 3, Some(0)),
        segment(12, 3, Some(0)),
        segment(15, 4, None),
        segment(19, 3, Some(3)),
    ];
    let layout = AttentionLayout::new(&segments).unwrap();
    let (q, k, v) =
        (single(&random(1, &[22, 32])), single(&random(2, &[22, 16])), single(&random(3, &[22, 16])));
    let inputs = Inputs { layout: &layout, heads: heads(), q: &q, k: &k, v: &v };
    let (want, want_lse) = attention::forward(inputs).unwrap();
    let rows = |x: &Tensor, picks: &[(usize, usize)]| {
        Tensor::cat(&picks.iter().map(|(s, n)| x.narrow(0, *s, *n).unwrap()).collect::<Vec<_>>(), 0).unwrap()
    };
    let prompts = [(0, 9), (15, 4)];
    // Capacity 5, four sequences; sequence 1 has left the batch and holds rubbish.
    let own = |x: &Tensor| {
        let junk = Tensor::full(7f32, (2, 16), &Device::Cpu).unwrap();
        let whole = Tensor::full(9f32, (5, 16), &Device::Cpu).unwrap();
        let sequence = |start| Tensor::cat(&[&x.narrow(0, start, 3).unwrap(), &junk], 0).unwrap();
        Tensor::stack(&[sequence(9), whole, sequence(12), sequence(19)], 0).unwrap()
    };
    let (own_k, own_v) = (own(&k), own(&v));
    let cache =
        Cache { prefix_k: &rows(&k, &prompts), prefix_v: &rows(&v, &prompts), own_k: &own_k, own_v: &own_v };
    let prefixes =
        vec![SharedPrefix { start: 0, len: 9, rows: 2 }, SharedPrefix { start: 9, len: 4, rows: 1 }];
    let last = [(11, 1), (14, 1), (21, 1)];
    let readers = Readers::new(prefixes, vec![0, 2, 3]);
    let (got, lse) = decode_attention::forward(heads(), &rows(&q, &last), cache, &readers, 3).unwrap();
    close("out", &got, &rows(&want, &last), 1e-5);
    close("lse", &lse, &rows(&want_lse, &last), 1e-5);
}
