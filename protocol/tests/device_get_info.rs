//! `VFIO_USER_DEVICE_GET_INFO`, server.

mod common;

use common::Server;
use common::device::NUM_REGIONS;
use common::raw::*;

#[test]
fn a_short_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in 0..16 {
        raw.refused(EINVAL, GET_INFO, &words(&[16, 0, 0, 0])[..length], &[]);
    }
}

#[test]
fn an_argsz_with_no_room_for_the_reply_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for argsz in [0, 1, 15] {
        raw.refused(EINVAL, GET_INFO, &words(&[argsz, 0, 0, 0]), &[]);
    }
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(GET_INFO, NO_REPLY, &words(&[16, 0, 0, 0]), &[]);
    raw.command(GET_INFO, NO_REPLY, &[], &[]);
    raw.alive();
}

#[test]
fn what_a_later_version_appends_is_ignored() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(GET_INFO, &words(&[u32::MAX, 0, 0, 0, 1, 2, 3]), &[]);
    assert_eq!(reply.payload, words(&[16, 3, NUM_REGIONS, 5]));
}

#[test]
fn a_pci_device_with_reset_nine_regions_and_five_interrupt_types() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(GET_INFO, &words(&[16, 0, 0, 0]), &[]);
    assert_eq!((reply.payload, reply.fds.len()), (words(&[16, 3, NUM_REGIONS, 5]), 0));
}
