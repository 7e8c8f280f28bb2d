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
        (
            "malformed = 0\n",
            "malformed = 0\n[reward.program]\ncommand = [\"x\"]\n",
            "t.toml: reward.program: [reward] is what outcomes earn. Write [extra_rewards.<name>.program], and",
        ),
        (
            "malformed = 0\n",
            "weight = 0\n",
            "t.toml: reward.weight: every reward has the weight 0, so nothing can be learned",
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
fn every_mistake_in_a_reward_names_its_key() {
    let numbers = |key: &str| format!("t.toml: extra_rewards.x.{key} is not from");
    for (keys, want) in [
        ("weight = nan", numbers("weight: nan")),
        ("weight = 1", "extra_rewards.x: all six rewards are equal".into()),
        ("malformed = 1", "missing field `weight`".into()),
        ("weight = 1\nregex = {}", "missing field `pattern`".into()),
        ("weight = 1\nregex = { pattern = '(' }", "extra_rewards.x.regex: `(` does not compile".into()),
        (
            "weight = 1\nregex = { pattern = 'a', otherwise = 1 }",
            "extra_rewards.x.regex: every answer".into(),
        ),
        ("weight = 1\nregex = { pattern = 'a', most = 0 }", numbers("regex.most: 0")),
        (
            "weight = 1\nmalformed = 1\nregex = { pattern = 'a' }",
            "are five kinds of reward. Give each a".into(),
        ),
        (
            "weight = 1\nlength = { from = 3, to = 9 }\nregex = { pattern = 'a' }",
            "are five kinds of reward".into(),
        ),
        ("weight = 1\nlength = { from = 9, to = 9 }", "x.length: from = 9 is not below to = 9".into()),
        ("weight = 1\nlength = { from = -1, to = 9 }", numbers("length.from: -1")),
        ("weight = 1\nlength = { from = 1, to = 9, at_from = -1 }", "length: every length earns".into()),
        ("weight = 1\nlength = { from = 1, to = 9, unit = \"words\" }", "unknown variant `words`".into()),
        ("weight = 1\nprogram = { command = [] }", "x.program.command: names no program. Give the".into()),
        ("weight = 1\nprogram = { command = [\" \"] }", "x.program.command: names no program".into()),
        ("weight = 1\nprogram = { command = \"judge\" }", "expected a sequence".into()),
        ("weight = 1\nprogram = { command = [\"a\"], workers = 0 }", numbers("program.workers: 0")),
        ("weight = 1\nprogram = { command = [\"a\"], batch = 9999 }", numbers("program.batch: 9999")),
        (
            "weight = 1\nprogram = { command = [\"a\"], timeout_seconds = 0 }",
            numbers("program.timeout_seconds: 0"),
        ),
        (
            "weight = 1\nprogram = { command = [\"a\"], start_timeout_seconds = inf }",
            numbers("program.start_timeout_seconds: inf"),
        ),
        ("weight = 1\nprogram = { command = [\"a\"], on_error = \"skip\" }", "a number, or \"stop\"".into()),
        ("weight = 1\nprogram = { command = [\"a\"], on_error = nan }", numbers("program.on_error: nan")),
        ("weight = 1\nprogram = { command = [\"a\"], retries = 3 }", "unknown field `retries`".into()),
        ("weight = 1\nhttp = { url = \"example.org\" }", "x.http.url: `example.org` is no address".into()),
        ("weight = 1\nhttp = { url = \"file:///etc\" }", "x.http.url: `file:///etc` is no address".into()),
        ("weight = 1\nhttp = { url = \"http://a\", tries = 0 }", numbers("http.tries: 0")),
        (
            "weight = 1\nhttp = { url = \"http://a\", headers_from_env = { \"a b\" = \"X\" } }",
            "x.http.headers_from_env: `a b` is no header".into(),
        ),
    ] {
        let error = parse(&format!("{GOOD}[extra_rewards.x]\n{keys}\n"), "t.toml").expect_err(&want);
        let line = error.to_string();
        assert!(error.is_input() && line.contains(&want) && !line.contains('\n'), "{want}\n{line}");
    }
    for name in ["guard", "overlong", "\"a/b\"", "\"\""] {
        let text = format!("{GOOD}[extra_rewards.{name}]\nweight = 1\nexact_positive = 1\n");
        let line = parse(&text, "t.toml").unwrap_err().to_string();
        assert!(line.contains("the name is empty, has a `/`, or is the task's"), "{line}");
    }
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
