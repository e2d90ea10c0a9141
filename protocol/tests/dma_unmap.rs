//! `VFIO_USER_DMA_UNMAP`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::raw::*;
use common::{Server, memfd};

const PAGE: u64 = 4096;

fn request(address: u64, size: u64) -> Vec<u8> {
    [words(&[24, 0]), longs(&[address, size])].concat()
}

/// A server on which four pages at 1 MiB are mapped.
fn mapped() -> (Server, Raw) {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(4 * PAGE);
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 1 << 20, 4 * PAGE])].concat(), &[fd(&memory)]);
    (server, raw)
}

fn is_mapped(server: &Server) -> bool {
    server.state.lock().unwrap().memory.read(1 << 20, &mut [0]).is_ok()
}

#[test]
fn a_short_or_long_request_is_refused() {
    let (server, mut raw) = mapped();
    let whole = request(1 << 20, 4 * PAGE);
    for length in 0..24 {
        raw.refused(EINVAL, DMA_UNMAP, &whole[..length], &[]);
    }
    raw.refused(EINVAL, DMA_UNMAP, &[whole, vec![0; 8]].concat(), &[]);
    assert!(is_mapped(&server));
}

#[test]
fn an_argsz_with_no_room_for_the_reply_is_refused() {
    let (server, mut raw) = mapped();
    raw.refused(EINVAL, DMA_UNMAP, &[words(&[23, 0]), longs(&[1 << 20, 4 * PAGE])].concat(), &[]);
    assert!(is_mapped(&server));
}

#[test]
fn flags_which_this_version_does_not_use_are_refused() {
    let (server, mut raw) = mapped();
    for flags in [1, 3, 4] {
        raw.refused(EINVAL, DMA_UNMAP, &[words(&[24, flags]), longs(&[1 << 20, 4 * PAGE])].concat(), &[]);
    }
    assert!(is_mapped(&server));
}

#[test]
fn everything_goes_away_with_the_flag_all() {
    let (server, mut raw) = mapped();
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 1 << 30, 77])].concat(), &[]);
    for (address, size) in [(1 << 20, 4 * PAGE), (0, PAGE), (PAGE, 0)] {
        raw.refused(EINVAL, DMA_UNMAP, &[words(&[24, 2]), longs(&[address, size])].concat(), &[]);
    }
    assert!(is_mapped(&server));
    let all = [words(&[24, 2]), longs(&[0, 0])].concat();
    assert_eq!(raw.succeed(DMA_UNMAP, &all, &[]).payload, all);
    assert!(!is_mapped(&server) && !server.state.lock().unwrap().memory.is_readable(1 << 30, 1));
    raw.succeed(DMA_UNMAP, &all, &[]);
}

#[test]
fn what_is_no_mapped_range_or_a_part_of_one_is_refused() {
    let (server, mut raw) = mapped();
    for (address, size) in [
        (0, 0),
        (1 << 20, 0),
        (0, PAGE),
        (0, 1 << 20),
        ((1 << 20) + 4 * PAGE, u64::MAX - (1 << 20) - 4 * PAGE),
        (1 << 20, 3 * PAGE),
        ((1 << 20) + PAGE, 3 * PAGE),
        ((1 << 20) + PAGE, 8 * PAGE),
        ((1 << 20) + PAGE, PAGE),
        ((1 << 20) - PAGE, 4 * PAGE),
        (u64::MAX, u64::MAX),
        (u64::MAX, 2),
    ] {
        raw.refused(ENOENT, DMA_UNMAP, &request(address, size), &[]);
    }
    assert!(is_mapped(&server));
}

/// As QEMU has it when its guest stops using an IOMMU, and as the kernel's VFIO does it.
#[test]
fn ranges_go_with_one_that_they_lie_in() {
    for (address, size) in [
        (0, u64::MAX),
        (1 << 20, 0u64.wrapping_sub(1 << 20)),
        (0, 1 << 21),
        (1 << 20, 16 * PAGE),
        ((1 << 20) - PAGE, 17 * PAGE),
    ] {
        let (server, mut raw) = mapped();
        raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, (1 << 20) + 8 * PAGE, 8 * PAGE])].concat(), &[]);
        raw.refused(ENOENT, DMA_UNMAP, &request(address, (1 << 20) + 9 * PAGE - address), &[]);
        raw.succeed(DMA_UNMAP, &request(address, size), &[]);
        assert!(!is_mapped(&server));
        raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, 1 << 30])].concat(), &[]);
    }
}

#[test]
fn the_reply_echoes_the_request_and_the_range_is_gone_by_then() {
    let (server, mut raw) = mapped();
    let memory = memfd(PAGE);
    let inode =
        std::os::unix::fs::MetadataExt::ino(&std::fs::File::from(memory.try_clone().unwrap()).metadata().unwrap());
    let is_in_maps = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&format!(" {inode} "));
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, PAGE])].concat(), &[fd(&memory)]);
    assert!(is_in_maps());
    let reply = raw.succeed(DMA_UNMAP, &request(0, PAGE), &[]);
    assert_eq!((reply.payload, reply.fds.len()), (request(0, PAGE), 0));
    assert!(!is_in_maps() && is_mapped(&server));
    raw.succeed(DMA_UNMAP, &request(1 << 20, 4 * PAGE), &[]);
    assert!(!is_mapped(&server));
    raw.refused(ENOENT, DMA_UNMAP, &request(1 << 20, 4 * PAGE), &[]);
}

#[test]
fn without_a_reply_wanted_it_is_unmapped_in_silence() {
    let (server, mut raw) = mapped();
    raw.command(DMA_UNMAP, NO_REPLY, &request(1 << 20, 4 * PAGE), &[]);
    raw.command(DMA_UNMAP, NO_REPLY, &request(1 << 20, 4 * PAGE), &[]);
    raw.alive();
    assert!(!is_mapped(&server));
}
