//! A model in several GGUF files, as llama.cpp's gguf-split leaves it: `NAME-00001-of-00003.gguf` and so on, the metadata in
//! the first, tensors in any. Each file says which it is (`split.no`, from 0), of how many (`split.count`), and how many
//! tensors all have together (`split.tensors.count`).

use std::path::{Path, PathBuf};

use super::container::Gguf;
use crate::error::{Error, Result};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// More files than any model has.
const MOST: usize = 1000;
const MIXED_UP: &str = "Put the parts of one model into a folder of their own, under their names";

/// The model that the file `path` holds, or is any part of.
///
/// # Errors
/// A part is not there, or is one of another model; the first such is named.
pub(super) fn open_whole(path: &Path) -> Result<Gguf> {
    let named = Gguf::open(path)?;
    let count = named.size(COUNT)?.unwrap_or(1);
    if count < 2 {
        return Ok(named);
    }
    if count > MOST {
        return Err(named.wrong(
            COUNT,
            format!("{count} parts, more than {MOST}"),
            "Convert the model again",
        ));
    }
    let paths = paths(&named, path, count)?;
    let is_missing = |part: &&PathBuf| !part.is_file();
    if let Some(missing) = paths.iter().find(is_missing) {
        let others = paths.iter().filter(is_missing).count() - 1;
        let more = if others > 0 { format!(", nor are {others} others") } else { String::new() };
        let problem = format!("part of the model that {} is of, and not there{more}", path.display());
        return Err(Error::input(missing.display(), problem, "Fetch it into the same folder"));
    }
    let mut whole: Option<Gguf> = None;
    for (number, path) in paths.iter().enumerate() {
        let part = Gguf::open(path)?;
        for (key, wanted) in [(NUMBER, Some(number)), (COUNT, Some(count)), (TENSORS, named.size(TENSORS)?)] {
            let found = part.size(key)?;
            if found != wanted {
                let said = |n: Option<usize>| n.map_or("missing".to_string(), |n| n.to_string());
                let problem = format!("{}, where {} is wanted", said(found), said(wanted));
                return Err(part.wrong(key, problem, MIXED_UP));
            }
        }
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => whole.append(part)?,
        }
    }
    let whole = whole.unwrap_or(named);
    let found = whole.tensor_names().count();
    match whole.size(TENSORS)? {
        Some(wanted) if wanted != found => {
            Err(whole.wrong(TENSORS, format!("{wanted}, but the parts have {found}"), MIXED_UP))
        }
        _ => Ok(whole),
    }
}

/// Where all parts lie, by the name of one.
fn paths(named: &Gguf, path: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let number = named.size(NUMBER)?.unwrap_or_default();
    let ending = |number: usize| format!("-{:05}-of-{count:05}.gguf", number.saturating_add(1));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.strip_suffix(&ending(number)) {
        Some(stem) => {
            Ok((0..count).map(|number| path.with_file_name(format!("{stem}{}", ending(number)))).collect())
        }
        None => {
            let problem = format!("part {} of {count}, by its name another", number.saturating_add(1));
            let fix = format!("Call the parts NAME{} to NAME{}", ending(0), ending(count - 1));
            Err(named.wrong(NUMBER, problem, &fix))
        }
    }
}
