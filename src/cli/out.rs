//! What commands print. In this room `print!` and `println!` are these, which never panic: a reader that closes its end,
//! as `head` does, ends the command quietly, and a full disk ends it with a line.

use std::fmt::Arguments;
use std::io::Write;

use crate::error::Error;
use crate::observe::printable;

macro_rules! print {
    ($($words:tt)*) => { $crate::cli::out::write(format_args!($($words)*)) };
}

/// A line on stdout of work that goes on, whether somebody reads or not.
macro_rules! tell {
    ($($words:tt)*) => { $crate::cli::out::tell(format_args!($($words)*)) };
}

macro_rules! eprintln {
    ($($words:tt)*) => { $crate::cli::out::say(format_args!($($words)*)) };
}

macro_rules! println {
    () => { $crate::cli::out::write(format_args!("\n")) };
    ($($words:tt)*) => { $crate::cli::out::write(format_args!("{}\n", format_args!($($words)*))) };
}

pub fn write(text: Arguments) {
    let text = text.to_string();
    if let Err(error) = std::io::stdout().lock().write_all(printable(&text).as_bytes()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("error: {}", Error::io("stdout", "write")(error));
            std::process::exit(1);
        }
        std::process::exit(0);
    }
}

/// A line on stdout; a reader that is gone hears nothing.
pub fn tell(text: Arguments) {
    let _ = writeln!(std::io::stdout(), "{}", printable(&text.to_string()));
}

/// A line on stderr; a reader that is gone hears nothing.
pub fn say(text: Arguments) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&text.to_string()));
}

/// Whether a command failed because nobody reads what it says.
pub fn is_unread(error: &anyhow::Error) -> bool {
    let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    match error.downcast_ref::<Error>() {
        Some(Error::Io { path, source, .. }) => path.as_os_str() == "stdout" && closed(source),
        Some(_) => false,
        None => error.downcast_ref::<std::io::Error>().is_some_and(closed),
    }
}
