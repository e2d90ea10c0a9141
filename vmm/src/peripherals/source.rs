//! How a device is got, at first and again: a program that is started, a socket that is connected to.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use outrigger_protocol::foreign::ForeignFd;

use super::connect::{ConnectError, connect};
use super::error::Problem;
use super::open::Host;
use crate::attach::generations::Generations;
use crate::config::Source;
use crate::control::processes::DeviceProcess;
use crate::pci::Slot;

/// Pause between two looks whether somebody listens.
const RETRY: Duration = Duration::from_millis(20);

/// A device process that is about to be asked what it is.
pub(super) struct Reached {
    pub(super) stream: UnixStream,
    /// If this VMM has started it.
    pub(super) process: Option<Arc<DeviceProcess>>,
}

/// Starts the program of a source for the device in `slot`, until `end` if there is one; none: it is a socket, on which somebody
/// has to listen.
///
/// # Errors
/// If the program cannot be started.
pub(super) fn start(
    slot: Slot,
    source: &Source,
    host: &Host,
    predecessors: Option<&[ForeignFd]>,
    end: Option<Instant>,
) -> Result<Option<Reached>, Problem> {
    let Source::Program { program, .. } = source else { return Ok(None) };
    // Slot 0 is the host bridge; the devices of the command line follow.
    let started = host.control.launcher.start(slot.0 - 1, program, predecessors, end);
    let (process, stream) = started.map_err(Problem::Spawn)?;
    let process = Arc::new(process);
    host.control.processes.add(&process);
    Ok(Some(Reached { stream, process: Some(process) }))
}

/// Connects to the socket of a source, whose server must listen already.
///
/// # Errors
/// If it does not, does not accept within `deadline`, or is not to be trusted.
pub(super) fn reach(source: &Source, host: &Host, deadline: Duration) -> Result<Reached, Problem> {
    let Source::Socket { path, server } = source else { return Err(Problem::Connect(ConnectError::NobodyListens)) };
    let stream = connect(path, *server, deadline, || host.control.connections.are_ended());
    Ok(Reached { stream: stream.map_err(Problem::Connect)?, process: None })
}

/// The same for a server that may begin to listen later, until `end`.
///
/// # Errors
/// As [`reach`].
pub(super) fn reach_again(
    source: &Source,
    host: &Host,
    generations: &Generations,
    end: Instant,
) -> Result<Reached, Problem> {
    loop {
        let remaining = end.saturating_duration_since(Instant::now());
        match reach(source, host, remaining) {
            Err(Problem::Connect(ConnectError::NobodyListens)) if !remaining.is_zero() && !generations.has_ended() => {
                thread::sleep(RETRY.min(remaining));
            }
            reached => return reached,
        }
    }
}
