//! Server: every command may end at any byte, never end, come by the thousand from a client that reads no replies, or
//! have an id that others have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use common::device::{MESSAGES, SPARSE, TestDevice, WHOLE};
use common::raw::*;
use common::{Server, memfd};
use nix::sys::eventfd::EventFd;
use outrigger_protocol::codec::ReceiveError;
use outrigger_protocol::server::{Options, ServeError};

/// A legal request of each kind, in an order in which all of them succeed.
struct Requests {
    memory: OwnedFd,
    eventfd: EventFd,
}

impl Requests {
    fn new() -> Self {
        Self { memory: memfd(4096), eventfd: EventFd::new().unwrap() }
    }

    fn all(&self) -> Vec<(u16, Vec<u8>, Vec<RawFd>)> {
        let access = |offset, count| [longs(&[offset]), words(&[MESSAGES, count])].concat();
        let feature = |flags, fields: &[u64]| [words(&[4096, flags]), longs(fields)].concat();
        let state = |state| words(&[16, SET | 2, state, 0]);
        let short_write = [longs(&[1, 0]), words(&[MESSAGES, 4]), longs(&[7])].concat();
        let unmap = |address| [words(&[24, 0]), longs(&[address, 4096])].concat();
        vec![
            (DMA_MAP, [words(&[32, 3]), longs(&[0, 0, 4096])].concat(), vec![fd(&self.memory)]),
            (DMA_MAP, [words(&[32, 3]), longs(&[0, 4096, 4096])].concat(), vec![]),
            (GET_INFO, words(&[16, 0, 0, 0]), vec![]),
            (GET_REGION_INFO, words(&[4096, 0, SPARSE, 0, 0, 0, 0, 0]), vec![]),
            (GET_REGION_IO_FDS, words(&[4096, 0, WHOLE, 0]), vec![]),
            (GET_IRQ_INFO, words(&[16, 0, 2, 0]), vec![]),
            (SET_IRQS, words(&[20, 0x24, 2, 0, 1]), vec![fd(&self.eventfd)]),
            (SET_IRQS, [words(&[22, 0x22, 2, 0, 2]), vec![0, 0]].concat(), vec![]),
            (REGION_READ, access(0, 16), vec![]),
            (REGION_WRITE, [access(8, 4), vec![1; 4]].concat(), vec![]),
            (WRITE_MULTI, short_write, vec![]),
            (FEATURE, words(&[16, GET | 1]), vec![]),
            (FEATURE, [feature(SET | 6, &[4096]), words(&[1, 0]), longs(&[0, 4096])].concat(), vec![]),
            (FEATURE, feature(GET | 8, &[0, 4096, 4096]), vec![]),
            (FEATURE, feature(SET | 7, &[]), vec![]),
            (FEATURE, state(3), vec![]),
            (MIG_DATA_READ, words(&[4096, 100]), vec![]),
            (FEATURE, state(4), vec![]),
            (MIG_DATA_WRITE, words(&[12, 4, 0xee00_0000]), vec![]),
            (RESET, vec![], vec![]),
            (DMA_UNMAP, unmap(4096), vec![]),
            (DMA_UNMAP, unmap(0), vec![]),
        ]
    }
}

fn negotiated(server: &Server) -> Raw {
    let mut raw = Raw::new(server.connect());
    let proposal = r#"{"capabilities":{"max_msg_fds":64,"write_multiple":true}}"#;
    raw.succeed(VERSION, &version(0, 1, proposal), &[]);
    raw
}

/// Does this with every request, each at a server of its own, all at the same time: most of that time is waiting.
fn at_once(deadline: Duration, each: impl Fn(&Server, u16, &[u8], &[RawFd]) + Sync) {
    let requests = Requests::new();
    let each = &each;
    std::thread::scope(|scope| {
        for (command, payload, fds) in requests.all() {
            scope.spawn(move || {
                let options = Options { deadline, ..Options::default() };
                let server = Server::with_device(options, |state| TestDevice::migrating(state, true));
                each(&server, command, &payload, &fds);
            });
        }
    });
}

