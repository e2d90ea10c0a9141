//! A process becomes a device program, by the contract of docs/DEVICE-PROGRAMS.md.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use outrigger_process::packets::{Lost, MOST_DESCRIPTORS, Packets};
use outrigger_process::{child, launch};

use super::order::{self, Failure, Kind, LONGEST, Order};
use super::process::{Entry, Table};

/// The first byte of a report: the order is no longer in the socket. What follows is why the process does not become its program.
pub(super) const TAKEN: u8 = b'T';
/// Exit status of a process that has not.
pub(super) const EXIT_FAILED: u8 = 127;

/// Takes the order from the socket, and executes its program, which is at `path`. Returns, with an exit status, if that fails.
///
/// The descriptors that come with the order are a device process's own: to close one may take as long as that process likes. So
/// they are never the launcher's, but this process's, which nothing waits for when it ends.
pub(super) fn become_program(
    socket: &Packets,
    table: &Table,
    entry: &Entry,
    order: &Order,
    path: &Path,
    stream: &UnixStream,
    reports: &OwnedFd,
) -> u8 {
    let taken = take(socket, order);
    // The launcher reads it, and may have given up.
    let tell = |bytes: &[u8]| _ = nix::unistd::write(reports, bytes);
    tell(&[TAKEN]);
    let failure = match taken.and_then(|kept| Ok((kept, stream.try_clone()?))) {
        Err(error) => Failure::new(Kind::Order, &order.program, &error),
        Ok((kept, stream)) => execute(table, entry, order, path, kept, stream),
    };
    tell(&order::encode(&Err(failure)));
    EXIT_FAILED
}

/// Takes the descriptors that come with the order. They stay open.
fn take(socket: &Packets, order: &Order) -> io::Result<Vec<RawFd>> {
    let announced = usize::from(order.kept.unwrap_or(0));
    if announced > MOST_DESCRIPTORS {
        socket.discard();
        return Err(io::Error::other("too many descriptors"));
    }
    let (kept, whole) = match socket.receive(&mut [0; LONGEST]) {
        Ok((_, kept)) => (kept, Ok(())),
        Err(Lost { error, fds, .. }) => (fds, Err(error)),
    };
    let kept: Vec<RawFd> = kept.into_iter().map(IntoRawFd::into_raw_fd).collect();
    whole?;
    match kept.len() == announced {
        true => Ok(kept),
        false => Err(io::Error::other("other descriptors than announced")),
    }
}

/// Returns if that fails.
fn execute(table: &Table, entry: &Entry, order: &Order, path: &Path, kept: Vec<RawFd>, stream: UnixStream) -> Failure {
    let mut command = Command::new(path);
    child::prepare_for(&mut command, table.parent);
    command.env(launch::VCPUS, table.cpus.to_string()).env(launch::SANDBOX, entry.sandbox.name());
    command.args([launch::OPTIONS, &entry.options, launch::FD, "0"]);
    let mut numbers = entry.inherited.clone();
    if order.kept.is_some() {
        let list: Vec<String> = kept.iter().map(ToString::to_string).collect();
        command.env(launch::SUCCESSOR, "1");
        if !list.is_empty() {
            command.env(launch::KEPT, list.join(","));
        }
        numbers.extend(kept);
    }
    child::keep(&mut command, numbers);
    // Standard output is the guest's console and none of theirs; the launcher's is /dev/null.
    let error = command.stdin(Stdio::from(OwnedFd::from(stream))).stdout(Stdio::inherit()).exec();
    Failure::new(Kind::Start, path, &error)
}
