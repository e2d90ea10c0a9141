//! `VFIO_USER_DEVICE_RESET`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Server;
use common::raw::*;

fn resets(server: &Server) -> usize {
    server.state.lock().unwrap().resets
}

#[test]
fn a_payload_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in [1, 4, 16] {
        raw.refused(EINVAL, RESET, &vec![0; length], &[]);
    }
    assert_eq!(resets(&server), 0);
}

#[test]
fn the_reply_has_no_payload_and_comes_after_the_reset() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(RESET, &[], &[]);
    assert_eq!((reply.payload.len(), reply.fds.len(), resets(&server)), (0, 0, 1));
}

#[test]
fn without_a_reply_wanted_the_device_is_reset_in_silence() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(RESET, NO_REPLY, &[], &[]);
    raw.alive();
    assert_eq!(resets(&server), 1);
}

#[test]
fn interrupts_and_memory_stay_connected() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = common::memfd(4096);
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, 4096])].concat(), &[fd(&memory)]);
    let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
    raw.succeed(SET_IRQS, &words(&[20, 0x24, 0, 0, 1]), &[fd(&eventfd)]);
    raw.succeed(RESET, &[], &[]);
    let state = server.state.lock().unwrap();
    assert!(state.memory.read(0, &mut [0]).is_ok());
    assert!(state.interrupts.as_ref().unwrap().is_connected(0));
}
