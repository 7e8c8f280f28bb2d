//! The CUDA kernels, run on the CPU one fiber a thread (tests/doubles/kernel-shim) against f64 references.
//!
//! Inputs are those of the test's seed. Outputs start as NaN.

use rlvr::check::rounding;

use crate::support::shim::{
    Argument, Element, F32_ERROR, Program, Random, array, close, f32s, poison, real, scalar, u32s,
};

#[test]
fn rms_norm_on_the_cpu() {
    let Some(program) = Program::of_file("rms_norm") else { return };
    // Rows that 16 bytes do not divide; that a block reads at once; that it reads in several rounds.
    for width in [75, 64, 520] {
        rms_norm_of_width(&program, width);
    }
}

fn rms_norm_of_width(program: &Program, h: usize) {
    let (r, full, n, eps) = (Random::new(), Element::F32, 5, 1e-5);
    for e in Element::ALL {
        let (x, w) = (r.values(e, n * h, 2.), r.values(e, h, 1.5));
        let dim = |i: usize| (i / h, i % h);
        let inverse_rms = |x: &[f64]| -> Vec<f64> {
            x.chunks(h).map(|x| 1. / (x.iter().map(|v| v * v).sum::<f64>() / h as f64 + eps).sqrt()).collect()
        };
        let normed =
            |x: &[f64], q: &[f64]| -> Vec<f64> { (0..n * h).map(|i| x[i] * q[i / h] * w[i % h]).collect() };
        let q = inverse_rms(&x);

        let name = e.kernel("rms_norm_forward");
        let rest = |x: Argument, residual: Argument, sum: Argument| {
            let out = [poison(e, n * h), poison(full, n), scalar(h as u32), real(eps)];
            [x, residual, array(e, &w), sum].into_iter().chain(out).collect::<Vec<_>>()
        };
        let plain =
            program.launch(&name, [n as u32, 1, 1], 64, rest(array(e, &x), Argument::Null, Argument::Null));
        close(&format!("{name} y"), e, &e.values(&plain[2]), &normed(&x, &q), F32_ERROR);
        close(&format!("{name} inverse_rms"), full, &full.values(&plain[3]), &q, F32_ERROR);

        // x = a + b, split so that the sum is exact in bf16 too.
        let a: Vec<f64> = x.iter().map(|v| v / 2.).collect();
        let added = rest(array(e, &a), array(e, &a), poison(e, n * h));
        let added = program.launch(&name, [n as u32, 1, 1], 64, added);
        assert_eq!(e.values(&added[3]), x, "{name} sum");
        assert_eq!((&added[4], &added[5]), (&plain[2], &plain[3]), "{name} with a residual");

        let (dy, before) = (r.values(e, n * h, 1.), r.values(e, n * h, 1.));
        let mean: Vec<f64> = (0..n)
            .map(|row| (0..h).map(|i| dy[row * h + i] * w[i] * x[row * h + i]).sum::<f64>() / h as f64)
            .collect();
        let dx: Vec<f64> = (0..n * h)
            .map(|i| {
                let (row, column) = dim(i);
                before[i] + q[row] * dy[i] * w[column] - x[i] * q[row].powi(3) * mean[row]
            })
            .collect();
        // 5 rows by 2: the last block's are fewer, and so are the last columns. Threads hold a whole row, or parts.
        let old = r.values(full, h, 1.);
        let dw: Vec<f64> = (0..h)
            .map(|c| old[c] + (0..n).map(|row| dy[row * h + c] * x[row * h + c] * q[row]).sum::<f64>())
            .collect();
        let lanes = if matches!(e, Element::F32) { 4 } else { 8 };
        let whole = h.div_ceil(lanes).next_multiple_of(32) as u32;
        for (name, threads) in
            [("rms_norm_backward", whole), ("rms_norm_backward_wide", whole.div_ceil(96) * 32)]
        {
            let name = e.kernel(name);
            let arguments = |dw: Argument| {
                let sizes = [scalar(n as u32), scalar(h as u32), scalar(2), real(eps)];
                let arrays = [array(e, &x), array(e, &w), array(e, &dy), array(e, &before), dw];
                arrays.into_iter().chain(sizes).collect::<Vec<_>>()
            };
            let frozen = program.launch(&name, [3, 1, 1], threads, arguments(Argument::Null));
            close(&format!("{name} dx"), e, &e.values(&frozen[3]), &dx, F32_ERROR);
            let got = program.launch(&name, [3, 1, 1], threads, arguments(poison(full, 3 * h)));
            assert_eq!(got[3], frozen[3], "{name}: dx beside dw");
            let arguments = vec![f32s(&full.values(&got[4])), f32s(&old), scalar(3), scalar(h as u32)];
            let grid = [h.div_ceil(32) as u32, 1, 1];
            let got = program.launch("rms_norm_add_partials", grid, 64, arguments);
            close(&format!("{name} dw"), full, &full.values(&got[1]), &dw, F32_ERROR);
        }
    }
}

