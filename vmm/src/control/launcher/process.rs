//! The launcher's own process: it waits for orders, and starts what the command line names.
//!
//! It is a copy of the VMM from before the guest, the console and the control socket, and has the table of devices, its socket, and
//! the caller's descriptors that are meant for devices. The VMM is read as somebody else's program: one that is taken over can
//! have started what the user has named, as the user has named it, and nothing else.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;
use outrigger_process::fork::{self, Sibling};
use outrigger_process::inherited::is_callers;
use outrigger_process::packets::Packets;
use outrigger_process::pidfd::PidFd;
use outrigger_process::seal::Sandbox;

use super::order::{self, Failure, Kind, LONGEST, Order};
use super::programs::Programs;
use super::start::{self, TAKEN};
use super::ways::{Way, ways};
use crate::config::{Config, Source};

/// How long a program may take to begin: it may have to be read from slow storage.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// A device that the command line has a program for.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) options: String,
    pub(super) inherited: Vec<RawFd>,
    pub(super) sandbox: Sandbox,
    pub(super) is_started: bool,
}

/// The devices of the command line, in its order; none: one that somebody else serves.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) programs: Programs,
    pub(super) cpus: u8,
    /// The VMM.
    pub(super) parent: u32,
}

impl Table {
    pub(super) fn of(config: &Config) -> Self {
        let entry = |source: &Source| match source {
            Source::Socket { .. } => None,
            Source::Program { options, inherited, sandbox, .. } => Some(Entry {
                options: options.clone(),
                // This process's own descriptors, which have other numbers, are not given away by mistake.
                inherited: inherited.iter().copied().filter(|&number| is_callers(number)).collect(),
                sandbox: *sandbox,
                is_started: false,
            }),
        };
        let entries = config.pci_devices.iter().map(|device| entry(&device.source)).collect();
        Self { entries, programs: Programs::of(config), cpus: config.cpus, parent: std::process::id() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(Option::is_none)
    }

    /// The caller's descriptors that are meant for devices.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let all: HashSet<RawFd> =
            self.entries.iter().flatten().flat_map(|entry| entry.inherited.iter().copied()).collect();
        all.into_iter().collect()
    }

    /// Notes that a device has been started. Once all have, the caller's descriptors are theirs: what those hold open ends with
    /// them.
    fn note_start(&mut self, device: u8) {
        if let Some(Some(entry)) = self.entries.get_mut(usize::from(device)) {
            entry.is_started = true;
        }
        if self.entries.iter().flatten().all(|entry| entry.is_started) {
            self.descriptors().into_iter().for_each(|number| _ = nix::unistd::close(number));
            self.entries.iter_mut().flatten().for_each(|entry| entry.inherited.clear());
        }
    }
}

/// Follows orders until the VMM closes its end. Returns this process's exit status.
pub(super) fn serve(socket: &Packets, mut table: Table) -> u8 {
    outrigger_process::heap::trim();
    let mut room = [0; LONGEST];
    loop {
        let length = match socket.peek(&mut room) {
            Ok(0) | Err(_) => return 0,
            Ok(length) => length,
        };
        let order = room.get(..length).and_then(Order::decode);
        let answer = match &order {
            Some(order) => start(socket, &table, order),
            None => refuse(socket, "it cannot be read"),
        };
        match (tell(socket, answer), order) {
            (Ok(true), Some(order)) => table.note_start(order.device),
            (Ok(_), _) => {}
            (Err(_), _) => return 0,
        }
    }
}

/// Sends an answer; whether it is that a process has started. One that the VMM cannot be given, because too many descriptors are
/// under way or memory is short, does not live on without it.
///
/// # Errors
/// The VMM has closed its end, or takes no answer at all.
pub(super) fn tell(socket: &Packets, answer: Answer) -> io::Result<bool> {
    let Answer { outcome, process, ended } = answer;
    let fds = process.iter().flat_map(|(process, stream)| [process.as_fd(), stream.as_fd()]);
    let fds: Vec<BorrowedFd<'_>> = fds.chain(ended.iter().map(AsFd::as_fd)).collect();
    match socket.send(&order::encode(&outcome), &fds) {
        Ok(()) => Ok(outcome.is_ok()),
        Err(error) if [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&error.kind()) => Err(error),
        Err(error) => {
            process.iter().for_each(|(process, _)| process.signal(Signal::SIGKILL));
            let failure = outcome.err().unwrap_or_else(|| Failure::new(Kind::Socket, "".as_ref(), &error));
            socket.send(&order::encode(&Err(failure)), &[]).map(|()| false)
        }
    }
}

