//! The learning rate of each step.

use std::f64::consts::PI;

use crate::config::optim::{DecayShape, OptimConfig, ScheduleConfig};

/// Learning rate of step `step` (the first is 0) of a stage of `total_steps`. A pure function: nothing of it
/// has to be saved for a resume.
///
/// With W warm-up steps, step `s < W` takes `(s + 1) / (W + 1)` of the peak: the first step is not wasted on a
/// rate of 0, and step W is the first at the peak. From there `p = (s - W) / (total_steps - W)` runs from 0
/// towards 1 and the rate from the peak towards the minimum, which a step after the last one would take.
/// `warmup_ratio` and `decay_ratio` are rounded up to whole steps.
pub fn learning_rate(config: &OptimConfig, step: u64, total_steps: u64) -> f64 {
    let peak = config.learning_rate;
    let warmup = warmup_steps(config, total_steps);
    if step < warmup {
        return peak * (step + 1) as f64 / (warmup + 1) as f64;
    }
    let decay_steps = total_steps.saturating_sub(warmup).max(1);
    let progress = ((step - warmup) as f64 / decay_steps as f64).min(1.0);
    match config.schedule {
        ScheduleConfig::Constant {} => peak,
        ScheduleConfig::Linear { min_learning_rate: min } => min + (peak - min) * (1.0 - progress),
        ScheduleConfig::Cosine { min_learning_rate: min, cycles } => {
            // Past its last step a stage is at the end of its last cycle, not at the start of another.
            let progress = if progress < 1.0 { (progress * cycles as f64).fract() } else { 1.0 };
            min + (peak - min) * half_cosine(progress)
        }
        ScheduleConfig::WarmupStableDecay { decay_ratio, decay, min_learning_rate: min } => {
            let decay_steps = whole_steps(decay_ratio, total_steps).clamp(1, total_steps.max(1));
            let into = (step + decay_steps).saturating_sub(total_steps);
            let progress = (into as f64 / decay_steps as f64).min(1.0);
            let left = match decay {
                DecayShape::Cosine => half_cosine(progress),
                DecayShape::Linear => 1.0 - progress,
                DecayShape::OneMinusSqrt => 1.0 - progress.sqrt(),
            };
            min + (peak - min) * left
        }
    }
}

fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

fn warmup_steps(config: &OptimConfig, total_steps: u64) -> u64 {
    if config.warmup_steps > 0 {
        return config.warmup_steps;
    }
    whole_steps(config.warmup_ratio, total_steps)
}

fn whole_steps(ratio: f64, total_steps: u64) -> u64 {
    // 0.1 * 30 is a little more than 3 in binary; the slack keeps that from becoming 4.
    (ratio * total_steps as f64 - 1e-9).ceil().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(config: &OptimConfig, total: u64) -> Vec<f64> {
        (0..total).map(|step| learning_rate(config, step, total)).collect()
    }

    #[track_caller]
    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?} is not {want:?}");
    }

    #[test]
    fn constant_after_a_warmup_of_three_steps() {
        let config = OptimConfig { learning_rate: 8.0, warmup_steps: 3, ..Default::default() };
        close(&rates(&config, 6), &[2.0, 4.0, 6.0, 8.0, 8.0, 8.0]);
    }

    #[test]
    fn a_line_to_the_floor() {
        let schedule = ScheduleConfig::Linear { min_learning_rate: 2.0 };
        let config = OptimConfig { learning_rate: 10.0, schedule, ..Default::default() };
        close(&rates(&config, 4), &[10.0, 8.0, 6.0, 4.0]);
        assert_eq!(learning_rate(&config, 4, 4), 2.0);
        assert_eq!(learning_rate(&config, 99, 4), 2.0);
    }

    #[test]
    fn half_a_cosine_to_the_floor() {
        // One of 5 steps warms up; p = 0, 1/4, 1/2, 3/4 follow: 0.5 (1 + cos(pi/4)) = 0.853553...
        let schedule = ScheduleConfig::Cosine { min_learning_rate: 1.0, cycles: 1 };
        let config = OptimConfig { learning_rate: 9.0, schedule, warmup_ratio: 0.2, ..Default::default() };
        close(
            &rates(&config, 5),
            &[4.5, 9.0, 1.0 + 8.0 * 0.853_553_390_593_273_8, 5.0, 1.0 + 8.0 * 0.146_446_609_406_726_24],
        );
    }

    #[test]
    fn a_ratio_rounds_up_to_whole_steps() {
        let with = |warmup_ratio| OptimConfig { warmup_ratio, ..Default::default() };
        assert_eq!(warmup_steps(&with(0.1), 30), 3);
        assert_eq!(warmup_steps(&with(0.1), 31), 4);
        assert_eq!(warmup_steps(&with(0.01), 5), 1);
        assert_eq!(warmup_steps(&with(0.0), 5), 0);
    }

    #[test]
    fn a_warmup_longer_than_the_stage_still_rises() {
        let config = OptimConfig { learning_rate: 10.0, warmup_steps: 9, ..Default::default() };
        close(&rates(&config, 3), &[1.0, 2.0, 3.0]);
    }

    #[test]
    fn golden_rates_after_the_warmup_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/schedules.json");
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (peak, total) = (golden["peak"].as_f64().unwrap(), golden["total"].as_u64().unwrap());
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 7);
        for case in cases {
            let (name, arguments) = (case["name"].as_str().unwrap(), &case["arguments"]);
            let least =
                arguments["min_lr_rate"].as_f64().or(arguments["min_lr_ratio"].as_f64()).unwrap_or(0.0);
            let least = least * peak;
            let schedule = match name {
                "linear" => ScheduleConfig::Linear { min_learning_rate: least },
                "warmup_stable_decay" => ScheduleConfig::WarmupStableDecay {
                    decay_ratio: arguments["num_decay_steps"].as_f64().unwrap() / total as f64,
                    decay: serde_json::from_value(arguments["decay_type"].clone()).unwrap(),
                    min_learning_rate: least,
                },
                _ => {
                    let cycles = arguments["num_cycles"].as_u64().unwrap_or(1);
                    ScheduleConfig::Cosine { min_learning_rate: least, cycles }
                }
            };
            let warmup_steps = golden["warmup"].as_u64().unwrap();
            let config = OptimConfig { learning_rate: peak, schedule, warmup_steps, ..Default::default() };
            let got = rates(&config, total).split_off(warmup_steps as usize);
            let want: Vec<f64> =
                case["rates"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
            let near = |(g, w): (&f64, &f64)| (g - w).abs() <= 1e-12 * peak;
            assert!(got.len() == 17 && got.iter().zip(&want).all(near), "{name}: {got:?} is not {want:?}");
        }
    }
}
