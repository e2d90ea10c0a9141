//! `outrigger ctl`: the control socket for people. It asks, and shows the answer as text.

mod client;
mod table;

use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use outrigger_process::options::one_line;

use self::client::{Connection, Reply};
use crate::control::api::status::{Problem, Replace, Replaced, Status};
use crate::control::outcome::{STATUS_FAILED, STATUS_USAGE};
use crate::pci::Slot;

/// How long an answer may take that asks nothing of a device.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a run may take to end: Outrigger promises one second.
const END: Duration = Duration::from_secs(10);
/// How long a replacement may take: the device's deadline, several times, which is ten seconds if the user does not say.
const REPLACE: Duration = Duration::from_secs(300);

/// A command and its addressee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The control socket.
    pub path: PathBuf,
    /// The command.
    pub command: Command,
}

/// A command to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Show the run's state.
    Status,
    /// End the run, and wait until it has ended.
    Stop,
    /// Start the process of a device anew.
    Restart(Slot),
    /// Replace the process of a device by one of another program, or of the same.
    Replace(Slot, Option<PathBuf>),
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket cannot be used.
    #[error("{}: {problem}", path.display())]
    Socket {
        /// The control socket.
        path: PathBuf,
        /// The problem with it.
        problem: String,
    },
    /// Outrigger refuses.
    #[error("{0}")]
    Refused(String),
    /// The answer does not come, or is none.
    #[error("{}: {problem}", path.display())]
    Answer {
        /// The control socket.
        path: PathBuf,
        /// The problem with it.
        problem: String,
    },
}

impl CallError {
    /// The exit status that says whose fault it is.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Socket { .. } => STATUS_USAGE,
            Self::Refused(_) | Self::Answer { .. } => STATUS_FAILED,
        }
    }

    /// The error in one line.
    #[must_use]
    pub fn line(&self) -> String {
        one_line(&self.to_string())
    }
}

/// Asks, and returns what is to be shown.
///
/// # Errors
/// See [`CallError`].
pub fn run(Call { path, command }: &Call) -> Result<String, CallError> {
    let failed = |problem: String| CallError::Answer { path: path.clone(), problem };
    let connected = Connection::open(path);
    let mut connection = connected.map_err(|problem| CallError::Socket { path: path.clone(), problem })?;
    match command {
        Command::Status => {
            let reply = connection.ask("GET", "/v1/status", "", ANSWER).map_err(failed)?;
            let status: Status = serde_json::from_slice(&accepted(reply)?)
                .map_err(|error| failed(format!("answers what is no status: {error}")))?;
            Ok(table::status(&status))
        }
        Command::Stop => {
            accepted(connection.ask("POST", "/v1/stop", "", ANSWER).map_err(failed)?)?;
            connection.wait_for_end(END).map_err(failed)?;
            Ok(String::new())
        }
        Command::Restart(slot) => {
            let path = format!("/v1/devices/{slot}/restart");
            replaced(*slot, &accepted(connection.ask("POST", &path, "", REPLACE).map_err(failed)?)?).map_err(failed)
        }
        Command::Replace(slot, program) => {
            let program = program.as_deref().map(|program| from_here(program).to_string_lossy().into_owned());
            let body = serde_json::to_string(&Replace { program }).expect("text is JSON");
            let path = format!("/v1/devices/{slot}/replace");
            replaced(*slot, &accepted(connection.ask("POST", &path, &body, REPLACE).map_err(failed)?)?).map_err(failed)
        }
    }
}

/// The text for the answer to a restart or a replacement.
fn replaced(slot: Slot, body: &[u8]) -> Result<String, String> {
    let Replaced { pause_ms } =
        serde_json::from_slice(body).map_err(|error| format!("answers what is no answer: {error}"))?;
    Ok(format!("{slot}: another process serves it; the guest waited {pause_ms:.1} ms at most\n"))
}

/// A path is one from this process's directory; a bare name is looked for beside Outrigger, as on its command line.
fn from_here(program: &Path) -> PathBuf {
    let is_bare = !program.as_os_str().as_encoded_bytes().contains(&b'/');
    if is_bare { program.to_owned() } else { absolute(program).unwrap_or_else(|_| program.to_owned()) }
}

/// The body of a reply that says yes.
fn accepted(reply: Reply) -> Result<Vec<u8>, CallError> {
    if (200..300).contains(&reply.status) {
        return Ok(reply.body);
    }
    let told = serde_json::from_slice::<Problem>(&reply.body).map(|problem| problem.error);
    Err(CallError::Refused(told.unwrap_or_else(|_| format!("refused with HTTP status {}", reply.status))))
}
