//! The block device, driven through a real socket.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::Duration;

use outrigger_protocol::client::IoFdKind;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION, INTX_IRQ};

use super::*;
use crate::lock::{Others, lock};
use crate::testing::{BUFFERS, Buffer, Driver, RAM_SIZE, RAM_START, Served, Way, every_way};
use crate::transport::pci_config::{DEVICE_OFFSET, NOTIFY_OFFSET};
use crate::transport::registers::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, FEATURE_RING_RESET, STATUS_NEEDS_RESET};

mod succession;

const SIZE: u64 = 1 << 20;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const UNTOUCHED: u8 = 0xee;
const FLUSH: u64 = 1 << spec::VIRTIO_BLK_F_FLUSH;

struct Rig {
    file: tempfile::NamedTempFile,
    served: Served<Blk>,
    driver: Driver,
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fill(file.as_file());
    file
}

fn fill(file: &File) {
    let pattern: Vec<u8> = (0..SIZE).map(|at| (at / 512 + at % 251).to_le_bytes()[0]).collect();
    file.write_all_at(&pattern, 0).unwrap();
}

every_way! {
    reads_bring_the_files_content
    writes_reach_the_file
    header_data_and_status_may_share_descriptors
    buffers_outside_memory_are_errors_of_that_request_only
    an_error_of_the_file_is_an_error_in_the_guest
    the_serial_and_unknown_requests
    unreachable_headers_and_status_bytes
    discard_and_write_zeroes_make_zeros
    queues_go_on_when_memory_comes_and_goes
    resets_of_every_kind_leave_a_working_device
    many_requests_at_once_all_come_back
    large_requests_are_moved_whole
    no_doorbell_is_lost_when_the_way_to_wait_for_it_changes
    a_disk_in_memory_is_a_disk
}

fn rig(options: &str) -> Rig {
    rig_with(options, Way::Mapped)
}

fn rig_with(options: &str, way: Way) -> Rig {
    let file = image();
    let served = Served::new(Blk::open(&format!("path={}{options}", file.path().display())).unwrap());
    let driver = served.attach_with(way);
    Rig { file, served, driver }
}

fn started(options: &str) -> Rig {
    started_with(options, Way::Mapped)
}

fn started_with(options: &str, way: Way) -> Rig {
    let mut rig = rig_with(options, way);
    rig.driver.start(FEATURE_EVENT_IDX | FEATURE_INDIRECT | FLUSH, 1, 64);
    rig
}

fn content(file: &File, sector: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, sector * 512).unwrap();
    bytes
}

/// Makes one request and waits for it; returns its status and the used length.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    driver.put(HEADER, &[&u64::from(kind).to_le_bytes()[..], &sector.to_le_bytes()].concat());
    driver.put(STATUS, &[UNTOUCHED]);
    let buffers = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
    let head = driver.add(0, &buffers);
    driver.notify(0);
    let (used, written) = driver.used(0);
    assert_eq!(used, head);
    driver.free(0, (0..buffers.len()).map(|n| (head + u16::try_from(n).unwrap()) % 64));
    (driver.get(STATUS, 1)[0], written)
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn reads_bring_the_files_content(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    let buffers = [(DATA, 512, true), (DATA + 0x2000, 1024, true)];
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 7, &buffers), (OK, 1537));
    let bytes = [driver.get(DATA, 512), driver.get(DATA + 0x2000, 1024)].concat();
    assert_eq!(bytes, content(file.as_file(), 7, 1536));
    driver.interrupted(1);
    assert_eq!(driver.isr(), 0, "with MSI-X there is no ISR status");
}

fn writes_reach_the_file(way: Way) {
    for features in [FLUSH, 0] {
        let Rig { file, mut driver, .. } = rig_with("", way);
        driver.start(features, 1, 64);
        driver.put(DATA, &[0x5a; 1024]);
        let buffers = [(DATA, 512, false), (DATA + 512, 512, false)];
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 2047, &buffers[..1]), (OK, 1));
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 9, &buffers), (OK, 1));
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(content(file.as_file(), 9, 1024), [0x5a; 1024]);
        assert_eq!(content(file.as_file(), 2047, 512), [0x5a; 512]);
    }
}

