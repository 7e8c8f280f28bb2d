//! A threshold fitted for a false-positive rate: kept with the model, used by `rlvr predict`, taken along by exports.

use std::path::Path;

use serde_json::Value;

use crate::support::runs::{READ_HELD_OUT, held_out, object, rlvr, rows, stdout, text, train};

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

/// Rows that were trained on flatter a threshold; labels that nothing is learned of are named before any training.
#[test]
fn rows_that_were_trained_on_and_labels_without_rows_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    stdout(&["data", "synth", "--out", text(&data), "--seed", "1", "--rows", "60", "--valid-rows", "20"]);
    let [train_file, valid] = ["train.jsonl", "valid.jsonl"].map(|name| data.join(name));
    let (safe, risky): (Vec<Value>, Vec<Value>) =
        rows(&train_file).into_iter().partition(|row| row["security_type"][0] == "Safe");
    let one = data.join("one.jsonl");
    std::fs::write(&one, safe.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    assert!(!risky.is_empty());

    let said = stdout(&["data", "check", text(&one), "--task", "demo"]);
    assert!(said.contains("warning     every row of the file is labelled `Safe`"), "{said}");
    let said = stdout(&["data", "check", text(&train_file), "--task", "demo"]);
    assert!(!said.contains("is labelled `Safe`"), "{said}");

    let keys = |file: &Path| {
        [("data.train", file), ("data.valid", &valid)].map(|(k, v)| format!("{k}={}", v.display()))
    };
    let warnings = |run: &Path| -> Vec<String> {
        let events = rows(&run.join("metrics.jsonl")).into_iter().filter(|event| event["event"] == "warning");
        events.map(|event| event["text"].as_str().unwrap().to_string()).collect()
    };
    let small = ["stages=[\"sft\"]", "sft.epochs=0.2", "sft.rows_per_step=4"];
    let sets =
        |file: &Path| -> Vec<String> { small.iter().map(ToString::to_string).chain(keys(file)).collect() };
    let trained = |name: &str, file: &Path| {
        let (root, name_key) = (format!("run.root={}", dir.path().display()), format!("run.name={name}"));
        let mut args = vec!["train", "demo", "--set", "device=cpu", "--set", &root, "--set", &name_key];
        let sets = sets(file);
        sets.iter().for_each(|set| args.extend(["--set", set.as_str()]));
        let output = rlvr(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        dir.path().join(name)
    };
    let run = trained("one", &one);
    let said = warnings(&run).join("\n");
    assert!(said.contains("every row of data.train is labelled `Safe`"), "{said}");
    assert!(said.contains("no row of data.train has a label that validation rows have: "), "{said}");

    let run = trained("all", &train_file);
    let said = warnings(&run).join("\n");
    assert!(!said.contains("every row of data.train"), "{said}");
    for (file, known) in [(&train_file, true), (&valid, false)] {
        let mut args = vec!["eval", text(&run), text(file), "--fit-threshold"];
        args.extend(READ_HELD_OUT);
        let output = rlvr(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("60 rows of"), known, "{said}");
        assert_eq!(said.contains("are training rows of the run too"), known, "{said}");
    }
}
