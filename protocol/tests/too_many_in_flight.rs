//! More descriptors in flight than a user may have, on other sockets, fail the call that sends one, and nothing else.
//! Alone in its process: it takes privileges and descriptors away from all of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use common::raw::*;
use common::{Server, client, memfd};
use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use outrigger_protocol::client::ClientError;
use outrigger_protocol::pci::MSIX_IRQ;

/// The limit counts open descriptors and descriptors in flight alike, unless one may override it.
const LIMIT: u64 = 512;

fn give_up_privileges() {
    // `struct __user_cap_header_struct` and two `struct __user_cap_data_struct`, all zero: no capability (capset(2)).
    let (header, data) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: the kernel reads two structures of these sizes.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0);
}

/// Sends descriptors that nobody receives until the kernel takes no more.
fn fill(fd: i32) -> Vec<(UnixStream, UnixStream)> {
    let mut pairs = Vec::new();
    loop {
        let pair = UnixStream::pair().unwrap();
        let fds = [fd; 200];
        let part = [std::io::IoSlice::new(b"x")];
        match sendmsg::<()>(pair.0.as_raw_fd(), &part, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None) {
            Ok(_) => pairs.push(pair),
            Err(Errno::ETOOMANYREFS) => return pairs,
            Err(errno) => panic!("{errno}"),
        }
    }
}

#[test]
fn a_call_fails_alone_when_too_many_descriptors_are_in_flight() {
    // First, as threads have their privileges from the one that starts them.
    give_up_privileges();
    let (server, other) = (Server::start(), Server::start());
    let client = client(server.connect());
    let mut raw = Raw::client(other.connect());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, hard).unwrap();
    let (eventfd, memory) = (EventFd::new().unwrap(), memfd(4096));
    let in_flight = fill(memory.as_raw_fd());

    let irqs = client.set_irq_eventfds(MSIX_IRQ, 0, &[eventfd.as_fd()]);
    assert!(matches!(irqs, Err(ClientError::Unsent { .. })), "{irqs:?}");
    let map = client.dma_map(0, 4096, Some((memory.as_fd(), 0)));
    assert!(matches!(map, Err(ClientError::Unsent { .. })), "{map:?}");
    // The server's answer fails alone, too.
    raw.refused(libc::ETOOMANYREFS as u32, GET_REGION_INFO, &words(&[4096, 0, 1, 0, 0, 0, 0, 0]), &[]);
    raw.alive();
    assert!(!client.is_closed());
    client.device_info().unwrap();

    drop(in_flight);
    client.set_irq_eventfds(MSIX_IRQ, 0, &[eventfd.as_fd()]).unwrap();
    client.dma_map(0, 4096, Some((memory.as_fd(), 0))).unwrap();
    raw.succeed(GET_REGION_INFO, &words(&[4096, 0, 1, 0, 0, 0, 0, 0]), &[]);
}
