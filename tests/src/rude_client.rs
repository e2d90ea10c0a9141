//! Clients of a device process that do to it what no client should. Each returns when it leaves, whereupon the next client must be served
//! as if this one had never been there.

use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::linger;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{setsockopt, sockopt};
use outrigger_protocol::command::Command;
use outrigger_protocol::pci::MSIX_IRQ;
use outrigger_protocol::wire;
use zerocopy::IntoBytes;

use crate::driver::{Driver, MEMORY};
use crate::raw;

/// The behaviour of a client.
pub type Manner = fn(&Path) -> io::Result<()>;

/// How long one that waits for nothing stays.
const A_WHILE: Duration = Duration::from_millis(200);
const MOST: usize = 100_000;

/// All of them, by name.
pub const MANNERS: [(&str, Manner); 23] = [
    ("honest", honest),
    ("leaves at once", leaves),
    ("half a header", half_header),
    ("half a message", half_message),
    ("leaves within a request", leaves_within_a_request),
    ("garbage", garbage),
    ("a message of 4 GiB", huge),
    ("never reads replies", never_reads),
    ("full, blocking eventfd", full_eventfd),
    ("full eventfd that blocks again", blocking_eventfd),
    ("full eventfd that blocks the serving thread", blocking_trigger),
    ("eventfd that is a socket", lingering_eventfd),
    ("blocking doorbells", blocking_doorbells),
    ("emptied doorbells", emptied_doorbells),
    ("full doorbells", full_doorbells),
    ("lingering descriptors", lingering_descriptors),
    ("lingering descriptors, unread", lingering_unread),
    ("lingering descriptors on the ioregionfd, unread", lingering_on_ioregionfd),
    ("lingering memory", lingering_memory),
    ("truncated memory", truncated_memory),
    ("memory that is a file", memory_in_a_file),
    ("many descriptors", many_descriptors),
    ("memory by messages that are not answered", unanswered),
];

/// Drives the disk, and leaves.
///
/// # Errors
/// If the device does not do what a disk does.
pub fn honest(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let fd = driver.eventfd.as_raw_fd();
    driver.map(true)?;
    driver.connect_interrupt(fd)?;
    driver.start()?;
    for _ in 0..3 {
        driver.submit()?;
        if !driver.completes() {
            return Err(io::Error::other("a request does not complete"));
        }
    }
    match driver.eventfd.read() {
        Ok(1..) => Ok(()),
        other => Err(io::Error::other(format!("no interrupt came: {other:?}"))),
    }
}

fn leaves(socket: &Path) -> io::Result<()> {
    UnixStream::connect(socket).map(drop)
}

fn half_header(socket: &Path) -> io::Result<()> {
    UnixStream::connect(socket)?.write_all(&[1, 0, 1, 0, 40])?;
    sleep(A_WHILE);
    Ok(())
}

fn half_message(socket: &Path) -> io::Result<()> {
    let driver = Driver::connect(socket)?;
    let message = raw::message(7, Command::RegionRead, 0, &[0; 16]);
    (&driver.stream).write_all(&message[..20])?;
    sleep(A_WHILE);
    Ok(())
}

fn leaves_within_a_request(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(true)?;
    driver.start()?;
    for _ in 0..8 {
        driver.submit()?;
    }
    Ok(())
}

fn garbage(socket: &Path) -> io::Result<()> {
    let driver = Driver::connect(socket)?;
    // The device may have ended it by the time that all is written.
    let _ = (&driver.stream).write_all(&[0x5a; 1 << 16]);
    sleep(A_WHILE);
    Ok(())
}

fn huge(socket: &Path) -> io::Result<()> {
    let driver = Driver::connect(socket)?;
    let header = wire::Header { message_id: 7, command: 9, message_size: u32::MAX, flags: 0, error: 0 };
    let _ = (&driver.stream).write_all(header.as_bytes());
    let _ = (&driver.stream).write_all(&[0; 1 << 16]);
    sleep(A_WHILE);
    Ok(())
}

