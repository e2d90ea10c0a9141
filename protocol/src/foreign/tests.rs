use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::*;

fn memfd(flags: MFdFlags) -> OwnedFd {
    let fd = memfd_create("test", flags).unwrap();
    ftruncate(&fd, 8192).unwrap();
    fd
}

#[test]
fn memory_is_told_from_everything_else() {
    let memory = |fd: OwnedFd| ForeignFd::from(fd).memory();
    let shrinks = MemoryFile { length: 8192, shrinks: true };
    assert_eq!(memory(memfd(MFdFlags::empty())), Ok(shrinks));
    let sealed = memfd(MFdFlags::MFD_ALLOW_SEALING);
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    assert_eq!(memory(sealed), Ok(MemoryFile { length: 8192, shrinks: false }));
    let in_tmpfs = tempfile::tempfile_in("/dev/shm").unwrap();
    in_tmpfs.set_len(8192).unwrap();
    assert_eq!(memory(in_tmpfs.into()), Ok(shrinks));
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let others: [OwnedFd; 6] = [
        File::open("/proc/self/status").unwrap().into(),
        File::open("/dev/shm").unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
        reader.into(),
        writer.into(),
        socket.into(),
    ];
    for other in others {
        assert_eq!(memory(other), Err(NotMemory));
    }
}

#[test]
fn eventfds_are_told_from_everything_else() {
    let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
    assert!(ForeignFd::from(eventfd.as_fd().try_clone_to_owned().unwrap()).is_eventfd());
    assert!(!ForeignFd::from(memfd(MFdFlags::empty())).is_eventfd());
}

/// A TCP socket with unsent data, whose last close waits for up to ten minutes; the other end must be kept.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 1 << 16]).is_ok() {}
    ours.set_nonblocking(false).unwrap();
    setsockopt(&ours, sockopt::Linger, &linger { l_onoff: 1, l_linger: 600 }).unwrap();
    (ours, theirs)
}

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

#[test]
fn a_socket_that_lingers_is_closed_at_once_and_by_somebody_else() {
    let (ours, theirs) = lingering();
    let number = ours.as_raw_fd();
    let start = Instant::now();
    drop(ForeignFd::from(OwnedFd::from(ours)));
    assert!(start.elapsed().as_secs() < 1, "whoever drops it does not wait");
    let path = format!("/proc/self/fd/{number}");
    while std::fs::read_link(&path).is_ok_and(|link| link.to_str().unwrap().starts_with("socket:")) {
        assert!(start.elapsed().as_secs() < 5, "it is closed soon");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(theirs);
}

#[test]
fn a_thread_that_is_stuck_does_not_keep_others_from_closing() {
    // Their queue holds a socket that lingers, whose options nobody can reach any more: closing the outer one waits.
    let mut kept = Vec::new();
    let mut outer = Vec::new();
    for _ in 0..3 {
        let (inner, theirs) = lingering();
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let fds = [inner.as_raw_fd()];
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
        let bytes = [std::io::IoSlice::new(b"x")];
        nix::sys::socket::sendmsg::<()>(a.as_raw_fd(), &bytes, &rights, nix::sys::socket::MsgFlags::empty(), None)
            .unwrap();
        kept.push(theirs);
        outer.push((a, b));
    }
    let start = Instant::now();
    for (a, b) in outer {
        drop(a);
        drop(ForeignFd::from(OwnedFd::from(b)));
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(ForeignFd::from(OwnedFd::from(writer)));
    let mut fds = [nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, 5000u16), Ok(1), "the pipe is closed although others cannot be");
    assert!(start.elapsed().as_secs() < 5);
}