/// Longer than one message's data and than what is here at a time of a request whose buffers are not mapped.
fn large_requests_are_moved_whole(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    let (first, second) = (100 << 10, 130 << 10);
    let at = |offset: u32| DATA + u64::from(offset);
    let bytes: Vec<u8> = (0..first + second).map(|n: u32| (n / 512 * 7 + n).to_le_bytes()[0]).collect();
    driver.put(DATA, &bytes);
    let buffers = [(DATA, first, false), (at(first), second, false)];
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 3, &buffers), (OK, 1));
    assert_eq!(content(file.as_file(), 3, bytes.len()), bytes);
    let target = at(0x10_0000);
    let buffers = [(target, 512, true), (target + 512, first + second - 512, true)];
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 3, &buffers), (OK, first + second + 1));
    assert_eq!(driver.get(target, bytes.len()), bytes);
}

fn header_data_and_status_may_share_descriptors(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    driver.put(DATA, &[0; 16]);
    driver.put(DATA + 0x1000, &[UNTOUCHED; 513]);
    driver.add(0, &[(DATA, 10, false), (DATA + 10, 6, false), (DATA + 0x1000, 513, true)]);
    driver.notify(0);
    assert_eq!(driver.used(0).1, 513);
    assert_eq!(driver.get(DATA + 0x1000, 512), content(file.as_file(), 0, 512));
    assert_eq!(driver.get(DATA + 0x1200, 1), [OK]);
}

#[test]
fn ranges_outside_the_disk_and_odd_lengths_are_errors() {
    let Rig { mut driver, .. } = started("");
    for (sector, length) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)] {
        let result = request(&mut driver, spec::VIRTIO_BLK_T_IN, sector, &[(DATA, length, true)]);
        assert_eq!(result, (IOERR, 0), "{sector} {length}");
    }
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
}

fn buffers_outside_memory_are_errors_of_that_request_only(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    let end = RAM_START + RAM_SIZE;
    for address in [end, end - 256, u64::MAX - 100, 0] {
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(address, 512, true)]).0, IOERR);
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 0, &[(address, 512, false)]).0, IOERR);
    }
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
}

fn an_error_of_the_file_is_an_error_in_the_guest(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    file.as_file().set_len(4096).unwrap();
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 100, &[(DATA, 512, true)]).0, IOERR);
    // Short: the second half is missing.
    driver.put(DATA, &[UNTOUCHED; 1024]);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 7, &[(DATA, 1024, true)]), (IOERR, 512));
    assert_eq!(driver.get(DATA, 1024), [content(file.as_file(), 7, 512), vec![UNTOUCHED; 512]].concat());
}

fn the_serial_and_unknown_requests(way: Way) {
    let Rig { mut driver, .. } = started_with(",serial=OUTRIGGER", way);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(driver.get(DATA, 20), b"OUTRIGGER\0\0\0\0\0\0\0\0\0\0\0");
    // The driver may rely on the bytes that the used length counts, from the first on.
    driver.put(DATA, &[UNTOUCHED; 30]);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 30, true)]), (OK, 20));
    assert_eq!(driver.get(DATA, 30), [&b"OUTRIGGER\0\0\0\0\0\0\0\0\0\0\0"[..], &[UNTOUCHED; 10]].concat());
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 4, true)]), (OK, 5));
    assert_eq!(request(&mut driver, 99, 0, &[]), (UNSUPP, 1));
    assert_eq!(request(&mut driver, 99, 0, &[(DATA, 8, true)]), (UNSUPP, 0));
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_FLUSH, 0, &[(DATA, 8, true)]), (OK, 0));
}

