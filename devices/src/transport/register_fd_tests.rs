use std::os::fd::AsRawFd;
use std::thread::scope;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use outrigger_protocol::client::IoFdKind;
use outrigger_protocol::ioregionfd::{AccessError, Requester};
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION};
use outrigger_protocol::server::IoFd;

use super::*;
use crate::testing::{Driver, RAM_SIZE, RAM_START, Served};
use crate::transport::pci_config::{DEVICE_OFFSET, ISR_OFFSET, MSIX_BAR, REGISTERS_BAR_SIZE};
use crate::transport::registers::STATUS_NEEDS_RESET;
use crate::transport::{Identity, Iommu, PciFunction, Work, WorkerError};

/// One queue that does nothing, and configuration that can be written.
struct Plain([u8; 16]);

impl VirtioDevice for Plain {
    fn identity(&self) -> Identity {
        Identity { device_type: 2, class: 0x01_80_00 }
    }
    fn name(&self) -> &'static str {
        "plain"
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> u16 {
        1
    }
    fn config(&self) -> &[u8] {
        &self.0
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0[offset..][..data.len()].copy_from_slice(data);
    }
    fn start(&mut self, _queue: u16, _features: u64) -> Result<Work, WorkerError> {
        Ok(Box::new(|queue| {
            while !queue.stopping() {
                queue.wait()?;
            }
            Ok(())
        }))
    }
}

fn attached() -> (Served<Plain>, Driver, Requester) {
    let served = Served::new(Plain([7; 16]));
    let driver = served.attach();
    let requester = driver.requester();
    (served, driver, requester)
}

#[test]
fn what_is_not_wholly_within_the_registers_reads_as_zero_and_takes_no_writes() {
    let (_served, driver, requester) = attached();
    for (offset, size) in [
        (SIZE, Size::Two),
        (SIZE - 1, Size::Two),
        (SIZE - 4, Size::Eight),
        (REGISTERS_BAR_SIZE, Size::Four),
        (1 << 40, Size::One),
        (u64::MAX, Size::One),
        (u64::MAX - 3, Size::Eight),
    ] {
        requester.write(0, offset, size, u64::MAX, false).unwrap();
        assert_eq!(requester.read(0, offset, size).unwrap(), 0, "{offset:#x}");
    }
    let doorbell = driver.client.region_io_fds(BAR0_REGION, REGISTERS_BAR_SIZE).unwrap().remove(0);
    let rings =
        |wait| poll(&mut [PollFd::new(doorbell.fd.lend(), PollFlags::POLLIN)], PollTimeout::from(wait)).unwrap();
    assert_eq!(rings(0u8), 0);
    driver.notify(0);
    assert_eq!(rings(255), 1, "the doorbell is elsewhere");
}

#[test]
fn a_malformed_command_ends_the_ioregionfd_and_nothing_else() {
    let (_served, driver, requester) = attached();
    let fd = driver.register_fd().fd;
    send(fd.lend().as_raw_fd(), &[0xff; 32], MsgFlags::MSG_NOSIGNAL).unwrap();
    assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::HungUp)));
    assert_eq!(driver.status(), 0);
    driver.set_status(3);
    assert_eq!(driver.status(), 3);
}

#[test]
fn the_registers_alone_are_offered_and_each_time_the_same() {
    let (_served, driver, _requester) = attached();
    let offered = driver.register_fd();
    assert_eq!((offered.offset, offered.size), (0, 0x3000));
    // Not in an I/O-port BAR, and writes are answered.
    assert_eq!(offered.kind, IoFdKind::Ioregionfd { user_data: 0, flags: 0 });
    let inode = |fd: &outrigger_protocol::foreign::ForeignFd| nix::sys::stat::fstat(fd.lend()).unwrap().st_ino;
    assert_eq!(inode(&offered.fd), inode(&driver.register_fd().fd));
    for region in [MSIX_BAR.into(), CONFIG_REGION] {
        assert_eq!(driver.client.region_io_fds(region, 0x1000).unwrap().len(), 0);
    }
}

/// A client that takes one descriptor gets the doorbell.
#[test]
fn doorbells_come_first() {
    use outrigger_protocol::server::{Device, IoFdKind};
    let function = PciFunction::new(Plain([0; 16]), Iommu::Possible).unwrap();
    let kinds: Vec<_> = function.io_fds(BAR0_REGION).iter().map(|IoFd { kind, .. }| *kind).collect();
    let registers = IoFdKind::Ioregionfd { user_data: 0, posted_writes: false };
    assert_eq!(kinds, [IoFdKind::Ioeventfd { datamatch: None }, registers]);
}

