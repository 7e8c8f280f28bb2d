//! The decode attention kernels, run on the CPU (tests/doubles/kernel-shim) against softmax written out in f64.

use rlvr::ops::attention::Heads;
use rlvr::ops::attention::cuda::Path;
use rlvr::ops::decode_attention::SharedPrefix;
use rlvr::ops::decode_attention::cuda::{Splits, merge_grid, merge_kernel};

use crate::support::attention::{heads, near, tolerance};
use crate::support::shim::{Element, Program, Random, array, poison, real, scalar, u32s};

const CAPACITY: usize = 7;
const OWN_LEN: usize = 6;

/// Groups of `(prompt tokens, rows)`; the prompts lie in the cache in the opposite order, behind one unused token.
fn check(e: Element, heads: Heads, groups: &[(usize, usize)], blocks: usize) {
    let Some(program) = Program::of_file("decode_attention") else { return };
    let r = Random::new();
    let mut tokens = 1;
    let mut prefixes: Vec<SharedPrefix> = Vec::new();
    for &(len, rows) in groups.iter().rev() {
        prefixes.insert(0, SharedPrefix { start: tokens, len, rows });
        tokens += len;
    }
    let rows: usize = prefixes.iter().map(|p| p.rows).sum();
    // One sequence has left the batch, and the others come in another order.
    let sequences: Vec<usize> = (0..rows).map(|row| rows - row).collect();
    let (dim, width) = (heads.dim, heads.key_value_width());
    let q = r.values(e, rows * heads.query_width(), 2.);
    let [prefix_k, prefix_v] = [(); 2].map(|()| r.values(e, tokens * width, 2.));
    let mut own = [(); 2].map(|()| r.values(e, (rows + 1) * CAPACITY * width, 2.));
    for cache in &mut own {
        // Positions that nothing has filled yet.
        cache.chunks_mut(width).skip(OWN_LEN).step_by(CAPACITY).for_each(|unfilled| unfilled.fill(f64::NAN));
    }
    let [own_k, own_v] = own;

    let (mut want, mut want_lse) = (Vec::new(), Vec::new());
    let groups_of_rows = prefixes.iter().flat_map(|p| std::iter::repeat_n(p, p.rows));
    for (row, (prefix, sequence)) in groups_of_rows.zip(&sequences).enumerate() {
        for head in 0..heads.query {
            let query = &q[(row * heads.query + head) * dim..][..dim];
            let at = |token: usize| token * width + head / heads.sharing() * dim;
            let pairs = (prefix.start..prefix.start + prefix.len)
                .map(|t| (&prefix_k[at(t)..][..dim], &prefix_v[at(t)..][..dim]))
                .chain((0..OWN_LEN).map(|i| {
                    let at = at(sequence * CAPACITY + i);
                    (&own_k[at..][..dim], &own_v[at..][..dim])
                }));
            let weighted: Vec<(f64, &[f64])> = pairs
                .map(|(k, v)| {
                    let s: f64 = query.iter().zip(k).map(|(a, b)| a * b).sum();
                    ((s * f64::from(heads.scale())).exp(), v)
                })
                .collect();
            let sum: f64 = weighted.iter().map(|(w, _)| w).sum();
            want_lse.push(sum.ln());
            want.extend((0..dim).map(|d| weighted.iter().map(|(w, v)| w * v[d]).sum::<f64>() / sum));
        }
    }

    let path = Path::of(e.dtype(), dim).unwrap();
    let cut = Splits::new(heads, path, &prefixes, blocks);
    let slots = cut.slots.iter().copied().max().unwrap() as usize;
    let (vectors, f32s) = (slots * rows * heads.query, Element::F32);
    let (kernel, dims) = match path {
        Path::TensorCores(dim) => (format!("decode_attention_prefix_{dim}"), None),
        Path::Plain(dim) => ("decode_attention_prefix_any".to_string(), Some(scalar(dim as u32))),
    };
    let sizes = || [rows, heads.key_value, heads.sharing()].map(|v| scalar(v as u32));
    let mut arguments = vec![array(e, &q), array(e, &prefix_k), array(e, &prefix_v)];
    arguments.extend([poison(f32s, vectors * dim), poison(f32s, vectors), u32s(cut.splits.as_flattened())]);
    arguments.extend(sizes().into_iter().chain(dims).chain([real(heads.scale().into())]));
    let grid = cut.grid(path, heads.key_value);
    let blocks = (grid.threads, grid.shared_bytes);
    let got = program.launch_shared(&e.kernel(&kernel), grid.blocks, blocks, arguments);
    let (partial, partial_lse) = (f32s.values(&got[3]), f32s.values(&got[4]));

    let mut arguments = vec![array(e, &q), array(e, &own_k), array(e, &own_v)];
    let table: Vec<u32> = sequences.iter().map(|s| *s as u32).collect();
    arguments.extend([u32s(&table), array(f32s, &partial), array(f32s, &partial_lse)]);
    arguments.extend([u32s(&cut.slots), poison(e, want.len()), poison(f32s, rows * heads.query)]);
    arguments.extend(sizes().into_iter().chain([dim, OWN_LEN, CAPACITY].map(|v| scalar(v as u32))));
    arguments.push(real(heads.scale().into()));
    let grid = merge_grid(rows * heads.query);
    let got = program.launch(&e.kernel(merge_kernel(dim)), grid.blocks, grid.threads, arguments);
    let case = format!("{} {}/{} heads of {dim}", e.kernel("decode"), heads.query, heads.key_value);
    near(&case, &e.values(&got[7]), &want, tolerance(e));
    near(&format!("{case}, lse"), &f32s.values(&got[8]), &want_lse, tolerance(e));
}

#[test]
fn decode_attention_on_tensor_cores() {
    // 23 rows of 3 heads: one split of 69 queries; 140 keys in splits of 128 and 12.
    check(Element::Bf16, heads(3, 1, 64), &[(140, 23), (5, 2), (64, 1)], 1);
    check(Element::Bf16, heads(8, 2, 128), &[(130, 3), (70, 5)], 100);
}

#[test]
fn decode_attention_on_plain_arithmetic() {
    for heads in [heads(6, 2, 64), heads(4, 1, 128), heads(2, 2, 40), heads(1, 1, 256)] {
        check(Element::F32, heads, &[(140, 9), (5, 2), (64, 1)], 3);
    }
    check(Element::Bf16, heads(3, 1, 40), &[(140, 12), (5, 2)], 3);
}

#[test]
fn decode_work_is_cut_evenly_and_whole() {
    let prefix = |start, len, rows| SharedPrefix { start, len, rows };
    let prefixes = [prefix(0, 1000, 8), prefix(1000, 65, 40), prefix(1065, 0, 2)];
    let heads = heads(8, 2, 128);
    let cut = Splits::new(heads, Path::TensorCores(128), &prefixes, 8);
    // 16 key tiles, and 2 for each of two runs of queries: 20 by 2 heads, 5 a block: the 16 in 4 splits of 4.
    let mut want: Vec<[u32; 6]> = (0..4).map(|i| [0, 0, 32, 256 * i, 256, i]).collect();
    want[3][4] = 1000 - 768;
    want.extend([[8, 0, 128, 1000, 65, 0], [8, 128, 32, 1000, 65, 0]]);
    assert_eq!(cut.splits, want);
    assert_eq!(cut.queries, 128);
    assert_eq!(cut.slots, [vec![4; 8], vec![1; 40], vec![0; 2]].concat());
}
