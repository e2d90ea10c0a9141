//! `VFIO_USER_DEVICE_GET_REGION_INFO`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::device::*;
use common::raw::*;
use common::{Server, same_file};

const READ: u32 = 1;
const WRITE: u32 = 2;
const MMAP: u32 = 4;
const CAPS: u32 = 8;

fn request(argsz: u32, index: u32) -> Vec<u8> {
    words(&[argsz, 0, index, 0, 0, 0, 0, 0])
}

#[test]
fn a_short_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in [0, 4, 12, 31] {
        raw.refused(EINVAL, GET_REGION_INFO, &request(32, 0)[..length], &[]);
    }
}

#[test]
fn an_argsz_with_no_room_for_the_structure_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for argsz in [0, 31] {
        raw.refused(EINVAL, GET_REGION_INFO, &request(argsz, 0), &[]);
    }
}

#[test]
fn a_region_beyond_the_last_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for index in [NUM_REGIONS, 1 << 16, u32::MAX] {
        raw.refused(EINVAL, GET_REGION_INFO, &request(32, index), &[]);
    }
}

#[test]
fn regions_that_cannot_be_mapped_come_without_descriptor_and_capabilities() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (index, flags, size) in [(MESSAGES, READ | WRITE, MESSAGES_SIZE), (READ_ONLY, READ, 0x100), (ABSENT, 0, 0)] {
        let reply = raw.succeed(GET_REGION_INFO, &request(32, index), &[]);
        let expected = [words(&[32, flags, index, 0]), longs(&[size, 0])].concat();
        assert_eq!((reply.payload, reply.fds.len()), (expected, 0));
    }
}

#[test]
fn a_region_that_is_mappable_as_a_whole_comes_with_its_descriptor() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(GET_REGION_INFO, &request(32, WHOLE), &[]);
    assert_eq!(reply.payload, [words(&[32, READ | WRITE | MMAP, WHOLE, 0]), longs(&[0x3000, 0])].concat());
    assert_eq!(reply.fds.len(), 1);
}

/// As QEMU 11.1 wants it, which refuses the device if it sees the flag and no offset (hw/vfio-user/device.c,
/// vfio_user_device_io_get_region_info).
#[test]
fn without_room_for_the_capabilities_the_reply_says_how_much_is_needed() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let needed = 32 + 8 + 8 + 2 * 16;
    for argsz in [32, needed - 1] {
        let reply = raw.succeed(GET_REGION_INFO, &request(argsz, SPARSE), &[]);
        assert_eq!((reply.u32_at(0), reply.u32_at(4)), (needed, READ | WRITE | MMAP));
        assert_eq!((reply.payload.len(), reply.u32_at(12), reply.fds.len()), (32, 0, 0));
    }
}

#[test]
fn sparse_areas_are_listed_in_a_capability() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let reply = raw.succeed(GET_REGION_INFO, &request(1 << 20, SPARSE), &[]);
    let header = words(&[32 + 8 + 8 + 2 * 16, READ | WRITE | MMAP | CAPS, SPARSE, 32]);
    let areas = SPARSE_AREAS.iter().flat_map(|&(offset, size)| longs(&[offset, size])).collect();
    let capability = words(&[0x0001_0001, 0, 2, 0]);
    assert_eq!(reply.payload, [header, longs(&[0x8000, SPARSE_OFFSET]), capability, areas].concat());
    assert_eq!(reply.fds.len(), 1);
    let again = raw.succeed(GET_REGION_INFO, &request(1 << 20, SPARSE), &[]);
    assert!(same_file(&reply.fds[0], &again.fds[0]));
}

#[test]
fn a_region_type_is_a_capability_of_its_own_after_the_areas() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let (typed, last) = ([0x8000_1af4, 3], 0x0001_0002);
    let reply = raw.succeed(GET_REGION_INFO, &request(48, TYPED), &[]);
    let header = [words(&[48, READ | WRITE | CAPS, TYPED, 32]), longs(&[64, 0])].concat();
    assert_eq!(reply.payload, [header, words(&[last, 0]), words(&typed)].concat());

    let sparse = 8 + 8 + 2 * 16;
    let reply = raw.succeed(GET_REGION_INFO, &request(1 << 16, TYPED_SPARSE), &[]);
    let whole = 32 + sparse + 16;
    let header = words(&[whole, READ | WRITE | MMAP | CAPS, TYPED_SPARSE, 32]);
    let areas = SPARSE_AREAS.iter().flat_map(|&(offset, size)| longs(&[offset, size])).collect();
    let first = words(&[0x0001_0001, 32 + sparse, 2, 0]);
    let expected = [header, longs(&[0x8000, SPARSE_OFFSET]), first, areas, words(&[last, 0]), words(&typed)].concat();
    assert_eq!((reply.payload, reply.fds.len()), (expected, 1));

    for (index, needed) in [(TYPED, 48), (TYPED_SPARSE, whole)] {
        for argsz in [32, needed - 1] {
            let reply = raw.succeed(GET_REGION_INFO, &request(argsz, index), &[]);
            assert_eq!((reply.u32_at(0), reply.u32_at(12)), (needed, 0));
            assert_eq!((reply.payload.len(), reply.fds.len()), (32, 0));
        }
    }
}

#[test]
fn our_client_learns_the_type_of_a_region() {
    let server = Server::start();
    let client = common::client(server.connect());
    assert_eq!(client.region_info(TYPED).unwrap().region_type, Some(REGION_TYPE));
    let both = client.region_info(TYPED_SPARSE).unwrap();
    assert_eq!((both.region_type, &both.areas[..]), (Some(REGION_TYPE), &SPARSE_AREAS[..]));
    assert_eq!(client.region_info(SPARSE).unwrap().region_type, None);
}

#[test]
fn a_client_that_takes_no_descriptors_is_offered_nothing_to_map() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    raw.succeed(VERSION, &version(0, 1, r#"{"capabilities":{"max_msg_fds":0}}"#), &[]);
    for index in [SPARSE, WHOLE] {
        let reply = raw.succeed(GET_REGION_INFO, &request(1 << 16, index), &[]);
        assert_eq!((reply.u32_at(0), reply.u32_at(4), reply.fds.len()), (32, READ | WRITE, 0));
    }
    let reply = raw.succeed(GET_REGION_INFO, &request(1 << 16, TYPED_SPARSE), &[]);
    assert_eq!((reply.u32_at(0), reply.u32_at(4), reply.fds.len()), (48, READ | WRITE | CAPS, 0));
    for index in [MESSAGES, WHOLE] {
        let reply = raw.succeed(GET_REGION_IO_FDS, &words(&[4096, 0, index, 0]), &[]);
        assert_eq!((reply.u32_at(12), reply.fds.len()), (0, 0));
    }
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.command(GET_REGION_INFO, NO_REPLY, &request(4096, SPARSE), &[]);
    raw.alive();
}
