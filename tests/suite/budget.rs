//! A run that is paid for by the hour: what it says of its cost, and that it stops at a bound and goes on.

use std::path::Path;
use std::process::Command;

use rlvr::plan::World;
use rlvr::plan::cost::Rates;
use rlvr::plan::time::{Measured, Roofline};
use serde_json::Value;

fn rlvr(dir: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr")).args(words).current_dir(dir).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code(), text)
}

const SMALL: [&str; 13] = [
    "run.name=\"a\"",
    "device=cpu",
    "threads=1",
    "model.random.hidden_size=32",
    "model.random.intermediate_size=32",
    "model.random.layers=1",
    "data.synthetic.sft_rows=64",
    "data.synthetic.grpo_rows=64",
    "data.synthetic.valid_rows=8",
    "grpo.steps=2",
    "grpo.prompts_per_step=2",
    "grpo.group_size=2",
    "eval.every_steps=0",
];

fn train(dir: &Path, more: &[&str]) -> (Option<i32>, String) {
    let settings = SMALL.iter().chain(more).flat_map(|setting| ["--set", setting]);
    rlvr(dir, &["train", "demo"].into_iter().chain(settings).collect::<Vec<_>>())
}

fn lines(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("runs/a/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_stops_at_its_bound_and_goes_on_with_a_higher_one() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (code, text) = train(dir, &["run.price_per_hour=2.5", "run.max_cost=1e-9"]);
    assert_eq!(code, Some(75), "{text}");
    assert!(text.contains("run.max_cost = 0.000000001 is reached: the run has cost"), "{text}");
    let step = lines(dir).into_iter().find(|line| line["event"] == "step").unwrap();
    let [hours, cost, more] = ["hours", "cost", "cost_to_come"].map(|name| step[name].as_f64().unwrap());
    assert!(hours > 0.0 && (cost - 2.5 * hours).abs() < 1e-12 && more > 0.0, "{step}");
    assert_eq!(lines(dir).iter().filter(|line| line["event"] == "step").count(), 1);

    let resume = ["train", "--resume", "runs/a"];
    let (code, text) = rlvr(dir, &resume);
    assert_eq!(code, Some(2), "stopping at once again would cost and bring nothing: {text}");
    assert!(text.contains("Raise it in the run's config.resolved.toml"), "{text}");
    let config = dir.join("runs/a/config.resolved.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let raised =
        text.lines().map(|line| if line.starts_with("max_cost") { "max_cost = 1000.0" } else { line });
    let raised = raised.collect::<Vec<_>>().join("\n");
    std::fs::write(&config, raised).unwrap();
    let (code, text) = rlvr(dir, &resume);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the run took") && text.contains("at 2.5 an hour"), "{text}");
    let hours: Vec<f64> = lines(dir).iter().filter_map(|line| line["hours"].as_f64()).collect();
    assert_eq!(hours.len(), 6, "4 steps of SFT, 2 of GRPO: {text}");
    assert!(hours.windows(2).all(|pair| pair[1] > pair[0]), "the time of both parts adds up: {hours:?}");
}

#[test]
fn a_bound_that_would_do_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (setting, part) in [
        ("run.max_cost=5", "run.price_per_hour is not set"),
        ("run.max_hours=0", "run.max_hours = 0: must be above 0"),
        ("run.price_per_hour=-1", "run.price_per_hour = -1: must be above 0"),
    ] {
        let (code, text) = train(folder.path(), &[setting]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(part), "{text}");
    }
}

/// No machine has the memory of this rollout: a group of it takes terabytes.
#[test]
fn train_refuses_what_cannot_fit_before_it_loads_anything() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let large = ["grpo.group_size=4096", "grpo.max_completion_tokens=1000000", "model.max_positions=2000000"];
    let (code, text) = train(dir, &large);
    assert_eq!(code, Some(2), "{text}");
    let error = text.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("error: memory: the run takes") && error.contains("grpo rollout"), "{error}");
    assert!(error.contains("--allow-over-budget") && error.contains("choose a smaller model"), "{error}");
    assert_eq!(std::fs::read_dir(dir.join("runs")).unwrap().count(), 0, "the name is free again");
}

