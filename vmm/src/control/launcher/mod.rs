//! Starts device processes, at the beginning and when one is to succeed another.
//!
//! That is the work of a process of its own, the **launcher**, which is made before this one has a guest. What the command line
//! says of each device is kept there, and this process names a device and no more: if it is taken over, it can start what the
//! user has named and nothing else.
//!
//! | file | one idea |
//! |---|---|
//! | `order` | the messages between the two |
//! | `process` | the launcher's process |
//! | `programs` | the programs that may be started |
//! | `start` | a process becomes a device program |
//! | `ways` | the namespaces that it starts in |
//!
//! Device processes are children of this process, which alone waits for their end: [`crate::control::processes`]. A child's
//! socket is its standard input, so there is no path on disk.

mod order;
mod process;
mod programs;
mod start;
mod ways;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use outrigger_process::fork::fork;
use outrigger_process::packets::Packets;
use outrigger_process::pidfd::PidFd;
use outrigger_protocol::foreign::ForeignFd;

use self::order::{Failure, Kind, LONGEST, LONGEST_PROGRAM, Order};
use self::process::Table;
use self::programs::is_beside;
use crate::config::Config;
use crate::control::processes::DeviceProcess;

/// How long the launcher may take to answer: longer than it waits for a program to begin.
const ANSWER: Duration = process::LIMIT.saturating_add(Duration::from_secs(5));
/// How long a process that could not become its program may take to end. In milliseconds.
const END: u16 = 1000;

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
pub struct Launcher(Option<Arc<Mutex<Process>>>);

/// The launcher as this process sees it.
#[derive(Debug)]
struct Process {
    socket: Packets,
    /// None: it has ended.
    id: Option<Pid>,
}

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
        Ok(Self(Some(Arc::new(Mutex::new(Process { socket, id: Some(id) })))))
    }

    /// Starts a process for the device in this place of the command line, from 0; returns it, and our end of its socket. A
    /// process that goes on where another has been gets the descriptors that that one asked to be kept.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn start(&self, device: u8, program: &Path, predecessors: Option<&[ForeignFd]>) -> Answer {
        let kept: Vec<BorrowedFd<'_>> = predecessors.into_iter().flatten().map(ForeignFd::lend).collect();
        let start =
            |source: io::Error| SpawnError::Start { beside: is_beside(program), program: program.into(), source };
        if program.as_os_str().len() > LONGEST_PROGRAM {
            return Err(start(Errno::ENAMETOOLONG.into()));
        }
        let count = predecessors.map(|_| u8::try_from(kept.len()).unwrap_or(u8::MAX));
        let order = Order { device, kept: count, program: program.to_owned() };
        let launcher = self.0.as_ref().ok_or(SpawnError::NoLauncher)?;
        let mut launcher = launcher.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer's descriptors are lost where there is no room for them, and the process with them.
        let room = [(); 2].map(|()| launcher.socket.as_fd().try_clone_to_owned());
        let room = room.into_iter().collect::<io::Result<Vec<_>>>();
        let room = room.map_err(|source| SpawnError::Socket { program: name(program), source })?;
        let (outcome, fds) = launcher.give(&order.encode(), &kept, room)?;
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
        fds.map(PidFd::from).for_each(|process| wait_for(&process));
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

impl Process {
    /// Gives an order, and waits for what comes of it. A launcher that does not answer is ended: its answer could be taken for
    /// that to another order. `room` is let go when the answer comes.
    fn give(
        &mut self,
        order: &[u8],
        fds: &[BorrowedFd<'_>],
        room: Vec<OwnedFd>,
    ) -> Result<(order::Outcome, Vec<OwnedFd>), SpawnError> {
        let answer = match self.id {
            Some(_) => self.socket.send(order, fds).and_then(|()| {
                let mut message = [0; LONGEST];
                self.socket.peek(&mut message)?;
                drop(room);
                let (length, fds) = self.socket.receive(&mut message)?;
                let outcome = order::decode(&message[..length]).ok_or_else(|| io::Error::other("no answer"))?;
                Ok((outcome, fds))
            }),
            None => Err(Errno::ESRCH.into()),
        };
        match answer {
            // Too many descriptors, under way or here, rather than the launcher are at fault.
            Err(error)
                if [Errno::ETOOMANYREFS, Errno::EMFILE]
                    .map(|errno| Some(errno as i32))
                    .contains(&error.raw_os_error()) =>
            {
                Err(SpawnError::Watch(error))
            }
            answer => answer.map_err(|_| self.end()),
        }
    }

    fn end(&mut self) -> SpawnError {
        self.socket.close();
        if let Some(id) = self.id {
            // It is this process's child and has not been waited for, so the number is its own.
            _ = kill(id, Signal::SIGKILL);
            if waitpid(id, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid() == Some(id)) {
                self.id = None;
            }
        }
        SpawnError::NoLauncher
    }
}

/// Waits for a process that could not become its program. One that does not end in time stays a zombie until this one ends.
fn wait_for(process: &PidFd) {
    _ = poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], END);
    _ = process.take_status();
}

/// A program's name in messages.
#[must_use]
pub fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
