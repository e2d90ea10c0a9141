//! `VFIO_USER_DMA_MAP`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::raw::*;
use common::{Server, memfd};

const READABLE: u32 = 1;
const WRITEABLE: u32 = 2;
const PAGE: u64 = 4096;

fn request(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), longs(&[offset, address, size])].concat()
}

fn reads(server: &Server, address: u64) -> bool {
    server.state.lock().unwrap().memory.read(address, &mut [0]).is_ok()
}

fn writes(server: &Server, address: u64) -> bool {
    server.state.lock().unwrap().memory.write(address, &[0]).is_ok()
}

#[test]
fn a_short_or_long_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let whole = request(3, 0, 0, PAGE);
    for length in 0..32 {
        raw.refused(EINVAL, DMA_MAP, &whole[..length], &[]);
    }
    raw.refused(EINVAL, DMA_MAP, &[whole, vec![0]].concat(), &[]);
}

#[test]
fn an_argsz_below_the_structure_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.refused(EINVAL, DMA_MAP, &[words(&[31, 3]), longs(&[0, 0, PAGE])].concat(), &[]);
}

/// libvfio-user's flags for what the descriptor is for (MMAP 4, FILE_IO 8); without any it is for mapping.
#[test]
fn the_flags_say_what_the_descriptor_is_for() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(2 * PAGE);
    raw.succeed(DMA_MAP, &request(3 | 4, 0, 0, PAGE), &[fd(&memory)]);
    raw.succeed(DMA_MAP, &request(3 | 4 | 8, PAGE, PAGE, PAGE), &[fd(&memory)]);
    assert!(writes(&server, 0) && writes(&server, PAGE));
    // A range that is not to be mapped goes by messages, however it is aligned.
    raw.succeed(DMA_MAP, &request(1 | 8, 1, 4 * PAGE, 77), &[fd(&memory)]);
    let read = std::thread::spawn({
        let memory = server.state.lock().unwrap().memory.clone();
        move || memory.read_array::<4>(4 * PAGE).unwrap()
    });
    let asked = raw.receive().unwrap();
    assert_eq!((asked.command, &asked.payload[..]), (DMA_READ, &longs(&[4 * PAGE, 4])[..]));
    raw.answer(&asked, &[&asked.payload[..], &[1, 2, 3, 4]].concat(), &[]);
    assert_eq!(read.join().unwrap(), [1, 2, 3, 4]);
    for flags in [4, 8, 12] {
        raw.refused(EINVAL, DMA_MAP, &request(3 | flags, 0, 8 * PAGE, PAGE), &[]);
    }
}

#[test]
fn unknown_flags_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for flags in [16, 19, 1 << 31] {
        raw.refused(EINVAL, DMA_MAP, &request(flags, 0, 0, PAGE), &[]);
    }
}

#[test]
fn empty_and_wrapping_ranges_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (address, size) in [(0, 0), (PAGE, 0), (PAGE, u64::MAX), (u64::MAX, 1), (!0xfff, PAGE + 1)] {
        raw.refused(EINVAL, DMA_MAP, &request(3, 0, address, size), &[]);
    }
}

#[test]
fn more_than_one_descriptor_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(PAGE);
    raw.refused(EINVAL, DMA_MAP, &request(3, 0, 0, PAGE), &[fd(&memory); 2]);
}

#[test]
fn ranges_that_cannot_be_mapped_from_their_descriptor_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(4 * PAGE);
    for (offset, size) in [
        (0, 5 * PAGE),
        (4 * PAGE, PAGE),
        (u64::MAX - PAGE + 1, PAGE),
        (1 << 63, PAGE),
        (1, PAGE),
        (0, PAGE - 1),
        (0, 1 << 47),
    ] {
        raw.refused(EINVAL, DMA_MAP, &request(3, offset, 0x10_0000, size), &[fd(&memory)]);
    }
    assert!(!reads(&server, 0x10_0000));
}

#[test]
fn descriptors_that_are_no_memory_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    let directory = std::fs::File::open("/proc/self").unwrap();
    let root = std::fs::File::open("/").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    for wrong in [fd(&pipe), fd(&raw.stream), fd(&directory), fd(&root), fd(&null)] {
        raw.refused(EINVAL, DMA_MAP, &request(3, 0, 0, PAGE), &[wrong]);
    }
}

#[test]
fn a_descriptor_that_may_not_be_written_cannot_be_mapped_for_writing() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(PAGE).unwrap();
    let read_only = std::fs::File::open(file.path()).unwrap();
    raw.refused(EINVAL, DMA_MAP, &request(READABLE | WRITEABLE, 0, 0, PAGE), &[fd(&read_only)]);
    raw.succeed(DMA_MAP, &request(READABLE, 0, 0, PAGE), &[fd(&read_only)]);
    assert!(reads(&server, 0) && !writes(&server, 0));
}

#[test]
fn what_is_not_memory_is_not_mapped() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    // Whose pages somebody may have to fetch: on FUSE, the client itself.
    let on_disk = std::fs::File::open("/proc/self/exe").unwrap();
    raw.refused(EINVAL, DMA_MAP, &request(READABLE, 0, 0, PAGE), &[fd(&on_disk)]);
    raw.alive();
}

