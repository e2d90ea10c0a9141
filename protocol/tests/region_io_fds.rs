//! `VFIO_USER_DEVICE_GET_REGION_IO_FDS`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::sync::Arc;

use common::Server;
use common::device::*;
use common::raw::*;
use outrigger_protocol::client::IoFdKind;

#[test]
fn a_short_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in [0, 4, 15] {
        raw.refused(EINVAL, GET_REGION_IO_FDS, &words(&[16, 0, 0, 0])[..length], &[]);
    }
}

#[test]
fn fields_that_must_be_zero_an_argsz_too_small_and_a_region_beyond_the_last_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for request in
        [[15, 0, 0, 0], [0, 0, 0, 0], [4096, 1, 0, 0], [4096, 0, 0, 1], [4096, 0, NUM_REGIONS, 0], [16, 0, !0, 0]]
    {
        raw.refused(EINVAL, GET_REGION_IO_FDS, &words(&request), &[]);
    }
}

#[test]
fn a_region_without_sub_regions_has_none() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[16, 0, SPARSE, 0]), &[]);
    assert_eq!((reply.payload, reply.fds.len()), (words(&[16, 0, SPARSE, 0]), 0));
}

#[test]
fn without_room_for_the_sub_regions_the_reply_says_how_much_is_needed() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for argsz in [16, 16 + 80 - 1] {
        let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[argsz, 0, MESSAGES, 0]), &[]);
        assert_eq!((reply.payload, reply.fds.len()), (words(&[16 + 80, 0, MESSAGES, 2]), 0));
    }
}

#[test]
fn each_sub_region_names_an_eventfd_that_came_along() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let mut reply = raw.succeed(GET_REGION_IO_FDS, &words(&[16 + 80, 0, MESSAGES, 0]), &[]);
    let first = [longs(&[0x100, 4]), words(&[0, 0, 1, 0]), longs(&[7])].concat();
    let second = [longs(&[0x200, 0]), words(&[1, 0, 0, 0]), longs(&[0])].concat();
    assert_eq!(reply.payload, [words(&[16 + 80, 0, MESSAGES, 2]), first, second].concat());
    assert_eq!(reply.fds.len(), 2);
    reply.fds[1].write_all(&1u64.to_ne_bytes()).unwrap();
}

/// The sub-regions of `WHOLE`, with descriptor 1 or without.
fn mixed(with_second: bool) -> Vec<u8> {
    let entry = |offset, size, fd, kind, flags, data| {
        [longs(&[offset, size]), words(&[fd, kind, flags, 0]), longs(&[data])].concat()
    };
    let (posted, pio, datamatch) = (2, 1, 1);
    let second = if with_second { entry(0x10, 4, 1, 1, pio, u64::MAX) } else { Vec::new() };
    let count = if with_second { 4 } else { 3 };
    let head = words(&[16 + count * 40, 0, WHOLE, count]);
    let first = entry(0, 8, 0, 1, posted, 1);
    // Of no size, so that its writes are posted.
    let third = entry(0x20, 0, 0, 1, posted, 3);
    [head, first, second, third, entry(0x30, 2, 0, 0, datamatch | 2, 9)].concat()
}

#[test]
fn ioregionfds_come_with_their_flags_and_user_data_and_share_descriptors() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[4096, 0, WHOLE, 0]), &[]);
    assert_eq!((reply.payload, reply.fds.len()), (mixed(true), 2));
    for argsz in [16, 16 + 4 * 40 - 1] {
        let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[argsz, 0, WHOLE, 0]), &[]);
        assert_eq!((reply.payload, reply.fds.len()), (mixed(true)[..16].to_vec(), 0));
    }
}

#[test]
fn a_client_that_takes_one_descriptor_is_told_of_what_one_descriptor_serves() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    raw.succeed(VERSION, &version(0, 1, "{}"), &[]);
    let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[4096, 0, MESSAGES, 0]), &[]);
    assert_eq!((reply.u32_at(0), reply.u32_at(12), reply.fds.len()), (16 + 40, 1, 1));
    let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[4096, 0, WHOLE, 0]), &[]);
    assert_eq!((reply.payload, reply.fds.len()), (mixed(false), 1));
}

#[test]
fn our_client_takes_ioregionfds() {
    let server = Server::start();
    let client = common::client(server.connect());
    let io_fds = client.region_io_fds(WHOLE, 0x3000).unwrap();
    let ioregionfd = |user_data, flags| IoFdKind::Ioregionfd { user_data, flags };
    let kinds: Vec<_> = io_fds.iter().map(|io_fd| (io_fd.offset, io_fd.size, io_fd.kind)).collect();
    let expected = [
        (0, 8, ioregionfd(1, 2)),
        (0x10, 4, ioregionfd(u64::MAX, 1)),
        (0x20, 0, ioregionfd(3, 2)),
        (0x30, 2, IoFdKind::Ioeventfd { datamatch: Some(9) }),
    ];
    assert_eq!(kinds, expected);
    let shared = |index: usize| Arc::ptr_eq(&io_fds[0].fd, &io_fds[index].fd);
    assert!(!shared(1) && shared(2) && shared(3));
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(GET_REGION_IO_FDS, NO_REPLY, &words(&[4096, 0, MESSAGES, 0]), &[]);
    raw.alive();
}
