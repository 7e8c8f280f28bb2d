//! `rlvr report` of a run: one page that is whole and loads nothing, and Markdown. What TensorBoard reads.

use serde_json::Value;

use crate::support::project;
use crate::support::runs::{READ_HELD_OUT, copy, held_out, records, rows, stdout, text, train};

#[test]
fn a_run_that_stops_within_a_line_is_reported_whole() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let (model, valid) = (run.join("model"), held_out(dir.path()));
    stdout(&[&["eval", text(&model), text(&valid), "--fit-threshold"][..], &READ_HELD_OUT].concat());
    let mut metrics = std::fs::read(run.join("metrics.jsonl")).unwrap();
    metrics.extend(b"{\"event\":\"warning\",\"text\":\"all answers <are> scraps\"}\n");
    metrics.extend(b"{\"event\":\"step\",\"sta");
    std::fs::write(run.join("metrics.jsonl"), metrics).unwrap();
    stdout(&["report", text(&run)]);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in [
        "left out lines that are cut or damaged: 1",
        "<td>grpo 6</td><td>all answers &lt;are&gt; scraps</td>",
        "ROC: recall",
        "Time and memory",
        "Misses (FN)",
        "</html>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<script").count(), 2, "the data, and what shows them");
    for part in ["http:", "https:", "url(", "<link", "<img"] {
        assert!(!page.contains(part), "{part}");
    }
    let text = std::fs::read_to_string(run.join("report.md")).unwrap();
    assert!(text.contains("## Results") && text.contains("## Confusion"), "{text}");
}

/// What the page's script reads.
fn data(page: &str) -> Value {
    let start = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap().1;
    serde_json::from_str(start.split_once("</script>").unwrap().0).unwrap()
}

/// A set's rows, texts in the place of their numbers: outcome, gold, verdict, completion, prompt.
fn answers<'a>(data: &'a Value, run: usize, set: &str, kind: &str) -> Vec<[&'a str; 5]> {
    let sets = data["runs"][run]["sets"].as_array().unwrap();
    let found = sets.iter().find(|found| found["name"] == set && found["kind"] == kind).unwrap();
    let text = |at: &Value| at.as_u64().map_or("", |at| data["texts"][at as usize].as_str().unwrap());
    let row = |row: &'a Value| [2, 3, 4, 8, 9].map(|column| text(&row[column]));
    found["rows"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn a_page_has_every_answer_with_its_prompt_and_what_it_earned_as_text() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let other = dir.path().join("other");
    copy(&run, &other);
    // A model's answer, and a label, that want to be more than text.
    let evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>";
    let path = other.join("samples/grpo-evaluation.jsonl");
    let mut samples = rows(&path);
    let mut last: Vec<&mut Value> = samples.iter_mut().filter(|sample| sample["step"] == 6).collect();
    last[0]["completion"] = evil.into();
    last[1]["verdict"] = "<b>bold</b>".into();
    let lines: Vec<String> = samples.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();

    let page = dir.path().join("page.html");
    stdout(&["report", text(&run), text(&other), "-o", text(&page)]);
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("<img") && !page.contains("<b>"));
    let data = data(&page);
    let found = answers(&data, 1, "grpo 6", "evaluation");
    assert_eq!((found.len(), found[0][3], found[1][2]), (20, evil, "<b>bold</b>"));
    let mine = answers(&data, 0, "grpo 6", "evaluation");
    let samples = rows(&run.join("samples/grpo-evaluation.jsonl"));
    for (row, sample) in mine.iter().zip(samples.iter().filter(|sample| sample["step"] == 6)) {
        let [_, gold, verdict, completion, prompt] = *row;
        assert_eq!((gold, verdict), (sample["gold"].as_str().unwrap(), sample["verdict"].as_str().unwrap()));
        // As it was, but for control characters.
        assert_eq!(completion.chars().count(), sample["completion"].as_str().unwrap().chars().count());
        assert!(
            prompt.starts_with("<|im_start|>system\n") && prompt.contains("Environment_status"),
            "{prompt}"
        );
    }
    // Every evaluation, the confusion of each, and the rollouts with what they earned beside their group.
    let names = |key: &str| -> Vec<&str> {
        let all = data["runs"][0][key].as_array().unwrap().iter();
        all.filter(|one| one["kind"] != "rollouts").map(|one| one["name"].as_str().unwrap()).collect()
    };
    assert_eq!(names("sets"), ["vanilla", "sft 5", "grpo 3", "grpo 6"]);
    assert_eq!(names("confusions"), names("sets"));
    let sets = data["runs"][0]["sets"].as_array().unwrap();
    let rollouts: Vec<&Value> = sets.iter().filter(|set| set["kind"] == "rollouts").collect();
    assert_eq!(rollouts.len(), 6);
    let groups = rollouts.iter().flat_map(|set| set["rows"].as_array().unwrap().chunks(8));
    let mut live = 0;
    for group in groups {
        let of =
            |column: usize| -> Vec<f64> { group.iter().map(|row| row[column].as_f64().unwrap()).collect() };
        let (rewards, advantages) = (of(5), of(6));
        assert!(advantages.iter().sum::<f64>().abs() < 1e-3, "{advantages:?}");
        let is_live = rewards.iter().any(|reward| *reward != rewards[0]);
        assert_eq!(advantages.iter().any(|advantage| *advantage != 0.0), is_live);
        live += usize::from(is_live);
    }
    assert!(live > 0, "some completions of a group differ in what they earn");
    assert!(page.contains(", advantage ") && page.contains("<summary class=\"soft\">prompt</summary>"));

    // A run of a version that kept less, in a file a step.
    for file in ["prompts-of-evaluations.jsonl", "prompts-of-rollouts.jsonl"] {
        std::fs::remove_file(run.join("samples").join(file)).unwrap();
    }
    let mut samples = rows(&run.join("samples/grpo-evaluation.jsonl"));
    std::fs::remove_file(run.join("samples/grpo-evaluation.jsonl")).unwrap();
    samples.retain(|sample| sample["step"] == 6);
    samples.iter_mut().for_each(|sample| {
        let sample = sample.as_object_mut().unwrap();
        assert!(sample.remove("tokens").is_some() && sample.remove("step").is_some());
    });
    let path = run.join("samples/grpo-000006-evaluation.jsonl");
    std::fs::write(&path, samples.iter().map(|s| format!("{s}\n")).collect::<String>()).unwrap();
    stdout(&["report", text(&run)]);
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("run: no prompts: the run did not record those of its evaluations"));
    assert_eq!(answers(&self::data(&page), 0, "grpo 6", "evaluation")[3][4], "");
}

