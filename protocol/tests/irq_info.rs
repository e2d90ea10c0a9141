//! `VFIO_USER_DEVICE_GET_IRQ_INFO`, server.

mod common;

use common::Server;
use common::device::VECTORS;
use common::raw::*;

#[test]
fn a_short_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in [0, 8, 15] {
        raw.refused(EINVAL, GET_IRQ_INFO, &words(&[16, 0, 0, 0])[..length], &[]);
    }
}

#[test]
fn an_argsz_too_small_and_a_type_beyond_the_last_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for request in [[0, 0, 0, 0], [15, 0, 0, 0], [16, 0, 5, 0], [16, 0, u32::MAX, 0]] {
        raw.refused(EINVAL, GET_IRQ_INFO, &words(&request), &[]);
    }
}

#[test]
fn each_type_has_its_flags_and_count() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (index, flags, count) in [(0, 7, 1), (1, 0, 0), (2, 1, VECTORS), (3, 0, 0), (4, 0, 0)] {
        let reply = raw.succeed(GET_IRQ_INFO, &words(&[16, 0, index, 0]), &[]);
        assert_eq!((reply.payload, reply.fds.len()), (words(&[16, flags, index, count]), 0));
    }
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(GET_IRQ_INFO, NO_REPLY, &words(&[16, 0, 0, 0]), &[]);
    raw.alive();
}
