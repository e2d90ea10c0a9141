//! Starts device processes, at the beginning and when one is to succeed another.
//!
//! That is the work of a process of its own, the **launcher**, which is made before this one has a guest. What the command line
//! says of each device is kept there, and this process names a device and no more: if it is taken over, it can start what the
//! user has named and nothing else.
//!
//! | file | one idea |
//! |---|---|
//! | `order` | the messages between the two |
//! | `orders` | the launcher as this process sees it |
//! | `process` | the launcher's process |
//! | `programs` | the programs that may be started |
//! | `start` | a process becomes a device program |
//! | `turns` | one order at a time |
//! | `ways` | the namespaces that it starts in |
//!
//! Device processes are children of this process, which alone waits for their end: [`crate::control::processes`]. A child's
//! socket is its standard input, so there is no path on disk.

mod order;
mod orders;
mod process;
mod programs;
mod start;
mod turns;
mod ways;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use outrigger_process::fork::fork;
use outrigger_process::packets::Packets;
use outrigger_process::pidfd::PidFd;
use outrigger_protocol::foreign::ForeignFd;

use self::order::{Failure, Kind, LONGEST_PROGRAM, Order};
use self::orders::{END, Orders};
use self::process::Table;
use self::programs::is_beside;
use self::turns::Turns;
use crate::config::Config;
use crate::control::processes::DeviceProcess;

/// How long the launcher may take to answer: longer than it waits for a program to begin.
const ANSWER: Duration = process::LIMIT.saturating_add(Duration::from_secs(5));

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
    /// The user has not named it.
    #[error("cannot start {}: the command line does not name it; --programs DIR of 'outrigger run' permits programs below DIR", .0.display())]
    NotPermitted(PathBuf),
    /// The launcher does not take such an order.
    #[error("outrigger's launcher refuses to start {program}")]
    Order {
        /// The program.
        program: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The launcher is at another device's program, is stopped, or the program is slow to begin.
    #[error("outrigger's launcher has not started its process in time")]
    Late,
    /// There is no launcher any more.
    #[error("outrigger's launcher, which starts device processes, has ended")]
    NoLauncher,
}

impl SpawnError {
    /// Whether every other process would fail likewise.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::NoLauncher)
    }
}

type Answer = Result<(DeviceProcess, UnixStream), SpawnError>;

/// A way to the launcher, if the run has one.
#[derive(Clone, Debug, Default)]
pub struct Launcher(Option<Arc<Turns<Orders>>>);

impl Launcher {
    /// Makes the launcher of a run, if that has device programs. Call it before this process has another thread; the thread that
    /// calls has to live as long as this process.
    ///
    /// # Errors
    /// The system has no process or no descriptors left.
    pub fn begin(config: &Config) -> io::Result<Self> {
        let table = Table::of(config);
        if table.is_empty() { Ok(Self::default()) } else { Self::with(table) }
    }

    fn with(table: Table) -> io::Result<Self> {
        let (socket, theirs) = Packets::pair()?;
        socket.set_deadline(ANSWER)?;
        let keep = [table.descriptors(), vec![theirs.number()]].concat();
        let body = || process::serve(&theirs, table);
        // SAFETY: there is no other thread, but for one that writes log lines, and the launcher writes none.
        let id = unsafe { fork(c"launcher", &keep, body) }?;
        Ok(Self(Some(Arc::new(Turns::new(Orders { socket: Some(socket), id: Some(id), owed: None })))))
    }

    /// Starts a process for the device in this place of the command line, from 0; returns it, and our end of its socket. A
    /// process that goes on where another has been gets the descriptors that that one asked to be kept. Waits until `end`, or for
    /// as long as the launcher may take to answer.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn start(
        &self,
        device: u8,
        program: &Path,
        predecessors: Option<&[ForeignFd]>,
        end: Option<Instant>,
    ) -> Answer {
        let end = end.unwrap_or_else(|| Instant::now() + 2 * ANSWER);
        let kept: Vec<BorrowedFd<'_>> = predecessors.into_iter().flatten().map(ForeignFd::lend).collect();
        let start =
            |source: io::Error| SpawnError::Start { beside: is_beside(program), program: program.into(), source };
        if program.as_os_str().len() > LONGEST_PROGRAM {
            return Err(start(Errno::ENAMETOOLONG.into()));
        }
        let count = predecessors.map(|_| u8::try_from(kept.len()).unwrap_or(u8::MAX));
        let order = Order { device, kept: count, program: program.to_owned() };
        let launcher = self.0.as_ref().ok_or(SpawnError::NoLauncher)?;
        let mut launcher = launcher.take(end).ok_or(SpawnError::Late)?;
        let room = launcher.reserve().map_err(|source| SpawnError::Socket { program: name(program), source })?;
        let (outcome, fds) = launcher.give(&order.encode(), &kept, room, end)?;
        drop(launcher);
        let mut fds = fds.into_iter();
        let started = match outcome {
            Ok(id) => match (fds.next(), fds.next()) {
                (Some(pidfd), Some(stream)) => Ok((id, PidFd::from(pidfd), UnixStream::from(stream))),
                _ => return Err(SpawnError::NoLauncher),
            },
            Err(failure) => Err(failure),
        };
        // Others that could not become the program.
        fds.map(PidFd::from).for_each(|process| process.end(END));
        let failure = match started {
            Ok((id, pidfd, stream)) => {
                let process = DeviceProcess::new(name(program), id, pidfd).map_err(SpawnError::Watch)?;
                return Ok((process, stream));
            }
            Err(failure) => failure,
        };
        let source = failure.error();
        Err(match failure {
            Failure { kind: Kind::Place, .. } => SpawnError::Place(source),
            Failure { kind: Kind::Socket, .. } => SpawnError::Socket { program: name(program), source },
            Failure { kind: Kind::Start, path, .. } => {
                SpawnError::Start { beside: is_beside(program), program: path, source }
            }
            Failure { kind: Kind::NotPermitted, path, .. } => SpawnError::NotPermitted(path),
            Failure { kind: Kind::Order, .. } => SpawnError::Order { program: name(program), source },
        })
    }
}

/// A program's name in messages.
#[must_use]
pub fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