#[test]
fn rope_on_the_cpu() {
    let Some(program) = Program::of_file("rope") else { return };
    for half in [5, 16] {
        rope_of_half(&program, half);
    }
}

fn rope_of_half(program: &Program, half: usize) {
    let (r, n, heads, positions) = (Random::new(), 4, 3, 50);
    let angle = |p: u32, j: usize| f64::from(p) * 100f64.powf(-(j as f64) / half as f64);
    let table = |f: fn(f64) -> f64| -> Vec<f64> {
        (0..positions * half).map(|i| f(angle((i / half) as u32, i % half))).collect()
    };
    let position: Vec<u32> = (0..n).map(|_| r.below(positions as u32)).collect();
    for e in Element::ALL {
        let name = e.kernel("rope");
        let x = r.values(e, n * heads * 2 * half, 1.);
        let rotate = |x: &[f64], sign: f64| {
            let sizes = [scalar(heads as u32), scalar(half as u32), real(sign)];
            let arguments = [array(e, x), f32s(&table(f64::cos)), f32s(&table(f64::sin)), u32s(&position)];
            e.values(
                &program.launch(&name, [n as u32, 1, 1], 32, arguments.into_iter().chain(sizes).collect())[0],
            )
        };
        let mut want = x.clone();
        for (row, &position) in position.iter().enumerate() {
            for head in 0..heads {
                for j in 0..half {
                    let first = (row * heads + head) * 2 * half + j;
                    let (sin, cos) = angle(position, j).sin_cos();
                    want[first] = x[first] * cos - x[first + half] * sin;
                    want[first + half] = x[first + half] * cos + x[first] * sin;
                }
            }
        }
        let turned = rotate(&x, 1.);
        close(&name, e, &turned, &want, F32_ERROR);
        // On the way back each of two numbers comes with a rounding of its own, of at most half a step at 1.4.
        let turned_error = 2f64.sqrt() * rounding(e.dtype(), 1.4) / 2. + 2. * F32_ERROR;
        close(&format!("{name} and back"), e, &rotate(&turned, -1.), &x, turned_error);
    }
}