#[test]
fn tensorboard_has_one_axis_over_the_stages_the_config_and_answers() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let all = records(&run.join("events.out.tfevents.rlvr"));
    let has = |record: &[u8], part: &str| record.windows(part.len()).any(|w| w == part.as_bytes());
    assert!(has(&all[1], "_hparams_/session_start_info") && has(&all[1], "sft.optim.learning_rate"));
    assert!(!has(&all[1], "run.name"));
    // A double, then field 2, the step; small numbers are a byte.
    let step = |record: &[u8]| {
        assert_eq!((record[0], record[9]), (0x09, 0x10));
        record[10]
    };
    let of = |tag: &str| -> Vec<u8> {
        all[2..].iter().filter(|record| has(record, tag)).map(|record| step(record)).collect()
    };
    assert_eq!(of("sft/loss"), [1, 2, 3, 4, 5]);
    assert_eq!(of("grpo/loss"), [6, 7, 8, 9, 10, 11]);
    assert_eq!(of("eval/verdict/accuracy_strict"), [0, 5, 8, 11]);
    assert_eq!(of("eval/answers"), [0, 5, 8, 11]);
    assert!(of("accuracy_strict_low").is_empty() && of("accuracy_strict_high").is_empty());
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("accuracy_strict_low"), "metrics.jsonl keeps the bounds");
}

/// A second reward that pays for any form: said before the first step, kept with every rollout, shown by itself.
#[test]
fn rewards_are_looked_at_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let task = dir.path().join("two.toml");
    let demo = std::fs::read_to_string(project().join("tasks/demo.toml")).unwrap();
    let outcomes = ["exact_positive", "exact_negative", "wrong_label", "false_positive", "false_negative"];
    let form = outcomes.map(|outcome| format!("{outcome} = 1.0\n")).concat();
    std::fs::write(&task, format!("{demo}\n[extra_rewards.form]\nweight = 0.1\n{form}")).unwrap();
    let key = format!("task={}", text(&task));
    let run = train(dir.path(), "run", &[key.as_str()]);
    let events = rows(&run.join("metrics.jsonl"));
    let warned = events.iter().position(|event| {
        event["event"] == "warning"
            && event["text"].as_str().unwrap().starts_with("reward `form` pays `always Safe` 1.000")
    });
    let first = events.iter().position(|event| event["event"] == "step").unwrap();
    assert!(warned.is_some_and(|at| at < first), "{events:?}");
    let step = events.iter().rfind(|event| event["event"] == "step").unwrap();
    assert!(step["rewards/form/std"].is_number() && step["rewards/demo/mean"].is_number(), "{step}");
    let rollouts = rows(&run.join("samples/grpo-rollouts.jsonl"));
    assert!(rollouts.iter().all(|sample| sample["rewards"]["form"].is_number()), "{rollouts:?}");
    stdout(&["report", text(&run)]);
    let page = std::fs::read_to_string(run.join("report.md")).unwrap();
    for part in ["## Rewards", "| run | grpo | form |", "mean of each reward by gold label"] {
        assert!(page.contains(part), "{part}: {page}");
    }
}