#[test]
fn what_is_written_one_way_is_read_the_other_way_in_each_width() {
    let (_served, driver, requester) = attached();
    for (offset, size) in [(0x14, Size::One), (0x16, Size::Two), (0x08, Size::Four), (0x20, Size::Eight)] {
        // Ends with a zero, so that queue 0 is selected.
        for value in [0, 1] {
            requester.write(0, offset, size, value, false).unwrap();
            let mut data = [0; 8];
            let data = &mut data[..size.bytes()];
            driver.client.region_read(BAR0_REGION, offset, data).unwrap();
            assert_eq!(data, &value.to_le_bytes()[..size.bytes()]);
            data[0] ^= 1;
            driver.client.region_write(BAR0_REGION, offset, data).unwrap();
            assert_eq!(requester.read(0, offset, size).unwrap(), value ^ 1);
        }
    }
    requester.write(0, DEVICE_OFFSET + 3, Size::Two, 0x1122, false).unwrap();
    // Not wholly within its length.
    requester.write(0, DEVICE_OFFSET + 15, Size::Two, 0x1122, false).unwrap();
    assert_eq!(driver.read::<4>(DEVICE_OFFSET + 2), [7, 0x22, 0x11, 7]);
    assert_eq!(driver.read::<2>(DEVICE_OFFSET + 15), [7, 0]);
}

#[test]
fn the_isr_status_is_taken_by_whoever_reads_it() {
    let (_served, driver, requester) = attached();
    let fail = || {
        // A queue of size 3.
        driver.write(0x18, &[3, 0]);
        driver.write(0x1c, &[1, 0]);
    };
    fail();
    assert_eq!(requester.read(0, ISR_OFFSET, Size::One).unwrap(), 2);
    assert_eq!(driver.isr(), 0);
    fail();
    assert_eq!(driver.isr(), 2);
    assert_eq!(requester.read(0, ISR_OFFSET, Size::One).unwrap(), 0);
}

#[test]
fn a_client_that_left_has_no_way_to_the_registers_of_the_next() {
    let (served, driver, requester) = attached();
    let fd = driver.register_fd().fd;
    requester.write(0, 0x14, Size::One, 1, false).unwrap();
    drop(driver);
    let driver = served.attach();
    // A reset, posted.
    let reset = outrigger_protocol::ioregionfd::wire::Command { info: 1, offset: 0x14, ..Default::default() };
    let sent = send(fd.lend().as_raw_fd(), zerocopy::IntoBytes::as_bytes(&reset), MsgFlags::MSG_NOSIGNAL);
    assert_eq!(sent, Err(nix::errno::Errno::EPIPE));
    assert!(matches!(requester.read(0, 0x14, Size::One), Err(AccessError::HungUp)));
    assert_eq!(driver.status(), 1);
    let requester = driver.requester();
    requester.write(0, 0x14, Size::One, 3, false).unwrap();
    assert_eq!(driver.status(), 3);
}

/// Resets of all kinds by message, and memory that comes and goes, while a driver starts by ioregionfd.
#[test]
fn whatever_comes_at_the_same_time_by_message_the_device_stays_whole() {
    let (_served, mut driver, requester) = attached();
    let requester = &requester;
    scope(|threads| {
        let starter = threads.spawn(move || {
            let write = |offset, size, value| requester.write(0, offset, size, value, false).unwrap();
            for _ in 0..300 {
                write(0x14, Size::One, 3);
                write(0x08, Size::Four, 1);
                write(0x0c, Size::Four, 1);
                write(0x14, Size::One, 0xb);
                write(0x16, Size::Two, 0);
                write(0x18, Size::Two, 16);
                write(0x20, Size::Eight, RAM_START);
                write(0x28, Size::Eight, RAM_START + 0x1000);
                write(0x30, Size::Eight, RAM_START + 0x2000);
                write(0x1c, Size::Two, 1);
                write(0x14, Size::One, 0xf);
                let status = requester.read(0, 0x14, Size::One).unwrap();
                assert_eq!(status & !u64::from(STATUS_NEEDS_RESET | 0xf), 0, "{status:#x}");
            }
        });
        while !starter.is_finished() {
            driver.set_status(0);
            driver.client.dma_unmap(RAM_START, RAM_SIZE).unwrap();
            driver.client.region_write(CONFIG_REGION, 0x48, &0x8000u16.to_le_bytes()).unwrap();
            driver.map(RAM_START, RAM_SIZE);
            driver.client.reset().unwrap();
        }
    });
    driver.start(0, 1, 16);
    assert_eq!(driver.status(), 0xf);
}
