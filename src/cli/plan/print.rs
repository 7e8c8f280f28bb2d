//! What `rlvr plan` prints.

use serde_json::{Map, Value, json};

use super::{Duration, GIB, Planned, Settled, Shape, ranks};
use crate::config::ActivationMemory;
use crate::plan::time::{Leg, Parts};

fn place(planned: &Planned) -> String {
    format!("{} {}", if planned.target.cuda { "cuda" } else { "cpu" }, planned.target.dtype.as_str())
}

/// `main` in full, and the other cards.
pub fn json(
    source: &str,
    shape: &Shape,
    all: &[Planned],
    main: &Planned,
    cheapest: Option<&Planned>,
) -> Value {
    let phases = main.plan.phases.iter().map(|phase| {
        let items = phase.items.iter().map(|item| (item.what.clone(), item.bytes.into()));
        let items: Map<_, _> = items.collect();
        json!({"phase": phase.name, "bytes": phase.bytes(), "items": items})
    });
    let mut object = json!({
        "model": shape.name, "parameters": main.plan.parameters, "config": source, "on": place(main),
        "phases": phases.collect::<Vec<_>>(), "peak_bytes": main.plan.peak(), "budget_bytes": main.budget,
        "fits": main.fits(), "changes": changes(main), "checkpoint_copy_bytes": main.copied,
    });
    if let Some(ranks) = ranks::json(main) {
        object["ranks"] = ranks;
    }
    let name = |planned: &Planned| planned.gpu.map(|gpu| gpu.name);
    if let Some(duration) = &main.duration {
        object["gpu"] = json!(name(main));
        object["time"] = time(duration);
        let cards = all.iter().map(|planned| {
            json!({
                "gpu": name(planned), "fits": planned.fits(), "peak_bytes": planned.plan.peak(),
                "budget_bytes": planned.budget, "changes": changes(planned),
                "time": planned.duration.as_ref().map(time),
            })
        });
        object["cards"] = cards.collect();
        object["cheapest"] = json!(cheapest.and_then(name));
    }
    object
}

fn changes(planned: &Planned) -> Vec<Value> {
    let changes = planned.changes.iter();
    changes.map(|change| json!({"set": change.setting, "peak_bytes": change.peak})).collect()
}

fn time(duration: &Duration) -> Value {
    let legs = duration.legs.iter().map(|leg| {
        let parts = Parts::NAMES.into_iter().zip(leg.each.all());
        let parts: Map<_, _> = parts.map(|(name, seconds)| (name.to_string(), seconds.into())).collect();
        json!({"of": leg.what, "times": leg.times, "seconds_each": leg.step(), "parts": parts})
    });
    json!({
        "legs": legs.collect::<Vec<_>>(), "seconds": duration.seconds, "efficiency": duration.source(),
        "peak_flops": duration.rates.flops, "peak_bytes_per_second": duration.rates.bandwidth,
        "price_per_hour": duration.price, "dollars": duration.dollars(),
    })
}

pub fn heading(source: &str, shape: &Shape, planned: &Planned) {
    let Planned { config, plan, settled, gpu, .. } = planned;
    let (data, grpo, pack) = (&config.data, &config.grpo, &config.pack);
    println!("model    {}, {:.3} billion parameters{}", shape.name, plan.parameters as f64 / 1e9, shape.note);
    let card = gpu.map_or(String::new(), |gpu| format!(", {}", gpu.name));
    println!("config   {source}, {}{card}", place(planned));
    println!(
        "steps    sft {} rows; grpo {} prompts x {} completions; {} + {} tokens at most",
        config.sft.rows_per_step,
        grpo.prompts_per_step,
        grpo.group_size,
        data.max_prompt_tokens,
        grpo.max_completion_tokens
    );
    println!(
        "packs    {} tokens in training, {} in rollouts",
        pack.max_tokens_per_pack,
        pack.rollout_tokens()
    );
    if let Some(Settled { activations, max_reused_tokens, max_rollout_tokens, .. }) = settled {
        let kept = if *activations == ActivationMemory::Keep { "keep" } else { "recompute" };
        println!(
            "auto     pack.activations={kept} pack.max_reused_tokens={max_reused_tokens} \
             pack.max_rollout_tokens={max_rollout_tokens}"
        );
    }
    ranks::heading(planned);
}

