//! How device processes are started: given their options and one socket.
//!
//! The socket is the child's standard input, so there is no path on disk. How they end: [`crate::control::processes`].

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use outrigger_process::{child, launch};

use crate::control::processes::DeviceProcess;

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
    /// No descriptor left.
    #[error("cannot watch the process that was started")]
    Watch(#[source] io::Error),
}

/// Starts `program` with `options`, by the contract of docs/DEVICE-PROGRAMS.md; returns our end of its socket.
///
/// # Errors
/// See [`SpawnError`].
pub fn start(program: &Path, options: &str, cpus: u8) -> Result<(DeviceProcess, UnixStream), SpawnError> {
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
    let process = DeviceProcess::new(program, child).map_err(SpawnError::Watch)?;
    Ok((process, ours))
}
