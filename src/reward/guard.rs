//! A process group that ends with us, however we end.
//!
//! Its leader is a shell that reads from a pipe whose other end only this process has. Once that is closed, by us or by
//! the system because we are gone (an error, a panic, `kill -9`), the shell kills the group with everything that the
//! program started and that did not leave the group. So no signal is sent by number from here, and none can hit a process
//! that has the number of an older one.

use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// With a shell that a busy machine lets wait.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Guard {
    shell: Child,
}

impl Guard {
    pub(super) fn start() -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "read -r _; kill -9 0"]);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        lead(&mut shell);
        Ok(Self { shell: shell.spawn()? })
    }

    /// Has `command` start in the group.
    #[cfg(unix)]
    pub(super) fn take_in(&self, command: &mut Command) {
        std::os::unix::process::CommandExt::process_group(command, self.shell.id() as i32);
    }

    #[cfg(not(unix))]
    pub(super) fn take_in(&self, _: &mut Command) {}
}

#[cfg(unix)]
fn lead(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

#[cfg(not(unix))]
fn lead(_: &mut Command) {}

impl Drop for Guard {
    /// The group is dead when this returns, unless somebody stopped or killed the shell.
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let begun = Instant::now();
        while let Ok(None) = self.shell.try_wait() {
            if begun.elapsed() > PATIENCE {
                let _ = self.shell.kill();
                let _ = self.shell.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
