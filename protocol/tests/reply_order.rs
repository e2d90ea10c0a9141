//! Replies and ids, both directions: a sender may use an id as it likes, and replies to different requests come in any
//! order; a reply that answers nothing is the end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, Server};
use outrigger_protocol::client::{Client, Options};
use outrigger_protocol::server::{MemoryError, ServeError};

/// A server, on the one socket or on a twin: where its requests come, and where its commands go.
fn connect(server: &Server, twin: bool) -> (Raw, Option<Raw>) {
    let mut raw = Raw::new(server.connect());
    let proposal = format!(r#"{{"capabilities":{{"twin_socket":{{"supported":{twin}}}}}}}"#);
    let twin = raw.succeed(VERSION, &version(0, 1, &proposal), &[]).fds.pop();
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, 1 << 20])].concat(), &[]);
    (raw, twin.map(|twin| Raw::new(UnixStream::from(std::os::fd::OwnedFd::from(twin)))))
}

type Read = JoinHandle<Result<u8, MemoryError>>;

/// Threads that read one byte each, at their own address.
fn readers(server: &Server, count: u64) -> Vec<Read> {
    let memory = server.state.lock().unwrap().memory.clone();
    let reader = |address| {
        let memory = memory.clone();
        std::thread::spawn(move || {
            let mut byte = [0];
            memory.read(address, &mut byte).map(|()| byte[0])
        })
    };
    (0..count).map(reader).collect()
}

fn answer(to: &Raw, asked: &Message) {
    let value = asked.u64_at(0).to_le_bytes()[0] ^ 0x80;
    to.answer(asked, &[&asked.payload[..16], &[value]].concat(), &[]);
}

#[test]
fn answers_to_the_servers_requests_are_taken_in_any_order() {
    for twin in [false, true] {
        // Every order of four.
        for order in 0..24u32 {
            let server = Server::start();
            let (mut raw, twin) = connect(&server, twin);
            let requests = twin.as_ref().unwrap_or(&raw);
            let reads = readers(&server, 4);
            let mut asked: Vec<_> = (0..4).map(|_| requests.receive().unwrap()).collect();
            let mut choice = order;
            for left in (1..=4).rev() {
                answer(requests, &asked.remove((choice % left) as usize));
                choice /= left;
            }
            for (address, read) in (0u8..).zip(reads) {
                assert_eq!(read.join().unwrap().unwrap(), address ^ 0x80);
            }
            raw.alive();
        }
    }
}

#[test]
fn commands_with_the_id_of_the_servers_request_under_way_are_commands() {
    let server = Server::start();
    let (raw, _) = connect(&server, false);
    let reads = readers(&server, 1);
    let asked = raw.receive().unwrap();
    for _ in 0..3 {
        raw.send(&message(asked.id, GET_INFO, COMMAND, &words(&[16, 0, 0, 0])), &[]);
        // A read of memory is no command for a server, but it is answered.
        raw.send(&message(asked.id, DMA_READ, COMMAND, &asked.payload), &[]);
    }
    answer(&raw, &asked);
    for read in reads {
        assert_eq!(read.join().unwrap().unwrap(), 0x80);
    }
    for (command, error) in [(GET_INFO, 0), (DMA_READ, ENOTSUP)].repeat(3) {
        let reply = raw.receive().unwrap();
        assert_eq!((reply.id, reply.command, reply.error), (asked.id, command, error));
    }
}

/// While the server waits for one answer, it is sent this; the connection must end.
fn ends(twin: bool, then: impl FnOnce(&Raw, &Message)) {
    let server = Server::start();
    let (raw, twin) = connect(&server, twin);
    let reads = readers(&server, 1);
    let requests = twin.as_ref().unwrap_or(&raw);
    let asked = requests.receive().unwrap();
    then(requests, &asked);
    for read in reads {
        let _ = read.join().unwrap();
    }
    if let Some(twin) = twin {
        // No thread reads there until the next request.
        let again = readers(&server, 1);
        twin.closed();
        assert!(again.into_iter().all(|read| read.join().unwrap().is_err()));
    }
    raw.closed();
    let ended = server.ended();
    assert!(matches!(ended, Err(ServeError::NotACommand { .. } | ServeError::Malformed { .. })), "{ended:?}");
}

#[test]
fn an_answer_with_another_id_or_command_or_a_second_one_is_the_end() {
    for twin in [false, true] {
        ends(twin, |raw, asked| {
            raw.send(&message(asked.id ^ 1, DMA_READ, REPLY, &[0; 17]), &[]);
        });
        ends(twin, |raw, asked| {
            raw.send(&message(asked.id, DMA_WRITE, REPLY, &[0; 16]), &[]);
        });
        ends(twin, |raw, asked| {
            raw.send(&message(asked.id, GET_INFO, REPLY | ERROR, &[]), &[]);
        });
        ends(twin, |raw, asked| {
            answer(raw, asked);
            answer(raw, asked);
        });
    }
}

#[test]
fn an_answer_that_is_cut_off_at_any_byte_ends_the_wait() {
    for cut in 0..33 {
        let server = Server::start();
        let (raw, _) = connect(&server, false);
        let reads = readers(&server, 1);
        let asked = raw.receive().unwrap();
        let whole = message(asked.id, DMA_READ, REPLY, &[&asked.payload[..], &[1]].concat());
        assert_eq!(whole.len(), 33);
        raw.send(&whole[..cut], &[]);
        drop(raw);
        for read in reads {
            assert!(matches!(read.join().unwrap(), Err(MemoryError::Disconnected { .. })));
        }
        assert_eq!(server.ended().is_ok(), cut == 0, "{cut}");
    }
}

#[test]
fn our_client_answers_requests_with_one_and_the_same_id_in_order() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        let map = raw.receive().unwrap();
        raw.answer(&map, &[], &[]);
        let call = raw.receive().unwrap();
        // Among them the id of the client's own call.
        for address in 0..20 {
            raw.send(&message(call.id, DMA_READ, COMMAND, &longs(&[address, 1])), &[]);
        }
        for address in 0..20 {
            let reply = raw.receive().unwrap();
            assert_eq!((reply.id, reply.command, reply.u64_at(0)), (call.id, DMA_READ, address));
            assert_eq!(reply.payload[16], address.to_le_bytes()[0]);
        }
        raw.answer(&call, &words(&[16, 3, 9, 5]), &[]);
    });
    let memory = GuestMemory::new(4096);
    for (value, byte) in (0u8..20).zip(memory.0.lock().unwrap().iter_mut()) {
        *byte = value;
    }
    let client =
        Client::new(ours, memory, &Options { deadline: PATIENCE, twin_socket: false, ..Options::default() }).unwrap();
    client.dma_map(0, 4096, None).unwrap();
    client.device_info().unwrap();
    server.join().unwrap();
}
