//! What a data file is, told from its first bytes, and its text unpacked.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// How the rows lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON value a line.
    JsonLines,
    /// One JSON list of all rows.
    JsonList,
    /// CSV, TSV and the like: a header, then a row a record.
    Delimited(u8),
    Parquet,
}

/// A file's text from its start, without packing and byte order mark.
pub(super) struct Opened {
    pub format: Format,
    pub text: Box<dyn BufRead>,
}

/// Enough for a header of many columns.
const HEAD: usize = 1 << 16;
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const PARQUET: &[u8] = b"PAR1";

/// First bytes of what people name by mistake, what it is, and what to do.
const FOREIGN: [(&[u8], &str, &str); 13] = [
    (b"PK\x03\x04", "is a ZIP archive (an Excel file is one too)", "Unpack it, or save the sheet as CSV"),
    (b"ARROW1", "is an Arrow file", "Write it as parquet or JSON Lines"),
    (b"\xff\xff\xff\xff", "is an Arrow stream", "Write it as parquet or JSON Lines"),
    (b"Obj\x01", "is an Avro file", "Write it as parquet or JSON Lines"),
    (b"SQLite format 3", "is a SQLite database", "Export the table as CSV or JSON Lines"),
    (b"\x89HDF", "is an HDF5 file", "Write it as parquet or JSON Lines"),
    (b"\x80\x04", "is a Python pickle", "Write it as parquet or JSON Lines"),
    (b"BZh", "is packed with bzip2", "Unpack it, or pack it with gzip or zstd"),
    (b"\xfd7zXZ", "is packed with xz", "Unpack it, or pack it with gzip or zstd"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "Run `git lfs pull`"),
    (b"<", "starts with `<`: it is a web page or XML, not data", "Download the file itself, not its page"),
    (b"\xff\xfe", "is UTF-16", "Save the file as UTF-8"),
    (b"\xfe\xff", "is UTF-16", "Save the file as UTF-8"),
];

pub(super) fn open(path: &Path) -> Result<Opened> {
    if path.is_dir() {
        return Err(Error::input(path.display(), "is a folder, not a data file", "Name a file in it"));
    }
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let (head, text) = peeked(path, Box::new(BufReader::new(file)))?;
    let unpacked: Box<dyn Read> = if head.starts_with(GZIP) {
        Box::new(flate2::bufread::MultiGzDecoder::new(text))
    } else if head.starts_with(ZSTD) {
        Box::new(zstd::Decoder::with_buffer(text).map_err(Error::io(path, "unpack"))?)
    } else {
        return of_head(path, &head, text, false);
    };
    let (head, text) = peeked(path, Box::new(BufReader::with_capacity(HEAD, unpacked)))?;
    of_head(path, &head, text, true)
}

/// The first [`HEAD`] bytes, and the text with them.
fn peeked(path: &Path, mut text: Box<dyn BufRead>) -> Result<(Vec<u8>, Box<dyn BufRead>)> {
    let mut head = Vec::new();
    text.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(unreadable(path))?;
    Ok((head.clone(), Box::new(Cursor::new(head).chain(text))))
}

/// An error of a reader: the system's, or that of bytes that do not unpack.
pub(super) fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    let path = path.to_path_buf();
    move |error| match error.kind() {
        InvalidData | InvalidInput | Other | UnexpectedEof => Error::input(
            path.display(),
            format!("is packed and does not unpack: {error}"),
            "The file is cut or damaged: copy or download it again",
        ),
        _ => Error::io(&path, "read")(error),
    }
}

fn of_head(path: &Path, head: &[u8], mut text: Box<dyn BufRead>, packed: bool) -> Result<Opened> {
    if head.starts_with(PARQUET) {
        if packed {
            return Err(Error::input(path.display(), "is a parquet file, packed once more", "Unpack it"));
        }
        return Ok(Opened { format: Format::Parquet, text });
    }
    let mark = if head.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    text.consume(mark);
    let head = head.get(mark..).unwrap_or_default();
    if let Some((_, what, fix)) = FOREIGN.iter().find(|(start, ..)| head.starts_with(start)) {
        return Err(Error::input(path.display(), what, fix));
    }
    let format = match head.trim_ascii_start().first() {
        None | Some(b'{') => Format::JsonLines,
        Some(b'[') => Format::JsonList,
        _ => delimiter(path, head).map_or(Format::JsonLines, Format::Delimited),
    };
    Ok(Opened { format, text })
}

/// What parts the columns of a header: the most frequent of tab, comma and semicolon outside of quotes.
fn delimiter(path: &Path, head: &[u8]) -> Option<u8> {
    let mut quoted = false;
    let mut counts = [(b'\t', 0), (b',', 0), (b';', 0)];
    // A column without a name may come first.
    let blank = head.iter().take_while(|byte| b"\r\n ".contains(byte)).count();
    for byte in &head[blank..] {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            _ if quoted => {}
            byte => counts.iter_mut().filter(|(of, _)| of == byte).for_each(|(_, count)| *count += 1),
        }
    }
    let (most, count) = counts.into_iter().rev().max_by_key(|(_, count)| *count)?;
    // One column and no delimiter: the name tells.
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let named = || [".csv", ".tsv"].iter().any(|end| name.contains(end)).then_some(b',');
    if count > 0 { Some(most) } else { named() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(name: &str, bytes: &[u8]) -> Result<Format> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        open(&path).map(|opened| opened.format)
    }

    #[test]
    fn the_first_bytes_tell() {
        let cases: [(&[u8], Format); 10] = [
            (b"", Format::JsonLines),
            (b"\xEF\xBB\xBF {\"a\": 1}", Format::JsonLines),
            (b"\n [{}]", Format::JsonList),
            (b"text,label\na,b\n", Format::Delimited(b',')),
            (b"text\tlabel, of all\na\tb\n", Format::Delimited(b'\t')),
            (b"text;label\na;b,c,d\n", Format::Delimited(b';')),
            (b"\"a,b,c\";label\n", Format::Delimited(b';')),
            (b"\ttext\tlabel\n0\ta\tb\n", Format::Delimited(b'\t')),
            (b"PAR1....", Format::Parquet),
            (b"no row", Format::JsonLines),
        ];
        for (bytes, want) in cases {
            assert_eq!(format("x", bytes).unwrap(), want, "{}", bytes.escape_ascii());
        }
        assert_eq!(format("x.csv", b"text\na\n").unwrap(), Format::Delimited(b','));
    }

    #[test]
    fn what_holds_no_rows_is_named() {
        for (start, what, _) in FOREIGN {
            let error = format("x", &[start, b" and more"].concat()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