/// A header that cannot be read is that request's error; with a status that cannot be written, the driver would take what is
/// there for one.
fn unreachable_headers_and_status_bytes(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    let nowhere = RAM_START + RAM_SIZE;
    driver.put(STATUS, &[UNTOUCHED]);
    driver.add(0, &[(nowhere, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.notify(0);
    assert_eq!(driver.used(0).1, 0);
    assert_eq!(driver.get(STATUS, 1), [IOERR]);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
    driver.put(HEADER, &[0; 16]);
    driver.add(0, &[(HEADER, 16, false), (DATA, 512, true), (nowhere, 1, true)]);
    driver.notify(0);
    driver.interrupted(0);
    assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0);
}

fn discard_and_write_zeroes_make_zeros(way: Way) {
    for features in [FLUSH, 0] {
        let rig = rig_with("", way);
        make_zeros_in_every_way(rig, features);
    }
}

fn make_zeros_in_every_way(Rig { file, served: _served, mut driver }: Rig, features: u64) {
    driver.start(features, 1, 64);
    let cases =
        [(spec::VIRTIO_BLK_T_DISCARD, 0), (spec::VIRTIO_BLK_T_WRITE_ZEROES, 0), (spec::VIRTIO_BLK_T_WRITE_ZEROES, 1)];
    for (round, (kind, flags)) in (0u64..).zip(cases) {
        driver.put(DATA, &range(64 * round, 16, flags));
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]), (OK, 1), "{kind} {flags}");
        assert_eq!(content(file.as_file(), 64 * round, 8192), vec![0; 8192]);
        assert_ne!(content(file.as_file(), 64 * round + 16, 512), vec![0; 512]);
        driver.put(DATA, &range(2040, 16, flags));
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]).0, IOERR);
        driver.put(DATA, &range(0, 16, flags | 2));
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]).0, UNSUPP);
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 15, false)]).0, UNSUPP);
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), SIZE);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let Rig { file, mut driver, .. } = started_readonly();
    let before = content(file.as_file(), 0, 512);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]).0, IOERR);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
    assert_eq!(content(file.as_file(), 0, 512), before);
}

fn started_readonly() -> Rig {
    let mut rig = rig(",readonly=on");
    let features = u32::from_le_bytes(rig.driver.read(4));
    assert_ne!(features & 1 << spec::VIRTIO_BLK_F_RO, 0);
    assert_eq!(features & (1 << spec::VIRTIO_BLK_F_FLUSH | 1 << spec::VIRTIO_BLK_F_DISCARD), 0);
    rig.driver.start(0, 1, 64);
    rig
}

#[test]
fn the_configuration_describes_the_disk() {
    let Rig { driver, .. } = rig(",queues=3");
    let config: [u8; 60] = driver.read(DEVICE_OFFSET);
    assert_eq!(config[..8], (SIZE / 512).to_le_bytes());
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[34..36], 3u16.to_le_bytes());
    assert_eq!(driver.read::<2>(0x12), 3u16.to_le_bytes());
}

#[test]
fn one_interrupt_per_batch_when_the_driver_asks_for_the_last() {
    let Rig { mut driver, .. } = started("");
    request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    driver.interrupted(1);
    driver.set_used_event(0, 8);
    driver.put(HEADER, &[0; 16]);
    for n in 0..8 {
        driver.add(0, &[(HEADER, 16, false), (DATA + n * 512, 512, true), (STATUS + n, 1, true)]);
    }
    driver.notify(0);
    for _ in 0..8 {
        driver.used(0);
    }
    assert_eq!(driver.interrupted(1), 1);
    assert_eq!(driver.interrupts_so_far(1), 0);
}

#[test]
fn every_doorbell_is_offered_as_an_ioeventfd_that_works() {
    let Rig { mut driver, .. } = started(",queues=2");
    let io_fds = driver.client.region_io_fds(BAR0_REGION, 0x4000).unwrap();
    let eventfd = IoFdKind::Ioeventfd { datamatch: None };
    let places: Vec<_> = io_fds[..2].iter().map(|io_fd| (io_fd.offset, io_fd.size, io_fd.kind)).collect();
    assert_eq!(places, [(NOTIFY_OFFSET, 0, eventfd), (NOTIFY_OFFSET + 4, 0, eventfd)]);
    driver.put(HEADER, &[0; 16]);
    driver.add(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    nix::unistd::write(io_fds[0].fd.lend(), &1u64.to_ne_bytes()).unwrap();
    assert_eq!(driver.used(0).1, 513);
}

#[test]
fn nonsense_needs_a_reset_and_a_reset_helps() {
    let Rig { mut driver, .. } = started("");
    // No room for a status.
    driver.add(0, &[(HEADER, 16, false)]);
    driver.notify(0);
    driver.interrupted(0);
    assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0);
    driver.start(FLUSH, 1, 64);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
}

