//! Bad input through the real binary: one line on stderr that names the place, what is wrong there and the fix;
//! exit code 2 where the input is at fault, 1 where the operating system says no. Never a panic.

mod command_line;
mod configs;
mod models;
mod printed;
mod rows;
mod runs;
mod templates;

use crate::support::room::{GRPO, Room, flags};

#[test]
fn the_input_that_the_cases_spoil_is_good() {
    for settings in ["", GRPO] {
        let (code, stderr) = Room::new().rlvr(&format!("train config.toml{}", flags(settings)));
        assert_eq!(code, Some(0), "{stderr}");
    }
}