#[test]
fn mapping_over_an_existing_range_is_refused_as_existing() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(16 * PAGE);
    raw.succeed(DMA_MAP, &request(3, 0, 4 * PAGE, 4 * PAGE), &[fd(&memory)]);
    raw.succeed(DMA_MAP, &request(3, 0, 12 * PAGE, PAGE), &[]);
    for (first, pages) in [(4, 4), (4, 1), (7, 1), (5, 2), (3, 2), (7, 2), (0, 16), (12, 1), (11, 2)] {
        raw.refused(EEXIST, DMA_MAP, &request(3, 0, first * PAGE, pages * PAGE), &[fd(&memory)]);
    }
    for (first, pages) in [(0, 4), (8, 4), (13, 1)] {
        raw.succeed(DMA_MAP, &request(3, 0, first * PAGE, pages * PAGE), &[fd(&memory)]);
    }
}

#[test]
fn the_flags_say_which_way_the_device_may_go() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(4 * PAGE);
    for flags in 0..4 {
        let reply = raw.succeed(DMA_MAP, &request(flags, 0, u64::from(flags) * PAGE, PAGE), &[fd(&memory)]);
        assert_eq!((reply.payload.len(), reply.fds.len()), (0, 0));
    }
    let ways: Vec<_> = (0..4).map(|i| (reads(&server, i * PAGE), writes(&server, i * PAGE))).collect();
    assert_eq!(ways, [(false, false), (true, false), (false, true), (true, true)]);
}

#[test]
fn a_range_without_a_descriptor_is_open_to_the_device_but_not_mapped() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (flags, address) in [(3, 0x1234), (1, 0x2000), (2, 0x3000), (0, 0x4000)] {
        raw.succeed(DMA_MAP, &request(flags, 0, address, 77), &[]);
        let memory = server.state.lock().unwrap().memory.clone();
        let open = (memory.is_readable(address, 77), memory.is_writable(address, 77));
        assert_eq!(open, (flags & READABLE != 0, flags & WRITEABLE != 0));
        assert!(!memory.is_readable(address, 78) && !memory.is_writable(address - 1, 78));
        assert!(!memory.is_mapped(address, 77));
        assert!(memory.readable_slice(address, 1).is_err() && memory.writable_slice(address, 1).is_err());
    }
    raw.succeed(DMA_UNMAP, &[words(&[24, 0]), longs(&[0x1234, 77])].concat(), &[]);
    assert!(!server.state.lock().unwrap().memory.is_readable(0x1234, 1));
}

#[test]
fn without_a_reply_wanted_it_is_mapped_in_silence() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(PAGE);
    raw.command(DMA_MAP, NO_REPLY, &request(3, 0, 0, PAGE), &[fd(&memory)]);
    raw.command(DMA_MAP, NO_REPLY, &request(3, 0, 0, PAGE), &[fd(&memory)]);
    raw.alive();
    assert!(reads(&server, 0));
}

#[test]
fn what_is_borrowed_or_copied_as_an_array_lies_within_one_mapping_of_its_direction() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(4 * PAGE);
    // Both ways, both ways, to be read, to be written; the last one at an odd address.
    let odd = 0x10_0001;
    for (flags, page, address) in [(3, 0, 0), (3, 1, PAGE), (1, 2, 2 * PAGE), (2, 3, odd)] {
        raw.succeed(DMA_MAP, &request(flags, page * PAGE, address, PAGE), &[fd(&memory)]);
    }
    let memory = server.state.lock().unwrap().memory.clone();
    let borrowed = |address, length| {
        (memory.readable_slice(address, length).is_ok(), memory.writable_slice(address, length).is_ok())
    };
    assert_eq!(borrowed(0, 4096), (true, true));
    assert_eq!(borrowed(1, 4096), (false, false), "across two mappings");
    assert_eq!(borrowed(2 * PAGE, 4096), (true, false));
    assert_eq!(borrowed(2 * PAGE - 1, 2), (false, false));
    assert_eq!(borrowed(3 * PAGE - 1, 2), (false, false));
    assert_eq!(borrowed(odd, 4096), (false, true));
    for (address, length) in [(odd + PAGE, 1), (odd - 1, 1), (u64::MAX, 1), (u64::MAX, usize::MAX), (0, usize::MAX)] {
        assert_eq!(borrowed(address, length), (false, false));
    }
    // A copy may go across, but in one direction only where the client has opened one.
    memory.write_array(PAGE - 2, [1, 2, 3, 4]).unwrap();
    assert_eq!(memory.read_array(PAGE - 2).unwrap(), [1, 2, 3, 4]);
    assert_eq!(memory.read_array(PAGE).unwrap(), [3, 4]);
    assert!(memory.write_array(2 * PAGE, [0]).is_err() && memory.write_array(2 * PAGE - 1, [0; 2]).is_err());
    assert!(memory.read_array::<1>(odd).is_err());
    memory.write_array(odd, [5; 16]).unwrap();
    assert!(memory.write_array(odd + PAGE - 1, [5; 16]).is_err());
    assert!(memory.read_array::<16>(u64::MAX - 8).is_err());
}
