//! `VFIO_USER_DEVICE_FEATURE`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;

use common::raw::*;
use common::{Server, client};
use nix::errno::Errno;
use outrigger_protocol::client::ClientError;

#[test]
fn malformed_requests_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let whole = words(&[4096, GET | 101]);
    for length in 0..8 {
        raw.refused(EINVAL, FEATURE, &whole[..length], &[]);
    }
    raw.refused(EINVAL, FEATURE, &words(&[7, GET | 101]), &[]);
    for flags in [0, GET | SET, 1 << 19, GET | 1 << 31] {
        raw.refused(EINVAL, FEATURE, &words(&[4096, flags | 101]), &[]);
    }
    let own = fd(&raw.stream);
    raw.refused(EINVAL, FEATURE, &whole, &[own]);
}

#[test]
fn a_feature_or_a_way_that_the_device_does_not_have_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for index in [0, 1, 2, 3, 6, 7, 8, 9, 0xffff] {
        for action in [GET, SET, PROBE, PROBE | GET | SET] {
            raw.refused(ENOTTY, FEATURE, &words(&[4096, action | index]), &[]);
        }
    }
    for action in [SET, PROBE | SET, PROBE | GET | SET] {
        raw.refused(EINVAL, FEATURE, &words(&[4096, action | 101]), &[]);
    }
    raw.refused(E2BIG, FEATURE, &words(&[u32::MAX, GET | 105]), &[]);
}

#[test]
fn probing_and_setting_echo_the_request_and_getting_brings_the_data() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for action in [PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET] {
        let request = words(&[8, action | 102]);
        assert_eq!(raw.succeed(FEATURE, &request, &[]).payload, request);
    }
    let set = words(&[12, SET | 102, 77]);
    assert_eq!(raw.succeed(FEATURE, &set, &[]).payload, set);
    assert_eq!(raw.succeed(FEATURE, &words(&[4096, GET | 102]), &[]).payload, words(&[12, GET | 102, 77]));
    // Without room for all of it, it says how much it needs.
    assert_eq!(raw.succeed(FEATURE, &words(&[11, GET | 102]), &[]).payload, words(&[12, GET | 102]));
}

#[test]
fn our_client_probes_reads_and_changes() {
    let server = Server::start();
    let client = client(server.connect());
    assert!(client.probe_feature(101, true, false).unwrap() && client.probe_feature(102, true, true).unwrap());
    assert!(!client.probe_feature(101, true, true).unwrap() && !client.probe_feature(9, false, false).unwrap());
    assert_eq!(client.get_feature(101, &[]).unwrap(), [1; 8]);
    client.set_feature(102, &[1, 2, 3]).unwrap();
    assert_eq!(client.get_feature(102, &[]).unwrap(), [1, 2, 3]);
    assert_eq!(client.get_feature(103, &[]).unwrap(), [3; 10_000], "asked again with more room");
    assert_eq!(client.get_feature(104, b"request").unwrap(), b"request");
    assert!(matches!(client.get_feature(9, &[]), Err(ClientError::Refused { errno: Errno::ENOTTY, .. })));
    assert!(matches!(client.set_feature(102, &vec![0; (1 << 20) + 1]), Err(ClientError::Local { .. })));
}

#[test]
fn answers_for_another_feature_or_too_short_close_the_connection() {
    for answer in [words(&[8]), words(&[8, GET | 102]), words(&[8, SET | 101])] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let raw = Raw::server(theirs, "{}");
            let asked = raw.receive().unwrap();
            assert_eq!((asked.command, asked.payload.clone()), (FEATURE, words(&[4096, GET | 101])));
            raw.answer(&asked, &answer, &[]);
            raw.closed();
        });
        let client = client(ours);
        assert!(matches!(client.get_feature(101, &[]), Err(ClientError::Malformed { .. })));
        server.join().unwrap();
    }
}
