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

mod requests;
mod succession;
mod zeroes;

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
    queues_go_on_when_memory_comes_and_goes
    resets_of_every_kind_leave_a_working_device
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
