//! The CUDA path: launch code, device memory and every op with a CUDA side, against f64 references and CPU ops.
//!
//! `support/cuda.rs` says where it runs. Inputs are those of the test's seed.

use std::process::Command;

use candle_core::{DType, Device, Tensor};
use rlvr::check::rounding;
use rlvr::ops::cuda::gemm::{Mat, Write, gemm};
use rlvr::ops::cuda::{self, Grid, Launch, Timer};
use rlvr::ops::linear::cuda as linear;

use crate::support::cuda::{Bench, TYPES, device, on_twin, values};
use crate::support::small::{Small, left, said};

/// Sums of `terms` products of values below one, in f32, and rounded to `got`'s type once.
#[track_caller]
fn close(what: &str, got: &Tensor, want: &[f64], terms: usize) {
    let dtype = got.dtype();
    let got = values(got);
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let allowed = 3e-7 * (terms as f64 + 4.) + rounding(dtype, *want);
        let error = (got - want).abs();
        assert!(error <= allowed, "{what}[{i}]: {got}, want {want}");
    }
}

/// `a b` for `a: [m, k]`, `b: [k, n]`, rows one after the other.
fn product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let (m, n) = (a.len() / k, b.len() / k);
    let at = |i: usize| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum();
    (0..m * n).map(at).collect()
}

fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    let rows = a.len() / cols;
    (0..a.len()).map(|i| a[i % rows * cols + i / rows]).collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn a_device_describes_itself() {
    let Some(device) = device() else { return };
    let said = cuda::describe(&device).unwrap();
    assert!(said.compute_capability >= (8, 0), "{said:?}");
    assert!(said.multiprocessors > 0 && said.multiprocessors == cuda::multiprocessors(&device).unwrap());
    assert!(said.memory_free <= said.memory_total && said.memory_total > 1 << 30, "{said:?}");
    for version in [&said.driver, &said.toolkit, &said.cublas] {
        let number: f64 = version.parse().unwrap();
        assert!((12. ..20.).contains(&number), "{said:?}");
    }
    assert!(cuda::device(99).unwrap_err().to_string().contains("CUDA_VISIBLE_DEVICES"));
    cuda::synchronize(&device).unwrap();
}

#[test]
fn indices_come_back_as_they_went() {
    let Some(bench) = Bench::new() else { return };
    let ids: Vec<u32> = (0..1 + bench.below(500)).map(|_| bench.below(1 << 30) as u32).collect();
    let there = cuda::upload(&ids, &bench.device).unwrap();
    assert!(there.device().is_cuda());
    assert_eq!(there.to_vec1::<u32>().unwrap(), ids);
    let none = cuda::upload(&[], &bench.device).unwrap();
    assert_eq!((none.dims(), none.dtype()), (&[0][..], DType::U32));
}

#[test]
fn memory_is_counted_and_given_back() {
    let Some(bench) = Bench::new() else { return };
    if !on_twin(&bench.device) {
        return; // other tests use the device's pool at the same time
    }
    // In a process of its own, for the same reason.
    assert!(child("memory_alone").status.success());
}

#[test]
#[ignore = "run by memory_is_counted_and_given_back"]
fn memory_alone() {
    let Some(device) = device() else { return };
    let before = cuda::memory_in_use(&device).unwrap();
    let tensor = cuda::uninit(&device, (1000, 5), DType::BF16).unwrap();
    assert_eq!(cuda::memory_in_use(&device).unwrap(), before + 10_000);
    assert!(values(&tensor).iter().all(|v| v.is_nan()), "the twin gives out NaN");
    drop(tensor);
    assert_eq!(cuda::memory_in_use(&device).unwrap(), before);
    assert!(cuda::memory_peak(&device).unwrap() >= before + 10_000);
    cuda::reset_memory_peak(&device).unwrap();
    assert_eq!(cuda::memory_peak(&device).unwrap(), before);
    let too_much = cuda::uninit(&device, 1usize << 42, DType::F32).unwrap_err();
    assert!(too_much.to_string().contains("OUT_OF_MEMORY"), "{too_much}");
}