fn stdout(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr")).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr")).args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn plan_compares_cards_by_price_and_names_what_is_an_estimate() {
    let words = [
        "plan",
        "riskcue-llama3.1-8b",
        "--price",
        "h100=2.50,l40s=0.90",
        "--train-rows",
        "2421",
        "--valid-rows",
        "471",
        "--set",
        "model.path=\"llama-3.1-8b\"",
        "--json",
    ];
    let json: Value = serde_json::from_str(&stdout(&words)).unwrap();
    // 80 GB hold 51 GiB of weights, moments and the rest; 48 GB do not.
    assert_eq!(
        (&json["cheapest"], &json["gpu"], &json["fits"]),
        (&"h100".into(), &"h100".into(), &true.into())
    );
    assert_eq!((&json["cards"][1]["gpu"], &json["cards"][1]["fits"]), (&"l40s".into(), &false.into()));
    let time = &json["time"];
    assert!(time["efficiency"].as_str().unwrap().contains("estimate, not measured"), "{time}");
    let (seconds, dollars) = (time["seconds"].as_f64().unwrap(), time["dollars"].as_f64().unwrap());
    assert!(seconds > 3600.0 && (dollars - seconds / 3600.0 * 2.5).abs() < 1e-9, "{time}");
    let text = stdout(&words[..words.len() - 1]);
    assert!(text.contains("The cheapest that fits: h100."), "{text}");
    let none = stdout(&["plan", "riskcue-llama3.1-8b", "--gpu", "4090", "--set", "pack.activations=keep"]);
    assert!(none.contains("It does not fit. What helps") && none.contains("add --train-rows"), "{none}");
}

#[test]
fn plan_adds_up_several_cards_and_refuses_those_without_work() {
    // With what is kept left to the plan, many cards would keep more.
    let many = "plan riskcue-llama3.1-8b --model llama-3.1-8b --gpu h100 --set pack.activations=recompute --set pack.max_reused_tokens=0";
    let many: Vec<&str> = many.split(' ').collect();
    let words = [
        &many[..],
        &["--gpus", "8", "--nodes", "2", "--link", "ib400", "--price", "2", "--shard", "zero2", "--json"],
    ]
    .concat();
    let json: Value = serde_json::from_str(&stdout(&words)).unwrap();
    let ranks = &json["ranks"];
    assert_eq!((&ranks["size"], &ranks["shard"]), (&16.into(), &"zero2".into()));
    let grpo = &ranks["steps"][1];
    let waited = grpo["waited_seconds"].as_f64().unwrap();
    assert!(waited > 0.0 && grpo["efficiency"].as_f64().unwrap() < 1.0, "{grpo}");
    assert_eq!(json["time"]["price_per_hour"], 32.0);
    let alone: Value = serde_json::from_str(&stdout(&[&many[..], &["--json"]].concat())).unwrap();
    assert!(json["peak_bytes"].as_u64() < alone["peak_bytes"].as_u64() && alone["ranks"].is_null());
    let uneven = stdout(&[&many[..], &["--gpus", "6"]].concat());
    assert!(uneven.contains("grpo.prompts_per_step 32 on 6 cards: 2 have 6 groups, 4 have 5"), "{uneven}");
    for (flags, part) in [
        (&["--gpus", "0"][..], "from 1 to 1024"),
        (&["--gpus", "8", "--nodes", "8", "--link", "ib400"], "32 of 64 cards would have no groups"),
        (&["--gpus", "8", "--link", "carrier-pigeon"], "one of nvlink, pcie4, ib400, eth25"),
        (&["--gpus", "8", "--nodes", "2"], "names no network between the nodes"),
        (&["--link", "nvlink"], "does nothing for one card"),
        (&["--gpus", "8", "--shard", "zero3"], "one of none, zero1, zero2"),
        (
            &[
                "--gpus",
                "8",
                "--shard",
                "zero2",
                "--set",
                "lora.rank=8",
                "--set",
                "grpo.optim.gradients=f32",
                "--set",
                "sft.optim.gradients=f32",
            ],
            "none with [lora]",
        ),
    ] {
        let said = refused(&[&many[..], flags].concat());
        assert!(said.contains(part), "{flags:?}: {said}");
    }
    let cpu = refused(&["plan", "demo", "--gpus", "2"]);
    assert!(cpu.contains("the plan is of a CPU"), "{cpu}");
}

