//! The header, server: wrong sizes, types that do not exist, unknown commands.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::time::Duration;

use common::Server;
use common::raw::*;
use outrigger_protocol::codec::ReceiveError;
use outrigger_protocol::server::ServeError;

/// The server's limit: header, fixed structure, and max_data_xfer_size.
const LIMIT: u32 = 16 + 16 + (1 << 20);
/// A deadline that is to pass. A client that negotiates gets a processor within this time.
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn a_size_below_the_header_or_above_the_limit_closes_the_connection() {
    for size in [0, 1, 15, LIMIT + 1, i32::MAX.unsigned_abs(), u32::MAX] {
        let server = Server::start();
        let raw = Raw::client(server.connect());
        raw.send(&message_of_size(1, GET_INFO, COMMAND, size, &[0; 16]), &[]);
        raw.closed();
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::Receive(ReceiveError::Size { .. }))), "{size}: {ended:?}");
    }
}

#[test]
fn a_message_that_ends_before_its_size_says_so_closes_the_connection() {
    let server = Server::start();
    let raw = Raw::client(server.connect());
    raw.send(&message_of_size(1, GET_INFO, COMMAND, 48, &[0; 16]), &[]);
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    raw.closed();
    let ended = server.ended();
    assert!(matches!(ended, Err(ServeError::Receive(ReceiveError::Truncated { received: 32 }))), "{ended:?}");
}

#[test]
fn a_message_that_never_ends_closes_the_connection_however_slowly_it_grows() {
    for drip in [false, true] {
        let server = Server::with_deadline(SHORT);
        let mut raw = Raw::client(server.connect());
        raw.send(&message_of_size(1, REGION_WRITE, COMMAND, LIMIT, &[0; 16]), &[]);
        while drip && raw.stream.write_all(&[0]).is_ok() {
            std::thread::sleep(SHORT / 20);
        }
        raw.closed();
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::Receive(ReceiveError::TimedOut))), "{ended:?}");
    }
}

#[test]
fn a_client_that_is_silent_between_messages_is_waited_for() {
    let server = Server::with_deadline(SHORT);
    let mut raw = Raw::client(server.connect());
    std::thread::sleep(2 * SHORT);
    raw.alive();
}

#[test]
fn a_client_that_never_speaks_is_not_waited_for() {
    let server = Server::with_deadline(SHORT);
    let raw = Raw::new(server.connect());
    raw.closed();
    assert!(matches!(server.ended(), Err(ServeError::Receive(ReceiveError::TimedOut))));
}

#[test]
fn a_client_that_takes_no_replies_is_not_waited_for() {
    let server = Server::with_deadline(SHORT);
    let raw = Raw::client(server.connect());
    let read = message(1, REGION_READ, COMMAND, &[longs(&[0]), words(&[0, 1 << 20])].concat());
    while raw.send(&read, &[]) {}
    assert!(matches!(server.ended(), Err(ServeError::Send(_) | ServeError::Receive(_))));
}

#[test]
fn a_reply_or_a_type_that_does_not_exist_closes_the_connection() {
    for flags in [REPLY, REPLY | ERROR, 2, 7, 0xf] {
        let server = Server::start();
        let mut raw = Raw::client(server.connect());
        raw.command(GET_INFO, flags, &words(&[16, 0, 0, 0]), &[]);
        raw.closed();
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::NotACommand { flags: f }) if f == flags), "{ended:?}");
    }
}

#[test]
fn commands_that_do_not_exist_or_are_not_there_yet_are_refused_and_skipped() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for command in [0, 14, 15, 17, 18, 19, 255, u16::MAX, DMA_READ, DMA_WRITE] {
        for length in [0, 1, 16, 5000] {
            raw.refused(ENOTSUP, command, &vec![0xaa; length], &[]);
        }
    }
    raw.alive();
}

#[test]
fn an_unknown_command_without_a_reply_wanted_is_skipped_in_silence() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(99, NO_REPLY, &[0; 100], &[]);
    raw.alive();
}

#[test]
fn the_message_id_is_echoed_whatever_it_is() {
    let server = Server::start();
    let raw = Raw::client(server.connect());
    for id in [0, 7, 7, u16::MAX] {
        raw.send(&message(id, GET_INFO, COMMAND, &words(&[16, 0, 0, 0])), &[]);
        assert_eq!(raw.receive().unwrap().id, id);
    }
}

#[test]
fn pipelined_commands_are_answered_in_order() {
    let server = Server::start();
    let raw = Raw::client(server.connect());
    let all: Vec<u8> =
        (0..200).flat_map(|id| message(id, GET_IRQ_INFO, COMMAND, &words(&[16, 0, u32::from(id) % 6, 0]))).collect();
    raw.send(&all, &[]);
    for id in 0..200 {
        let reply = raw.receive().unwrap();
        assert_eq!((reply.id, reply.error), (id, if id % 6 == 5 { EINVAL } else { 0 }));
    }
}

#[test]
fn descriptors_with_a_command_that_takes_none_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let own = fd(&raw.stream);
    for command in [DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, REGION_READ, RESET] {
        raw.refused(EINVAL, command, &[0; 32], &[own]);
    }
    raw.alive();
}

#[test]
fn more_descriptors_than_agreed_close_the_connection() {
    let server = Server::start();
    let raw = Raw::client(server.connect());
    let own = fd(&raw.stream);
    raw.send(&message(1, SET_IRQS, COMMAND, &words(&[20, 0x24, 2, 0, 4])), &[own; 65]);
    raw.closed();
    assert!(matches!(server.ended(), Err(ServeError::Receive(_))));
}

#[test]
fn descriptors_piled_up_before_the_end_of_a_message_close_the_connection() {
    let server = Server::start();
    let raw = Raw::client(server.connect());
    let own = fd(&raw.stream);
    raw.send(&message_of_size(1, SET_IRQS, COMMAND, 4096, &[]), &[own; 40]);
    raw.send(&[0], &[own; 40]);
    raw.closed();
    assert!(matches!(server.ended(), Err(ServeError::Receive(ReceiveError::Fds))));
}
