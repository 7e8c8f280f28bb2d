//! The house rules that a compiler does not know: who may import whom, and what may stand where.

use std::path::Path;

use regex::Regex;

use crate::support::source::{rust_files, without_comments_and_strings, without_test_modules};

/// Rooms by floor, lowest first. A room uses floors below its own.
const FLOORS: [&[&str]; 7] = [
    &["types", "config", "disk", "error", "rng", "stop", "net", "trail"],
    &["ops"],
    &["model", "text", "data", "task", "dist", "observe", "pack", "hub"],
    &["formats"],
    &["rollout", "reward", "algo", "optim", "run", "mirror", "plan", "init"],
    &["train", "eval", "ablate", "bench", "export", "report", "check"],
    &["main", "cli"],
];
/// Rooms of one floor keep apart, except these (from, to) and those of the lowest and highest floor.
const SIDEWAYS: &[(&str, &str)] = &[
    ("data", "text"),
    ("data", "task"),
    ("data", "hub"),
    ("mirror", "run"),
    ("train", "eval"),
    ("train", "export"),
    ("bench", "train"),
];
/// Downward, and unwanted all the same: ops take numbers, whatever file or flag they come from.
const NEVER: &[(&str, &str)] = &[("ops", "config")];
const MAX_LINES: usize = 500;
const UNSAFE_FILES: [&str; 7] = [
    "ops/cuda/launch.rs",
    "ops/cuda/blas.rs",
    "ops/cuda/host.rs",
    "ops/cuda/nccl.rs",
    "ops/cpu/gemm.rs",
    "formats/hf/shards.rs",
    "main.rs",
];
const NO_TENSORS: [&str; 2] = ["task", "data"];

#[test]
fn the_source_keeps_to_its_floors() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 3, "no source under {}", src.display());
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        found.extend(violations(&name, &text));
    }
    assert!(found.is_empty(), "{} house rules broken:\n{}", found.len(), found.join("\n"));
}

/// What is wrong with one file; `name` is its path under `src`.
fn violations(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("src/{name}: {lines} lines, at most {MAX_LINES}: split it by subject"));
    }
    let code = without_comments_and_strings(text);
    let room = room_of(name);
    let (front, sink) = (matches!(room, "main" | "cli"), room == "observe");
    let mut forbid = |broken: bool, pattern: &str, rule: &str| {
        for hit in Regex::new(pattern).unwrap().find_iter(if broken { &code } else { "" }) {
            found.push(format!("src/{name}:{}: `{}`: {rule}", line_of(&code, hit.start()), hit.as_str()));
        }
    };
    forbid(!UNSAFE_FILES.contains(&name), r"\bunsafe\b", "unsafe stands in the files listed for it only");
    forbid(!front, r"\b(anyhow|clap)\b", "anyhow and clap stay in main.rs and cli/");
    forbid(!front && !sink, r"\b(e?print(ln)?|dbg)!", "only cli/, main.rs and observe/ print");
    forbid(NO_TENSORS.contains(&room), r"\bcandle_\w+", "task and data know no tensors");
    if name != "lib.rs" {
        let imports = without_test_modules(&code);
        for (at, used) in rooms_used(name, &imports) {
            if let Some(why) = forbidden(room, &used) {
                found.push(format!("src/{name}:{}: uses `{used}`: {why}", line_of(&code, at)));
            }
        }
    }
    found
}

fn forbidden(from: &str, to: &str) -> Option<String> {
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let Some(own) = floor(from) else {
        return Some(format!("`{from}` is a room on no floor: add it to FLOORS"));
    };
    // What is no room is an item of the crate's root, a macro for instance.
    let other = floor(to)?;
    if NEVER.contains(&(from, to)) {
        return Some(format!("`{from}` is to know nothing of `{to}`"));
    }
    let apart = 0 < own && own < FLOORS.len() - 1;
    if from == to || other < own || SIDEWAYS.contains(&(from, to)) || (other == own && !apart) {
        return None;
    }
    Some(format!("`{from}` is on floor {own} and `{to}` on floor {other}; imports go down only"))
}