#[test]
fn the_page_of_many_gpus_says_what_the_plan_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/many-gpus.md");
    let page = std::fs::read_to_string(page).unwrap();
    let command = page.lines().find_map(|line| line.strip_prefix("    rlvr plan --scaling")).unwrap();
    let words = command.split_whitespace().map(|word| word.trim_matches('\''));
    let table = stdout(&["plan", "--scaling"].into_iter().chain(words).collect::<Vec<_>>());
    assert!(
        table.lines().count() > 20 && page.contains(&table),
        "docs/many-gpus.md has another table:\n{table}"
    );
}

/// On the CPU the efficiency is that of a step which is timed.
#[test]
fn plan_times_a_step_on_the_cpu() {
    let demo = ["plan", "demo", "--set", "device=cpu", "--set", "threads=1", "--price", "0.1", "--json"];
    let dir = tempfile::tempdir().unwrap();
    let bench = [
        "bench",
        "step",
        "--preset",
        "tiny",
        "--random-weights",
        "--prompt-tokens",
        "32",
        "--new-tokens",
        "4",
    ];
    let line = stdout(&[&bench[..], &["--threads", "1", "--steps", "1", "--json"]].concat());
    let file = dir.path().join("step.jsonl");
    std::fs::write(&file, line).unwrap();
    let by_file = [&demo[..], &["--bench", file.to_str().unwrap()]].concat();
    for (words, source) in [(&demo[..], "a step on this CPU just now"), (&by_file, file.to_str().unwrap())] {
        let json: Value = serde_json::from_str(&stdout(words)).unwrap();
        let time = &json["time"];
        assert_eq!(time["efficiency"], format!("measured by {source}"));
        let times: Vec<_> = time["legs"].as_array().unwrap().iter().map(|leg| leg["times"].clone()).collect();
        // 6,400 rows by 16; steps; before, after both stages, and at 50, 100, 150.
        assert_eq!(times, [400, 200, 6]);
        assert!(time["dollars"].as_f64() > Some(0.0), "{time}");
    }
    let more = refused(&[&demo[..5], &["threads=2", "--bench", file.to_str().unwrap()]].concat());
    assert!(more.contains("no step on the CPU in f32 with 2 threads"), "{more}");
}

/// Steps as they were timed on quiet machines, planned from another of the same file. Rates: benches/results/cpu.md.
#[test]
fn recorded_steps_are_planned_from_one_of_them_within_15_percent() {
    let steps = |file: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results").join(file);
        let mut steps = Measured::read(&path).unwrap();
        // A group of one has no advantage, and so no update.
        steps.retain(|step| step.config.grpo.group_size > 1);
        steps
    };
    let rates = Rates { flops: 390e9, bandwidth: 23e9 };
    let planned = |from: &Measured, step: &Measured| {
        let Measured { model, config, target, seconds, .. } = step;
        let line = Roofline { model, config, target: *target, rates, world: World::ONE };
        let planned = line.grpo().unwrap().over(from.shares(rates).unwrap());
        planned.total() / seconds.total()
    };
    let groups = steps("cpu-groups.jsonl");
    let eight = groups.iter().find(|step| step.config.grpo.group_size == 8).unwrap();
    let ratios: Vec<f64> = groups.iter().map(|step| planned(eight, step)).collect();
    assert_eq!(ratios.len(), 5);
    // Activations kept and blocks recomputed, each from the other.
    let [recomputed, kept] = &steps("cpu-peers.jsonl")[..] else { panic!("two steps") };
    let ratios = [ratios, vec![planned(kept, recomputed), planned(recomputed, kept)]].concat();
    assert!(ratios.iter().all(|ratio| (0.85..1.15).contains(ratio)), "{ratios:?}");
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_trained_and_the_heartbeat_ends_with_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let status = format!("run.status=\"{}\"", taken.local_addr().unwrap());
    let (code, text) = train(dir, &[&status]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("run.status = ") && text.contains("whose port is free"), "{text}");
    let (code, text) = train(dir, &["run.status=\"127.0.0.1:0\"", "run.heartbeat=true"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("/healthz and /metrics say where the run is"), "{text}");
    let beat: Value =
        serde_json::from_slice(&std::fs::read(dir.join("runs/a/heartbeat.json")).unwrap()).unwrap();
    assert_eq!((&beat["phase"], &beat["stage"], &beat["step"]), (&"done".into(), &"grpo".into(), &2.into()));
}