#[test]
fn intx_is_used_without_msix_and_fires_again_until_the_status_is_read() {
    let Rig { mut driver, .. } = rig("");
    driver.negotiate(FLUSH);
    driver.use_intx();
    driver.enable_queue(64);
    driver.driver_ok();
    request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    assert_eq!(driver.interrupted(0), 1);
    driver.client.unmask_irq(INTX_IRQ, 0).unwrap();
    assert_eq!(driver.interrupted(0), 1, "the cause still stands");
    assert_eq!(driver.isr(), 1);
    driver.client.unmask_irq(INTX_IRQ, 0).unwrap();
    assert_eq!(driver.isr(), 0);
    assert_eq!(driver.interrupts_so_far(0), 0);
}

fn queues_go_on_when_memory_comes_and_goes(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    let other = 1 << 32;
    driver.map(other, 0x1000);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 1, &[(DATA, 512, true)]).0, OK);
    // As QEMU does when it changes the shape of memory.
    driver.client.dma_unmap(RAM_START, RAM_SIZE).unwrap();
    driver.map(RAM_START, RAM_SIZE);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 2, &[(DATA, 512, true)]).0, OK);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
}

fn resets_of_every_kind_leave_a_working_device(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    driver.client.reset().unwrap();
    assert_eq!(driver.status(), 0);
    driver.start(FLUSH, 1, 64);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
    // Function-level reset.
    driver.client.region_write(CONFIG_REGION, 0x48, &0x8000u16.to_le_bytes()).unwrap();
    driver.wait_for_reset();
    driver.start(FLUSH | FEATURE_RING_RESET, 1, 64);
    // Of one queue.
    driver.write(0x16, &[0, 0]);
    driver.write(0x3a, &[1, 0]);
    while driver.read::<2>(0x3a) != [0, 0] {}
    assert_eq!(driver.read::<2>(0x1c), [0, 0]);
    assert_eq!(driver.status() & STATUS_NEEDS_RESET, 0);
}

#[test]
fn the_next_client_finds_a_working_device_and_old_queues_stay_asleep() {
    let Rig { served, driver, .. } = started("");
    drop(driver);
    let mut driver = served.attach();
    assert_eq!(driver.status() & 0xf, 0xf, "guest-visible state is kept");
    driver.start(FLUSH, 1, 64);
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0, OK);
}

#[test]
fn registers_are_reached_through_configuration_space() {
    let Rig { driver, .. } = rig("");
    let config = |offset, data: &[u8]| driver.client.region_write(CONFIG_REGION, offset, data).unwrap();
    let window = 0xcc;
    config(window + 4, &[0]);
    config(window + 8, &0x14u32.to_le_bytes());
    config(window + 12, &1u32.to_le_bytes());
    config(window + 16, &[3]);
    assert_eq!(driver.status(), 3);
    let mut status = [0];
    driver.client.region_read(CONFIG_REGION, window + 16, &mut status).unwrap();
    assert_eq!(status, [3]);
    // Beside the one byte that the window has: no access, least of all a reset.
    for at in 1..4 {
        config(window + 16 + at, &[0]);
        assert_eq!(driver.status(), 3, "{at}");
    }
    // Half of two bytes: the other half is what was there.
    config(window + 8, &0x18u32.to_le_bytes());
    config(window + 12, &2u32.to_le_bytes());
    config(window + 16, &64u32.to_le_bytes());
    assert_eq!(driver.read::<2>(0x18), [64, 0]);
    config(window + 17, &[1]);
    assert_eq!(driver.read::<2>(0x18), [64, 1]);
}

fn many_requests_at_once_all_come_back(way: Way) {
    let Rig { file, mut driver, .. } = started_with("", way);
    for round in 0..50u64 {
        let mut sectors = Vec::new();
        for n in 0..20u64 {
            let sector = (round * 37 + n * 91) % 2048;
            let header = HEADER + 0x200 + n * 16;
            driver.put(header, &[&[0; 8][..], &sector.to_le_bytes()].concat());
            let head = driver.add(0, &[(header, 16, false), (DATA + n * 512, 512, true), (STATUS + n, 1, true)]);
            sectors.push((head, sector));
        }
        driver.notify(0);
        for _ in 0..20 {
            let (head, written) = driver.used(0);
            assert_eq!(written, 513);
            let position = sectors.iter().position(|entry| entry.0 == head).unwrap();
            let bytes = driver.get(DATA + 512 * position as u64, 512);
            assert_eq!(bytes, content(file.as_file(), sectors[position].1, 512));
        }
        driver.free(0, sectors.iter().flat_map(|&(head, _)| [head, (head + 1) % 64, (head + 2) % 64]));
    }
}

