//! Every mistake in a task file names its key.

use super::*;
use crate::config::range::{self, Range};

const GOOD: &str = r#"name = "guard"
truncated = "judge"
[input]
messages = "chat"
[gold]
path = "label"
[labels]
negative = "safe"
positive = ["S1", "S2"]
[[verdict]]
regex = 'unsafe (S\d)'
label = "$1"
[[verdict]]
default = "@malformed"
[reward]
malformed = 0
"#;

#[test]
fn the_base_of_the_bad_files_is_good() {
    let task = parse(GOOD, "t.toml").unwrap();
    assert_eq!((task.name(), task.labels().len()), ("guard", 3));
}

#[test]
fn every_mistake_names_file_key_and_fix() {
    for (from, to, want) in [
        // Not a task file.
        ("name = \"guard\"", "name = ", "t.toml:1: "),
        ("name = \"guard\"", "nmae = \"guard\"", "t.toml:1: unknown field `nmae`, expected one of `name`"),
        ("truncated = \"judge\"", "truncated = \"cut\"", "t.toml:2: truncated: unknown variant `cut`"),
        ("messages =", "mesages =", "t.toml:4: unknown field `mesages`, expected"),
        ("path = \"label\"", "path = 3", "t.toml:6: path: invalid type: integer `3`, expected a string"),
        ("malformed = 0\n", "malfromed = 0\n", "t.toml:16: unknown field `malfromed`"),
        ("malformed = 0\n", "malformed = \"0\"\n", "t.toml:16: malformed: invalid type: string"),
        ("[labels]", "[label]", "unknown field `label`"),
        ("name = \"guard\"", "name = \" \"", "t.toml: name: the name is empty. Name the task"),
        // Labels.
        ("[\"S1\", \"S2\"]", "[]", "t.toml: labels.positive: the list is empty. Give at least one"),
        ("\"S2\"]", "\"S1\"]", "t.toml: labels.positive[1]: `S1` is a label already. Name each label once"),
        ("\"S2\"]", "\"safe\"]", "t.toml: labels.positive[1]: `safe` is a label already"),
        ("\"S2\"]", "\"s1\"]\nignore_case = true", "labels.positive[1]: `s1` is a label already"),
        ("\"S2\"]", "\" S2\"]", "t.toml: labels.positive[1]: ` S2` is empty or has blanks"),
        ("\"safe\"", "\"@none\"", "t.toml: labels.negative: `@none` begins with `@`"),
        // Rows.
        (
            "messages = \"chat\"",
            "",
            "t.toml: input: exactly one of messages, mcp and template is wanted. Give",
        ),
        ("messages = \"chat\"", "messages = \"chat[\"", "t.toml: input.messages: `chat[` is not a path"),
        ("messages = \"chat\"", "template = \"a {b\"", "t.toml: input.template: a brace is not closed"),
        ("messages = \"chat\"", "template = \"{label}\"", "input.template: `{label}` is gold.path, so"),
        ("path = \"label\"", "path = \"\"", "t.toml: gold.path: `` is not a path"),
        (
            "[labels]",
            "map = { x = \"S9\" }\n[labels]",
            "gold.map.x: `S9` is not a label of this task. Use one of: safe, S1, S2",
        ),
        ("[labels]", "[sft]\n[labels]", "t.toml: sft: exactly one of target and target_template"),
        (
            "[labels]",
            "[sft]\ntarget_template = { negative = \"safe\", positive = \"unsafe {label}\" }\n[labels]",
            "sft.target_template.negative: `safe` is not judged to be `safe`. Make the template and",
        ),
        // Rules.
        ("[[verdict]]\ndefault = \"@malformed\"", "", "t.toml: verdict: the last rule is not a default. End"),
        ("\"@malformed\"", "\"S1\"", "t.toml: verdict[1].default: `S1` is not a default. Use"),
        ("default =", "label = \"S1\"\ndefault =", "verdict[1]: regex, label and take have no effect"),
        ("\"@malformed\"", "\"@negative\"\npaper = \"flagged\"", "verdict[1].paper: paper has no effect"),
        ("label = \"$1\"", "", "t.toml: verdict[0]: a rule wants a regex and a label. Give both"),
        (
            "label = \"$1\"",
            "label = \"$2\"",
            "verdict[0].label: `$2` is not a capture group: the regex has 1",
        ),
        ("label = \"$1\"", "label = \"$x\"", "verdict[0].label: `$x` is not a capture group"),
        ("label = \"$1\"", "label = \"S3\"", "verdict[0].label: `S3` is not a label of this task"),
        ("label = \"$1\"", "label = \"@safe\"", "verdict[0].label: `@safe` is unknown. Use \"@negative\""),
        ("label = \"$1\"", "label = \"S1\"\npaper = \"flagged\"", "verdict[0].paper: paper has no effect"),
        ("label = \"$1\"", "label = \"S1\"\ntake = \"last\"", "verdict[0].take: take has no effect"),
        (
            "label = \"$1\"",
            "label = \"$1\"\n[[verdict]]\ndefault = \"@negative\"",
            "verdict[1]: a default before",
        ),
        (
            "(S\\d)",
            "(S\\d",
            "t.toml: verdict[0].regex: `unsafe (S\\d` does not compile: error: unclosed group",
        ),
        // Rewards.
        (
            "malformed = 0\n",
            "malformed = nan\n",
            "t.toml: reward.malformed: nan is not from -1000000 to 1000000",
        ),
        (
            "malformed = 0\n",
            "malformed = 1\nwrong_label = 1\nfalse_positive = 1\nfalse_negative = 1\n",
            "t.toml: reward: all six rewards are equal",
        ),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let error = parse(&text, "t.toml").expect_err(want);
        assert!(error.is_input());
        let line = error.to_string();
        assert!(line.starts_with("t.toml") && line.contains(want) && !line.contains('\n'), "{want}\n{line}");
    }
}