/// First path component without its ending: `ops/gemm.rs` and `ops.rs` are the room `ops`.
fn room_of(name: &str) -> &str {
    name.split('/').next().unwrap_or(name).trim_end_matches(".rs")
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Every room named by a path from the crate's root (`crate::a`, `crate::{a, b::c}`, `super::super::a`), and where.
fn rooms_used(name: &str, code: &str) -> Vec<(usize, String)> {
    let inside = name.trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = if inside == "main" { 0 } else { inside.split('/').count() };
    let path = Regex::new(r"\b(?:crate|rlvr|(?:super\s*::\s*)*super)\s*::\s*").unwrap();
    let mut found = Vec::new();
    for start in path.find_iter(code) {
        let climbs = start.as_str().matches("super").count();
        if climbs == 0 || climbs == depth {
            found.extend(heads(&code[start.end()..]).into_iter().map(|room| (start.start(), room)));
        }
    }
    found
}

/// First names of what follows a `::`, one or a braced group.
fn heads(rest: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth > 0 => {}
            ',' | '}' => {
                found.push(word(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// One violation is found, and its text has `part`.
#[track_caller]
fn caught(name: &str, text: &str, part: &str) {
    let found = violations(name, text);
    assert!(found.len() == 1 && found[0].contains(part), "{name}: {found:?}");
}

#[track_caller]
fn clean(name: &str, text: &str) {
    assert_eq!(violations(name, text), Vec::<String>::new(), "{name}");
}

#[test]
fn an_import_that_goes_up_is_caught() {
    caught("ops/gemm.rs", "use crate::model::Decoder;\n", "src/ops/gemm.rs:1: uses `model`");
    caught("ops/gemm.rs", "\nfn f() { crate::train::step() }", "src/ops/gemm.rs:2: uses `train`");
    caught("types.rs", "use crate::{\n    error::Result, ops::{a, gemm},\n};", "uses `ops`");
    caught("ops/gemm.rs", "use super::super::text::Tokenizer;", "uses `text`");
    caught("ops/mod.rs", "use super::text::Tokenizer;", "uses `text`");
    caught("eval/mod.rs", "use crate::cli;", "uses `cli`");
    caught("model/decoder.rs", "use crate::formats::hf::config_json;", "uses `formats`");
}

#[test]
fn an_import_that_goes_sideways_is_caught() {
    caught("algo/kl.rs", "use crate::optim::AdamW;", "uses `optim`");
    caught("text/chat.rs", "use crate::data::Sample;", "uses `data`");
    caught("pack.rs", "use crate::rollout::Group;", "uses `rollout`");
    caught("ops/sampling/mod.rs", "use crate::config::sampling::SamplingConfig;", "know nothing of `config`");
}

#[test]
fn a_room_on_no_floor_is_caught() {
    caught("helpers/mod.rs", "use crate::types::Prompt;", "add it to FLOORS");
}

#[test]
fn imports_that_go_down_pass() {
    clean("train/step.rs", "use crate::{algo::kl, model, ops::gemm, types::Prompt};");
    clean("formats/gguf/import.rs", "use crate::model::config::ModelConfig; use super::container::Gguf;");
    clean("data/jsonl.rs", "use crate::text::Tokenizer;");
    clean("config/mod.rs", "use crate::error::Error; use super::rng::Key;");
    clean("ops/rope.rs", "use super::simd::dot; use crate::ops::gemm;");
    clean("model/a.rs", "#[cfg(test)]\nmod tests { fn f() { if true {} } use crate::train::step; }");
    clean(
        "model/a.rs",
        "// crate::train\n/* a /* crate::cli */ crate::cli */ const S: &str = \"crate::train\";",
    );
}

#[test]
fn code_after_a_test_module_is_still_checked() {
    caught(
        "ops/a.rs",
        "#[cfg(test)]\nmod tests { const C: char = '}'; }\nuse crate::train;",
        ":3: uses `train`",
    );
}

#[test]
fn a_long_file_is_caught() {
    caught("ops/a.rs", &"\n".repeat(501), "501 lines");
    clean("ops/a.rs", &"\n".repeat(500));
}

#[test]
fn unsafe_outside_its_files_is_caught() {
    caught("ops/rope.rs", "fn f() {\n    unsafe { g() }\n}", "src/ops/rope.rs:2: `unsafe`");
    caught("model/a.rs", "#[cfg(test)]\nmod tests { fn f() { unsafe { g() } } }", ":2: `unsafe`");
    clean("ops/cuda/launch.rs", "unsafe { launch() }");
    clean("ops/rope.rs", "#![deny(unsafe_code)] // unsafe\nconst A: &str = r#\"unsafe \" \"#;");
}

#[test]
fn anyhow_and_clap_below_the_front_are_caught() {
    caught("train/step.rs", "use anyhow::Result;", "`anyhow`");
    caught("config/mod.rs", "#[derive(clap::Args)]\nstruct A;", "`clap`");
    clean("cli/train.rs", "use anyhow::Result;\nuse clap::Args;");
}

#[test]
fn printing_below_the_front_is_caught() {
    caught("train/step.rs", "fn f() { println!(\"x\") }", "`println!`");
    caught("rollout/engine.rs", "fn f() { eprintln!(\"x\") }", "`eprintln!`");
    clean("observe/progress.rs", "fn f() { eprintln!(\"x\") }");
}

#[test]
fn tensors_in_rooms_without_them_are_caught() {
    caught("task/reward.rs", "use candle_core::Tensor;", "`candle_core`");
}

/// `vectorize!` marks its closure so that it is compiled for the processor at hand; nothing may go around it.
#[test]
fn only_the_macro_chooses_the_instruction_set_for_a_closure() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut uses = 0;
    for file in files {
        let text: String = std::fs::read_to_string(&file).unwrap().split_whitespace().collect();
        uses += text.matches("vectorize!(").count();
        let around = text.contains("dispatch_inlined(") || text.contains("dispatch(||");
        assert!(!around || file.ends_with("ops/cpu/simd.rs"), "{}: use vectorize!", file.display());
    }
    assert!(uses > 10, "only {uses} uses were found");
}

/// What modules of tests share stands in `support`: they import from there and from nowhere else in the suite.
#[test]
fn modules_of_tests_import_from_support_alone() {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite");
    let mut files = Vec::new();
    rust_files(&suite, &mut files);
    assert!(files.len() > 20, "no tests under {}", suite.display());
    let import = Regex::new(r"\b(?:crate|super)\s*::\s*(\w+)").unwrap();
    for file in files {
        let name = file.strip_prefix(&suite).unwrap();
        let code = without_comments_and_strings(&std::fs::read_to_string(&file).unwrap());
        for hit in import.captures_iter(&code).filter(|_| !name.starts_with("support")) {
            assert_eq!(&hit[1], "support", "{}: `{}`", name.display(), &hit[0]);
        }
    }
}
