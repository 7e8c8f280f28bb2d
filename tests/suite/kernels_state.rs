//! elementwise.cu, sum_squares.cu and embedding.cu on the CPU against f64 references; see support/shim.rs.

use half::bf16;
use rlvr::rng::{Purpose, Stream};

use crate::support::shim::{
    Argument, Element, F32_ERROR, Program, Random, array, close, f32s, poison, real, scalar, u32s,
};

fn long(value: usize) -> Argument {
    Argument::Scalar((value as u64).to_le_bytes().to_vec())
}

/// Elements that 16 bytes do not divide, fewer threads than elements, and less than 16 bytes.
const COUNTS: [usize; 3] = [1333, 1024, 3];

#[test]
fn sums_fills_and_casts_on_the_cpu() {
    let Some(program) = Program::of_file("elementwise") else { return };
    let r = Random::new();
    for n in COUNTS {
        for e in Element::ALL {
            let (a, b) = (r.values(e, n, 3.), r.values(e, n, 3.));
            let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let name = e.kernel("add_assign");
            let got = program.launch(&name, [2, 1, 1], 64, vec![array(e, &a), array(e, &b), long(n)]);
            close(&name, e, &e.values(&got[0]), &sum, F32_ERROR);
            assert_eq!(e.values(&got[1]), b, "{name} leaves the term");

            let name = e.kernel("fill");
            let got = program.launch(&name, [2, 1, 1], 64, vec![poison(e, n), real(-1.25), long(n)]);
            assert_eq!(e.values(&got[0]), vec![-1.25; n], "{name}");
        }
        let (sum, term) = (r.values(Element::F32, n, 3.), r.values(Element::Bf16, n, 3.));
        let want: Vec<f64> = sum.iter().zip(&term).map(|(a, b)| a + b).collect();
        let arguments = vec![f32s(&sum), array(Element::Bf16, &term), long(n)];
        let got = program.launch("add_assign_to_f32_bf16", [2, 1, 1], 64, arguments);
        close("add_assign_to_f32_bf16", Element::F32, &Element::F32.values(&got[0]), &want, F32_ERROR);

        let want: Vec<f64> = sum.iter().map(|x| x * -0.375).collect();
        let got = program.launch("scale_f32", [2, 1, 1], 64, vec![f32s(&sum), real(-0.375), long(n)]);
        close("scale_f32", Element::F32, &Element::F32.values(&got[0]), &want, 2e-7);

        // Rounds to nearest, ties to even, as the half crate does.
        let arguments = vec![f32s(&sum), poison(Element::Bf16, n), long(n)];
        let got = program.launch("cast_to_bf16", [2, 1, 1], 64, arguments);
        let want: Vec<u8> = sum.iter().flat_map(|x| bf16::from_f32(*x as f32).to_le_bytes()).collect();
        assert_eq!(got[1], want, "cast_to_bf16");
        let arguments = vec![array(Element::Bf16, &term), poison(Element::F32, n), long(n)];
        let got = program.launch("cast_to_f32", [2, 1, 1], 64, arguments);
        assert_eq!(Element::F32.values(&got[1]), term, "cast_to_f32");
    }
}

#[test]
fn random_weights_are_those_of_the_host() {
    let Some(program) = Program::of_file("elementwise") else { return };
    let (r, n, deviation) = (Random::new(), 700, 0.02f32);
    let stream = Stream::new(r.seed, Purpose::WeightInit, [3, 1, 4]);
    let ([key0, key1], [id0, id1, id2]) = stream.words();
    let want: Vec<f64> = (0..n as u32).map(|i| f64::from(deviation * stream.normal(i))).collect();
    for e in Element::ALL {
        let name = e.kernel("normal");
        let words = [key0, key1, id0, id1, id2].map(scalar);
        let head = [poison(e, n), real(f64::from(deviation))];
        let arguments = head.into_iter().chain(words).chain([long(n)]).collect();
        let got = program.launch(&name, [3, 1, 1], 64, arguments);
        // The same but for the last bit of a logarithm or cosine: two steps of an f32 near 0.1.
        close(&name, e, &e.values(&got[0]), &want, 1.5e-8);
    }
}

