//! AdamW against torch.optim.AdamW (golden file), and the clip by global norm by hand.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rlvr::config::optim::{MomentsConfig, OptimConfig};
use rlvr::model::decoder::Decoder;
use rlvr::ops::adamw::{Moment, Parameter, Precision, Update, update};
use rlvr::optim::adamw::{AdamW, Bf16Weights};
use rlvr::rng::{Purpose, Stream};

use crate::support::golden::golden_dir;
use crate::support::models::small_decoder;
use crate::support::runs::rlvr;
use crate::support::tensors::{floats, relative_error};

fn matrix(value: &serde_json::Value) -> Tensor {
    let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[test]
fn golden_five_steps_equal_torch() {
    let dir = golden_dir();
    let text = std::fs::read_to_string(dir.join("adamw.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| golden[key].as_f64().unwrap();
    let weight = matrix(&golden["w0"]).copy().unwrap();
    let (first, second) = (Moment::zeros(&weight).unwrap(), Moment::zeros(&weight).unwrap());
    let steps = &golden["weights_after_each_step"];
    for (i, gradient) in golden["grads"].as_array().unwrap().iter().enumerate() {
        let numbers = Update {
            learning_rate: number("lr"),
            beta1: golden["betas"][0].as_f64().unwrap(),
            beta2: golden["betas"][1].as_f64().unwrap(),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            step: i as u64 + 1,
            gradient_scale: 1.0,
        };
        let gradient = matrix(gradient);
        let precision = Precision::Full;
        let parameter =
            Parameter { weight: &weight, precision, gradient: &gradient, first: &first, second: &second };
        update(&parameter, &numbers).unwrap();
        let error = relative_error(&floats(&weight), &floats(&matrix(&steps[i])));
        println!("step {}: relative error {error:.1e}", i + 1);
        assert!(error < 1e-6);
    }
}

#[test]
fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
    // m / (1 - b1) = g, sqrt(v / (1 - b2)) = |g|: the step is lr * sign(g), whatever the clip did to g.
    let weight = Tensor::new(&[1f32, 1.0], &Device::Cpu).unwrap();
    let gradient = Tensor::new(&[3f32, -4.0], &Device::Cpu).unwrap();
    let (first, second) = (Moment::zeros(&weight).unwrap(), Moment::zeros(&weight).unwrap());
    let numbers = Update {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 0.0,
        weight_decay: 0.0,
        step: 1,
        gradient_scale: 0.2,
    };
    let parameter = Parameter {
        weight: &weight,
        precision: Precision::Full,
        gradient: &gradient,
        first: &first,
        second: &second,
    };
    update(&parameter, &numbers).unwrap();
    assert!(relative_error(&floats(&weight), &[0.9, 1.1]) < 1e-6);
    // The moments saw the clipped gradient, 0.6 and -0.8.
    let Moment::F32(first) = first else { panic!("f32 moments") };
    assert!(relative_error(&floats(&first), &[0.06, -0.08]) < 1e-6);
}

/// Pulls every weight towards those of `goal` with noisy gradients; returns the squared distance that is left.
fn pull(decoder: &mut Decoder, goal: &Decoder, optimizer: &mut AdamW, steps: std::ops::Range<u64>) -> f64 {
    let config = OptimConfig { max_grad_norm: 1.0, weight_decay: 0.0, ..OptimConfig::default() };
    let mut gradients = decoder.zero_gradients();
    for step in steps {
        gradients.clear();
        for (i, ((_, w), (_, goal))) in decoder.parameters().zip(goal.parameters()).enumerate() {
            let noise = Stream::new(4, Purpose::Bench, [step as u32, i as u32, 0]);
            // Gradients of very different sizes within a block of 256.
            let gradient: Vec<f32> = (0u32..)
                .zip(floats(w).iter().zip(floats(goal)))
                .map(|(j, (w, goal))| (w - goal + 0.1 * noise.normal(j)) * 10f32.powi(-((j % 3) as i32)))
                .collect();
            let gradient = Tensor::from_vec(gradient, w.shape(), &Device::Cpu).unwrap();
            rlvr::ops::elementwise::add_assign(gradients.at(i).unwrap().unwrap(), &gradient).unwrap();
        }
        let rate = 0.02 * (1.0 - step as f64 / 150.0);
        optimizer.step(decoder, &gradients, &config, rate).unwrap();
    }
    distance(decoder, goal)
}

fn distance(a: &Decoder, b: &Decoder) -> f64 {
    let pairs = a.parameters().zip(b.parameters());
    pairs
        .flat_map(|((_, a), (_, b))| floats(a).into_iter().zip(floats(b)))
        .map(|(a, b)| f64::from(a - b).powi(2))
        .sum()
}

fn optimizer(decoder: &Decoder, moments: MomentsConfig) -> AdamW {
    AdamW::with(decoder, moments, Bf16Weights::Masters).unwrap()
}

#[test]
fn coded_moments_converge_as_full_ones_do() {
    let goal = small_decoder(2);
    let start = distance(&small_decoder(1), &goal);
    let [full, coded] = [MomentsConfig::F32, MomentsConfig::Int8].map(|moments| {
        let mut decoder = small_decoder(1);
        let mut optimizer = optimizer(&decoder, moments);
        pull(&mut decoder, &goal, &mut optimizer, 0..150)
    });
    println!("squared distance {start:.1}, f32 moments {full:.3}, 8-bit moments {coded:.3}");
    assert!(full < 0.05 * start, "the problem is solvable: {full} of {start}");
    assert!(coded < 1.2 * full, "{coded} with 8-bit moments, {full} with f32");
}

#[test]
fn an_optimiser_restored_from_its_state_goes_on_bit_for_bit() {
    for moments in [MomentsConfig::F32, MomentsConfig::Int8] {
        let (mut decoder, goal) = (small_decoder(1), small_decoder(2));
        let mut first = optimizer(&decoder, moments);
        pull(&mut decoder, &goal, &mut first, 0..3);
        let mut copy = decoder.deep_copy().unwrap();
        let (step, state) = first.state(&decoder);
        let saved: HashMap<String, Tensor> =
            state.into_iter().map(|(name, t)| (name, t.copy().unwrap())).collect();
        let bytes = saved.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum::<usize>();
        let weights = decoder.parameters().map(|(_, w)| w.elem_count()).sum::<usize>();
        assert!(moments == MomentsConfig::F32 || bytes * 10 < weights * 21, "{bytes} for {weights} weights");
        let find = |name: &str| {
            let absent = || rlvr::error::Error::input(name, "is absent", "");
            saved.get(name).cloned().ok_or_else(absent)
        };
        let mut second = AdamW::restore(&copy, step, find).unwrap();
        pull(&mut decoder, &goal, &mut first, 3..6);
        pull(&mut copy, &goal, &mut second, 3..6);
        assert_eq!(second.updates(), 6);
        for ((name, a), (_, b)) in decoder.parameters().zip(copy.parameters()) {
            assert!(floats(a) == floats(b), "{moments:?}: {name}");
        }
        let without = |name: &str| {
            if name.contains("down_proj") {
                Err(rlvr::error::Error::input(name, "is absent", ""))
            } else {
                find(name)
            }
        };
        assert!(AdamW::restore(&copy, step, without).is_err());
    }
}

#[test]
fn a_run_with_coded_moments_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let root = format!("run.root={}", dir.path().display());
    let sets = [
        "threads=2",
        "stages=[\"sft\"]",
        "data.synthetic.sft_rows=100",
        "data.synthetic.valid_rows=8",
        "sft.rows_per_step=8",
        "sft.epochs=0.4",
        "sft.optim.moments=int8",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=99",
        "run.name=whole",
        root.as_str(),
    ];
    let mut args = vec!["train", "demo", "--set", "device=cpu"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let output = rlvr(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = dir.path().join("whole");
    let model = run.join("model/model.safetensors");
    let whole = std::fs::read(&model).unwrap();
    std::fs::remove_dir_all(run.join("model")).unwrap();
    let checkpoint = last_but_one(&run.join("checkpoints"));
    assert!(checkpoint.starts_with("step-"), "{checkpoint}");
    let output = rlvr(&["train", "--resume", run.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(&model).unwrap() == whole);
}

/// Removes the last checkpoint and names the one that is last then: one within the stage.
fn last_but_one(folder: &Path) -> String {
    let mut steps: Vec<u64> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    let last = steps.pop().unwrap();
    std::fs::remove_dir_all(folder.join(format!("step-{last}"))).unwrap();
    format!("step-{}", steps.last().expect("more than one checkpoint"))
}
