//! A run with a control socket, and clients that say to it what they like.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::outrigger::{LIMIT, with_payload};
use crate::process::{Ended, Process, eventually, run};
use crate::{binaries, disk};

/// Longer than anything takes that is promised within a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest with a disk whose run serves `vm.sock` in a directory of its own.
pub struct Controlled {
    /// The VMM.
    pub vmm: Process,
    /// Holds `vm.sock` and `disk.img`.
    pub directory: TempDir,
}

impl Controlled {
    /// Starts a guest that spins, and waits until it does.
    #[track_caller]
    pub fn spinning() -> Self {
        Self::start("spin", |command| command)
    }

    /// Starts a guest that makes `check`, by a command that is `more` than usual, and waits until it is ready.
    #[track_caller]
    pub fn start(check: &str, more: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let directory = TempDir::new().expect("there is room for temporary files");
        disk::empty(&directory.path().join("disk.img"), disk::PAYLOAD_DISK);
        let mut command = with_payload(check);
        command.current_dir(directory.path()).args(["--disk", "path=disk.img", "--control", "vm.sock"]);
        let mut vmm = Process::start_with_input(more(&mut command), LIMIT);
        vmm.wait_for("ready\n");
        Self { vmm, directory }
    }

    /// Where the control socket is.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vm.sock")
    }

    /// A connection.
    ///
    /// # Panics
    /// If there is no socket.
    #[track_caller]
    pub fn connect(&self) -> UnixStream {
        let (path, vmm) = (self.socket(), &self.vmm);
        assert!(path.exists(), "no run listens any more; it said:\n{}\n{}", vmm.stdout(), vmm.stderr());
        connect(&path)
    }

    /// All that is answered to `bytes`, after which the client has nothing more to say.
    #[track_caller]
    pub fn exchange(&self, bytes: &[u8]) -> String {
        exchange(self.connect(), bytes)
    }

    /// Runs `outrigger ctl` with these words after the path.
    #[track_caller]
    pub fn ctl(&self, words: &[&str]) -> Ended {
        ctl(&self.socket(), words)
    }

    /// The text of the status.
    #[track_caller]
    pub fn status(&self) -> String {
        let answer = self.exchange(GET_STATUS);
        assert_eq!(status_of(&answer), Some(200), "{answer}");
        answer
    }
}

/// The request that any client may make.
pub const GET_STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A connection to a control socket.
pub fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("a run listens there");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
    stream
}

/// All that is answered on `stream` to `bytes`. The client sends until it is refused, and then reads.
pub fn exchange(mut stream: UnixStream, bytes: &[u8]) -> String {
    // Refused before all was sent: the answer says why.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        text.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8(text).expect("answers are text")
}

/// The status of the first answer in `text`.
pub fn status_of(text: &str) -> Option<u16> {
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// Runs `outrigger ctl PATH` with these words.
#[track_caller]
pub fn ctl(path: &Path, words: &[&str]) -> Ended {
    run(Command::new(binaries::path("outrigger")).arg("ctl").arg(path).args(words), LIMIT)
}

/// Waits until `path` is gone.
#[track_caller]
pub fn expect_removed(path: &Path) {
    assert!(eventually(PATIENCE, || fs::symlink_metadata(path).is_err()), "{} is left", path.display());
}

/// How long accesses waited, in milliseconds, as `outrigger ctl` tells it of a replacement.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn pause(done: &Ended) -> f64 {
    let number = done.stdout.split("waited ").nth(1).and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("it does not tell the pause: {done}"))
}
