//! The descriptors that a hostile peer sends along.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::client::Journal;

use crate::device::journal_format;

/// A shared file of [`LARGE`] bytes.
pub const MEMORY: u8 = 0;
/// An eventfd.
pub const EVENTFD: u8 = 1;
/// One end of a stream socket.
pub const SOCKET: u8 = 2;
/// A journal of the device's format.
pub const JOURNAL: u8 = 13;
/// How many bytes of memory can be shared.
pub const LARGE: u64 = 1 << 20;

/// One of each kind, made for one input.
#[derive(Debug)]
pub struct Descriptors {
    kinds: Vec<OwnedFd>,
    journal: Journal,
    _ends: [UnixStream; 2],
}

impl Descriptors {
    /// Opens all.
    pub fn open() -> Self {
        let (socket, end) = UnixStream::pair().expect("a socket pair");
        let (closed, other) = UnixStream::pair().expect("a socket pair");
        drop(closed);
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let blocking = EventFd::from_value_and_flags(u32::MAX, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_SEMAPHORE);
        let kinds = vec![
            memfd(LARGE),
            EventFd::new().expect("an eventfd").into(),
            socket.into(),
            memfd(4096),
            read,
            write,
            File::open("/dev/null").expect("/dev/null").into(),
            blocking.expect("an eventfd").into(),
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll").0,
            other.try_clone().expect("a duplicate").into(),
            File::open("/").expect("a directory").into(),
            memfd(0),
        ];
        let journal = Journal::create(&journal_format()).expect("a journal");
        Self { kinds, journal, _ends: [end, other] }
    }

    /// The numbers behind kinds; `own` is the sender's end of the connection itself.
    pub fn resolve(&self, kinds: &[u8], own: &impl AsFd) -> Vec<RawFd> {
        let own = own.as_fd().as_raw_fd();
        let resolve = |&kind: &u8| match kind % 14 {
            JOURNAL => self.journal.fd().as_raw_fd(),
            kind => self.kinds.get(usize::from(kind)).map_or(own, AsRawFd::as_raw_fd),
        };
        kinds.iter().map(resolve).collect()
    }
}

/// An anonymous file of `size` bytes.
pub fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&fd, i64::try_from(size).expect("small")).expect("room");
    fd
}