/// The outcome of an order.
pub(super) struct Answer {
    pub(super) outcome: order::Outcome,
    /// The process that has become its program, and the other end of its socket.
    pub(super) process: Option<(PidFd, UnixStream)>,
    /// Processes that could not become their program. The VMM has to wait for their end.
    pub(super) ended: Vec<PidFd>,
}

impl Answer {
    fn failed(failure: Failure, ended: Vec<PidFd>) -> Self {
        Self { outcome: Err(failure), process: None, ended }
    }
}

/// Removes an order that cannot be followed.
fn refuse(socket: &Packets, why: &str) -> Answer {
    socket.discard();
    Answer::failed(Failure::new(Kind::Order, "".as_ref(), &io::Error::other(why.to_owned())), Vec::new())
}

fn start(socket: &Packets, table: &Table, order: &Order) -> Answer {
    let Some(Some(entry)) = table.entries.get(usize::from(order.device)) else {
        return refuse(socket, "no such device");
    };
    let mut ended = Vec::new();
    let mut failed = Failure::new(Kind::Start, &order.program, &Errno::ESRCH.into());
    let path = match table.programs.find(&order.program) {
        Ok(path) => path,
        Err(failure) => {
            socket.discard();
            return Answer::failed(failure, ended);
        }
    };
    for way in ways(entry.sandbox, &path) {
        match attempt(socket, table, entry, order, &path, way) {
            Attempt::Started(process, stream) => {
                return Answer { outcome: Ok(process.id), process: Some((process.pidfd, stream)), ended };
            }
            Attempt::Failed(failure, process) => {
                ended.push(process);
                return Answer::failed(failure, ended);
            }
            Attempt::NotThisWay(process) => ended.push(process),
            Attempt::None(failure) => failed = failure,
        }
    }
    socket.discard();
    Answer::failed(failed, ended)
}

enum Attempt {
    /// A process that has become its program, and the other end of its socket.
    Started(Sibling, UnixStream),
    /// One that has taken the order and not become its program.
    Failed(Failure, PidFd),
    /// One that has not taken the order: it may be given to another one.
    NotThisWay(PidFd),
    /// There is none.
    None(Failure),
}

fn attempt(socket: &Packets, table: &Table, entry: &Entry, order: &Order, path: &Path, way: Way) -> Attempt {
    let failed = |kind, error: &io::Error| Attempt::None(Failure::new(kind, &order.program, error));
    let (ours, theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => return failed(Kind::Socket, &error),
    };
    let (report, reports) = match pipe2(OFlag::O_CLOEXEC) {
        Ok(pipe) => pipe,
        Err(errno) => return failed(Kind::Start, &errno.into()),
    };
    let body = || match way.arrive() {
        Ok(()) => start::become_program(socket, table, entry, order, path, &theirs, &reports),
        Err(_) => start::EXIT_FAILED,
    };
    // SAFETY: the launcher has one thread.
    let process = match unsafe { fork::sibling(way.namespaces(), body) } {
        Ok(process) => process,
        Err(error) => return failed(Kind::Start, &error),
    };
    drop((reports, theirs));
    match read(report).as_deref().map(<[u8]>::split_first) {
        // It has closed the pipe by becoming its program.
        Some(Some((&TAKEN, []))) => Attempt::Started(process, ours),
        Some(Some((_, failure))) => {
            let failure = order::decode(failure).and_then(Result::err);
            let failure = failure.unwrap_or_else(|| Failure::new(Kind::Start, &order.program, &Errno::ESRCH.into()));
            Attempt::Failed(failure, process.pidfd)
        }
        Some(None) => Attempt::NotThisWay(process.pidfd),
        None => {
            process.pidfd.signal(Signal::SIGKILL);
            Attempt::Failed(Failure::new(Kind::Start, &order.program, &Errno::ETIMEDOUT.into()), process.pidfd)
        }
    }
}

/// All that comes through a pipe until it is closed, in time.
fn read(pipe: OwnedFd) -> Option<Vec<u8>> {
    let end = Instant::now() + LIMIT;
    let (mut pipe, mut all, mut room) = (File::from(pipe), Vec::new(), [0; 512]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return None,
            Err(errno) if errno != Errno::EINTR => return None,
            _ => {}
        }
        match pipe.read(&mut room) {
            Ok(0) => return Some(all),
            Ok(length) if all.len() < 2 * LONGEST => all.extend(&room[..length]),
            Ok(_) | Err(_) => return None,
        }
    }
}
