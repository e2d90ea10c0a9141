//! Descriptors whose state the device changes, or whose closing takes its time.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use outrigger_protocol::command::Command;
use outrigger_tests::raw;
use outrigger_tests::rude_client::lingering;

use crate::connection::{Connection, used};

/// How long the guest uses a device before something comes of it.
const A_WHILE: Duration = Duration::from_millis(300);
/// As many as our client takes in one message.
const FDS: usize = 64;

/// Lets whoever reads or writes an eventfd wait, and leaves when the guest has unmasked vectors.
pub fn blocking_eventfds(connection: &mut Connection) -> io::Result<()> {
    let block = |connection: &Connection| connection.device.eventfds.iter().flatten().try_for_each(let_block);
    for _ in 0..150 {
        let Some(request) = connection.request()? else { return Ok(()) };
        block(connection)?;
        connection.answer(&request)?;
    }
    thread::sleep(A_WHILE);
    Ok(())
}

/// The same, and keeps their counters at the maximum, so that one more signal waits.
pub fn full_eventfds(connection: &mut Connection) -> io::Result<()> {
    let mut eventfds = Vec::new();
    while let Some(request) = connection.request()? {
        // The device underneath would wait itself when it fires.
        eventfds.extend(connection.device.eventfds.iter_mut().flat_map(std::mem::take));
        for mut eventfd in &eventfds {
            fcntl(eventfd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let _ = eventfd.write(&(u64::MAX - 1).to_ne_bytes());
            let_block(eventfd)?;
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// Along with each request for memory comes a descriptor whose closing takes ten minutes.
pub fn lingering_request(connection: &mut Connection) -> io::Result<()> {
    let mut peers = Vec::new();
    while let Some(request) = connection.request()? {
        if used(&request) && peers.len() < 16 {
            let (lingering, peer) = lingering()?;
            connection.dma_read(64, &[lingering.as_raw_fd()])?;
            peers.push(peer);
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// The same with replies.
pub fn lingering_reply(connection: &mut Connection) -> io::Result<()> {
    let mut peers = Vec::new();
    while let Some(request) = connection.request()? {
        if used(&request) && peers.len() < 16 {
            let (lingering, peer) = lingering()?;
            connection.answer_with(&request, &[lingering.as_raw_fd()])?;
            peers.push(peer);
        } else {
            connection.answer(&request)?;
        }
    }
    Ok(())
}

/// The same with the description of a region that has nothing to map.
pub fn lingering_region(connection: &mut Connection) -> io::Result<()> {
    let mut peers = Vec::new();
    while let Some(request) = connection.request()? {
        if request.is(Command::DeviceGetRegionInfo) {
            let (lingering, peer) = lingering()?;
            connection.answer_with(&request, &[lingering.as_raw_fd()])?;
            peers.push(peer);
        } else {
            connection.answer(&request)?;
        }
    }
    Ok(())
}

/// The same with each answer on the ioregionfd.
pub fn lingering_ioregionfd(connection: &mut Connection) -> io::Result<()> {
    if let Some((_, ours)) = &connection.device.ioregionfd {
        let ours = ours.try_clone()?;
        thread::spawn(move || -> io::Result<()> {
            let mut peers = Vec::new();
            let mut command = [0; 32];
            while recv(ours.as_raw_fd(), &mut command, MsgFlags::empty())? > 0 {
                let (lingering, peer) = lingering()?;
                peers.push(peer);
                let fds = [lingering.as_raw_fd()];
                let iov = [io::IoSlice::new(&[0; 32])];
                sendmsg::<()>(
                    ours.as_raw_fd(),
                    &iov,
                    &[ControlMessage::ScmRights(&fds)],
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )?;
            }
            Ok(())
        });
    }
    connection.serve()
}

/// The same with messages that a client which has seen the first, and closes the connection for it, does not come to read.
pub fn lingering_unread(connection: &mut Connection) -> io::Result<()> {
    if !connection.until_used()? {
        return Ok(());
    }
    let mut bytes = raw::message(0, Command::Version, 0x5a, &[]);
    bytes.resize(64, 0x5a);
    let mut peers = Vec::new();
    for _ in 0..16 {
        let (lingering, peer) = lingering()?;
        peers.push(peer);
        let fds = [lingering.as_raw_fd()];
        if raw::send(&connection.stream, &bytes, &fds).is_err() {
            break;
        }
    }
    keep(peers);
    Ok(())
}

/// Takes the deadlines from the twin socket, lets it block, and takes bytes from it that are the client's.
pub fn blocking_twin(connection: &mut Connection) -> io::Result<()> {
    if let Some((theirs, ours)) = &connection.device.twin {
        steal(theirs.try_clone()?, ours.try_clone()?);
    }
    while let Some(request) = connection.request()? {
        if used(&request) {
            connection.dma_read(64, &[])?;
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// The same with the ioregionfd, on which it never answers.
pub fn blocking_ioregionfd(connection: &mut Connection) -> io::Result<()> {
    if let Some((theirs, ours)) = &connection.device.ioregionfd {
        steal(theirs.try_clone()?, ours.try_clone()?);
    }
    connection.serve()
}

/// As many descriptors as the client takes come with each of very many requests.
pub fn many(connection: &mut Connection) -> io::Result<()> {
    let file = File::open("/dev/null")?;
    let fds: Vec<RawFd> = vec![file.as_raw_fd(); FDS];
    while let Some(request) = connection.request()? {
        if used(&request) {
            for _ in 0..16 {
                connection.dma_read(64, &fds)?;
            }
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// Sends descriptors to itself and does not receive them, as many as its user may, who is the client's as well.
pub fn in_flight(connection: &mut Connection) -> io::Result<()> {
    let file = File::open("/dev/null")?;
    let fds: Vec<RawFd> = vec![file.as_raw_fd(); raw::MOST_FDS];
    let mut pairs = Vec::new();
    let mut full = false;
    while let Some(request) = connection.request()? {
        while used(&request) && !full && pairs.len() < 4 {
            let (one, other) = UnixStream::pair()?;
            one.set_nonblocking(true)?;
            full = (0..8).any(|_| matches!(send_fds(one.as_fd(), &fds), Err(Errno::ETOOMANYREFS)));
            pairs.push((one, other));
        }
        connection.answer(&request)?;
    }
    keep(pairs);
    Ok(())
}

fn send_fds(socket: BorrowedFd<'_>, fds: &[RawFd]) -> nix::Result<usize> {
    let iov = [io::IoSlice::new(&[0])];
    sendmsg::<()>(socket.as_raw_fd(), &iov, &[ControlMessage::ScmRights(fds)], MsgFlags::MSG_NOSIGNAL, None)
}

fn let_block(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

fn steal(theirs: impl AsFd + Send + 'static, ours: impl AsFd + Send + 'static) {
    thread::spawn(move || -> io::Result<()> {
        let mut bytes = [0; 32];
        loop {
            fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?;
            setsockopt(&theirs, sockopt::ReceiveTimeout, &TimeVal::new(0, 0))?;
            setsockopt(&theirs, sockopt::SendTimeout, &TimeVal::new(0, 0))?;
            setsockopt(&theirs, sockopt::SndBuf, &0)?;
            let _ = recv(theirs.as_fd().as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
            setsockopt(&ours, sockopt::SndBuf, &0)?;
            thread::sleep(Duration::from_micros(200));
        }
    });
}

/// For as long as this process lives.
fn keep<T: Send + 'static>(what: T) {
    std::mem::forget(what);
}
