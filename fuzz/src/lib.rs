//! What the fuzz targets share: the entries are the test suite's.

#[path = "../../tests/suite/support/entries.rs"]
mod entries;

use entries::{FORMATS, Files};

thread_local! {
    static FILES: Files = Files::new();
}

/// Reads `bytes` as a file of this format.
///
/// # Panics
/// Where reading does, which is what is looked for.
pub fn read(format: &str, bytes: &[u8]) {
    let Some((_, entry)) = FORMATS.into_iter().find(|(name, _)| *name == format) else {
        panic!("no format {format}");
    };
    // A refusal is as good as a file that is read.
    FILES.with(|files| drop(entry(files, bytes)));
}

/// libFuzzer ends at every panic; those of templates and tokenizers are caught and named by the command.
pub fn leave_caught_panics() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(rlvr::text::watched::THREAD) {
            end(panic);
        }
    }));
}
