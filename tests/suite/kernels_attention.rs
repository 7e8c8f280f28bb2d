//! The attention kernels, run on the CPU (tests/doubles/kernel-shim) against softmax written out in f64.

use rlvr::ops::attention::cuda::{Pass, Path};
use rlvr::ops::attention::tiles::{KeyTiles, row_tiles};
use rlvr::ops::attention::{AttentionLayout, Heads};
use rlvr::types::Segment;

use crate::support::attention::{heads, near, segments, tolerance};
use crate::support::shim::{Argument, Element, Program, Random, array, f32s, poison, real, scalar, u32s};

/// Attention by its definition.
struct Reference {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

struct Problem<'a> {
    segments: &'a [Segment],
    heads: Heads,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    dout: Vec<f64>,
}

impl Problem<'_> {
    fn reference(&self) -> Reference {
        let Self { heads, q, k, v, dout, .. } = self;
        let (dim, scale) = (heads.dim, f64::from(heads.scale()));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut r = Reference {
            out: vec![0.; q.len()],
            lse: vec![0.; q.len() / dim],
            dq: vec![0.; q.len()],
            dk: vec![0.; k.len()],
            dv: vec![0.; k.len()],
        };
        for segment in self.segments {
            let prefix = segment.prefix.map_or(0..0, |p| {
                let p = self.segments[p];
                p.start..p.start + p.len
            });
            for row in segment.start..segment.start + segment.len {
                for head in 0..heads.query {
                    let at = |row: usize| {
                        let i = (row * heads.key_value + head / heads.sharing()) * dim;
                        i..i + dim
                    };
                    let i = row * heads.query + head;
                    let mine = i * dim..(i + 1) * dim;
                    let keys: Vec<usize> = prefix.clone().chain(segment.start..=row).collect();
                    let s: Vec<f64> =
                        keys.iter().map(|&j| dot(&q[mine.clone()], &k[at(j)]) * scale).collect();
                    let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    r.lse[i] = max + s.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                    let p: Vec<f64> = s.iter().map(|s| (s - r.lse[i]).exp()).collect();
                    for (p, &j) in p.iter().zip(&keys) {
                        r.out[mine.clone()].iter_mut().zip(&v[at(j)]).for_each(|(o, v)| *o += p * v);
                    }
                    let delta = dot(&r.out[mine.clone()], &dout[mine.clone()]);
                    for (p, &j) in p.iter().zip(&keys) {
                        let ds = p * (dot(&dout[mine.clone()], &v[at(j)]) - delta) * scale;
                        for d in 0..dim {
                            r.dv[at(j).start + d] += p * dout[mine.start + d];
                            r.dq[mine.start + d] += ds * k[at(j).start + d];
                            r.dk[at(j).start + d] += ds * q[mine.start + d];
                        }
                    }
                }
            }
        }
        r
    }
}

