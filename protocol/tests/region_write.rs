//! `VFIO_USER_REGION_WRITE`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Server;
use common::device::*;
use common::raw::*;

fn request(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count]), data.to_vec()].concat()
}

fn written(server: &Server) -> Vec<(u32, u64, Vec<u8>)> {
    server.state.lock().unwrap().writes.clone()
}

#[test]
fn a_short_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in 0..16 {
        raw.refused(EINVAL, REGION_WRITE, &request(MESSAGES, 0, 0, &[])[..length], &[]);
    }
}

#[test]
fn a_count_that_is_not_the_amount_of_data_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (count, length) in [(4, 0), (4, 3), (4, 5), (0, 1), (u32::MAX, 4), (1 << 20, 16)] {
        raw.refused(EINVAL, REGION_WRITE, &request(MESSAGES, 0, count, &vec![7; length]), &[]);
    }
    assert!(written(&server).is_empty());
}

#[test]
fn regions_that_are_read_only_do_not_exist_or_are_beyond_the_last_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for region in [READ_ONLY, ABSENT, NUM_REGIONS, u32::MAX] {
        raw.refused(EINVAL, REGION_WRITE, &request(region, 0, 1, &[7]), &[]);
    }
    assert!(written(&server).is_empty());
}

#[test]
fn ranges_beyond_the_region_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for offset in [MESSAGES_SIZE, MESSAGES_SIZE - 3, u64::MAX, u64::MAX - 3] {
        raw.refused(EINVAL, REGION_WRITE, &request(MESSAGES, offset, 4, &[7; 4]), &[]);
    }
    assert!(written(&server).is_empty());
}

#[test]
fn descriptors_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let own = fd(&raw.stream);
    raw.refused(EINVAL, REGION_WRITE, &request(MESSAGES, 0, 1, &[7]), &[own]);
    assert!(written(&server).is_empty());
}

#[test]
fn the_devices_own_error_is_handed_on() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.refused(EIO, REGION_WRITE, &request(MESSAGES, BAD_OFFSET, 4, &[7; 4]), &[]);
}

#[test]
fn the_reply_echoes_the_request_without_the_data() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(REGION_WRITE, &request(MESSAGES, 0x20, 3, &[1, 2, 3]), &[]);
    assert_eq!(reply.payload, request(MESSAGES, 0x20, 3, &[]));
    assert_eq!(written(&server), [(MESSAGES, 0x20, vec![1, 2, 3])]);
}

#[test]
fn the_largest_write_is_taken() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(REGION_WRITE, &request(MESSAGES, 0, 1 << 20, &vec![9; 1 << 20]), &[]);
    assert_eq!(written(&server)[0].2.len(), 1 << 20);
}

#[test]
fn nothing_can_be_written_without_troubling_the_device() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(REGION_WRITE, &request(MESSAGES, 0, 0, &[]), &[]);
    assert!(written(&server).is_empty());
}

#[test]
fn posted_writes_are_executed_before_a_later_command_is_answered_and_not_answered_even_when_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(REGION_WRITE, NO_REPLY, &request(MESSAGES, 0, 1, &[7]), &[]);
    raw.command(REGION_WRITE, NO_REPLY, &request(READ_ONLY, 0, 1, &[7]), &[]);
    raw.command(REGION_WRITE, NO_REPLY, &request(MESSAGES, BAD_OFFSET, 1, &[7]), &[]);
    raw.command(REGION_WRITE, NO_REPLY, &request(MESSAGES, 1, 1, &[8]), &[]);
    let reply = raw.succeed(REGION_READ, &request(MESSAGES, 0, 2, &[]), &[]);
    assert_eq!(reply.payload[16..], [7, 8]);
}
