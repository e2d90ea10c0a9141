//! `VFIO_USER_MIG_DATA_READ`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;

use common::migration::{SAVED, saved};
use common::raw::*;
use common::{Server, client};
use outrigger_protocol::client::ClientError;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::server::Options;

const STOP_COPY: u32 = 3;
const DEVICE_STATE: u32 = 2;
const EBADF: u32 = 9;

/// A server whose device is in this state.
fn in_state(state: u32) -> (Server, Raw) {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    raw.succeed(FEATURE, &words(&[16, SET | DEVICE_STATE, state, 0]), &[]);
    (server, raw)
}

#[test]
fn a_device_that_does_not_migrate_has_no_data() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in [0, 8, 9] {
        raw.refused(ENOTSUP, MIG_DATA_READ, &[words(&[4096, 16]), vec![0]].concat()[..length], &[]);
    }
}

#[test]
fn a_short_or_long_request_is_refused() {
    let (_server, mut raw) = in_state(STOP_COPY);
    let whole = words(&[4096, 16]);
    for length in 0..8 {
        raw.refused(EINVAL, MIG_DATA_READ, &whole[..length], &[]);
    }
    raw.refused(EINVAL, MIG_DATA_READ, &[whole, vec![0]].concat(), &[]);
    raw.alive();
}

#[test]
fn an_argsz_without_room_for_the_data_is_refused() {
    let (_server, mut raw) = in_state(STOP_COPY);
    for (argsz, size) in [(0, 0), (7, 0), (8, 1), (16, 16), (23, 16), (4096, 1 << 20)] {
        raw.refused(EINVAL, MIG_DATA_READ, &words(&[argsz, size]), &[]);
    }
}

#[test]
fn more_than_max_data_xfer_size_is_refused() {
    let (_server, mut raw) = in_state(STOP_COPY);
    for size in [(1 << 20) + 1, 1 << 31, u32::MAX - 8, u32::MAX] {
        raw.refused(EINVAL, MIG_DATA_READ, &words(&[u32::MAX, size]), &[]);
    }
    assert_eq!(raw.succeed(MIG_DATA_READ, &words(&[u32::MAX, 1 << 20]), &[]).payload.len(), 8 + (1 << 20));
}

#[test]
fn data_is_there_in_the_saving_states_only() {
    for state in [1, 2, 4] {
        let (_server, mut raw) = in_state(state);
        raw.refused(EINVAL, MIG_DATA_READ, &words(&[4096, 16]), &[]);
    }
    for state in [STOP_COPY, 6] {
        let (_server, mut raw) = in_state(state);
        raw.succeed(MIG_DATA_READ, &words(&[4096, 16]), &[]);
    }
}

#[test]
fn descriptors_are_refused() {
    let (_server, mut raw) = in_state(STOP_COPY);
    let own = fd(&raw.stream);
    raw.refused(EINVAL, MIG_DATA_READ, &words(&[4096, 16]), &[own]);
}

#[test]
fn the_data_is_a_stream_that_ends_with_less_than_was_asked_for() {
    let (_server, mut raw) = in_state(STOP_COPY);
    let expected = saved();
    let first = raw.succeed(MIG_DATA_READ, &words(&[4096, 100]), &[]);
    assert_eq!(first.payload, [words(&[108, 100]), expected[..100].to_vec()].concat());
    assert_eq!(raw.succeed(MIG_DATA_READ, &words(&[8, 0]), &[]).payload, words(&[8, 0]));
    let mut position = 100;
    while position < SAVED {
        let reply = raw.succeed(MIG_DATA_READ, &words(&[u32::MAX, 1 << 20]), &[]);
        let read = reply.payload.len() - 8;
        assert_eq!((reply.u32_at(0) as usize, reply.u32_at(4) as usize), (8 + read, read));
        assert!(
            reply.payload[8..] == expected[position..position + read] && (read == 1 << 20 || position + read == SAVED)
        );
        position += read;
    }
    assert_eq!(raw.succeed(MIG_DATA_READ, &words(&[4096, 16]), &[]).payload, words(&[8, 0]));
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let (_server, mut raw) = in_state(STOP_COPY);
    raw.command(MIG_DATA_READ, NO_REPLY, &words(&[4096, 16]), &[]);
    raw.alive();
}

#[test]
fn our_client_reads_by_what_the_server_takes_until_there_is_no_more() {
    let options = Options { max_data_xfer_size: 100_000, ..Options::default() };
    let server = Server::with_device(options, |state| common::device::TestDevice::migrating(state, false));
    let client = client(server.connect());
    let mut data = vec![0; SAVED + 1];
    let early = client.read_migration_data(&mut data);
    assert!(matches!(early, Err(ClientError::Refused { errno: nix::errno::Errno::EINVAL, .. })), "{early:?}");
    client.set_device_state(DeviceState::StopCopy).unwrap();
    assert_eq!(client.read_migration_data(&mut []).unwrap(), 0);
    assert_eq!(client.read_migration_data(&mut data[..250_000]).unwrap(), 250_000);
    assert_eq!(client.read_migration_data(&mut data[250_000..]).unwrap(), SAVED - 250_000);
    assert!(data[..SAVED] == saved());
    assert_eq!(client.read_migration_data(&mut data).unwrap(), 0);
}

#[test]
fn an_answer_that_is_short_or_long_or_lies_closes_the_connection() {
    let answers = [
        vec![0; 7],
        words(&[12, 4]),
        [words(&[12, 4]), vec![0; 3]].concat(),
        [words(&[12, 4]), vec![0; 5]].concat(),
        [words(&[17, 9]), vec![0; 9]].concat(),
        [words(&[12, u32::MAX]), vec![0; 4]].concat(),
    ];
    for answer in answers {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let raw = Raw::server(theirs, "{}");
            let asked = raw.receive().unwrap();
            assert_eq!((asked.command, asked.payload.clone()), (MIG_DATA_READ, words(&[16, 8])));
            raw.answer(&asked, &answer, &[]);
            raw.closed();
        });
        let result = client(ours).read_migration_data(&mut [0; 8]);
        assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
        server.join().unwrap();
    }
}

#[test]
fn a_refusal_is_that_calls_matter_alone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        let asked = raw.receive().unwrap();
        let mut refusal = message(asked.id, asked.command, REPLY | ERROR, &[]);
        refusal[12..16].copy_from_slice(&EBADF.to_ne_bytes());
        raw.send(&refusal, &[]);
        raw.closed();
    });
    let client = client(ours);
    let result = client.read_migration_data(&mut [0; 8]);
    assert!(matches!(result, Err(ClientError::Refused { errno: nix::errno::Errno::EBADF, .. })), "{result:?}");
    assert!(!client.is_closed());
    drop(client);
    server.join().unwrap();
}
