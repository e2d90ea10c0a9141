//! `VFIO_USER_REGION_WRITE_MULTI`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;

use common::device::{ABSENT, BAD_OFFSET, MESSAGES, MESSAGES_SIZE, NUM_REGIONS, READ_ONLY};
use common::raw::*;
use common::{Server, client};
use nix::errno::Errno;
use outrigger_protocol::client::{ClientError, RegionWrite};

fn raw(server: &Server) -> Raw {
    let mut raw = Raw::new(server.connect());
    let reply = raw.succeed(VERSION, &version(0, 1, r#"{"capabilities":{"write_multiple":true}}"#), &[]);
    assert!(String::from_utf8(reply.payload[4..].to_vec()).unwrap().contains(r#""write_multiple":true"#));
    raw
}

fn entry(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count]), vec![1, 2, 3, 4, 5, 6, 7, 8]].concat()
}

fn request(count: u64, entries: &[Vec<u8>]) -> Vec<u8> {
    [longs(&[count]), entries.concat()].concat()
}

#[test]
fn without_the_capability_it_is_refused() {
    let server = Server::start();
    Raw::client(server.connect()).refused(ENOTSUP, WRITE_MULTI, &request(1, &[entry(0, MESSAGES, 8)]), &[]);
}

#[test]
fn short_and_long_requests_and_counts_that_lie_are_refused() {
    let server = Server::start();
    let mut raw = raw(&server);
    let whole = request(1, &[entry(0, MESSAGES, 8)]);
    for length in (0..8).chain(9..32) {
        raw.refused(EINVAL, WRITE_MULTI, &whole[..length], &[]);
    }
    raw.refused(EINVAL, WRITE_MULTI, &whole[..8], &[]);
    raw.refused(EINVAL, WRITE_MULTI, &[whole, vec![0]].concat(), &[]);
    for count in [0, 1, 3, 1 << 32, u64::MAX, u64::MAX / 24 + 2] {
        raw.refused(EINVAL, WRITE_MULTI, &request(count, &[entry(0, MESSAGES, 8), entry(8, MESSAGES, 8)]), &[]);
    }
    assert!(server.state.lock().unwrap().writes.is_empty());
}

#[test]
fn one_illegal_write_and_none_is_done() {
    let server = Server::start();
    let mut raw = raw(&server);
    for illegal in [
        entry(0, MESSAGES, 9),
        entry(0, MESSAGES, u32::MAX),
        entry(MESSAGES_SIZE - 7, MESSAGES, 8),
        entry(u64::MAX, MESSAGES, 8),
        entry(0, READ_ONLY, 1),
        entry(0, ABSENT, 1),
        entry(0, NUM_REGIONS, 1),
        entry(0, u32::MAX, 1),
    ] {
        raw.refused(EINVAL, WRITE_MULTI, &request(2, &[entry(0, MESSAGES, 8), illegal]), &[]);
    }
    assert!(server.state.lock().unwrap().writes.is_empty());
}

#[test]
fn what_the_device_fails_ends_the_message_and_the_count_says_where() {
    let server = Server::start();
    let mut raw = raw(&server);
    let (good, bad) = (entry(0, MESSAGES, 4), entry(BAD_OFFSET, MESSAGES, 4));
    raw.refused(EIO, WRITE_MULTI, &request(2, &[bad.clone(), good.clone()]), &[]);
    let reply = raw.succeed(WRITE_MULTI, &request(3, &[good.clone(), bad, good]), &[]);
    assert_eq!(reply.payload, longs(&[1]));
    assert_eq!(server.state.lock().unwrap().writes, [(MESSAGES, 0, vec![1, 2, 3, 4])]);
}

#[test]
fn none_and_empty_ones_succeed_without_troubling_the_device() {
    let server = Server::start();
    let mut raw = raw(&server);
    assert_eq!(raw.succeed(WRITE_MULTI, &request(0, &[]), &[]).payload, longs(&[0]));
    assert_eq!(raw.succeed(WRITE_MULTI, &request(1, &[entry(0, MESSAGES, 0)]), &[]).payload, longs(&[1]));
    raw.command(WRITE_MULTI, NO_REPLY, &request(1, &[entry(3, MESSAGES, 1)]), &[]);
    raw.alive();
    assert_eq!(server.state.lock().unwrap().writes, [(MESSAGES, 3, vec![1])]);
}

#[test]
fn our_client_writes_in_order_and_learns_how_far_it_came() {
    let server = Server::start();
    let client = client(server.connect());
    assert!(client.server_capabilities().write_multiple);
    let write = |offset, data| RegionWrite { region: MESSAGES, offset, data };
    assert_eq!(client.region_write_multi(&[]).unwrap(), 0);
    let all = [write(0, b"a"), write(8, b"12345678"), write(16, b"bc")];
    assert_eq!(client.region_write_multi(&all).unwrap(), 3);
    let written: Vec<_> = server.state.lock().unwrap().writes.drain(..).map(|(_, _, data)| data).collect();
    assert_eq!(written, [&b"a"[..], b"12345678", b"bc"]);
    assert_eq!(client.region_write_multi(&[all[0], write(BAD_OFFSET, b"x"), all[1]]).unwrap(), 1);
    let first = client.region_write_multi(&[write(BAD_OFFSET, b"x"), all[0]]);
    assert!(matches!(first, Err(ClientError::Refused { errno: Errno::EIO, .. })));
    let long = client.region_write_multi(&[all[0], write(0, b"123456789")]);
    assert!(matches!(long, Err(ClientError::Local { value: 9, .. })));
    assert_eq!(server.state.lock().unwrap().writes.len(), 1);
    let many = vec![all[0]; 50_000];
    assert_eq!(client.region_write_multi(&many).unwrap(), many.len(), "split by max_data_xfer_size");
}

/// Our client, and a server that is anything but ours.
fn against(
    capabilities: &'static str,
    then: impl FnOnce(Raw) + Send + 'static,
    with: impl FnOnce(&RegionWrite<'_>, outrigger_protocol::client::Client),
) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || then(Raw::server(theirs, capabilities)));
    with(&RegionWrite { region: 0, offset: 4, data: &[7] }, client(ours));
    server.join().unwrap();
}

#[test]
fn to_a_server_that_does_not_understand_it_our_client_writes_one_by_one() {
    let server = |raw: Raw| {
        for _ in 0..2 {
            let asked = raw.receive().unwrap();
            assert_eq!(asked.command, REGION_WRITE);
            raw.answer(&asked, &asked.payload[..16], &[]);
        }
    };
    against("{}", server, |write, client| assert_eq!(client.region_write_multi(&[*write; 2]).unwrap(), 2));
}

#[test]
fn an_answer_that_counts_too_many_or_is_short_closes_the_connection() {
    for answer in [longs(&[3]), longs(&[u64::MAX]), vec![0; 7]] {
        let server = move |raw: Raw| {
            let asked = raw.receive().unwrap();
            raw.answer(&asked, &answer, &[]);
            raw.closed();
        };
        against(r#"{"write_multiple":true}"#, server, |write, client| {
            let result = client.region_write_multi(&[*write; 2]);
            assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
        });
    }
}
