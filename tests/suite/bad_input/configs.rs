//! Settings, config files and task files, named by key or line.

use crate::support::room::{GRPO, INPUT, Room, flags, no_faults};

const DEMO: &str = "train demo --set threads=1 --set device=cpu";

#[test]
fn settings_that_cannot_work_are_named_by_key() {
    let cases: [(&str, &[&str]); 48] = [
        ("sft.optim.learning_rte=1", &["learning_rte", "learning_rate", "rlvr train demo --dry-run"]),
        ("nope=1", &["--set nope=1", "no key is called `nope`", "sft, grpo, enumerate, eval"]),
        ("sft.steps=abc", &["--set sft.steps=abc: ", "expected a whole number", "--dry-run"]),
        ("sft.steps=-1", &["--set sft.steps=-1: ", "expected a whole number"]),
        ("stages=[\"ppo\"]", &["stages[0]", "`ppo`", "`sft`, `grpo`, `enumerate`"]),
        ("stages=[]", &["stages = []", "a list such as"]),
        ("stages=[\"sft\",\"sft\"]", &["stages = sft, sft", "without repeats"]),
        // Without the feature the build says so; with it, the machine has no driver, or this run would train.
        #[cfg(not(feature = "cuda"))]
        ("device=cuda", &["device cuda", "built without CUDA", "--features cuda"]),
        #[cfg(feature = "cuda")]
        ("device=gpu", &["device", "unknown variant"]),
        ("device=cpu sft.optim.bf16_weights=masters", &["sft.optim.bf16_weights = masters", "f32"]),
        ("device=cpu sft.optim.gradients=bf16", &["sft.optim.gradients = bf16", "f32"]),
        ("threads=100000", &["threads = 100000", "from 0 to 1024"]),
        ("model.max_positions=63", &["model.max_positions = 63", "at least 64", "completion budget"]),
        (
            "data.max_prompt_tokens=5",
            &["good.jsonl: all 2 rows are dropped", "max_prompt_tokens = 5", "Raise"],
        ),
        (
            "data.max_target_tokens=1",
            &["good.jsonl: all 2 rows are dropped", "max_target_tokens = 1", "Raise"],
        ),
        ("sft.rows_per_step=9223372036854775807", &["sft.rows_per_step = 9223", "from 0 to 1048576"]),
        ("sft.steps=0 sft.epochs=0", &["sft.epochs = 0", "above 0"]),
        ("sft.optim.betas=[0.9,1.0]", &["sft.optim.betas = 1", "below 1"]),
        ("sft.optim.betas=[0.9]", &["--set sft.optim.betas=[0.9]: ", "length 2"]),
        ("sft.optim.learning_rate=nan", &["sft.optim.learning_rate = NaN", "above 0"]),
        (
            "sft.optim.warmup_ratio=0.1 sft.optim.warmup_steps=1",
            &["sft.optim.warmup_ratio", "sft.optim.warmup_steps", "set it to 0"],
        ),
        ("eval.sampling.top_p=1.5", &["eval.sampling.top_p = 1.5", "at most 1"]),
        // The default of `eval` is greedy, and stays so when a neighbouring key is set.
        ("eval.sampling.top_k=3", &["eval.sampling.temperature = 0", "above 0 when top_k"]),
        ("eval.max_completion_tokens=0", &["eval.max_completion_tokens = 0", "1 or more"]),
        ("checkpoint.keep_last=0", &["checkpoint.keep_last = 0", "1 or more"]),
        ("run.name=a/b", &["run.name = \"a/b\"", "a plain directory name"]),
        ("run.name=a:b", &["run.name = \"a:b\"", "letters, digits"]),
        ("run.name=-x", &["run.name = \"-x\"", "letters, digits"]),
        ("num_generations=4", &["--set num_generations=4", "TRL's num_generations is grpo.group_size here"]),
        ("rollout.n=4", &["verl's rollout.n is grpo.group_size here"]),
        ("learning_rate=1", &["Did you mean sft.optim.learning_rate, grpo.optim.learning_rate or"]),
        ("gpro.steps=4", &["Did you mean grpo.steps?"]),
        ("loss=dapo", &["Did you mean [grpo.loss]?"]),
        ("lora=3", &["--set lora=3", "expected a table"]),
        ("sft.steps=3 sft.epochs=2", &["sft.steps is given together with sft.epochs", "set it to 0"]),
        ("model.path=", &["model.path = \"\"", "a path"]),
        ("model.path=absent", &["model.path = absent: no such folder", "Name a model folder"]),
        ("model.tokenizer=absent", &["absent: no such folder", "tokenizer.json"]),
        ("task=absent", &["task `absent`", "Use one of: riskcue"]),
        ("data.train=model", &["model: is a folder", "Name a file"]),
        ("no-equals-sign", &["--set no-equals-sign: has no `=`", "--set section.key=value"]),
        ("grpo.group_size=1", &["grpo.group_size = 1", "2 or more"]),
        ("grpo.sampling.temperature=0", &["grpo.sampling.temperature = 0", "above 0"]),
        ("grpo.sampling.top_p=0", &["grpo.sampling.top_p = 0", "above 0"]),
        ("grpo.steps=0", &["grpo.steps = 0", "1 or more"]),
        ("grpo.max_completion_tokens=0", &["grpo.max_completion_tokens = 0", "1 or more"]),
        (
            "grpo.loss.epsilon_high=0.3",
            &["grpo.loss.epsilon_high: has no effect", "grpo.updates_per_rollout"],
        ),
        ("grpo.balance=label_sign", &["grpo.balance = label_sign", "no positive rows"]),
        ("grpo.max_logprob_difference=nan", &["grpo.max_logprob_difference = NaN", "0 or more"]),
    ];
    no_faults(cases.into_iter().map(|(settings, says)| {
        let stage = if settings.starts_with("grpo") { GRPO } else { "" };
        Room::new().fault(&format!("train config.toml{}{}", flags(stage), flags(settings)), INPUT, says)
    }));
}