#[test]
fn zero_and_duplicate_keep_to_their_view() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        let (all, before) = bench.matrix(5, 7, dtype);
        let rows = all.narrow(0, 1, 2).unwrap();
        let copy = cuda::duplicate(&rows).unwrap();
        cuda::zero(&rows).unwrap();
        let mut after = before.clone();
        after[7..21].fill(0.);
        assert_eq!(values(&all), after);
        assert_eq!(values(&copy), before[7..21]);
        let none = all.narrow(0, 0, 0).unwrap();
        cuda::zero(&none).unwrap();
        assert_eq!(cuda::duplicate(&none).unwrap().dims(), [0, 7]);
        assert!(cuda::zero(&all.t().unwrap()).unwrap_err().to_string().contains("not contiguous"));
    }
}

#[test]
fn a_timer_counts_seconds() {
    let Some(bench) = Bench::new() else { return };
    for device in [&bench.device, &Device::Cpu] {
        let mut timer = Timer::start(device).unwrap();
        assert!(timer.seconds().is_err(), "it has not stopped");
        let (a, _) = bench.matrix(64, 64, DType::F32);
        linear::forward(&a, &a).unwrap();
        timer.stop().unwrap();
        let seconds = timer.seconds().unwrap();
        assert!(seconds > 0. && seconds < 600., "{seconds}");
    }
}

fn add_partials(bench: &Bench, partial: &Tensor, sums: &Tensor) -> Launch {
    let launch = Launch::new(&bench.device, "rms_norm", "rms_norm_add_partials").unwrap();
    launch.tensor(partial).unwrap().tensor(sums).unwrap()
}

#[test]
fn a_kernel_gets_its_arguments_and_grid() {
    let Some(bench) = Bench::new() else { return };
    for width in [1, 31, 32, 33, 100] {
        let chunks = 1 + bench.below(4);
        let (partial, parts) = bench.matrix(chunks, width, DType::F32);
        let (sums, before) = bench.matrix(1, width, DType::F32);
        let launch = add_partials(&bench, &partial, &sums).u32(chunks as u32).u32(width as u32);
        launch.run(Grid::line(width.div_ceil(32) as u32, 64)).unwrap();
        let want: Vec<f64> = (0..width).map(|i| parts.iter().skip(i).step_by(width).sum()).collect();
        close("sums", &sums, &sum(&want, &before), chunks);
    }
}

#[test]
fn a_launch_that_cannot_be_right_is_an_error() {
    let Some(bench) = Bench::new() else { return };
    let (a, before) = bench.matrix(2, 32, DType::F32);
    let grid = Grid::line(1, 32);
    let launch = || add_partials(&bench, &a, &a);
    let refused = |launch: Launch, grid: Grid, part: &str| {
        let text = launch.run(grid).unwrap_err().to_string();
        assert!(text.contains("rms_norm_add_partials") && text.contains(part), "{text}");
    };
    refused(launch().u32(1), grid, "parameters");
    refused(launch().u32(1).u64(32), grid, "parameters");
    refused(launch().u32(1).u32(32).null(), grid, "parameters");
    refused(launch().u32(1).u32(32), Grid { threads: 1025, ..grid }, "1025");
    refused(launch().u32(1).u32(32), Grid { threads: 0, ..grid }, "threads: 0");
    refused(launch().u32(1).u32(32), Grid { blocks: [1, 65536, 1], ..grid }, "65536");
    refused(launch().u32(1).u32(32), Grid { shared_bytes: 300 << 10, ..grid }, "307200");
    launch().u32(1).u32(32).run(Grid::line(0, 32)).unwrap(); // nothing to do
    assert_eq!(values(&a), before, "no refused launch may run");

    let new = || Launch::new(&bench.device, "rms_norm", "rms_norm_add_partials").unwrap();
    for (tensor, part) in [(a.t().unwrap(), "not contiguous"), (a.to_device(&Device::Cpu).unwrap(), "Cpu")] {
        let text = new().tensor(&tensor).err().unwrap().to_string();
        assert!(text.contains("argument 0") && text.contains(part), "{text}");
    }
    let elsewhere = cuda::upload(&[1], &cuda::device(0).unwrap()).unwrap();
    assert!(new().tensor(&elsewhere).err().unwrap().to_string().contains("another CUDA device"));
    assert!(Launch::new(&Device::Cpu, "rms_norm", "rms_norm_add_partials").is_err());
    assert!(
        Launch::new(&bench.device, "no_such_file", "kernel").err().unwrap().to_string().contains("no_such")
    );
    assert!(Launch::typed(&bench.device, "rms_norm", "rms_norm_forward", DType::F16).is_err());
    // More than the 48 KiB that need no asking.
    launch().u32(0).u32(32).run(Grid { shared_bytes: 100 << 10, ..grid }).unwrap();
}

