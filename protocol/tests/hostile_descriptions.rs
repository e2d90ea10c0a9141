//! The client against servers whose descriptions of their device are short, absurd, or contradict themselves: none of it is
//! believed, and what cannot be used is left out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::hostile::{malformed, outcome};
use common::raw::*;
use common::{memfd, number};
use outrigger_protocol::client::{Client, ClientError};

#[test]
fn device_info_that_is_short_or_absurd_is_refused() {
    malformed(Client::device_info, vec![]);
    malformed(Client::device_info, words(&[16, 3, 9]));
    malformed(Client::device_info, words(&[16, 3, u32::MAX, 5]));
    malformed(Client::device_info, words(&[16, 3, 9, 257]));
}

#[test]
fn interrupt_info_that_is_short_for_another_type_or_absurd_is_refused() {
    malformed(|client| client.irq_info(2), words(&[16, 1, 2]));
    malformed(|client| client.irq_info(2), words(&[16, 1, 1, 4]));
    malformed(|client| client.irq_info(2), words(&[16, 1, 2, 2049]));
}

/// A region info reply for region 0 with this capability list behind it.
fn region(flags: u32, cap_offset: u32, size: u64, offset: u64, capabilities: &[u8]) -> Vec<u8> {
    let argsz = u32::try_from(32 + capabilities.len()).unwrap();
    [words(&[argsz, flags, 0, cap_offset]), longs(&[size, offset]), capabilities.to_vec()].concat()
}

fn sparse(next: u32, count: u32, areas: &[u64]) -> Vec<u8> {
    [words(&[0x0001_0001, next, count, 0]), longs(areas)].concat()
}

#[test]
fn region_info_whose_capabilities_lie_is_refused() {
    let bad = |cap_offset, capabilities: &[u8]| {
        malformed(|client| client.region_info(0), region(15, cap_offset, 0x4000, 0, capabilities));
    };
    bad(1, &sparse(0, 1, &[0, 0x1000]));
    bad(31, &sparse(0, 1, &[0, 0x1000]));
    bad(4096, &sparse(0, 1, &[0, 0x1000]));
    bad(u32::MAX, &sparse(0, 1, &[0, 0x1000]));
    bad(32, &[1, 0, 1, 0]);
    bad(32, &words(&[0x0001_0001, 0, 1]));
    bad(32, &sparse(0, 2, &[0, 0x1000]));
    bad(32, &sparse(0, u32::MAX, &[0, 0x1000]));
    bad(32, &sparse(0, 1, &[1, 0x1000]));
    bad(32, &sparse(0, 1, &[0, 0x1001]));
    bad(32, &sparse(0, 1, &[0, 0x5000]));
    bad(32, &sparse(0, 1, &[0x4000, 0x1000]));
    bad(32, &sparse(0, 1, &[!0xfff, 0x1000]));
    bad(32, &sparse(0, 2, &[0, 0x2000, 0x1000, 0x1000]));
    bad(32, &words(&[0x0001_0003, 32]));
    bad(32, &words(&[0x0001_0003, 8]));
    bad(32, &words(&[0x0001_0003, 4096]));
    // A region type that is cut off, loops, or comes twice, and areas that come twice or are not the end.
    bad(32, &words(&[0x0001_0002, 0, 1]));
    bad(32, &words(&[0x0001_0002, 32, 1, 2]));
    bad(32, &words(&[0x0001_0002, 48, 1, 2, 0x0001_0002, 0, 1, 2]));
    bad(32, &[sparse(64, 1, &[0, 0x1000]), sparse(0, 1, &[0, 0x1000])].concat());
    bad(32, &sparse(32, 1, &[0, 0x1000]));
    bad(32, &[words(&[0x0001_0002, 48, 1, 2]), sparse(0, 1, &[0, 0x5000])].concat());
}

#[test]
fn region_info_that_is_short_for_another_region_or_grows_each_time_is_refused() {
    malformed(|client| client.region_info(0), vec![0; 31]);
    malformed(|client| client.region_info(1), region(3, 0, 0x1000, 0, &[]));
    malformed(|client| client.region_info(0), [words(&[u32::MAX, 3, 0, 0]), longs(&[0, 0])].concat());
    let grown = outcome(
        |client| client.region_info(0),
        |raw, mut request| {
            for _ in 0..2 {
                raw.answer(&request, &[words(&[request.u32_at(0) + 1, 3, 0, 0]), longs(&[0, 0])].concat(), &[]);
                request = match raw.receive() {
                    Some(request) => request,
                    None => return,
                };
            }
        },
    );
    assert!(matches!(grown, Err(ClientError::Malformed { .. })), "{grown:?}");
}

#[test]
fn a_mapping_that_no_file_can_have_is_refused() {
    for (size, offset) in [(0x1000, 1), (0x1000, !0xfff), (0x1000, 1 << 63), (u64::MAX, 0x1000)] {
        let memory = memfd(4096);
        let result = outcome(
            |client| client.region_info(0),
            move |raw, request| {
                raw.answer(&request, &region(7, 0, size, offset, &[]), &[fd(&memory)]);
            },
        );
        assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
    }
}

