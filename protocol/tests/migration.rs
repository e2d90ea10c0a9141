//! `VFIO_USER_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_MIGRATION` and `VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::device::TestDevice;
use common::hostile::malformed;
use common::migration::COMPLETE;
use common::raw::*;
use common::{Server, client};
use nix::errno::Errno;
use outrigger_protocol::client::{Client, ClientError, MigrationInfo};
use outrigger_protocol::migration::DeviceState::{self, Error, PreCopy, Resuming, Running, Stop, StopCopy};
use outrigger_protocol::server::Options;

const MIGRATION: u32 = 1;
const DEVICE_STATE: u32 = 2;
const EBADMSG: u32 = 74;

fn set(state: u32) -> Vec<u8> {
    words(&[16, SET | DEVICE_STATE, state, 0])
}

fn state(raw: &mut Raw) -> u32 {
    let reply = raw.succeed(FEATURE, &words(&[16, GET | DEVICE_STATE]), &[]);
    assert_eq!((reply.payload.len(), reply.u32_at(0), reply.u32_at(12)), (16, 16, 0));
    reply.u32_at(8)
}

fn without_pre_copy() -> Server {
    Server::with_device(Options::default(), |state| TestDevice::migrating(state, false))
}

#[test]
fn a_device_that_does_not_migrate_has_neither_feature() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for index in [MIGRATION, DEVICE_STATE] {
        for action in [GET, SET, PROBE, PROBE | GET] {
            raw.refused(ENOTTY, FEATURE, &words(&[16, action | index, 1, 0]), &[]);
        }
    }
    assert_eq!(client_of(&server, raw).migration().unwrap(), None);
}

/// Our client, when the one before has left.
fn client_of(server: &Server, before: Raw) -> Client {
    drop(before);
    server.ended().unwrap();
    client(server.connect())
}

#[test]
fn what_is_supported_is_probed() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    for action in [PROBE, PROBE | GET, PROBE | SET, PROBE | GET | SET] {
        let request = words(&[8, action | DEVICE_STATE]);
        assert_eq!(raw.succeed(FEATURE, &request, &[]).payload, request);
    }
    raw.succeed(FEATURE, &words(&[8, PROBE | GET | MIGRATION]), &[]);
    for action in [SET, PROBE | SET, PROBE | GET | SET] {
        raw.refused(EINVAL, FEATURE, &words(&[16, action | MIGRATION, 1, 0]), &[]);
    }
    assert!(server.state.lock().unwrap().transitions.is_empty(), "probing changes nothing");
}

#[test]
fn the_flags_say_whether_there_is_pre_copy() {
    for (server, flags) in [(Server::migrating(), 5), (without_pre_copy(), 1)] {
        let mut raw = Raw::client(server.connect());
        let reply = raw.succeed(FEATURE, &words(&[16, GET | MIGRATION]), &[]);
        assert_eq!(reply.payload, [words(&[16, GET | MIGRATION]), longs(&[flags])].concat());
        // Without room for it, the reply says how much it needs.
        let reply = raw.succeed(FEATURE, &words(&[15, GET | MIGRATION]), &[]);
        assert_eq!(reply.payload, words(&[16, GET | MIGRATION]));
    }
}

#[test]
fn a_state_of_another_length_is_refused() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    for length in (8..16).chain(17..20) {
        raw.refused(EINVAL, FEATURE, &words(&[16, SET | DEVICE_STATE, 1, 0, 0])[..length], &[]);
    }
    assert_eq!(state(&mut raw), Running as u32);
}

#[test]
fn states_that_do_not_exist_and_error_are_refused() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    for number in [0, 5, 7, 8, u32::MAX] {
        raw.refused(EINVAL, FEATURE, &set(number), &[]);
    }
    assert_eq!(state(&mut raw), Running as u32);
    assert!(server.state.lock().unwrap().transitions.is_empty());
}

#[test]
fn descriptors_are_refused() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    let own = fd(&raw.stream);
    raw.refused(EINVAL, FEATURE, &set(Stop as u32), &[own]);
    assert_eq!(state(&mut raw), Running as u32);
}

#[test]
fn from_reading_a_stopped_device_there_is_no_way_to_reading_a_running_one() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    raw.succeed(FEATURE, &set(StopCopy as u32), &[]);
    raw.refused(EINVAL, FEATURE, &set(PreCopy as u32), &[]);
    assert_eq!(state(&mut raw), StopCopy as u32);
}

#[test]
fn without_pre_copy_there_is_no_way_there() {
    let server = without_pre_copy();
    let mut raw = Raw::client(server.connect());
    raw.refused(EINVAL, FEATURE, &set(PreCopy as u32), &[]);
    assert_eq!(state(&mut raw), Running as u32);
}

