//! Imports make no circle. A part of a module uses what the module above it defines, and that is all it may use of it:
//! such imports do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;

use crate::support::source::{rust_files, without_comments_and_strings, without_test_modules};

/// A module's path from the crate's root: `ops`, `attention`, `cpu`.
type Module = Vec<String>;

#[test]
fn imports_make_no_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let files: Vec<(String, String)> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
            (name, std::fs::read_to_string(file).unwrap())
        })
        .collect();
    let found = circles(&files);
    assert!(found.is_empty(), "imports in a circle:\n{}", found.join("\n"));
}

/// One circle of every knot of files, as `a -> b -> a`; a file is its path under `src` and its text.
fn circles(files: &[(String, String)]) -> Vec<String> {
    let modules: BTreeSet<Module> = files.iter().map(|(name, _)| module_of(name)).collect();
    let mut uses: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
    for (name, text) in files {
        let own = module_of(name);
        let code = without_test_modules(&without_comments_and_strings(text));
        let used = paths(&own, &code).into_iter().filter_map(|path| {
            let known = |len: &usize| modules.contains(&path[..*len]);
            (1..=path.len()).rev().find(known).map(|len| path[..len].to_vec())
        });
        // Its own items, and those of the modules it is part of.
        let used = used.filter(|used| !own.starts_with(used)).collect();
        uses.insert(own, used);
    }
    let mut found = Vec::new();
    let (mut done, mut way) = (BTreeSet::new(), Vec::new());
    for module in uses.keys() {
        walk(module, &uses, &mut done, &mut way, &mut found);
    }
    found
}

fn walk(
    at: &Module,
    uses: &BTreeMap<Module, BTreeSet<Module>>,
    done: &mut BTreeSet<Module>,
    way: &mut Vec<Module>,
    found: &mut Vec<String>,
) {
    if let Some(start) = way.iter().position(|module| module == at) {
        let circle = way[start..].iter().chain([at]).map(|module| module.join("/"));
        found.push(circle.collect::<Vec<_>>().join(" -> "));
        return;
    }
    if !done.insert(at.clone()) {
        return;
    }
    way.push(at.clone());
    for next in &uses[at] {
        walk(next, uses, done, way, found);
    }
    way.pop();
}

/// `ops/attention/mod.rs` is `ops::attention`; `lib.rs` is the root.
fn module_of(name: &str) -> Module {
    let name = name.trim_end_matches(".rs").trim_end_matches("/mod");
    name.split('/').filter(|part| *part != "lib").map(String::from).collect()
}

/// The module's parts, and every path that begins with `crate`, `self` or `super`, from the root; groups in braces one
/// by one.
fn paths(own: &Module, code: &str) -> Vec<Module> {
    let part = Regex::new(r"\bmod\s+(\w+)\s*;").unwrap();
    let parts = part.captures_iter(code).map(|hit| [own.as_slice(), &[hit[1].to_string()]].concat());
    let mut found: Vec<Module> = parts.collect();
    let start = Regex::new(r"\b(?:crate|self|(?:super\s*::\s*)*super)\s*::\s*").unwrap();
    for hit in start.find_iter(code) {
        let climbs = hit.as_str().matches("super").count();
        let base = match hit.as_str().starts_with("crate") {
            true => &[],
            false => &own[..own.len().saturating_sub(climbs)],
        };
        tree(&code[hit.end()..], base.to_vec(), &mut found);
    }
    found
}

/// The paths of a use tree behind `base`; returns how much of `code` it took.
fn tree(code: &str, mut base: Module, found: &mut Vec<Module>) -> usize {
    let space = |at: usize| at + code[at..].len() - code[at..].trim_start().len();
    let mut at = space(0);
    loop {
        if code[at..].starts_with('{') {
            at += 1;
            while !code[at..].starts_with('}') && at < code.len() {
                at += tree(&code[at..], base.clone(), found).max(1);
                at = space(at);
                at += usize::from(code[at..].starts_with(','));
                at = space(at);
            }
            return at + 1;
        }
        let word = code[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len() - at);
        base.extend((word > 0).then(|| code[at..at + word].to_string()));
        at += word;
        if !code[at..].trim_start().starts_with("::") {
            found.push(base);
            return at;
        }
        at = space(space(at) + 2);
    }
}

#[track_caller]
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    circles(&files)
}

#[test]
fn a_circle_is_found() {
    let two = [("ops/a.rs", "use super::b::B;"), ("ops/b.rs", "fn f() { crate::ops::a::g() }")];
    assert_eq!(circles_of(&two), ["ops/a -> ops/b -> ops/a"]);
    let of_parts = [
        ("ops/a/mod.rs", "use self::cpu::f; use crate::ops::{b, c::{d, e}};"),
        ("ops/b.rs", ""),
        ("ops/c/mod.rs", ""),
        ("ops/c/e.rs", "use crate::{error::Error, ops::a::cpu::{self, f}};"),
        ("ops/a/cpu.rs", "use crate::ops::c::e;"),
    ];
    assert_eq!(circles_of(&of_parts), ["ops/a/cpu -> ops/c/e -> ops/a/cpu"]);
}

#[test]
fn a_module_uses_its_parts() {
    let files = [
        ("ops/a/mod.rs", "mod cpu; pub struct A;"),
        ("ops/a/cpu.rs", "use crate::ops::b::B;"),
        ("ops/b.rs", "use super::a::A;"),
    ];
    assert_eq!(circles_of(&files), ["ops/a -> ops/a/cpu -> ops/b -> ops/a"]);
}

#[test]
fn a_part_may_use_what_is_above_it() {
    let part = [
        ("ops/a/mod.rs", "mod cpu; pub mod cuda; fn g() { cuda::h() }"),
        (
            "ops/a/cpu.rs",
            "use super::{Inputs, Outputs as O}; #[cfg(test)] mod tests { use crate::ops::a::cuda; }",
        ),
        ("ops/a/cuda.rs", "use crate::ops::a::Inputs; // super::cpu\nuse super::cpu::*;"),
    ];
    assert_eq!(circles_of(&part), Vec::<String>::new());
}