#[test]
fn a_region_without_the_flag_or_the_descriptor_is_not_mappable() {
    for (flags, count) in [(3, 1), (7, 0), (11, 1), (15, 0)] {
        let memory = memfd(4096);
        let info = outcome(
            |client| client.region_info(0),
            move |raw, request| {
                let payload = region(flags, 32, 0x4000, 0, &sparse(0, 1, &[0, 0x1000]));
                raw.answer(&request, &payload, &vec![fd(&memory); count]);
            },
        );
        let info = info.unwrap();
        assert!(info.fd.is_none() && info.areas.is_empty());
    }
}

#[test]
fn more_than_one_descriptor_for_a_region_is_refused() {
    let result = outcome(
        |client| client.region_info(0),
        |raw, request| {
            let memory = memfd(4096);
            raw.answer(&request, &region(7, 0, 0x1000, 0, &[]), &[fd(&memory); 2]);
        },
    );
    assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
}

#[test]
fn a_part_of_a_page_at_the_end_of_a_mappable_region_is_left_out() {
    for (size, areas) in [(0x1800, vec![(0, 0x1000)]), (0x800, vec![]), (0, vec![])] {
        let memory = memfd(8192);
        let info = outcome(
            |client| client.region_info(0),
            move |raw, request| {
                raw.answer(&request, &region(7, 0, size, 0, &[]), &[fd(&memory)]);
            },
        );
        assert_eq!(info.unwrap().areas, areas);
    }
}

/// A sub-region.
fn io_fd(offset: u64, size: u64, fd_index: u32, kind: u32) -> Vec<u8> {
    [longs(&[offset, size]), words(&[fd_index, kind, 0, 0]), longs(&[0])].concat()
}

#[test]
fn sub_regions_that_lie_are_refused() {
    let bad = |argsz: u32, index: u32, count: u32, entries: Vec<u8>| {
        let result = outcome(
            |client| client.region_io_fds(0, 0x1000),
            move |raw, request| {
                let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
                raw.answer(&request, &[words(&[argsz, 0, index, count]), entries].concat(), &[fd(&eventfd)]);
            },
        );
        assert!(matches!(&result, Err(ClientError::Malformed { .. })), "{result:?}");
    };
    bad(56, 1, 1, io_fd(0, 4, 0, 0));
    bad(56, 0, 2, io_fd(0, 4, 0, 0));
    bad(56, 0, u32::MAX, io_fd(0, 4, 0, 0));
    bad(96, 0, 1, io_fd(0, 4, 0, 0));
    bad(16, 0, 1, io_fd(0, 4, 0, 0));
    bad(0, 0, 1, io_fd(0, 4, 0, 0));
    bad(u32::MAX, 0, 1, io_fd(0, 4, 0, 0));
    bad(56, 0, 1, io_fd(0, 4, 1, 0));
    bad(56, 0, 1, io_fd(0, 4, u32::MAX, 0));
    bad(56, 0, 1, io_fd(0, 0, 0, 1));
    bad(56, 0, 1, io_fd(0xffd, 4, 0, 2));
    bad(56, 0, 1, io_fd(0xffd, 4, 0, 0));
    bad(56, 0, 1, io_fd(0x1000, 0, 0, 0));
    bad(56, 0, 1, io_fd(u64::MAX, 4, 0, 0));
    bad(56, 0, 1, io_fd(8, u64::MAX, 0, 0));
}

#[test]
fn sub_regions_may_share_a_descriptor_and_be_longer_than_today() {
    let io_fds = outcome(
        |client| client.region_io_fds(0, 0x1000),
        |raw, request| {
            let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
            let entries = [io_fd(0, 4, 0, 0), vec![0xee; 8], io_fd(8, 4, 0, 1), vec![0xee; 8]].concat();
            raw.answer(&request, &[words(&[16 + 96, 0, 0, 2]), entries].concat(), &[fd(&eventfd)]);
        },
    );
    let io_fds = io_fds.unwrap();
    assert_eq!(io_fds.iter().map(|io_fd| io_fd.offset).collect::<Vec<_>>(), [0, 8]);
    assert_eq!(number(&io_fds[0].fd), number(&io_fds[1].fd));
}

#[test]
fn sub_regions_of_types_that_the_text_does_not_have_are_left_out() {
    let io_fds = outcome(
        |client| client.region_io_fds(0, 0x1000),
        |raw, request| {
            let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
            let entries = [io_fd(0, 4, 0, 2), io_fd(8, 4, 0, 0), io_fd(16, 4, 0, u32::MAX)].concat();
            raw.answer(&request, &[words(&[16 + 120, 0, 0, 3]), entries].concat(), &[fd(&eventfd)]);
        },
    );
    assert_eq!(io_fds.unwrap().iter().map(|io_fd| io_fd.offset).collect::<Vec<_>>(), [8]);
}