#[test]
fn the_device_sees_direct_transitions_only() {
    let ways: [(&[DeviceState], &[DeviceState]); 6] = [
        (&[Stop, Running], &[Stop, Running]),
        (&[StopCopy], &[Stop, StopCopy]),
        (&[PreCopy, StopCopy], &[PreCopy, StopCopy]),
        (&[PreCopy, Stop], &[PreCopy, Running, Stop]),
        (&[PreCopy, Resuming], &[PreCopy, Running, Stop, Resuming]),
        (&[StopCopy, Running, Running], &[Stop, StopCopy, Stop, Running]),
    ];
    for (asked, seen) in ways {
        let server = Server::migrating();
        let mut raw = Raw::client(server.connect());
        for &target in asked {
            let request = set(target as u32);
            assert_eq!(raw.succeed(FEATURE, &request, &[]).payload, request);
            assert_eq!(state(&mut raw), target as u32);
        }
        assert_eq!(server.state.lock().unwrap().transitions, seen);
    }
}

#[test]
fn a_device_that_fails_is_in_error_until_it_is_reset() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    raw.succeed(FEATURE, &set(Resuming as u32), &[]);
    raw.succeed(MIG_DATA_WRITE, &words(&[12, 4, 0]), &[]);
    raw.refused(EBADMSG, FEATURE, &set(Running as u32), &[]);
    assert_eq!(state(&mut raw), Error as u32);
    for target in [Stop, Running, StopCopy, Resuming, PreCopy] {
        raw.refused(EINVAL, FEATURE, &set(target as u32), &[]);
    }
    raw.succeed(RESET, &[], &[]);
    assert_eq!(state(&mut raw), Running as u32);
}

#[test]
fn the_state_is_kept_from_one_client_to_the_next() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    raw.succeed(FEATURE, &set(Stop as u32), &[]);
    assert_eq!(client_of(&server, raw).device_state().unwrap(), Stop);
}

#[test]
fn without_a_reply_wanted_the_transition_is_made_in_silence() {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    raw.command(FEATURE, NO_REPLY, &set(Stop as u32), &[]);
    assert_eq!(state(&mut raw), Stop as u32);
}

#[test]
fn our_client_moves_a_device_from_one_server_to_another() {
    let (source, destination) = (Server::migrating(), Server::migrating());
    let (from, to) = (client(source.connect()), client(destination.connect()));
    assert_eq!(from.migration().unwrap(), Some(MigrationInfo { pre_copy: true }));
    from.set_device_state(PreCopy).unwrap();
    to.set_device_state(Resuming).unwrap();
    let mut piece = vec![0; 300_000];
    loop {
        let read = from.read_migration_data(&mut piece).unwrap();
        to.write_migration_data(&piece[..read]).unwrap();
        if read < piece.len() {
            break;
        }
    }
    from.set_device_state(StopCopy).unwrap();
    assert_eq!(from.read_migration_data(&mut piece).unwrap(), 0);
    to.write_migration_data(&[COMPLETE]).unwrap();
    to.set_device_state(Running).unwrap();
    let refused = from.set_device_state(PreCopy);
    assert!(matches!(refused, Err(ClientError::Refused { errno: Errno::EINVAL, .. })), "{refused:?}");
    assert_eq!((from.device_state().unwrap(), to.device_state().unwrap()), (StopCopy, Running));
    let received = &destination.state.lock().unwrap().received;
    assert!(received[..received.len() - 1] == common::migration::saved());
}

#[test]
fn answers_that_make_no_sense_close_the_connection() {
    for flags in [&[][..], &[1], &[0, 0], &[2, 0], &[4, 0]] {
        let argsz = u32::try_from(8 + flags.len() * 4).unwrap();
        malformed(Client::migration, [words(&[argsz, GET | MIGRATION]), words(flags)].concat());
    }
    for state in [&[][..], &[1], &[5, 0], &[7, 0], &[8, 0], &[u32::MAX, 0]] {
        let argsz = u32::try_from(8 + state.len() * 4).unwrap();
        malformed(Client::device_state, [words(&[argsz, GET | DEVICE_STATE]), words(state)].concat());
    }
    for echo in [words(&[16, SET | DEVICE_STATE]), words(&[16, SET | DEVICE_STATE, 2, 0]), set(1)[..12].to_vec()] {
        malformed(|client| client.set_device_state(Stop), echo);
    }
    malformed(|client| client.set_device_state(Stop), words(&[17, SET | DEVICE_STATE, 1, 0]));
}