#[test]
fn all_of_them_succeed_with_one_and_the_same_id_and_are_answered_in_order() {
    let (server, requests) = (Server::migrating(), Requests::new());
    let raw = negotiated(&server);
    for (command, payload, fds) in requests.all() {
        raw.send(&message(7, command, COMMAND, &payload), &fds);
    }
    for (command, ..) in requests.all() {
        let reply = raw.receive().unwrap();
        assert_eq!((reply.id, reply.command, reply.flags, reply.error), (7, command, REPLY, 0));
    }
}

#[test]
fn one_that_ends_at_any_byte_is_not_executed_and_the_next_client_is_served() {
    let (server, requests) = (Server::migrating(), Requests::new());
    let mut all = requests.all();
    // The first message of a connection is one of them.
    all.push((VERSION, version(0, 1, "{}"), vec![]));
    for (command, payload, fds) in all {
        let whole = message(1, command, COMMAND, &payload);
        for cut in 0..whole.len() {
            let raw = if command == VERSION { Raw::new(server.connect()) } else { negotiated(&server) };
            if cut > 0 {
                raw.send(&whole[..cut], &fds);
            }
            drop(raw);
            match server.ended() {
                Ok(()) => assert_eq!(cut, 0, "command {command}"),
                Err(ServeError::Receive(ReceiveError::Truncated { received })) => assert_eq!(received, cut),
                other => panic!("command {command}, {cut} bytes: {other:?}"),
            }
        }
    }
    let state = server.state.lock().unwrap();
    assert!(state.writes.is_empty() && state.transitions.is_empty() && state.received.is_empty());
    assert_eq!(state.resets, 0);
}

#[test]
fn one_that_never_ends_closes_the_connection_at_the_deadline() {
    at_once(Duration::from_secs(1), |server, command, payload, fds| {
        let whole = message(1, command, COMMAND, payload);
        for cut in [1, 15, whole.len() - 1] {
            let raw = negotiated(server);
            raw.send(&whole[..cut], fds);
            raw.closed();
            let ended = server.ended();
            assert!(matches!(ended, Err(ServeError::Receive(ReceiveError::TimedOut))), "{command}, {cut}: {ended:?}");
        }
    });
}

#[test]
fn as_a_reply_to_nothing_it_closes_the_connection() {
    let (server, requests) = (Server::migrating(), Requests::new());
    for (command, payload, _) in requests.all() {
        for flags in [REPLY, REPLY | ERROR, REPLY | NO_REPLY] {
            let raw = negotiated(&server);
            raw.send(&message(1, command, flags, &payload), &[]);
            raw.closed();
            let ended = server.ended();
            assert!(matches!(ended, Err(ServeError::NotACommand { flags: f }) if f == flags), "{command}: {ended:?}");
        }
    }
}

#[test]
fn a_descriptor_that_it_does_not_take_is_refused_and_one_too_many_as_well() {
    let (server, requests) = (Server::migrating(), Requests::new());
    let mut raw = negotiated(&server);
    let own = fd(&raw.stream);
    for (command, payload, fds) in requests.all() {
        let one_more = [&fds[..], &[own]].concat();
        // A command that takes one without needing it cannot map a socket.
        raw.refused(EINVAL, command, &payload, &one_more);
    }
    raw.alive();
}

#[test]
fn a_flood_that_nobody_reads_the_replies_of_ends_at_the_deadline() {
    at_once(Duration::from_secs(1), |server, command, payload, _| {
        let raw = negotiated(server);
        let flood = message(1, command, COMMAND, payload).repeat(64);
        while raw.send(&flood, &[]) {}
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::Send(_) | ServeError::Receive(_))), "{command}: {ended:?}");
        negotiated(server).alive();
    });
}

#[test]
fn a_flood_that_wants_no_replies_is_executed_to_its_end() {
    let (server, requests) = (Server::migrating(), Requests::new());
    let mut raw = negotiated(&server);
    for (command, payload, _) in requests.all() {
        let flood = message(1, command, NO_REPLY, &payload).repeat(2000);
        assert!(raw.send(&flood, &[]));
        raw.alive();
    }
}
