//! `rlvr report` of a run: one page that is whole and loads nothing, and Markdown.

use crate::support::runs::{READ_HELD_OUT, held_out, stdout, text, train};

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
    for part in ["<script", "http:", "https:", "url(", "<link", "<img"] {
        assert!(!page.contains(part), "{part}");
    }
    let text = std::fs::read_to_string(run.join("report.md")).unwrap();
    assert!(text.contains("## Results") && text.contains("## Confusion"), "{text}");
}
