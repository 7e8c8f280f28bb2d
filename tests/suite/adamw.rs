//! AdamW against torch.optim.AdamW (golden file), and the clip by global norm by hand.

use candle_core::{Device, Tensor};
use rlvr::ops::adamw::{Moment, Parameter, Precision, Update, update};

use crate::golden::golden_dir;
use crate::model_parity::{floats, relative_error};

fn matrix(value: &serde_json::Value) -> Tensor {
    let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[test]
fn golden_five_steps_equal_torch() {
    let Some(dir) = golden_dir() else { return };
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