fn never_reads(socket: &Path) -> io::Result<()> {
    let driver = Driver::connect(socket)?;
    driver.stream.set_nonblocking(true)?;
    let access = wire::RegionAccess { offset: 0, region: 7, count: 256 };
    let message = raw::message(7, Command::RegionRead, 0, access.as_bytes());
    for _ in 0..MOST {
        if (&driver.stream).write_all(&message).is_err() {
            break;
        }
    }
    sleep(A_WHILE);
    Ok(())
}

fn full_eventfd(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    eventfd.write(u64::MAX - 1)?;
    driver.map(true)?;
    driver.connect_interrupt(eventfd.as_raw_fd())?;
    driver.start()?;
    for _ in 0..4 {
        driver.submit()?;
        sleep(Duration::from_millis(20));
    }
    // Not this end, but what the device has of it, is what counts.
    std::mem::forget(eventfd);
    Ok(())
}

fn blocking(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

fn blocking_eventfd(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    driver.map(true)?;
    driver.connect_interrupt(eventfd.as_fd().as_raw_fd())?;
    driver.start()?;
    // Those who take it make it nonblocking.
    blocking(&eventfd)?;
    eventfd.write(u64::MAX - 1)?;
    driver.submit()?;
    sleep(A_WHILE);
    std::mem::forget(eventfd);
    Ok(())
}

fn blocking_trigger(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    driver.connect_interrupt(eventfd.as_fd().as_raw_fd())?;
    blocking(&eventfd)?;
    eventfd.write(u64::MAX - 1)?;
    let flags = wire::IRQ_SET_DATA_NONE | wire::IRQ_SET_ACTION_TRIGGER;
    let request = wire::IrqSet { argsz: 20, flags, index: MSIX_IRQ, start: 0, count: 1 };
    raw::command(&driver.stream, 7, Command::DeviceSetIrqs, request.as_bytes(), &[])?;
    sleep(A_WHILE);
    std::mem::forget(eventfd);
    Ok(())
}

fn lingering_eventfd(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let (stream, _peer) = lingering()?;
    // It is refused, which is as well.
    let _ = driver.connect_interrupt(stream.as_raw_fd());
    drop(stream);
    sleep(A_WHILE);
    Ok(())
}

fn blocking_doorbells(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(true)?;
    let doorbells = driver.doorbells()?;
    doorbells.iter().try_for_each(blocking)?;
    driver.start()?;
    driver.submit()?;
    driver.completes();
    // For later clients the flags are as they are now.
    Ok(())
}

fn emptied_doorbells(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(true)?;
    let doorbells = driver.doorbells()?;
    driver.start()?;
    for _ in 0..200 {
        for doorbell in &doorbells {
            blocking(doorbell)?;
            nix::unistd::write(doorbell, &1u64.to_ne_bytes())?;
            fcntl(doorbell, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            // Often before the device has come to it, which has seen that it is readable.
            let _ = nix::unistd::read(doorbell, &mut [0; 8]);
            blocking(doorbell)?;
        }
    }
    Ok(())
}

/// Those of a queue that has stopped, and of ones that never ran: nobody empties them. They are kept, blocking, for as long as the test
/// lasts, which must not disturb the next client.
fn full_doorbells(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(true)?;
    let doorbells = driver.doorbells()?;
    driver.start()?;
    driver.memory.set_len(0)?;
    let _ = driver.ring();
    sleep(A_WHILE);
    for doorbell in &doorbells {
        fcntl(doorbell, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        for count in [u64::MAX - 1, u64::MAX - 2] {
            let _ = nix::unistd::write(doorbell, &count.to_ne_bytes());
        }
        blocking(doorbell)?;
    }
    std::mem::forget(doorbells);
    Ok(())
}

fn lingering_unread(socket: &Path) -> io::Result<()> {
    let driver = Driver::connect(socket)?;
    // After the first, which ends the connection, nothing is read.
    let bytes = raw::message(7, Command::Version, 0x5a, &[0x5a; 48]);
    let mut peers = Vec::new();
    for _ in 0..16 {
        let (stream, peer) = lingering()?;
        let sent = raw::send(&driver.stream, &bytes, &[stream.as_raw_fd()]);
        // If it was not sent, closing it here would wait.
        peers.push((peer, sent.is_err().then_some(stream)));
        if sent.is_err() {
            break;
        }
    }
    leave_behind(peers);
    Ok(())
}

fn lingering_on_ioregionfd(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(true)?;
    let mut peers = Vec::new();
    // The doorbells, and the registers' socket.
    for fd in driver.doorbells()? {
        let stream = UnixStream::from(fd);
        for _ in 0..16 {
            let (lingering, peer) = lingering()?;
            let sent = raw::send(&stream, &[0x5a; 32], &[lingering.as_raw_fd()]);
            peers.push((peer, sent.is_err().then_some(lingering)));
            if sent.is_err() {
                break;
            }
        }
    }
    leave_behind(peers);
    Ok(())
}

fn lingering_descriptors(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let mut peers = Vec::new();
    for _ in 0..4 {
        let (stream, peer) = lingering()?;
        let info = wire::DeviceInfo { argsz: 16, ..Default::default() };
        // Refused or not.
        let asked = driver.ask(Command::DeviceGetInfo, info.as_bytes(), &[stream.as_raw_fd()]);
        peers.push((peer, asked.is_ok()));
    }
    leave_behind(peers);
    Ok(())
}

fn lingering_memory(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let (stream, peer) = lingering()?;
    let request = wire::DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: MEMORY };
    let _ = driver.ask(Command::DmaMap, request.as_bytes(), &[stream.as_raw_fd()]);
    leave_behind(peer);
    Ok(())
}

fn truncated_memory(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(true)?;
    driver.start()?;
    driver.submit()?;
    driver.completes();
    // A write to it now would make it longer again.
    driver.memory.set_len(0)?;
    driver.ring()?;
    sleep(A_WHILE);
    Ok(())
}

fn memory_in_a_file(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    let program = std::env::current_exe()?;
    driver.memory = tempfile::tempfile_in(program.parent().unwrap_or(&program))?;
    driver.memory.set_len(MEMORY)?;
    if driver.map(true).is_ok() && driver.start().is_ok() {
        driver.memory.set_len(0)?;
        let _ = driver.ring();
        sleep(A_WHILE);
    }
    Ok(())
}

fn many_descriptors(socket: &Path) -> io::Result<()> {
    let driver = Driver::connect(socket)?;
    driver.stream.set_nonblocking(true)?;
    let file = File::open("/dev/null")?;
    let fds: Vec<RawFd> = vec![file.as_raw_fd(); raw::MOST_FDS];
    let message = raw::message(7, Command::DeviceGetInfo, 0, &[0; 16]);
    for _ in 0..100 {
        if raw::send(&driver.stream, &message, &fds).is_err() {
            break;
        }
    }
    sleep(A_WHILE);
    Ok(())
}

fn unanswered(socket: &Path) -> io::Result<()> {
    let mut driver = Driver::connect(socket)?;
    driver.map(false)?;
    driver.start()?;
    // Whose reply comes behind requests that are dropped.
    let _ = driver.submit();
    sleep(A_WHILE);
    Ok(())
}

/// A socket with data that its peer, the second, does not receive.
///
/// # Errors
/// The system's.
pub fn lingering() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 600 })?;
    stream.set_nonblocking(true)?;
    while stream.write(&[0; 1 << 16]).is_ok() {}
    stream.set_nonblocking(false)?;
    Ok((stream, peer))
}

/// Lets `what` outlive the client: without it nothing lingers.
fn leave_behind<T>(what: T) {
    std::mem::forget(what);
}
