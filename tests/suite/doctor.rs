//! `rlvr doctor` passes here, checks every op there is, and `rlvr bench ops` times them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::support::runs::rlvr;
use crate::support::seed;

/// The JSON object that a command printed; it must have ended well.
#[track_caller]
fn json(args: &[&str]) -> Value {
    let out = rlvr(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// The JSON objects that a command printed, one a line; it must have ended well.
#[track_caller]
fn lines(args: &[&str]) -> Vec<Value> {
    let out = rlvr(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Names of what is in a folder of the project with this ending, without it.
fn stems(folder: &str, ending: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(ending).map(String::from)).collect()
}

#[test]
fn doctor_passes_on_the_cpu_and_forgets_no_op() {
    let seed = (seed::of_test() >> 11).to_string();
    let report = json(&["doctor", "--device", "cpu", "--seed", &seed, "--json"]);
    assert_eq!(report["failed"], 0);
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        let error = check["relative_error"].as_f64().unwrap_or_else(|| panic!("{check}"));
        assert!(check["passed"] == true && error <= check["tolerance"].as_f64().unwrap(), "{check}");
    }
    let ops: BTreeSet<&str> = checks.iter().map(|c| c["op"].as_str().unwrap()).collect();
    // Of the folders, what ops are built of and where tensors live are no ops; of the files of `cpu/`, products and
    // loops have trials of their own, what is in the others has those of the ops that use it.
    let mut modules: Vec<String> =
        stems("src/ops", "").into_iter().filter(|name| !name.ends_with(".rs")).collect();
    modules.retain(|name| !["cpu", "cuda", "memory"].contains(&name.as_str()));
    assert!(modules.len() > 5, "no ops were found: {modules:?}");
    modules.extend(stems("src/ops/cpu", ".rs"));
    modules.retain(|name| !["mod", "few_rows", "widened"].contains(&name.as_str()));
    for module in modules {
        assert!(ops.contains(module.as_str()), "{module} of src/ops has no trial in src/check/: {ops:?}");
    }
    // An op may have several kernel files: attention_forward, attention_backward.
    for kernel in stems("kernels", ".cu") {
        let checked = ops.iter().any(|op| kernel.starts_with(op));
        assert!(checked, "kernels/{kernel}.cu belongs to no op that src/check/ has trials of: {ops:?}");
    }
    assert!(report["machine"]["libraries"]["candle-core"].is_string(), "{}", report["machine"]);
}

#[test]
fn a_seed_repeats_its_inputs() {
    let errors = |seed: &str| -> Vec<Value> {
        let report = json(&["doctor", "--device", "cpu", "--threads", "1", "--seed", seed, "--json"]);
        assert_eq!(report["seed"].to_string(), seed);
        report["checks"].as_array().unwrap().iter().map(|check| check["max_error"].clone()).collect()
    };
    let first = errors("41");
    assert_eq!(first, errors("41"));
    assert_ne!(first, errors("42"));
}

#[test]
fn doctor_says_why_a_device_cannot_be_checked() {
    if cfg!(feature = "cuda") {
        return; // then it depends on the machine
    }
    let out = rlvr(&["doctor", "--device", "cuda"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && said.contains("built without CUDA"), "{said}");
    let report = json(&["doctor", "--seed", "1", "--json"]);
    assert!(report["machine"]["cuda"]["absent"].as_str().unwrap().contains("without CUDA"));
}

#[test]
fn bench_ops_times_what_it_is_asked_for() {
    let small = ["--prompt-tokens", "40", "--new-tokens", "5", "--group-size", "2", "--seconds", "0"];
    let report =
        json(&[&["bench", "ops", "--json", "--only", "rms_norm", "--threads", "1"], &small[..]].concat());
    assert_eq!(report["rows"], 48);
    assert!(report["ceilings"]["flop_per_second"].as_f64().unwrap() > 1e8);
    let ops: Vec<&str> =
        report["ops"].as_array().unwrap().iter().map(|op| op["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["rms_norm.forward", "rms_norm.backward"]);
    for op in report["ops"].as_array().unwrap() {
        let number = |key: &str| op[key].as_f64().unwrap();
        assert!(number("seconds") >= number("best_seconds") && number("best_seconds") > 0.0, "{op}");
        assert!((number("flop_per_second") * number("seconds") / number("flop") - 1.0).abs() < 1e-9, "{op}");
        assert!(
            (number("share") * number("seconds") / number("roofline_seconds") - 1.0).abs() < 1e-9,
            "{op}"
        );
    }
    // As many groups in a pack as its tokens hold, and the decode rows of a rollout's pack and of the whole step.
    let packs =
        ["--groups", "5", "--max-tokens-per-pack", "100", "--max-rollout-tokens", "150", "--json-lines"];
    let only = ["bench", "ops", "--only", "linear", "--preset", "tiny", "--threads", "1"];
    let all = lines(&[&only[..], &small, &packs].concat());
    let (about, rest) = all.split_first().unwrap();
    let (last, ops) = rest.split_last().unwrap();
    assert_eq!(
        (&about["groups_in_pack"], &about["rows"], &about["decode_rows"]),
        (&2.into(), &96.into(), &6.into())
    );
    assert_eq!(
        (last["ops"].as_u64(), last["failed"].as_array().map(Vec::len)),
        (Some(ops.len() as u64), Some(0))
    );
    let rows: BTreeSet<(&str, u64)> =
        ops.iter().map(|op| (op["op"].as_str().unwrap(), op["sizes"]["rows"].as_u64().unwrap())).collect();
    for (op, wanted) in [("linear.forward.qkv", 96), ("linear.few_rows.qkv", 6), ("linear.few_rows.qkv", 10)]
    {
        assert!(rows.contains(&(op, wanted)), "{op} of {wanted} rows: {rows:?}");
    }
    for (args, part) in [
        (["bench", "ops", "--only", "no_such_op"], "no op has that in its name"),
        (["bench", "ops", "--preset", "gpt-2"], "llama-3.1-8b"),
        (["bench", "ops", "--group-size", "0"], "1 or more"),
    ] {
        let out = rlvr(&args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(part), "{args:?}: {said}");
    }
}

/// What a rented card has said is on disk even if the next line never comes.
#[test]
fn findings_and_steps_are_lines_as_they_come() {
    let seed = seed::of_test().to_string();
    let all = lines(&[
        "doctor",
        "--device",
        "cpu",
        "--seed",
        &seed,
        "--json-lines",
        "--only",
        "rope",
        "--only",
        "swiglu",
    ]);
    let (machine, rest) = all.split_first().unwrap();
    let (counts, findings) = rest.split_last().unwrap();
    assert!(machine["machine"]["cores"].as_u64().is_some());
    assert_eq!(counts["checks"].as_u64().unwrap() as usize, findings.len());
    let ops: std::collections::BTreeSet<&str> = findings.iter().map(|f| f["op"].as_str().unwrap()).collect();
    assert_eq!(ops.into_iter().collect::<Vec<_>>(), ["rope", "swiglu"]);
    let list = rlvr(&["doctor", "--list"]);
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.lines().count() > 10 && list.lines().any(|op| op == "swiglu"), "{list}");
    let unknown = rlvr(&["doctor", "--only", "warp"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("swiglu"));

    let small = ["--prompt-tokens", "24", "--new-tokens", "3", "--group-size", "2", "--steps", "1"];
    let all = lines(&[&["bench", "step", "--random-weights", "--json-lines"], &small[..]].concat());
    let [warm, timed, summary] = &all[..] else { panic!("{all:?}") };
    assert_eq!((warm["timed"].as_bool(), timed["timed"].as_bool()), (Some(false), Some(true)));
    assert_eq!(summary["mean_step_seconds"], timed["seconds"]);
    for name in ["loss", "grad_norm", "sampling/sampling_logp_difference/max", "num_tokens_reused"] {
        assert!(timed["metrics"][name].as_f64().is_some_and(f64::is_finite), "{name} in {timed}");
    }
    // Blocks are computed again: more is done than has to be.
    assert!(timed["flop_done"].as_f64().unwrap() > 1.1 * timed["flop"].as_f64().unwrap(), "{timed}");
}
