//! Device processes that Outrigger starts: given their options and one socket, and gone when it is.
//!
//! The socket is the child's standard input, so there is no path on disk, and a child whose VMM was killed sees the end of
//! its input and leaves.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_process::{child, launch};

/// How long a child may take to end after its socket was closed: it finishes what the guest has asked for.
const GRACE: Duration = Duration::from_secs(5);
/// How long it may take after it was told by a signal.
const LAST_GRACE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);

/// A device process that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Outrigger's own place is unknown.
    #[error("cannot tell where outrigger itself is installed")]
    Place(#[source] io::Error),
    /// The program is missing, or cannot be executed.
    #[error("cannot start {}{}", program.display(), if *.beside { " (a bare name is looked for beside outrigger itself)" } else { "" })]
    Start {
        /// Whether it was looked for beside Outrigger's own binary.
        beside: bool,
        /// The program.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No socket.
    #[error("cannot make a socket for {program}")]
    Socket {
        /// The program.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A running child. Dropping it ends it, politely first.
#[derive(Debug)]
pub struct DeviceProcess {
    program: String,
    child: Child,
}

impl DeviceProcess {
    /// Starts `program` with `options`, by the contract of docs/DEVICE-PROGRAMS.md; returns our end of its socket.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn start(program: &Path, options: &str, cpus: u8) -> Result<(Self, UnixStream), SpawnError> {
        let beside = !program.as_os_str().as_encoded_bytes().contains(&b'/');
        let path = match beside {
            true => std::env::current_exe().map_err(SpawnError::Place)?.with_file_name(program),
            false => program.to_owned(),
        };
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| SpawnError::Socket { program: program.clone(), source })?;
        let mut command = Command::new(&path);
        child::prepare(&mut command).env(launch::VCPUS, cpus.to_string());
        command.args([launch::OPTIONS, options, launch::FD, "0"]);
        // Standard output is the guest's console and none of theirs.
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let child = command.spawn().map_err(|source| SpawnError::Start { program: path, beside, source })?;
        Ok((Self { program, child }, ours))
    }

    /// Its name.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has, or does within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
                _ => return None,
            }
        }
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        if self.wait(GRACE).is_some() {
            return;
        }
        log::warn!("{} (process {}) does not end by itself", self.program, self.child.id());
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        // Not yet waited for, so the id is still this child's.
        let _ = kill(pid, Signal::SIGTERM);
        if self.wait(LAST_GRACE).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a process ended, for people.
#[must_use]
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal().map(Signal::try_from)) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(Ok(signal))) => format!("was killed by {signal}"),
        _ => "ended".to_owned(),
    }
}