#[test]
fn linear_layers_are_their_products() {
    let Some(bench) = Bench::new() else { return };
    for dtype in TYPES {
        for (n, h, o) in [(1, 1, 1), (5, 8, 3), (17, 33, 40)] {
            let ((x, x64), (w, w64)) = (bench.matrix(n, h, dtype), bench.matrix(o, h, dtype));
            let y64 = product(&x64, &transposed(&w64, h), h);
            close("forward", &linear::forward(&x, &w).unwrap(), &y64, h);
            close("forward_as f32", &linear::forward_as(&x, &w, DType::F32).unwrap(), &y64, h);

            let (residual, residual64) = bench.matrix(n, o, dtype);
            let added = linear::forward_add(&residual, &x, &w, None).unwrap();
            close("forward_add", &added, &sum(&y64, &residual64), h);
            assert_eq!(values(&residual), residual64, "the residual stays");

            let (bias, bias64) = bench.matrix(1, o, dtype);
            let biased: Vec<f64> = y64.iter().zip(bias64.iter().cycle()).map(|(y, b)| y + b).collect();
            let bias = bias.squeeze(0).unwrap();
            let got = linear::forward_biased(&x, &w, Some(&bias)).unwrap();
            close("forward_biased", &got, &biased, h + 1);
            let got = linear::forward_add(&residual, &x, &w, Some(&bias)).unwrap();
            close("forward_add with a bias", &got, &sum(&biased, &residual64), h + 2);
            let scaled: Vec<f64> = y64.iter().map(|y| 2.5 * y).collect();
            close("forward_scaled", &linear::forward_scaled(&x, &w, 2.5).unwrap(), &scaled, 3 * h);

            // Columns of a wider matrix, whose others stay.
            let (wide, wide64) = bench.matrix(n, o + 3, dtype);
            linear::add_forward(&wide.narrow(1, 2, o).unwrap(), &x, &w).unwrap();
            let want = |i: usize| {
                let (row, column) = (i / (o + 3), i % (o + 3));
                let added = (2..2 + o).contains(&column).then(|| y64[row * o + column - 2]);
                wide64[i] + added.unwrap_or_default()
            };
            close("add_forward", &wide, &(0..wide64.len()).map(want).collect::<Vec<_>>(), h + 1);

            let ((dy, dy64), (dz, dz64)) = (bench.matrix(n, o, dtype), bench.matrix(n, o + 2, dtype));
            let (v, v64) = bench.matrix(o + 2, h, dtype);
            let dx = linear::backward_input(&dy, &w).unwrap();
            let first = product(&dy64, &w64, o);
            close("backward_input", &dx, &first, o);
            linear::add_backward_input(&dx, &dz, &v).unwrap();
            let second = product(&dz64, &v64, o + 2);
            if dtype == DType::F32 {
                close("add_backward_input", &dx, &sum(&first, &second), 2 * o + 2);
            } else {
                // The first product is rounded to bf16 before the second is added.
                for ((got, a), b) in values(&dx).iter().zip(&first).zip(&second) {
                    let allowed = rounding(dtype, *a) + rounding(dtype, a + b) + 1e-5;
                    assert!((got - a - b).abs() <= allowed, "{got}, want {}", a + b);
                }
            }

            let outer = product(&transposed(&dy64, o), &x64, n);
            for to in [DType::F32, dtype] {
                let (dw, dw64) = bench.matrix(o, h, to);
                linear::backward_weight(&dw, &dy, &x).unwrap();
                close("backward_weight", &dw, &sum(&outer, &dw64), n);
                let fresh = bench.poison(o, h, to);
                linear::backward_weight_into(&fresh, &dy, &x, Write::Overwrite).unwrap();
                close("backward_weight_into", &fresh, &outer, n);
            }
        }
    }
}

#[test]
fn products_without_terms_or_results() {
    let Some(bench) = Bench::new() else { return };
    let (a, _) = bench.matrix(3, 0, DType::BF16);
    let (b, _) = bench.matrix(2, 0, DType::BF16);
    assert_eq!(values(&linear::forward(&a, &b).unwrap()), [0.; 6]);
    let (c, before) = bench.matrix(3, 2, DType::BF16);
    gemm(Mat::of(&a), Mat::of(&b).t(), &c, Write::Accumulate).unwrap();
    assert_eq!(values(&c), before);
    let ((none, _), (w, _)) = (bench.matrix(0, 4, DType::F32), bench.matrix(5, 4, DType::F32));
    assert_eq!(linear::forward(&none, &w).unwrap().dims(), [0, 5]);
}