#[test]
fn every_number_has_a_range_and_what_lies_outside_is_named() {
    let mut found = Vec::new();
    range::numbers("", &schema(), &mut found);
    assert!(found.len() > 12, "{found:?}");
    let without: Vec<_> = found.iter().filter(|(_, schema)| Range::of(schema).is_none()).collect();
    assert!(without.is_empty(), "write #[schemars(range(min = .., max = ..))] at: {without:?}");
    for (add, says) in [
        ("retries = 1001\n", "t.toml: retries: 1001 is not from 0 to 1000. "),
        ("retries = -1\n", "t.toml: retries: -1 is not from 0 to 1000. "),
        ("retries = 99999999999\n", "t.toml: retries: 99999999999 is not from 0 to 1000. "),
    ] {
        let error = parse(&format!("{add}{GOOD}"), "t.toml").unwrap_err();
        assert!(error.is_input() && error.to_string().starts_with(says), "{error}");
    }
    assert!(parse(&format!("retries = 1000\n{GOOD}"), "t.toml").is_ok());
    let extra =
        |weight: &str| format!("{GOOD}\n[extra_rewards.form]\nweight = {weight}\nexact_positive = 1\n");
    let refused = parse(&extra("-1e7"), "t.toml").unwrap_err().to_string();
    assert!(
        refused.contains("extra_rewards.form.weight: -10000000.0 is not from -1000000 to 1000000"),
        "{refused}"
    );
    assert!(parse(&extra("-1e6"), "t.toml").is_ok());
}

#[test]
fn a_missing_section_is_named() {
    for key in ["input", "gold", "labels", "verdict", "name"] {
        let mut table = GOOD.parse::<toml::Table>().unwrap();
        table.remove(key);
        let line = parse(&table.to_string(), "t.toml").unwrap_err().to_string();
        assert!(
            line.contains(&format!("missing field `{key}`")) && line.ends_with("lists every key"),
            "{line}"
        );
    }
}
