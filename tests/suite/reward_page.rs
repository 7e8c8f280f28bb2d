//! docs/rewards.md: its tasks load and say what they are to say, its programs run, its command prints what is shown.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::project;
use crate::support::reward_server::{Reply, RewardServer};
use crate::support::runs::{label_task, rlvr, text};

/// Marks and bodies of the page's blocks.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut lines = page.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(mark) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        found.push((mark.to_string(), body.join("\n") + "\n"));
    }
    found
}

/// What `data check` says of the reward on a row with this target.
fn said(folder: &Path, task: &Path, target: &str) -> String {
    let rows = folder.join("rows.jsonl");
    std::fs::write(&rows, json!({"text": "May I?", "label": "no", "answer": target}).to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr"))
        .args(["data", "check", text(&rows), "--task", text(task), "--allow-programs"])
        .env("JUDGE_AUTH", "Bearer secret")
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && !(out.clone() + &error).contains("secret"), "{out}{error}");
    out.lines().find_map(|line| line.strip_prefix("reward ")).unwrap_or_default().trim().to_string()
}

#[test]
fn every_example_of_the_page_works() {
    let page = std::fs::read_to_string(project().join("docs/rewards.md")).unwrap();
    let (dir, blocks) = (tempfile::tempdir().unwrap(), blocks(&page));
    let folder = dir.path();
    let server = RewardServer::start(|asked, _| {
        assert_eq!(asked.headers["authorization"], "Bearer secret");
        Reply::reward(asked, 0.125)
    });
    std::fs::copy(project().join("examples/reward_trl.py"), folder.join("reward_trl.py")).unwrap();
    let base = label_task("no", &["yes"]);
    let base = base.split_once("[sft.target_template]").unwrap();
    let (_, rest) = base.1.split_once("[[verdict]]").unwrap();
    // Any answer but `yes` says no: a row of any text is a good one.
    let rest = rest.replace("default = \"@malformed\"", "default = \"@negative\"");
    let base = format!("{}[sft]\ntarget = \"answer\"\n[[verdict]]{rest}", base.0);
    let mut tasks = Vec::new();
    for (mark, body) in &blocks {
        let (name, _) = body.split_once('\n').unwrap();
        let Some(name) = name.strip_prefix("# ") else { continue };
        let body = body.replace("http://127.0.0.1:8000/judge", &server.url());
        let body = if mark == "toml" { format!("{base}{body}") } else { body };
        std::fs::write(folder.join(name), body).unwrap();
        if mark == "toml" {
            tasks.push(name.to_string());
        }
    }
    assert_eq!(tasks, ["form.toml", "short.toml", "tone.toml", "ported.toml", "service.toml"]);
    for (task, target, want) in [
        ("tone.toml", "No, please.", "tone says 1 (polite 1, brief 0) of the answer to "),
        ("tone.toml", "no", "tone says 1 (polite 0, brief 1) of the answer to "),
        ("ported.toml", "no", "ported says 1 of the answer to "),
        ("ported.toml", "NO", "ported says 0 of the answer to "),
        ("service.toml", "no", "service says 0.125 of the answer to "),
        // Nobody is asked.
        ("form.toml", "no", ""),
    ] {
        let said = said(folder, &folder.join(task), target);
        assert!(said.starts_with(want) && said.is_empty() == want.is_empty(), "{task}: {said}");
    }
    // What texts earn, the right answer first.
    for (task, want) in [("form.toml", [1.0, -1.0]), ("short.toml", [0.0, 0.0])] {
        said(folder, &folder.join(task), "no");
        let (rows, task_file) = (folder.join("rows.jsonl"), folder.join(task));
        let audit = ["data", "audit", text(&rows), "--task", text(&task_file), "--json"];
        let output = rlvr(&audit);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let part = |name: &str| {
            let all = found["rewards"]["strategies"].as_array().unwrap();
            let one = all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {found}"));
            one["parts"][1].as_f64().unwrap()
        };
        assert_eq!([part("the right answers"), part("silence")], want, "{task}");
        if task == "short.toml" {
            assert_eq!(part("tool call"), -1.0);
        }
    }
    let at = blocks.iter().position(|(mark, _)| mark == "sh").unwrap();
    let output = Command::new("sh").args(["-c", &blocks[at].1]).current_dir(folder).output().unwrap();
    assert_eq!(
        (blocks[at + 1].0.as_str(), String::from_utf8(output.stdout).unwrap()),
        ("text", blocks[at + 1].1.clone())
    );
}