#[test]
fn products_that_do_not_fit_are_errors() {
    let Some(bench) = Bench::new() else { return };
    let of = |rows, cols, dtype| bench.matrix(rows, cols, dtype).0;
    let (x, w) = (of(3, 4, DType::BF16), of(5, 4, DType::BF16));
    for (x, w, part) in [
        (&x, &of(5, 3, DType::BF16), "shapes"),
        (&x, &of(5, 4, DType::F32), "bf16 or both f32"),
        (&x.to_device(&Device::Cpu).unwrap(), &w, "CPU"),
        (&x, &of(4, 5, DType::BF16).t().unwrap(), "no rows of contiguous"),
    ] {
        let text = linear::forward(x, w).unwrap_err().to_string().to_lowercase();
        assert!(text.contains(&part.to_lowercase()), "{text}");
    }
    assert!(linear::forward_as(&of(3, 4, DType::F32), &of(5, 4, DType::F32), DType::BF16).is_err());
}

/// One test that is else ignored, in a process of its own.
fn child(test: &str) -> std::process::Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("cuda_twin::{test}"), "--exact", "--ignored", "--nocapture"]).output().unwrap()
}

#[test]
fn the_twin_stops_a_kernel_that_leaves_its_arrays() {
    let Some(bench) = Bench::new() else { return };
    if !on_twin(&bench.device) {
        return; // would fault the device
    }
    let out = child("a_kernel_beyond_its_array");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    let place = "rlvr twin: rms_norm_add_partials, block (1, 0, 0), thread ";
    assert!(said.contains(place) && said.contains(" of an allocation of 128 bytes"), "{said}");
    let out = child("a_kernel_that_is_not_there");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("no kernel is named rms_norm_backwards"), "{said}");
}

#[test]
#[ignore = "faults; run by the_twin_stops_a_kernel_that_leaves_its_arrays"]
fn a_kernel_beyond_its_array() {
    let Some(bench) = Bench::new() else { return };
    let partial = bench.poison(2, 32, DType::F32);
    let sums = bench.poison(1, 32, DType::F32);
    let _ = add_partials(&bench, &partial, &sums).u32(1).u32(64).run(Grid::line(2, 32));
    cuda::synchronize(&bench.device).unwrap();
}

#[test]
#[ignore = "faults; run by the_twin_stops_a_kernel_that_leaves_its_arrays"]
fn a_kernel_that_is_not_there() {
    let Some(bench) = Bench::new() else { return };
    let _ = Launch::new(&bench.device, "rms_norm", "rms_norm_backwards").map(|_| ());
}

#[test]
fn a_run_whose_device_is_lost_says_so_ends_with_75_and_goes_on_with_another() {
    let Some(device) = device() else { return };
    if !on_twin(&device) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["device=cuda", "model.dtype=f32", "checkpoint.every_steps=1"]);
    let trace = dir.path().join("trace");
    let whole = small.command("whole", None).env("RLVR_TWIN_TRACE", &trace).output().unwrap();
    assert!(whole.status.success(), "{}", said(&whole));
    let text = std::fs::read_to_string(trace).unwrap();
    let launches = text.lines().filter(|line| line.contains(r#""launch""#)).count();
    let lost =
        small.command("lost", None).env("RLVR_TWIN_LOST", (launches * 3 / 4).to_string()).output().unwrap();
    let text = said(&lost);
    assert_eq!(lost.status.code(), Some(75), "{text}");
    let error = text.lines().find(|line| line.starts_with("error: the device is lost: ")).unwrap();
    assert!(error.contains("CUDA_ERROR_ECC_UNCORRECTABLE"), "{error}");
    let kept = text.lines().rfind(|line| line.starts_with("stopped: ")).unwrap();
    assert!(kept.contains("checkpoints/step-") && kept.contains("rlvr train --resume "), "{kept}");
    let again = small.train("lost", None);
    assert!(again.status.success(), "{}", said(&again));
    assert!(left(&dir.path().join("lost")) == left(&dir.path().join("whole")));
}
