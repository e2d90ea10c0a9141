//! A client that makes a file shorter which it let the device map: it costs the client its connection, and the device and
//! its next client nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::raw::*;
use common::{Server, memfd};
use nix::unistd::ftruncate;
use outrigger_protocol::server::{Memory, ServeError};

const PAGE: u64 = 4096;

fn map(raw: &mut Raw, flags: u32, address: u64, size: u64, memory: &std::os::fd::OwnedFd) {
    raw.succeed(DMA_MAP, &[words(&[32, flags]), longs(&[0, address, size])].concat(), &[fd(memory)]);
}

/// A device survives its use of memory that is gone.
fn survived(touch: impl Fn(&Memory)) {
    let server = Server::start();
    for _ in 0..3 {
        let mut raw = Raw::client(server.connect());
        let (memory, other) = (memfd(16 * PAGE), memfd(PAGE));
        map(&mut raw, 3, 0, 16 * PAGE, &memory);
        map(&mut raw, 3, 1 << 20, PAGE, &other);
        // The device has this one from before.
        let seen = server.state.lock().unwrap().memory.clone();
        seen.write(8 * PAGE, &[1; 8]).unwrap();
        ftruncate(&memory, i64::try_from(4 * PAGE).unwrap()).unwrap();
        touch(&seen);
        // Also where the device goes on.
        touch(&seen);
        seen.write(1 << 20, &[2; 8]).unwrap();
        drop(seen);
        raw.closed();
        assert!(matches!(server.ended(), Err(ServeError::MemoryLost)));
    }
    let mut raw = Raw::client(server.connect());
    let memory = memfd(PAGE);
    map(&mut raw, 3, 0, PAGE, &memory);
    server.state.lock().unwrap().memory.write(0, &[3; 8]).unwrap();
    raw.alive();
}

#[test]
fn reading_what_is_gone_is_survived() {
    survived(|memory| assert_eq!(memory.read_array::<8>(8 * PAGE).unwrap(), [0; 8]));
}

#[test]
fn writing_to_what_is_gone_is_survived() {
    survived(|memory| memory.write(4 * PAGE - 4, &[7; 12 * 4096]).unwrap());
}

#[test]
fn many_threads_find_it_gone_at_once() {
    survived(|memory| {
        std::thread::scope(|scope| {
            for page in 4..16 {
                scope.spawn(move || memory.read_array::<8>(page * PAGE).unwrap());
            }
        });
    });
}

#[test]
fn what_is_gone_is_a_bad_address_to_the_kernel() {
    survived(|memory| {
        let slice = memory.readable_slice(8 * PAGE, 8).unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        // SAFETY: the address is mapped; what is there is the kernel's to find out.
        let written =
            unsafe { nix::libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), slice.ptr_guard().as_ptr().cast(), 8) };
        // Once replaced, it is zeros like any other.
        assert!(written == 8 || nix::errno::Errno::last() == nix::errno::Errno::EFAULT);
        let _ = memory.read_array::<8>(8 * PAGE);
    });
}
