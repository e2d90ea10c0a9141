//! `VFIO_USER_MIG_DATA_WRITE`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;

use common::migration::COMPLETE;
use common::raw::*;
use common::{Server, client};
use nix::errno::Errno;
use outrigger_protocol::client::ClientError;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::server::Options;

const RESUMING: u32 = 4;
const DEVICE_STATE: u32 = 2;

fn request(size: u32, data: &[u8]) -> Vec<u8> {
    [words(&[8 + size, size]), data.to_vec()].concat()
}

/// A server whose device is in this state.
fn in_state(state: u32) -> (Server, Raw) {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    raw.succeed(FEATURE, &words(&[16, SET | DEVICE_STATE, state, 0]), &[]);
    (server, raw)
}

#[test]
fn a_device_that_does_not_migrate_takes_no_data() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.refused(ENOTSUP, MIG_DATA_WRITE, &request(4, b"data"), &[]);
    raw.refused(ENOTSUP, MIG_DATA_WRITE, &[], &[]);
}

#[test]
fn a_short_request_is_refused() {
    let (_server, mut raw) = in_state(RESUMING);
    for length in 0..8 {
        raw.refused(EINVAL, MIG_DATA_WRITE, &request(0, b"")[..length], &[]);
    }
}

#[test]
fn data_of_another_length_than_its_size_is_refused() {
    let (server, mut raw) = in_state(RESUMING);
    for size in [0, 3, 5, 1 << 20, u32::MAX - 8] {
        raw.refused(EINVAL, MIG_DATA_WRITE, &request(size, b"data"), &[]);
    }
    assert!(server.state.lock().unwrap().received.is_empty());
}

#[test]
fn more_than_max_data_xfer_size_is_refused_or_closes_the_connection() {
    let (server, mut raw) = in_state(RESUMING);
    // Header and fixed structures leave room for eight bytes more than is legal.
    raw.refused(EINVAL, MIG_DATA_WRITE, &request((1 << 20) + 1, &vec![1; (1 << 20) + 1]), &[]);
    assert!(server.state.lock().unwrap().received.is_empty());
    raw.succeed(MIG_DATA_WRITE, &request(1 << 20, &vec![1; 1 << 20]), &[]);
    assert_eq!(server.state.lock().unwrap().received.len(), 1 << 20);
    raw.send(&message_of_size(1, MIG_DATA_WRITE, COMMAND, 16 + 16 + (1 << 20) + 1, &[0; 8]), &[]);
    raw.closed();
}

#[test]
fn data_is_taken_in_the_resuming_state_only() {
    for state in [1, 2, 3, 6] {
        let (_server, mut raw) = in_state(state);
        raw.refused(EINVAL, MIG_DATA_WRITE, &request(4, b"data"), &[]);
    }
}

#[test]
fn descriptors_are_refused() {
    let (_server, mut raw) = in_state(RESUMING);
    let own = fd(&raw.stream);
    raw.refused(EINVAL, MIG_DATA_WRITE, &request(4, b"data"), &[own]);
}

#[test]
fn the_data_is_a_stream_and_the_reply_is_empty() {
    let (server, mut raw) = in_state(RESUMING);
    for data in [&b"one"[..], b"", b"two"] {
        let size = u32::try_from(data.len()).unwrap();
        assert!(raw.succeed(MIG_DATA_WRITE, &request(size, data), &[]).payload.is_empty());
    }
    // There is no reply payload, so that no argsz is too small for it.
    raw.succeed(MIG_DATA_WRITE, &[words(&[0, 1]), b"!".to_vec()].concat(), &[]);
    assert_eq!(server.state.lock().unwrap().received, b"onetwo!");
}

#[test]
fn the_devices_own_error_is_handed_on() {
    let (_server, mut raw) = in_state(RESUMING);
    raw.refused(EIO, MIG_DATA_WRITE, &request(6, b"not me"), &[]);
    raw.alive();
}

#[test]
fn without_a_reply_wanted_it_is_written_in_silence() {
    let (server, mut raw) = in_state(RESUMING);
    raw.command(MIG_DATA_WRITE, NO_REPLY, &request(4, b"data"), &[]);
    raw.alive();
    assert_eq!(server.state.lock().unwrap().received, b"data");
}

#[test]
fn our_client_writes_by_what_the_server_takes() {
    let options = Options { max_data_xfer_size: 1000, ..Options::default() };
    let server = Server::with_device(options, |state| common::device::TestDevice::migrating(state, false));
    let client = client(server.connect());
    let early = client.write_migration_data(b"early");
    assert!(matches!(early, Err(ClientError::Refused { errno: Errno::EINVAL, .. })), "{early:?}");
    client.set_device_state(DeviceState::Resuming).unwrap();
    let mut data: Vec<u8> = (0..2500u32).map(|i| i.to_le_bytes()[0]).collect();
    data.push(COMPLETE);
    client.write_migration_data(&data).unwrap();
    client.write_migration_data(&[]).unwrap();
    assert_eq!(server.state.lock().unwrap().received, data);
    client.set_device_state(DeviceState::Running).unwrap();
}

#[test]
fn our_client_splits_and_stops_at_a_refusal() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, r#"{"max_data_xfer_size":3}"#);
        let asked = raw.receive().unwrap();
        assert_eq!((asked.command, asked.payload.clone()), (MIG_DATA_WRITE, request(3, b"abc")));
        raw.answer(&asked, &[], &[]);
        let asked = raw.receive().unwrap();
        assert_eq!(asked.payload, request(3, b"def"));
        raw.send(&message(asked.id, asked.command, REPLY | ERROR, &[]), &[]);
        raw.closed();
    });
    let client = client(ours);
    assert!(matches!(client.write_migration_data(b"abcdefg"), Err(ClientError::Refused { .. })));
    assert!(!client.is_closed());
    drop(client);
    server.join().unwrap();
}