fn check(e: Element, heads: Heads, segments: &[Segment]) {
    let layout = AttentionLayout::new(segments).unwrap();
    let path = Path::of(e.dtype(), heads.dim).unwrap();
    let programs = [Pass::Forward, Pass::QueryGradient, Pass::KeyGradients, Pass::QuerySums].map(|pass| {
        let (file, kernel) = path.kernel(pass);
        Some((Program::of_file(file)?, e.kernel(&kernel)))
    });
    let ([Some(forward), Some(query_gradient), Some(key_gradients), Some(query_sums)], Some(delta)) =
        (programs, Program::of_file("attention_backward"))
    else {
        return;
    };
    let (r, n) = (Random::new(), layout.tokens());
    let (q_size, kv_size, rows) = (n * heads.query_width(), n * heads.key_value_width(), n * heads.query);
    let values = |count| r.values(e, count, 2.);
    let problem = Problem {
        segments,
        heads,
        q: values(q_size),
        k: values(kv_size),
        v: values(kv_size),
        dout: values(q_size),
    };
    let want = problem.reference();
    let case = format!("{} {}/{} heads of {}", e.kernel(""), heads.query, heads.key_value, heads.dim);
    let row_tiles = row_tiles(&layout, heads.sharing(), path.tile());
    let key_tiles = KeyTiles::new(&layout, heads.sharing(), path.tile(), path.queries_at_once());
    let on_tensor_cores = matches!(path, Path::TensorCores(_));
    // For some key/value heads, from the tensors and tiles on.
    let run_heads = |(program, kernel): &(Program, String), pass, tiles, many: u32, arrays: Vec<Argument>| {
        let grid = path.grid(pass, tiles, many as usize);
        let mut arguments = arrays;
        arguments.extend([scalar(heads.key_value as u32), scalar(heads.sharing() as u32)]);
        if !on_tensor_cores {
            arguments.push(scalar(heads.dim as u32));
        }
        arguments.push(real(heads.scale().into()));
        program.launch_shared(kernel, grid.blocks, (grid.threads, grid.shared_bytes), arguments)
    };
    let run = |program: &(Program, String), pass: Pass, mut arrays: Vec<Argument>| {
        arrays.push(u32s(row_tiles.as_flattened()));
        run_heads(program, pass, row_tiles.len(), heads.key_value as u32, arrays)
    };
    let inputs = || vec![array(e, &problem.q), array(e, &problem.k), array(e, &problem.v)];

    let mut arrays = inputs();
    arrays.extend([poison(e, q_size), poison(Element::F32, rows)]);
    let got = run(&forward, Pass::Forward, arrays);
    let (out, lse) = (e.values(&got[3]), Element::F32.values(&got[4]));
    near(&format!("{case}: out"), &out, &want.out, tolerance(e));
    near(&format!("{case}: lse"), &lse, &want.lse, [1e-6, 4e-6]);

    let arguments = vec![
        array(e, &out),
        array(e, &problem.dout),
        poison(Element::F32, rows),
        scalar(rows as u32),
        scalar(heads.dim as u32),
    ];
    let blocks = [rows.div_ceil(32) as u32, 1, 1];
    let delta = delta.launch(&e.kernel("attention_delta"), blocks, 256, arguments);
    let delta = Element::F32.values(&delta[2]);
    let product: Vec<f64> = out.iter().zip(&problem.dout).map(|(a, b)| a * b).collect();
    let sums: Vec<f64> = product.chunks(heads.dim).map(|c| c.iter().sum()).collect();
    near(&format!("{case}: delta"), &delta, &sums, [1e-6, 4e-6]);

    let mut arrays = inputs();
    arrays.extend([array(e, &problem.dout), f32s(&lse), f32s(&delta), poison(e, q_size)]);
    let got = run(&query_gradient, Pass::QueryGradient, arrays);
    near(&format!("{case}: dq"), &e.values(&got[6]), &want.dq, tolerance(e));

    // All heads with nothing kept, and then one after the other, with all of it.
    let tiles = key_tiles.longest_first();
    let of_keys = |before: [&[f64]; 2], kept: Vec<Argument>, many: u32| {
        let mut arrays = inputs();
        arrays.extend([array(e, &problem.dout), f32s(&lse), f32s(&delta)]);
        arrays.extend(before.map(|values| array(e, values)));
        arrays.push(u32s(tiles.as_flattened()));
        arrays.extend(kept);
        run_heads(&key_gradients, Pass::KeyGradients, tiles.len(), many, arrays)
    };
    let near_keys = |what: &str, dk: &[f64], dv: &[f64]| {
        near(&format!("{case}: dk{what}"), dk, &want.dk, tolerance(e));
        near(&format!("{case}: dv{what}"), dv, &want.dv, tolerance(e));
    };
    let nothing = vec![f64::NAN; kv_size];
    let no_room = vec![Argument::Null, scalar(0), scalar(0)];
    let got =
        of_keys([&nothing; 2], if on_tensor_cores { no_room } else { Vec::new() }, heads.key_value as u32);
    near_keys("", &e.values(&got[6]), &e.values(&got[7]));
    if !on_tensor_cores {
        return;
    }
    let (sums, in_order) = (key_tiles.sum_tiles(), key_tiles.in_order());
    let (mut dk, mut dv, mut dq) = (nothing.clone(), nothing, vec![f64::NAN; q_size]);
    for head in 0..heads.key_value as u32 {
        let kept = Argument::Array(vec![0xff; key_tiles.strips * path.strip_bytes()]);
        let place = || [scalar(key_tiles.strips as u32), scalar(head)];
        let got = of_keys([&dk, &dv], [kept].into_iter().chain(place()).collect(), 1);
        [dk, dv] = [6, 7].map(|i| e.values(&got[i]));
        let mut arrays = vec![array(e, &problem.k), Argument::Array(got[9].clone()), array(e, &dq)];
        arrays.extend([u32s(sums.as_flattened()), u32s(in_order.as_flattened())]);
        arrays.extend(place());
        dq = e.values(&run_heads(&query_sums, Pass::QuerySums, sums.len(), 1, arrays)[2]);
    }
    near_keys(" with score gradients kept", &dk, &dv);
    near(&format!("{case}: dq of kept score gradients"), &dq, &want.dq, tolerance(e));
}

// Lengths are such that tiles end inside segments, at prefixes' ends and on both sides of the diagonal.

#[test]
fn tensor_core_attention_with_heads_of_64() {
    check(Element::Bf16, heads(3, 1, 64), &segments(&[(61, &[5, 33]), (9, &[]), (13, &[1, 4])]));
    check(Element::Bf16, heads(2, 2, 64), &segments(&[(67, &[3])]));
}

#[test]
fn tensor_core_attention_with_heads_of_128() {
    check(Element::Bf16, heads(8, 2, 128), &segments(&[(17, &[6, 1]), (5, &[3])]));
    check(Element::Bf16, heads(4, 1, 128), &segments(&[(65, &[2, 9])]));
}

#[test]
fn plain_attention_in_f32() {
    let batch = segments(&[(40, &[5, 33]), (9, &[]), (13, &[1, 4])]);
    for heads in [heads(6, 2, 64), heads(4, 1, 128), heads(2, 2, 40), heads(1, 1, 256)] {
        check(Element::F32, heads, &batch);
    }
}

#[test]
fn plain_attention_in_bf16() {
    check(Element::Bf16, heads(3, 1, 40), &segments(&[(40, &[5, 33]), (9, &[]), (13, &[1, 4])]));
}
