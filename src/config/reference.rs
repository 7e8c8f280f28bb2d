//! docs/config-reference.md, written from the doc comments of the types that read a config.

use super::keys::{Key, Section};

const HEAD: &str = "# Every key of a config

Made from the source by `RLVR_UPDATE=1 cargo test --release --test suite reference`; a test holds it current. Edit the doc
comments in `src/config/`, not this page.

`rlvr train CONFIG --dry-run` prints every key with the value that it has in that config, and where the value is from. A
file may start from a shipped config with `preset = \"demo\"`. Defaults lie below presets, presets below the file, the file
below `--set section.key=value`. Of two keys that say one thing in two ways (`sft.steps` and `sft.epochs`, `warmup_steps`
and `warmup_ratio`, `model.path` and `[model.random]`, `data.train` and `[[data.mix]]`, `data.valid` and `[[data.valid_files]]`,
files and `[data.synthetic]`) the one that is given on top counts, and `rlvr train` says so; given side by side they are refused.

An empty default is a key that is absent unless it is given. `rlvr schema config` prints the same as a JSON schema; files
whose first line names [schema/config.schema.json](schema/config.schema.json) are completed by editors.
";

/// The page.
pub fn page(sections: &[Section]) -> String {
    let mut out = String::from(HEAD);
    for section in sections {
        if !section.path.is_empty() {
            out += &format!("\n## `[{}]`\n", section.path);
            let doc = section.doc.trim_start_matches(&format!("`[{}]`: ", section.path));
            if let Some(first) = doc.chars().next() {
                out += &format!("\n{}{}\n", first.to_uppercase(), &doc[first.len_utf8()..]);
            }
        }
        if section.keys.is_empty() {
            continue;
        }
        out += "\n| key | takes | default | |\n|---|---|---|---|\n";
        for key in &section.keys {
            out += &row(key, &section.path);
        }
    }
    out
}

fn row(key: &Key, section: &str) -> String {
    let name = key.path.strip_prefix(section).map_or(key.path.as_str(), |name| name.trim_start_matches('.'));
    let default = key.default.as_ref().map_or(String::new(), |value| format!("`{value}`"));
    let takes = match key.values.as_slice() {
        [] => key.takes.clone(),
        values => values.iter().map(|(value, _)| format!("`\"{value}\"`")).collect::<Vec<_>>().join(", "),
    };
    let mut text = key.doc.clone();
    if !key.types.is_empty() {
        let types: Vec<String> = key.types.iter().map(|of| format!("`{of}`")).collect();
        text = format!("Of {}. {text}", types.join(", "));
    }
    for (value, doc) in key.values.iter().filter(|(_, doc)| !doc.is_empty()) {
        text += &format!(" `{value}`: {doc}");
    }
    let cell = |text: &str| text.trim().replace('|', "\\|");
    format!("| `{name}` | {} | {} | {} |\n", cell(&takes), cell(&default), cell(&text))
}
