//! A run: from a checked configuration to the guest's end.

use std::error::Error;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use outrigger_process::options::one_line;
use outrigger_process::output;

use crate::config::{Config, UsageError};
use crate::console::{Console, ConsoleError};
use crate::control::api::{ControlSocket, ControlSocketError};
use crate::control::outcome::{Outcome, STATUS_HOST, STATUS_USAGE};
use crate::control::processes::Patience;
use crate::control::{Control, TERM};
use crate::machine::builder::{BuildError, Machine};

/// How long the last words about devices may take to be found, and the guest's last output to be written.
const TELL_LIMIT: Duration = Duration::from_secs(2);
const CONSOLE_LIMIT: Duration = Duration::from_secs(1);
/// The same when the user ends the run.
const HURRY: Duration = Duration::from_millis(150);

/// A guest that ended has its devices finish what it asked for.
const AFTER_GUEST: Patience =
    Patience { alone: Duration::from_secs(5), term: Duration::from_secs(2), kill: Duration::from_secs(1) };
/// The control thread has sent SIGTERM already, and sends SIGKILL at the same time.
const AFTER_USER: Patience = Patience { alone: Duration::ZERO, term: TERM, kill: Duration::from_millis(200) };
/// No guest has asked for anything.
const AFTER_FAILURE: Patience =
    Patience { alone: Duration::ZERO, term: Duration::from_millis(200), kill: Duration::from_millis(200) };

/// Why there is no run, or it ended other than by its guest's or user's wish.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file named on the command line cannot be used.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// There can be no control socket.
    #[error(transparent)]
    ControlSocket(#[from] ControlSocketError),
    /// The console cannot be connected.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The machine cannot be made or started.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl RunError {
    /// The exit status that says whose fault it is.
    pub fn status(&self) -> u8 {
        match self {
            RunError::Usage(_)
            | RunError::ControlSocket(ControlSocketError::Listen(_))
            | RunError::Console(ConsoleError::Create { .. } | ConsoleError::SymbolicLink { .. }) => STATUS_USAGE,
            // Descriptors, threads, memory: each is the host's to give.
            RunError::ControlSocket(ControlSocketError::Thread(_)) | RunError::Console(ConsoleError::Connect(_)) => {
                STATUS_HOST
            }
            RunError::Build(error) => error.status(),
        }
    }

    /// Whether a device process has told the user already.
    pub fn is_told(&self) -> bool {
        matches!(self, RunError::Build(BuildError::Peripheral(error)) if error.is_told())
    }

    /// The error and all its causes in one line, and what to do about a limit that is in the way.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(&format!(": {error}"));
            cause = error.source();
        }
        if line.contains(Errno::EMFILE.desc())
            && !line.contains(Errno::ENFILE.desc())
            && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        {
            line.push_str(&format!(
                "; a process may have {hard} here: raise that (ulimit -Hn, LimitNOFILE= of systemd)"
            ));
        }
        one_line(&line)
    }
}

/// Boots the guest and stays until it ends. When this returns, whatever it started has ended, and the terminal is as it
/// was before.
///
/// This may wait for device processes, for the guest's output and for files. What must not wait is `control`'s.
///
/// # Errors
/// [`RunError`], whose [`status`](RunError::status) tells a user's mistake from a host's lack.
pub fn run(config: &Config, control: &Control) -> Result<Outcome, RunError> {
    // Removed last: whoever finds no socket finds no run.
    let mut socket = None;
    let result = boot_and_wait(config, control, &mut socket);
    control.connections.end_all();
    let by_user = control.stop.outcome().filter(Outcome::is_users);
    control.processes.end(match &result {
        _ if by_user.is_some() => AFTER_USER,
        Ok(_) => AFTER_GUEST,
        Err(_) => AFTER_FAILURE,
    });
    match result {
        // A failure because the user ended the run is none.
        Err(_) if by_user.is_some() => Ok(by_user.expect("just seen")),
        // The user may have cut short what came after the guest's own end.
        Ok(outcome) if outcome.is_orderly() => Ok(control.stop.outcome().filter(Outcome::is_users).unwrap_or(outcome)),
        other => other,
    }
}

fn boot_and_wait(config: &Config, control: &Control, socket: &mut Option<ControlSocket>) -> Result<Outcome, RunError> {
    config.check_files()?;
    if let Some(path) = &config.control {
        *socket = Some(ControlSocket::serve(path, config, control)?);
    }
    let stop = &control.stop;
    let mut console = Console::open(&config.console)?;
    if let Some(terminal) = console.terminal() {
        control.set_terminal(terminal.clone());
    }
    let mut machine = Machine::build(config, console.serial(), control)?;
    if let Some(socket) = socket {
        socket.set_devices(machine.peripherals.devices());
    }
    if config.show_devices {
        output::print(format_args!("{}", machine.peripherals.describe()));
    }

    console.start(stop)?;
    outrigger_process::heap::trim();
    control.guest_runs();
    let started = machine.start();
    match &started {
        Ok(()) => stop.wait(),
        // Says so to threads that run already.
        Err(_) => stop.request(failed()),
    }
    let lost_a_device = machine.peripherals.are_any_lost();
    machine.stop();
    if config.stats {
        output::print(format_args!("{}", machine.stats()));
    }
    machine.peripherals.disconnect();
    let (tell_limit, console_limit) = if stop.is_users() { (HURRY, HURRY) } else { (TELL_LIMIT, CONSOLE_LIMIT) };
    machine.peripherals.join(tell_limit);
    console.finish(console_limit);
    started?;
    let outcome = stop.outcome().unwrap_or_else(failed);
    Ok(if outcome.is_orderly() && lost_a_device { Outcome::DeviceDied } else { outcome })
}

fn failed() -> Outcome {
    Outcome::Failed { report: "the run failed".to_owned() }
}