#[test]
fn sum_squares_on_the_cpu() {
    let Some(program) = Program::of_file("sum_squares") else { return };
    let r = Random::new();
    for e in Element::ALL {
        // Two arrays, the first of more than one block's share; their partials lie side by side.
        let (long_one, short) = (r.values(e, 65_536 + 37, 2.), r.values(e, 8, 2.));
        let name = e.kernel("sum_squares");
        let mut partial: Vec<u8> = Vec::new();
        for (x, blocks) in [(&long_one, 2), (&short, 1)] {
            let out = Argument::Array(vec![0xff; 8 * blocks]);
            let got = program.launch(&name, [blocks as u32, 1, 1], 64, vec![array(e, x), out, long(x.len())]);
            partial.extend(&got[1]);
        }
        let total = |partial: Vec<u8>| {
            let count = scalar((partial.len() / 8) as u32);
            let arguments = vec![Argument::Array(partial), Argument::Array(vec![0xff; 8]), count];
            let got = program.launch("sum_squares_total", [1, 1, 1], 64, arguments);
            f64::from_le_bytes(got[1].as_slice().try_into().unwrap())
        };
        let want: f64 = long_one.iter().chain(&short).map(|x| x * x).sum();
        let got = total(partial.clone());
        assert!((got / want - 1.).abs() < 1e-8, "{name}: {got}, want {want}");

        let mut broken = long_one.clone();
        broken[65_540] = f64::INFINITY;
        let out = Argument::Array(vec![0; 16]);
        let got = program.launch(&name, [2, 1, 1], 64, vec![array(e, &broken), out, long(broken.len())]);
        assert!(!total(got[1].clone()).is_finite(), "an infinite gradient shows");
    }
}

#[test]
fn embedding_rows_on_the_cpu() {
    let Some(program) = Program::of_file("embedding") else { return };
    let (r, v) = (Random::new(), 11);
    for h in [24, 19, 300] {
        let rows = [4u32, 0, 4, 10, 7, 4, 0];
        let n = rows.len();
        let sizes = || [scalar(v as u32), scalar(h as u32)];
        for e in Element::ALL {
            let table = r.values(e, v * h, 2.);
            let row = |i: u32| &table[i as usize * h..(i as usize + 1) * h];
            let name = e.kernel("embedding_gather");
            let outside = [rows.as_slice(), &[11]].concat();
            let head = [array(e, &table), u32s(&outside), poison(e, (n + 1) * h)];
            let arguments = head.into_iter().chain(sizes()).collect();
            let got = program.launch(&name, [n as u32 + 1, 1, 1], 32, arguments);
            let (inside, last) = got[2].split_at(got[2].len() / (n + 1) * n);
            let want: Vec<f64> = rows.iter().flat_map(|i| row(*i)).copied().collect();
            assert_eq!(e.values(inside), want, "{name}");
            assert!(e.values(last).iter().all(|x| x.is_nan()), "{name}: a row outside the table");

            let values = r.values(e, n * h, 2.);
            let name = e.kernel("embedding_scatter");
            let distinct = [4, u32::MAX, 9, 10, 7, 1, 0];
            let head = [array(e, &table), u32s(&distinct), array(e, &values)];
            let arguments = head.into_iter().chain(sizes()).collect();
            let got = program.launch(&name, [n as u32, 1, 1], 32, arguments);
            let mut want = table.clone();
            for (i, row) in distinct.iter().enumerate().filter(|(_, row)| **row < v as u32) {
                want[*row as usize * h..][..h].copy_from_slice(&values[i * h..][..h]);
            }
            assert_eq!(e.values(&got[0]), want, "{name}");
        }
        // Grouped by row on the host: 0 at 1 and 6, 4 at 0, 2 and 5, 7 at 4, 10 at 3.
        let [row, start, order] =
            [vec![0, 4, 7, 10], vec![0, 2, 5, 6, 7], vec![1, 6, 0, 2, 5, 4, 3]].map(|x: Vec<u32>| u32s(&x));
        let grouped = [row, start, order];
        let copy = |a: &Argument| match a {
            Argument::Array(bytes) => Argument::Array(bytes.clone()),
            _ => Argument::Null,
        };
        for (table_type, e, name) in [
            (Element::F32, Element::F32, "embedding_scatter_add_f32"),
            (Element::Bf16, Element::Bf16, "embedding_scatter_add_bf16"),
            (Element::F32, Element::Bf16, "embedding_scatter_add_to_f32_bf16"),
        ] {
            let (table, values) = (r.values(table_type, v * h, 2.), r.values(e, n * h, 2.));
            let mut want = table.clone();
            for (i, row) in rows.iter().enumerate() {
                (0..h).for_each(|j| want[*row as usize * h + j] += values[i * h + j]);
            }
            let mut arguments = vec![array(table_type, &table)];
            arguments.extend(grouped.iter().map(copy));
            arguments.extend([array(e, &values), scalar(h as u32)]);
            let got = program.launch(name, [4, 2, 1], 32, arguments);
            close(name, table_type, &table_type.values(&got[0]), &want, F32_ERROR);
        }
    }
}