/// Phases, the peak, and what helps where it is too much. `memory`: what the budget is.
pub fn memory(planned: &Planned, memory: &str) {
    let Planned { plan, budget, changes, .. } = planned;
    for phase in &plan.phases {
        println!("\n{:<34} {:9.2} GiB", phase.name, phase.bytes() as f64 / GIB);
        for item in &phase.items {
            println!("    {:<30} {:9.2}", item.what, item.bytes as f64 / GIB);
        }
    }
    println!("\n{:<34} {:9.2} GiB", "peak", plan.peak() as f64 / GIB);
    if planned.copied > 0 {
        println!("{:<34} {:9.2} GiB of host memory", "a checkpoint's copy", planned.copied as f64 / GIB);
        println!("    while it is written; without room for it in the foreground (checkpoint.background)");
    }
    let Some(budget) = *budget else {
        println!("Add --memory-gib N to compare it with a device's memory.");
        return;
    };
    println!("{memory:<34} {:9.2} GiB", budget as f64 / GIB);
    if plan.peak() <= budget {
        println!("It fits.");
        return;
    }
    println!("\nIt does not fit. What helps, each on top of those before it:");
    for change in changes {
        println!(
            "    --set {:<60} {:9.2} GiB",
            change.setting.replace(' ', " --set "),
            change.peak as f64 / GIB
        );
    }
    if changes.last().is_none_or(|last| last.peak > budget) {
        println!(
            "That is not enough: train an adapter (--set lora.rank=16), lower data.max_prompt_tokens or \
             *.max_completion_tokens, or choose a smaller model."
        );
    }
}

/// Seconds of a step, hours of a stage, dollars of all.
pub fn duration(planned: &Planned, duration: &Duration) {
    let (place, rates) = (planned.gpu.map_or("the CPU here", |gpu| gpu.name), duration.rates);
    println!(
        "\ntime on {place}: roofline of {:.0} GFLOP/s and {:.0} GB/s; efficiency: {}",
        rates.flops / 1e9,
        rates.bandwidth / 1e9,
        duration.source()
    );
    let names = Parts::NAMES.map(|name| format!("{name:>10}")).concat();
    let waits = planned.ranks.network.is_some();
    let waited = if waits { format!("{:>10}", "waiting") } else { String::new() };
    println!("{:<12}{:>7}{:>10}{names}{waited}{:>10}", "", "times", "s each", "hours");
    let width = if waits { 79 } else { 69 };
    for leg in &duration.legs {
        let Leg { what, times, each, traffic } = leg;
        let number = |seconds: f64| format!("{seconds:>10.2}");
        // What no row is known of has no time.
        let all = Some(leg.step()).filter(|seconds| *seconds > 0.0).map_or(format!("{:>10}", "?"), number);
        let parts = each.all().map(number).concat();
        let waited = if waits { number(traffic.seconds) } else { String::new() };
        let times = times.map_or("?".into(), |times| times.to_string());
        let hours = leg.seconds().map_or("?".into(), |seconds| format!("{:.2}", seconds / 3600.0));
        println!("{what:<12}{times:>7}{all}{parts}{waited}{hours:>10}");
    }
    match duration.seconds {
        Some(seconds) => println!("{:<width$}{:>10.2}", "all", seconds / 3600.0),
        None => {
            println!("The files of data.* are not here: add --train-rows and --valid-rows for the whole.")
        }
    }
    if let (Some(price), Some(dollars)) = (duration.price, duration.dollars()) {
        println!("{:<width$}{dollars:>10.2}", format!("dollars, at {price:.2} an hour"));
    }
    ranks::traffic(planned, duration);
}

pub fn comparison(all: &[Planned], cheapest: Option<&Planned>) {
    println!(
        "\n{:<10}{:>6}{:>12}{:>12}{:>10}{:>10}{:>10}",
        "", "fits", "peak, GiB", "has, GiB", "hours", "$/h", "$"
    );
    for planned in all {
        let (name, duration) = (planned.gpu.map_or("", |gpu| gpu.name), planned.duration.as_ref());
        let number = |number: Option<f64>| number.map_or("?".into(), |number| format!("{number:.2}"));
        println!(
            "{name:<10}{:>6}{:>12.2}{:>12.2}{:>10}{:>10}{:>10}",
            if planned.fits() == Some(true) { "yes" } else { "no" },
            planned.plan.peak() as f64 / GIB,
            planned.budget.unwrap_or(0) as f64 / GIB,
            number(duration.and_then(|d| d.seconds).map(|seconds| seconds / 3600.0)),
            number(duration.and_then(|d| d.price)),
            number(planned.dollars()),
        );
    }
    match cheapest {
        Some(planned) => println!("The cheapest that fits: {}.", planned.gpu.map_or("", |gpu| gpu.name)),
        None if all.iter().all(|planned| planned.fits() == Some(false)) => {
            println!("None fits; what to change is said above for the one with the most memory.");
        }
        None if all.iter().any(|planned| planned.duration.as_ref().is_some_and(|d| d.price.is_some())) => {
            println!("Which is cheapest takes the whole run's time, and a price of each card that fits.");
        }
        None => println!("Which is cheapest takes a price of each: --price h100=2.50,l40s=0.90"),
    }
}
