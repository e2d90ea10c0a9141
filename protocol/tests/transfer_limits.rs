//! A server whose `max_data_xfer_size` is smaller than the default: larger transfers are refused, smaller ones are made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::device::*;
use common::raw::*;
use common::{PATIENCE, Server, client};
use outrigger_protocol::codec::ReceiveError;
use outrigger_protocol::server::{Options, ServeError};

const LIMIT: u32 = 4096;
/// Header, fixed structure, and 64 KiB: what messages that transfer no data have in any case.
const MESSAGE: u32 = 16 + 16 + (64 << 10);

fn start(max_data_xfer_size: u32) -> Server {
    Server::with_options(Options { max_data_xfer_size, deadline: PATIENCE, ..Options::default() })
}

fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}

fn announced(options: u32) -> serde_json::Value {
    let server = start(options);
    let reply = Raw::new(server.connect()).succeed(VERSION, &version(0, 1, "{}"), &[]);
    let (_, text) = reply.payload[4..].split_last().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(text).unwrap();
    value["capabilities"]["max_data_xfer_size"].take()
}

#[test]
fn larger_transfers_are_refused_and_one_of_just_that_size_is_done() {
    let server = start(LIMIT);
    let mut raw = Raw::client(server.connect());
    for count in [LIMIT + 1, 1 << 20, u32::MAX] {
        raw.refused(EINVAL, REGION_READ, &access(0, MESSAGES, count), &[]);
    }
    for count in [LIMIT + 1, 60_000] {
        let write = [access(0, MESSAGES, count), vec![7; count as usize]].concat();
        raw.refused(EINVAL, REGION_WRITE, &write, &[]);
    }
    assert!(server.state.lock().unwrap().writes.is_empty());
    raw.succeed(REGION_WRITE, &[access(0, MESSAGES, LIMIT), vec![7; LIMIT as usize]].concat(), &[]);
    let read = raw.succeed(REGION_READ, &access(0, MESSAGES, LIMIT), &[]);
    assert_eq!(read.payload[16..], vec![7; LIMIT as usize]);
}

#[test]
fn a_message_that_no_command_needs_closes_the_connection() {
    let server = start(LIMIT);
    let raw = Raw::client(server.connect());
    raw.send(&message_of_size(1, REGION_WRITE, COMMAND, MESSAGE + 1, &[0; 16]), &[]);
    raw.closed();
    let ended = server.ended();
    assert!(matches!(ended, Err(ServeError::Receive(ReceiveError::Size { .. }))), "{ended:?}");
}

#[test]
fn messages_that_transfer_no_data_have_room_however_small_the_limit() {
    let server = start(1);
    let mut raw = Raw::client(server.connect());
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, 4096])].concat(), &[]);
    raw.succeed(SET_IRQS, &[words(&[24, 0x22, 2, 0, VECTORS]), vec![0; VECTORS as usize]].concat(), &[]);
    assert_eq!(raw.succeed(GET_REGION_INFO, &words(&[1 << 16, 0, MANY_AREAS, 0, 0, 0, 0, 0]), &[]).fds.len(), 1);
}

#[test]
fn the_limit_is_announced_and_is_between_one_byte_and_the_default() {
    for (option, value) in [(0, 1), (1, 1), (LIMIT, LIMIT), (1 << 20, 1 << 20), (u32::MAX, 1 << 20)] {
        assert_eq!(announced(option), value);
    }
}

#[test]
fn what_the_device_asks_for_is_split_by_the_smaller_of_both_limits() {
    for (theirs, ours, expected) in [(1u64 << 20, 100, 100), (100, 1 << 20, 100), (1 << 40, 200, 200)] {
        let server = start(ours);
        let mut raw = Raw::new(server.connect());
        let proposal = format!(r#"{{"capabilities":{{"max_data_xfer_size":{theirs}}}}}"#);
        raw.succeed(VERSION, &version(0, 1, &proposal), &[]);
        raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, 1 << 20])].concat(), &[]);
        let memory = server.state.lock().unwrap().memory.clone();
        let worker = std::thread::spawn(move || copy(&memory, 0, expected + 1));
        for (command, address, count) in [
            (DMA_READ, 0, expected),
            (DMA_READ, expected, 1),
            (DMA_WRITE, expected + 1, expected),
            (DMA_WRITE, 2 * expected + 1, 1),
        ] {
            let asked = raw.receive().unwrap();
            assert_eq!((asked.command, asked.u64_at(0), asked.u64_at(8)), (command, address, count));
            let data = if command == DMA_READ { usize::try_from(count).unwrap() } else { 0 };
            raw.answer(&asked, &[longs(&[address, count]), vec![9; data]].concat(), &[]);
        }
        worker.join().unwrap().unwrap();
        raw.alive();
    }
}

#[test]
fn our_client_keeps_the_limit() {
    let server = start(1000);
    let client = client(server.connect());
    assert_eq!(client.server_capabilities().max_data_xfer_size, 1000);
    let data: Vec<u8> = (0..2500u32).map(|i| i.to_le_bytes()[0]).collect();
    client.region_write(MESSAGES, 5, &data).unwrap();
    let mut back = vec![0; data.len()];
    client.region_read(MESSAGES, 5, &mut back).unwrap();
    assert_eq!(back, data);
    let lengths: Vec<_> = server.state.lock().unwrap().writes.iter().map(|(_, _, data)| data.len()).collect();
    assert_eq!(lengths, [1000, 1000, 500]);
}