/// Rows of 2 query heads, a key head and a value head: apart, into a cache, and together again.
#[test]
fn heads_apart_and_together_on_the_cpu() {
    let Some(program) = Program::of_file("rope") else { return };
    let (r, n, rows) = (Random::new(), 3, 5);
    for (half, rotates) in [(5, true), (16, true), (16, false)] {
        let (dim, width) = (2 * half, 8 * half);
        let position: Vec<u32> = (0..n).map(|_| r.below(20)).collect();
        let slot = [4u32, 0, 2];
        let angle = |p: u32, j: usize| f64::from(p) * 100f64.powf(-(j as f64) / half as f64);
        let angles = |f: fn(f64) -> f64| -> Vec<f64> {
            (0..20 * half).map(|i| f(angle((i / half) as u32, i % half))).collect()
        };
        let table = |f: fn(f64) -> f64| if rotates { f32s(&angles(f)) } else { Argument::Null };
        let turned = |x: &[f64], sign: f64| -> Vec<f64> {
            let mut y = x.to_vec();
            for (row, position) in y.chunks_mut(width).zip(&position).filter(|_| rotates) {
                for head in row.chunks_mut(dim).take(3) {
                    for j in 0..half {
                        let (sin, cos) = angle(*position, j).sin_cos();
                        let (a, b) = (head[j], head[half + j]);
                        (head[j], head[half + j]) = (a * cos - sign * b * sin, b * cos + sign * a * sin);
                    }
                }
            }
            y
        };
        for e in Element::ALL {
            let x = r.values(e, n * width, 1.);
            let sizes = || [scalar(2), scalar(1), scalar(half as u32)];
            let angles = || [table(f64::cos), table(f64::sin), u32s(&position)];
            let columns = |x: &[f64], from: usize, to: usize| -> Vec<f64> {
                x.chunks(width).flat_map(|row| row[from * dim..to * dim].to_vec()).collect()
            };
            let name = e.kernel("qkv_split");
            let want = turned(&x, 1.);
            let [before, after] = [vec![array(e, &x)], vec![poison(e, n * 2 * dim)]];
            let caches = [poison(e, rows * dim), poison(e, rows * dim)];
            let arguments = before.into_iter().chain(angles()).chain([u32s(&slot)]).chain(after);
            let arguments = arguments.chain(caches).chain(sizes()).collect();
            let got = program.launch(&name, [n as u32, 1, 1], 32, arguments);
            // Null arguments do not come back.
            let at = if rotates { 5 } else { 3 };
            close(&format!("{name} q"), e, &e.values(&got[at]), &columns(&want, 0, 2), F32_ERROR);
            for (cache, from) in [(&got[at + 1], 2), (&got[at + 2], 3)] {
                let cache = e.values(cache);
                let there: Vec<f64> =
                    slot.iter().flat_map(|s| cache[*s as usize * dim..][..dim].to_vec()).collect();
                close(&format!("{name} to the cache"), e, &there, &columns(&want, from, from + 1), F32_ERROR);
                assert_eq!(cache.iter().filter(|v| v.is_nan()).count(), 2 * dim, "other rows stay");
            }
            let name = e.kernel("qkv_join");
            let parts = [(0, 2), (2, 3), (3, 4)].map(|(from, to)| array(e, &columns(&x, from, to)));
            let arguments = [poison(e, n * width)].into_iter().chain(angles()).chain([Argument::Null]);
            let arguments = arguments.chain(parts).chain(sizes()).collect();
            let got = program.launch(&name, [n as u32, 1, 1], 32, arguments);
            close(&name, e, &e.values(&got[0]), &turned(&x, -1.), F32_ERROR);
        }
    }
}

