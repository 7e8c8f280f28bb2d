//! Rust source as text, for tests that read it.

use std::path::{Path, PathBuf};

use regex::Regex;

/// The Rust files of a folder and those below it, in order, behind those in `files`.
pub fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// The same text with `#[cfg(test)] mod ... { }` blanked.
pub fn without_test_modules(code: &str) -> String {
    let mut out = code.to_string();
    let test_module = Regex::new(r"#\[cfg\(test\)\]\s*(?:pub\s+)?mod\s+\w+\s*\{").unwrap();
    for start in test_module.find_iter(code) {
        let mut depth = 1;
        let end = code[start.end()..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        });
        let end = end.map_or(code.len(), |(at, _)| start.end() + at);
        out.replace_range(start.start()..end, &blank(&code[start.start()..end]));
    }
    out
}

/// As many bytes as `text`, all spaces but for the line ends.
fn blank(text: &str) -> String {
    text.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect()
}

/// The same text, byte for byte in place, with comments, strings and character literals blanked.
pub fn without_comments_and_strings(text: &str) -> String {
    let opening = Regex::new(concat!(
        r#"//[^\n]*|/\*|\bb?r(?P<raw>#*)"|"(?:[^"\\]|\\.|\\\n)*""#,
        r"|'(?:[^'\\\n]|\\(?:u\{[0-9a-fA-F_]+\}|x..|.))'"
    ))
    .unwrap();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(hit) = opening.captures_at(text, at) {
        let all = hit.get(0).unwrap();
        let rest = &text[all.end()..];
        let end = if let Some(hashes) = hit.name("raw") {
            let close = format!("\"{}", hashes.as_str());
            rest.find(&close).map_or(text.len(), |i| all.end() + i + close.len())
        } else if all.as_str() == "/*" {
            all.end() + comment_end(rest)
        } else {
            all.end()
        };
        out.push_str(&text[at..all.start()]);
        out.push_str(&blank(&text[all.start()..end]));
        at = end;
    }
    out.push_str(&text[at..]);
    out
}

/// Bytes to the end of a block comment that has just opened; they nest.
fn comment_end(rest: &str) -> usize {
    let mut depth = 1;
    for mark in Regex::new(r"/\*|\*/").unwrap().find_iter(rest) {
        depth = if mark.as_str() == "/*" { depth + 1 } else { depth - 1 };
        if depth == 0 {
            return mark.end();
        }
    }
    rest.len()
}