/// A flush is always waited for, so the doorbell goes to the ring; it leaves it after some reads, which are done at once.
fn no_doorbell_is_lost_when_the_way_to_wait_for_it_changes(way: Way) {
    let Rig { mut driver, .. } = started_with("", way);
    for reads in [0, 1, 62, 63, 64, 65, 66, 140] {
        for _ in 0..2 {
            assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        }
        for sector in 0..reads {
            assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, sector, &[(DATA, 512, true)]), (OK, 513));
        }
    }
}

fn a_disk_in_memory_is_a_disk(way: Way) {
    for features in [FLUSH, 0] {
        let file = File::from(nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::empty()).unwrap());
        fill(&file);
        let blk = Blk::open(&format!("path=/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(blk.backing.in_memory);
        let served = Served::new(blk);
        let mut driver = served.attach_with(way);
        driver.start(features, 1, 64);
        let place = |at: u32, length, writable| (DATA + u64::from(at), length, writable);
        for pieces in [&[4096u32][..], &[512, 512], &[100, 412, 1024]] {
            let total: u32 = pieces.iter().sum();
            let spread = |writable| {
                let gaps = (0u32..).step_by(0x2000);
                pieces.iter().zip(gaps).map(move |(&length, at)| place(at, length, writable)).collect::<Vec<_>>()
            };
            assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 3, &spread(true)), (OK, total + 1));
            let read: Vec<u8> =
                spread(true).iter().flat_map(|&(at, length, _)| driver.get(at, length as usize)).collect();
            assert_eq!(read, content(&file, 3, total as usize));
            for (at, length, _) in spread(false) {
                driver.put(at, &vec![0xa5; length as usize]);
            }
            assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_OUT, 100, &spread(false)), (OK, 1));
            assert_eq!(content(&file, 100, total as usize), vec![0xa5; total as usize]);
            assert_ne!(content(&file, 100 + u64::from(total / 512), 512), [0xa5; 512]);
            file.write_all_at(&[0; 4096], 100 * 512).unwrap();
        }
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        driver.put(DATA, &[&100u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat());
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_DISCARD, 0, &[place(0, 16, false)]), (OK, 1));
        file.set_len(4096).unwrap();
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 100, &[place(0, 512, true)]).0, IOERR);
        // Short: the second half is missing.
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 7, &[place(0, 1024, true)]).0, IOERR);
        assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 7, &[place(0, 512, true)]).0, OK);
    }
}

/// A file on a ramfs of its own, which can neither punch holes nor make zeros, like vfat. No path leads to it but through
/// its descriptor.
fn file_without_holes() -> File {
    let check = |fd: libc::c_long| {
        assert!(fd >= 0, "mounting takes root: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made it for us.
        unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
    };
    const CREATE: libc::c_uint = 6;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: system calls on descriptors that are open, with strings that end.
    let mount = unsafe {
        let context = check(libc::syscall(libc::SYS_fsopen, c"ramfs".as_ptr(), 1));
        assert_eq!(libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, null, null, 0), 0);
        check(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0))
    };
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .open(format!("/proc/self/fd/{}/disk", mount.as_raw_fd()))
        .unwrap()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_the_file_system_cannot_do_is_not_offered() {
    const OFFERS: u32 = 1 << spec::VIRTIO_BLK_F_DISCARD | 1 << spec::VIRTIO_BLK_F_WRITE_ZEROES;
    let file = file_without_holes();
    fill(&file);
    let served = Served::new(Blk::open(&format!("path=/proc/self/fd/{}", file.as_raw_fd())).unwrap());
    let mut driver = served.attach();
    assert_eq!(u32::from_le_bytes(driver.read(4)) & OFFERS, 0);
    assert_eq!(driver.read::<24>(DEVICE_OFFSET + 36), [0; 24]);
    driver.start(FLUSH, 1, 64);
    driver.put(DATA, &range(0, 1, 0));
    for kind in [spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 16, false)]), (UNSUPP, 1));
    }
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(driver.get(DATA, 512), content(&file, 0, 512));

    let Rig { driver, .. } = rig("");
    assert_eq!(u32::from_le_bytes(driver.read(4)) & OFFERS, OFFERS, "the file system of temporary files can do both");
    assert_eq!(driver.read::<1>(DEVICE_OFFSET + 56), [1]);
}

