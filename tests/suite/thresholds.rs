//! A threshold fitted for a false-positive rate: kept with the model, used by `rlvr predict`, taken along by exports.

use std::path::Path;

use serde_json::Value;

use crate::support::runs::{READ_HELD_OUT, held_out, object, rows, stdout, text, train};

#[test]
fn a_fitted_threshold_keeps_its_rate_and_goes_where_the_weights_go() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &["stages=[\"sft\"]"]);
    let (model, valid) = (run.join("model"), held_out(dir.path()));
    for score in ["labels", "first-token"] {
        let fit = ["eval", text(&model), text(&valid), "--fit-threshold", "--max-fpr", "0.2"];
        let fitted = stdout(&[&fit[..], &["--score", score, "--json"], &READ_HELD_OUT].concat());
        let fitted: Value = serde_json::from_str(&fitted).unwrap();
        assert!(fitted["false_positive_rate"].as_f64().unwrap() <= 0.2, "{fitted}");
        assert!((0.0..=1.0).contains(&fitted["auc"].as_f64().unwrap()), "{fitted}");
    }
    let saved = object(&model.join("threshold.json"));
    let threshold = saved["threshold"].as_f64().unwrap();

    // Without their labels the same rows get the same scores: the same rates.
    let bare = dir.path().join("bare.jsonl");
    let golds: Vec<bool> = rows(&valid).iter().map(|row| row["security_type"][0] != "Safe").collect();
    let lines = rows(&valid).into_iter().map(|mut row| {
        row.as_object_mut().unwrap().remove("security_type");
        row.to_string() + "\n"
    });
    std::fs::write(&bare, lines.collect::<String>()).unwrap();
    let out = dir.path().join("out.jsonl");
    stdout(&[&["predict", text(&model), text(&bare), "-o", text(&out)][..], &READ_HELD_OUT].concat());
    let predicted = rows(&out);
    assert_eq!(predicted.len(), 20);
    let mut hits = 0;
    for (row, risky) in predicted.iter().zip(golds) {
        let flagged = row["flagged"].as_bool().unwrap();
        assert_eq!(flagged, row["score"].as_f64().unwrap() >= threshold, "{row}");
        assert_eq!(flagged, row["label"] != "Safe", "{row}");
        hits += usize::from(flagged && risky);
    }
    assert!((hits as f64 / 10.0 - saved["recall"].as_f64().unwrap()).abs() < 1e-9, "{hits} of 10, {saved}");

    let exported = dir.path().join("exported");
    stdout(&["export", text(&model), text(&exported), "--format", "hf"]);
    let read = |folder: &Path| std::fs::read(folder.join("threshold.json")).unwrap();
    assert_eq!(read(&exported), read(&model));
}
