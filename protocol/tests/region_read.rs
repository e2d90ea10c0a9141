//! `VFIO_USER_REGION_READ`, server.

mod common;

use common::Server;
use common::device::*;
use common::raw::*;

fn request(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}

#[test]
fn a_short_or_long_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let whole = request(MESSAGES, 0, 4);
    for length in 0..16 {
        raw.refused(EINVAL, REGION_READ, &whole[..length], &[]);
    }
    raw.refused(EINVAL, REGION_READ, &[whole, vec![0; 4]].concat(), &[]);
}

#[test]
fn regions_beyond_the_last_and_regions_that_do_not_exist_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for region in [ABSENT, NUM_REGIONS, u32::MAX] {
        raw.refused(EINVAL, REGION_READ, &request(region, 0, 1), &[]);
        raw.refused(EINVAL, REGION_READ, &request(region, 0, 0), &[]);
    }
}

#[test]
fn ranges_beyond_the_region_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (offset, count) in [
        (MESSAGES_SIZE, 1),
        (MESSAGES_SIZE - 3, 4),
        (u64::MAX, 1),
        (u64::MAX - 3, 4),
        (u64::MAX, u32::MAX),
        (1 << 63, 4),
    ] {
        raw.refused(EINVAL, REGION_READ, &request(MESSAGES, offset, count), &[]);
    }
}

#[test]
fn a_count_beyond_max_data_xfer_size_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for count in [(1 << 20) + 1, 2 << 20, u32::MAX] {
        raw.refused(EINVAL, REGION_READ, &request(MESSAGES, 0, count), &[]);
    }
    let most = raw.succeed(REGION_READ, &request(MESSAGES, 0, 1 << 20), &[]);
    assert_eq!(most.payload.len(), 16 + (1 << 20));
}

#[test]
fn the_devices_own_error_is_handed_on() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.refused(EIO, REGION_READ, &request(MESSAGES, BAD_OFFSET, 4), &[]);
}

#[test]
fn the_reply_echoes_the_request_and_carries_the_data() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(REGION_READ, &request(READ_ONLY, 0x10, 3), &[]);
    assert_eq!(reply.payload, [request(READ_ONLY, 0x10, 3), vec![4; 3]].concat());
}

#[test]
fn nothing_can_be_read_without_troubling_the_device() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for offset in [0, MESSAGES_SIZE] {
        let reply = raw.succeed(REGION_READ, &request(MESSAGES, offset, 0), &[]);
        assert_eq!(reply.payload, request(MESSAGES, offset, 0));
    }
}

#[test]
fn mappable_regions_can_be_read_by_message_too() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(REGION_READ, &request(SPARSE, 0x1000, 2), &[]);
    assert_eq!(reply.payload[16..], [1, 1]);
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(REGION_READ, NO_REPLY, &request(MESSAGES, 0, 4), &[]);
    raw.alive();
}