/// As on a block device whose limits forbid it.
#[test]
fn zeros_that_may_be_a_hole_are_written_where_there_can_be_none() {
    let file = image();
    let mut blk = Blk::open(&format!("path={}", file.path().display())).unwrap();
    Arc::get_mut(&mut blk.backing).unwrap().can_punch = false;
    let served = Served::new(blk);
    let mut driver = served.attach();
    assert_eq!(u32::from_le_bytes(driver.read(4)) & 1 << spec::VIRTIO_BLK_F_DISCARD, 0);
    driver.start(FLUSH, 1, 64);
    driver.put(DATA, &range(0, 1024, 1));
    file.as_file().sync_all().unwrap();
    let blocks = file.as_file().metadata().unwrap().blocks();
    assert_eq!(request(&mut driver, spec::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, false)]), (OK, 1));
    assert_eq!(content(file.as_file(), 0, 1024 * 512), vec![0; 1024 * 512]);
    assert!(file.as_file().metadata().unwrap().blocks() >= blocks, "the space was given back");
}

#[test]
fn ranges_are_bounded_to_the_sector() {
    let file = File::from(nix::sys::memfd::memfd_create(c"disk", nix::sys::memfd::MFdFlags::empty()).unwrap());
    let sectors = u64::from(MAX_ZERO_SECTORS) + 8;
    file.set_len(sectors * 512).unwrap();
    let served = Served::new(Blk::open(&format!("path=/proc/self/fd/{}", file.as_raw_fd())).unwrap());
    let mut driver = served.attach();
    driver.start(FLUSH, 1, 64);
    let mut make_zeros = |sector: u64, count: u32| {
        driver.put(DATA, &range(sector, count, 1));
        request(&mut driver, spec::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, false)])
    };
    file.write_all_at(&[1; 4096], (sectors - 8) * 512).unwrap();
    assert_eq!(make_zeros(0, MAX_ZERO_SECTORS + 1), (UNSUPP, 1));
    assert_eq!(make_zeros(9, MAX_ZERO_SECTORS), (IOERR, 1));
    assert_eq!(make_zeros(sectors, 0), (OK, 1));
    assert_eq!(make_zeros(sectors + 1, 0), (IOERR, 1));
    assert_eq!(content(&file, sectors - 8, 4096), [1; 4096]);
    assert_eq!(make_zeros(8, MAX_ZERO_SECTORS), (OK, 1));
    assert_eq!(content(&file, sectors - 8, 4096), [0; 4096]);
    assert_eq!(file.metadata().unwrap().len(), sectors * 512);
}

#[test]
fn arguments_that_cannot_be_meant_are_one_line() {
    let error = |argument: &str| Blk::open(argument).unwrap_err().to_string();
    let not_key_value = "is not KEY=VALUE; it takes path, readonly, format, serial and queues (a comma inside a value is written twice)";
    let table = [
        ("", "is empty"),
        ("root.img", &format!("'root.img' {not_key_value}")),
        ("path=/x,", &format!("'' {not_key_value}")),
        ("path=/x,size=1", "unknown key 'size'; it takes path, readonly, format, serial and queues"),
        ("path=/x,path=/y", "key 'path' is given twice"),
        ("path=", "path: is empty"),
        ("readonly=on", "needs path=FILE"),
        ("path=/x,readonly=true", "readonly: must be on or off, not 'true'"),
        ("path=/x,serial=123456789012345678901", "serial: is 21 bytes long, at most 20 are possible"),
        ("path=/x,serial=a b", "serial: must be printable ASCII without spaces"),
        ("path=/x,serial=é", "serial: must be printable ASCII without spaces"),
        ("path=/x,format=qcow2", "format: must be raw"),
        ("path=/x,queues=0", "queues: must be between 1 and 64"),
        ("path=/x,queues=65", "queues: must be between 1 and 64"),
        ("path=/", "is a directory, not an image file or block device"),
        ("path=/nonexistent/a,,b", "cannot open: No such file or directory"),
    ];
    for (argument, problem) in table {
        assert_eq!(error(argument), format!("--disk {argument}: {problem}"));
    }
}

fn successor(file: &tempfile::NamedTempFile, options: &str) -> Served<Blk> {
    let disk = format!("path={}{options}", file.path().display());
    Served::new(Blk::open_with(&disk, Locking::Later).unwrap())
}