#[test]
fn a_model_from_the_seed_has_a_shape_that_works() {
    let cases: [(&str, &[&str]); 5] = [
        ("model.random.hidden_size=97", &["model.random.hidden_size = 97", "twice attention_heads"]),
        ("model.random.vocab_size=10", &["model.random.vocab_size = 10", "or more"]),
        ("model.random.rope_theta=nan", &["model.random.rope_theta = NaN", "above 0"]),
        ("model.random.layers=1000000000000", &["model.random: ", "Make it smaller"]),
        ("model.path=model model.random.layers=2", &["model.path", "model.random", "Keep one"]),
    ];
    no_faults(
        cases
            .into_iter()
            .map(|(setting, says)| Room::new().fault(&format!("{DEMO}{}", flags(setting)), INPUT, says)),
    );
}

#[test]
fn broken_config_files_are_named_by_line_or_key() {
    let cases: [(&[u8], &[&str]); 8] = [
        (b"seed = 1\n[sft\nsteps = 1", &["bad.toml:2: ", "Correct the TOML on that line"]),
        (b"seed = 1\n\nseed = = 2", &["bad.toml:3: ", "Correct the TOML"]),
        (b"seed = 1\nseed = 2", &["bad.toml:2: duplicate key"]),
        (b"# \xff", &["bad.toml: is not UTF-8", "Save"]),
        (b"preset = \"nope\"", &["preset = \"nope\"", "one of demo, "]),
        (b"preset = \"demo\"\n[sft]\nsteps = \"x\"", &["bad.toml:3: sft.steps: ", "a whole number"]),
        (
            b"[grpo.optim.schedule]\ntype = \"warp\"",
            &["bad.toml:2: grpo.optim.schedule", "`warp`", "`cosine`"],
        ),
        (b"seed = 1", &["neither model.path nor [model.random] is set", "--set model.path=DIR"]),
    ];
    no_faults(cases.into_iter().map(|(text, says)| {
        let room = Room::new();
        room.write("bad.toml", text);
        room.fault("train bad.toml", INPUT, says)
    }));
}

#[test]
fn broken_task_files_are_named_by_line_or_key() {
    let task = include_str!("../../../tasks/riskcue-short.toml");
    let cases: [(String, &[&str]); 5] = [
        ("name = \"a\"\n[input\n".into(), &["bad.toml:2: ", "Correct it"]),
        (String::new(), &["bad.toml: missing field `name`", "Correct it"]),
        (format!("{task}\nbogus = 1.0\n"), &["bad.toml:", "`bogus`", "`exact_positive`"]),
        (
            task.replacen("\nregex = '", "\nregex = '(", 1),
            &["bad.toml: verdict[0].regex", "Correct the pattern"],
        ),
        (
            task.replacen("exact_positive = 1.0", "exact_positive = nan", 1),
            &["reward.exact_positive", "is not from -1000000 to 1000000"],
        ),
    ];
    no_faults(cases.into_iter().map(|(text, says)| {
        let room = Room::new();
        room.write("bad.toml", text);
        room.fault("train config.toml --set task=bad.toml", INPUT, says)
    }));
}