#[test]
fn swiglu_on_the_cpu() {
    let Some(program) = Program::of_file("swiglu") else { return };
    let r = Random::new();
    // More rows than the grid has, a width of no whole packs, and gates at which exp overflows.
    for (n, f) in [(5, 64), (3, 77)] {
        for e in Element::ALL {
            let (mut x, dact) = (r.values(e, n * 2 * f, 3.), r.values(e, n * f, 1.));
            (x[0], x[1]) = (-128., 128.);
            let sigmoid = |g: f64| 1. / (1. + (-g).exp());
            let each = |f_of: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
                (0..n * f)
                    .map(|i| f_of(x[i / f * 2 * f + i % f], x[i / f * 2 * f + f + i % f], dact[i]))
                    .collect()
            };
            let act = each(&|g, u, _| g * sigmoid(g) * u);
            let dgate = each(&|g, u, d| d * u * sigmoid(g) * (1. + g * (1. - sigmoid(g))));
            let dup = each(&|g, _, d| d * g * sigmoid(g));
            let both: Vec<f64> =
                dgate.chunks(f).zip(dup.chunks(f)).flat_map(|(g, u)| [g, u].concat()).collect();
            let sizes = || [scalar(n as u32), scalar(f as u32)];
            let name = e.kernel("swiglu_forward");
            let arguments = [array(e, &x), poison(e, n * f)].into_iter().chain(sizes()).collect();
            let got = program.launch(&name, [3, 2, 1], 32, arguments);
            close(&name, e, &e.values(&got[1]), &act, F32_ERROR);
            let name = e.kernel("swiglu_backward");
            let arrays = [array(e, &x), array(e, &dact), poison(e, n * f), poison(e, n * 2 * f)];
            let got = program.launch(&name, [3, 2, 1], 32, arrays.into_iter().chain(sizes()).collect());
            close(&format!("{name} act"), e, &e.values(&got[2]), &act, F32_ERROR);
            close(&name, e, &e.values(&got[3]), &both, F32_ERROR);
        }
    }
}

#[test]
fn token_logprob_on_the_cpu() {
    let Some(program) = Program::of_file("token_logprob") else { return };
    for vocab in [307, 1600] {
        token_logprob_of_vocabulary(&program, vocab);
    }
}

fn token_logprob_of_vocabulary(program: &Program, vocab: usize) {
    let (r, n, temperature) = (Random::new(), 4, 0.7);
    for e in Element::ALL {
        let mut logits = r.values(e, n * vocab, 9.);
        // Row 1 lies high, so that exp without the maximum would overflow; row 2 is masked but for two tokens.
        logits[vocab..2 * vocab].iter_mut().for_each(|v| *v = e.values(&e.bytes(&[*v + 200.]))[0]);
        logits[2 * vocab..3 * vocab].iter_mut().for_each(|v| *v = f64::NEG_INFINITY);
        (logits[2 * vocab + 40], logits[2 * vocab + 300]) = (1., 1.);
        let target = [r.below(vocab as u32), r.below(vocab as u32), 40, r.below(vocab as u32)];
        let scale = f64::from((1. / temperature) as f32);
        let row = |i: usize| logits[i * vocab..(i + 1) * vocab].iter().map(|v| v * scale);
        let log_sum: Vec<f64> = (0..n)
            .map(|i| {
                let max = row(i).fold(f64::NEG_INFINITY, f64::max);
                max + row(i).map(|z| (z - max).exp()).sum::<f64>().ln()
            })
            .collect();
        let logprob: Vec<f64> =
            (0..n).map(|i| logits[i * vocab + target[i] as usize] * scale - log_sum[i]).collect();
        let entropy: Vec<f64> = (0..n)
            .map(|i| {
                -row(i).map(|z| z - log_sum[i]).filter(|l| l.is_finite()).map(|l| l.exp() * l).sum::<f64>()
            })
            .collect();

        let name = e.kernel("token_logprob_forward");
        let out = || poison(Element::F32, n);
        let sizes = || [scalar(vocab as u32), real(scale)];
        let arguments = [array(e, &logits), u32s(&target), out(), out(), out()].into_iter().chain(sizes());
        let got = program.launch(&name, [n as u32, 1, 1], 96, arguments.collect());
        for (what, got, want) in [
            ("logprob", &got[2], logprob),
            ("entropy", &got[3], entropy),
            ("log_sum", &got[4], log_sum.clone()),
        ] {
            close(&format!("{name} {what}"), Element::F32, &Element::F32.values(got), &want, 1e-5);
        }
        assert!(
            (Element::F32.values(&got[3])[2] - 2f64.ln()).abs() < 1e-6,
            "two equal tokens: entropy log 2"
        );

        let name = e.kernel("token_logprob_backward");
        let dlogprob = r.values(Element::F32, n, 1.);
        let dlogits: Vec<f64> = (0..n * vocab)
            .map(|i| {
                let (row, token) = (i / vocab, i % vocab);
                let hit = f64::from(u8::from(token == target[row] as usize));
                (hit - (logits[i] * scale - log_sum[row]).exp()) * dlogprob[row] * scale
            })
            .collect();
        let arguments =
            [array(e, &logits), u32s(&target), f32s(&log_sum), f32s(&dlogprob)].into_iter().chain(sizes());
        let got = program.launch(&name, [n as u32, 2, 1], 64, arguments.collect());
        // Row 1's z and log_sum, near 300, are good to 1.5e-5 each in f32.
        close(&name, e, &e.values(&got[0]), &dlogits, 1e-4);
        if matches!(e, Element::F32) {
            let arguments =
                [array(e, &logits), poison(Element::Bf16, n * vocab), u32s(&target), f32s(&log_sum)];
            let arguments = arguments.into_iter().chain([f32s(&dlogprob)]).chain(sizes()).collect();
            let narrow =
                program.launch("token_logprob_backward_f32_to_bf16", [n as u32, 2, 1], 64, arguments);
            let want: Vec<f64> = e.values(&got[0]);
            close("dlogits in bf16", Element::Bf16, &Element::Bf16.values(&narrow[1]), &want, 0.);
        }

        let outside =
            [array(e, &logits), u32s(&[vocab as u32; 4]), out(), out(), out()].into_iter().chain(sizes());
        let got = program.launch(&e.kernel("token_logprob_forward"), [n as u32, 1, 1], 64, outside.collect());
        assert!(
            Element::F32.values(&got[2]).iter().all(|v| v.is_nan()),
            "a target outside the vocabulary is NaN"
        );
    }
}

