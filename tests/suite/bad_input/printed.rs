//! Text from outside as it is printed.

use crate::support::room::{INPUT, Room, no_faults};

#[test]
fn what_a_terminal_obeys_is_written_out_and_long_inputs_are_cut_short() {
    let faults = [
        ("{{ raise_exception('\u{1b}[2J\u{7}\u{202e}end') }}".to_string(), r"\u001b[2J\u0007\u202eend"),
        (format!("{{{{ raise_exception('{}') }}}}", "x".repeat(100_000)), "xx ... ("),
    ];
    no_faults(faults.into_iter().map(|(template, says)| {
        let room = Room::new();
        room.write("model/chat_template.jinja", template);
        let words = "data check good.jsonl --task riskcue --model model";
        let (_, stderr) = room.rlvr(words);
        assert!(stderr.len() < 4000 && !stderr.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{stderr:?}");
        room.fault(words, INPUT, &["chat_template.jinja", says])
    }));
}

#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_a_file_is_no_wait() {
    no_faults(["model/config.json", "model/tokenizer.json", "config.toml"].into_iter().map(|name| {
        let room = Room::new();
        std::fs::remove_file(room.at(name)).unwrap();
        let made = std::process::Command::new("mkfifo").arg(room.at(name)).status().unwrap();
        assert!(made.success());
        room.fault("train config.toml", INPUT, &[name.rsplit('/').next().unwrap_or(name)])
    }));
}
