//! Exact probabilities of a closed task's labels: what they add up to, and evaluation by them.

use serde_json::Value;

use crate::support::runs::{READ_HELD_OUT, held_out, object, rows, stdout, text, train};

#[test]
fn exact_probabilities_add_up_to_the_score_and_to_the_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &["stages=[\"sft\"]"]);
    let (model, valid, out) = (run.join("model"), held_out(dir.path()), dir.path().join("out.jsonl"));
    let eval = ["eval", text(&model), text(&valid)];
    let predict = ["predict", text(&model), text(&valid), "-o", text(&out)];
    stdout(&[&eval[..], &["--fit-threshold", "--score", "labels"], &READ_HELD_OUT].concat());

    // The score by labels is what the probabilities of the flags add up to; every label is there.
    stdout(&[&predict[..], &["--probabilities"], &READ_HELD_OUT].concat());
    let exact = rows(&out);
    stdout(&[&predict[..], &READ_HELD_OUT].concat());
    for (exact, scored) in exact.iter().zip(rows(&out)) {
        let all = exact["probabilities"].as_object().unwrap();
        assert_eq!(all.len(), 10, "{exact}");
        let flags: f64 =
            all.iter().filter(|(name, _)| *name != "Safe").map(|(_, p)| p.as_f64().unwrap()).sum();
        assert!((flags + all["Safe"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{exact}");
        assert!((flags - scored["score"].as_f64().unwrap()).abs() < 1e-6, "{exact} {scored}");
    }

    let summary = stdout(&[&eval[..], &["--exact", "--json"], &READ_HELD_OUT].concat());
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let golds = rows(&valid).into_iter().map(|row| row["security_type"][0].as_str().unwrap().to_string());
    let (mut right, mut nats) = (0, 0.0);
    for (row, gold) in exact.iter().zip(golds) {
        let all = row["probabilities"].as_object().unwrap();
        let p = |name: &str| all[name].as_f64().unwrap();
        let most = all.keys().max_by(|a, b| p(a).total_cmp(&p(b))).unwrap();
        right += usize::from((most == "Safe") == (gold == "Safe"));
        nats -= p(&gold).ln() / 20.0;
    }
    let close = |got: &Value, want: f64| assert!((got.as_f64().unwrap() - want).abs() < 1e-6, "{got} {want}");
    close(&summary["strict"]["accuracy"], right as f64 / 20.0);
    close(&summary["label_cross_entropy"], nats);
    let saved = object(&model.join("threshold.json"));
    close(&summary["auc"], saved["auc"].as_f64().unwrap());
    close(&summary["at_threshold"]["recall"], saved["recall"].as_f64().unwrap());
}