/// The shim itself must be able to fail: each of these kernels has one classic mistake.
#[test]
fn faulty_kernels_are_caught() {
    let source = r#"
#include "row.cuh"
extern "C" __global__ void sums(const float *x, float *y) { y[blockIdx.x * 64 + threadIdx.x] = block_sum(x[threadIdx.x]); }
extern "C" __global__ void no_barrier(float *y) {
    __shared__ float from[64];
    from[threadIdx.x] = 1.f;
    y[threadIdx.x] = from[63 - threadIdx.x];
}
extern "C" __global__ void unset_shared(float *y) { y[threadIdx.x] = warp_results()[threadIdx.x % 32]; }
extern "C" __global__ void half_a_barrier(float *y) {
    if (threadIdx.x < 32) return;
    if (threadIdx.x < 48) __syncthreads(); else __syncwarp();
    y[threadIdx.x] = 1.f;
}
extern "C" __global__ void left_lane(float *y) {
    if (threadIdx.x == 5) return;
    y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.f, 1);
}
extern "C" __global__ void one_past(float *y) { y[threadIdx.x + 1] = 1.f; }
"#;
    let Some(program) = Program::compile("faulty", source) else { return };
    let y = || poison(Element::F32, 64);
    let x: Vec<f64> = (0..64).map(f64::from).collect();
    let sums = program.launch("sums", [2, 1, 1], 64, vec![f32s(&x), poison(Element::F32, 128)]);
    assert_eq!(Element::F32.values(&sums[1]), [2016.; 128], "0 + 1 + ... + 63");
    for kernel in ["no_barrier", "unset_shared"] {
        let got = Element::F32.values(&program.launch(kernel, [1, 1, 1], 64, vec![y()])[0]);
        assert!(got.iter().any(|v| v.is_nan()), "{kernel} must read shared memory that nothing wrote");
    }
    for (kernel, message) in [
        ("half_a_barrier", "the others never reach"),
        ("left_lane", "has left the kernel"),
        ("one_past", "wrote outside an array of 256 bytes"),
        ("absent", "no kernel named absent"),
    ] {
        let out = program.output(kernel, [[1, 1, 1], [64, 1, 1]], 0, &[y()]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(message), "{kernel}: {said}");
    }
}
