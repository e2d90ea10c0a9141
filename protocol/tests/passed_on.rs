//! Calls that a device with hardware behind it passes on: DMA ranges to an IOMMU, eventfds and masks to the kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use common::device::PassedOn::{self, Connect, ConnectUnmask, Map, Mask, Stop, Unmap};
use common::device::VECTORS;
use common::raw::*;
use common::{Server, memfd};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

const PAGE: u64 = 4096;
const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;
const INTX: u32 = 0;
const MSIX: u32 = 2;
const ENOMEM: u32 = 12;

fn map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), longs(&[offset, address, size])].concat()
}

fn unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [words(&[24, flags]), longs(&[address, size])].concat()
}

fn irqs(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, index, start, count])
}

fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap()
}

fn passed_on(server: &Server) -> Vec<PassedOn> {
    std::mem::take(&mut server.state.lock().unwrap().passed_on)
}

fn refuse(server: &Server, errno: Option<Errno>) {
    server.state.lock().unwrap().refusal = errno;
}

/// Fires a vector as the device does.
fn trigger(server: &Server, irq: u32, vector: u32) {
    server.state.lock().unwrap().interrupts.clone().unwrap().trigger(irq, vector);
}

#[test]
fn ranges_are_passed_on_as_they_come_and_go() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(4 * PAGE);
    raw.succeed(DMA_MAP, &map(3, PAGE, 8 * PAGE, 2 * PAGE), &[fd(&memory)]);
    raw.succeed(DMA_MAP, &map(1, 0, 0, PAGE), &[fd(&memory)]);
    raw.succeed(DMA_MAP, &map(2, 0, 16 * PAGE, 77), &[]);
    let both = (true, true);
    let expected = [
        Map(8 * PAGE, 2 * PAGE, true, both),
        Map(0, PAGE, true, (true, false)),
        Map(16 * PAGE, 77, false, (false, true)),
    ];
    assert_eq!(passed_on(&server), expected);
    // Requests that the server refuses by itself do not get there.
    raw.refused(EEXIST, DMA_MAP, &map(3, 0, 8 * PAGE, PAGE), &[fd(&memory)]);
    raw.refused(EINVAL, DMA_MAP, &map(3, 1, 32 * PAGE, PAGE), &[fd(&memory)]);
    raw.refused(ENOENT, DMA_UNMAP, &unmap(0, 8 * PAGE, PAGE), &[]);
    assert_eq!(passed_on(&server), []);
    raw.succeed(DMA_UNMAP, &unmap(0, 8 * PAGE, 2 * PAGE), &[]);
    assert_eq!(passed_on(&server), [Unmap(8 * PAGE, 2 * PAGE)]);
    raw.succeed(DMA_UNMAP, &unmap(2, 0, 0), &[]);
    assert_eq!(passed_on(&server), [Unmap(0, PAGE), Unmap(16 * PAGE, 77)]);
}

#[test]
fn a_range_that_is_refused_is_not_made() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(PAGE);
    let inode = std::fs::File::from(memory.try_clone().unwrap()).metadata().unwrap().ino();
    refuse(&server, Some(Errno::ENOMEM));
    raw.refused(ENOMEM, DMA_MAP, &map(3, 0, PAGE, PAGE), &[fd(&memory)]);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&format!(" {inode} ")), "it is still mapped here");
    assert!(!server.state.lock().unwrap().memory.is_readable(PAGE, 1));
    refuse(&server, None);
    raw.refused(ENOENT, DMA_UNMAP, &unmap(0, PAGE, PAGE), &[]);
    assert_eq!(passed_on(&server).len(), 1, "nothing is unmapped that was not accepted");
    raw.succeed(DMA_MAP, &map(3, 0, PAGE, PAGE), &[fd(&memory)]);
}

#[test]
fn a_device_stops_before_its_ranges_go_with_their_client() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(2 * PAGE);
    raw.succeed(DMA_MAP, &map(3, 0, PAGE, PAGE), &[fd(&memory)]);
    raw.succeed(DMA_MAP, &map(3, PAGE, 4 * PAGE, PAGE), &[fd(&memory)]);
    passed_on(&server);
    drop(raw);
    server.ended().unwrap();
    assert_eq!(passed_on(&server), [Stop, Unmap(PAGE, PAGE), Unmap(4 * PAGE, PAGE)]);
}

#[test]
fn vectors_are_passed_on_and_disabling_a_type_is_all_of_them() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let eventfd = eventfd();
    raw.succeed(SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 1, 2), &[fd(&eventfd); 2]);
    raw.succeed(SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 2, 1), &[]);
    raw.succeed(SET_IRQS, &irqs(NONE | TRIGGER, MSIX, 0, 0), &[]);
    let all = vec![false; VECTORS as usize];
    let expected = [Connect(MSIX, 1, vec![true, true]), Connect(MSIX, 2, vec![false]), Connect(MSIX, 0, all)];
    assert_eq!(passed_on(&server), expected);
    // Not what is no connection, nor what is refused here.
    raw.succeed(SET_IRQS, &irqs(NONE | TRIGGER, MSIX, 0, 1), &[]);
    raw.refused(EINVAL, SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 0, 1), &[fd(&memfd(PAGE))]);
    raw.refused(EINVAL, SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 0, VECTORS + 1), &[]);
    assert_eq!(passed_on(&server), []);
}

#[test]
fn vectors_that_are_refused_stay_as_they_were() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let (before, after) = (eventfd(), eventfd());
    raw.succeed(SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 0, 1), &[fd(&before)]);
    refuse(&server, Some(Errno::EIO));
    raw.refused(EIO, SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 0, 1), &[fd(&after)]);
    raw.refused(EIO, SET_IRQS, &irqs(EVENTFD | TRIGGER, MSIX, 0, 1), &[]);
    raw.refused(EIO, SET_IRQS, &irqs(NONE | TRIGGER, MSIX, 0, 0), &[]);
    trigger(&server, MSIX, 0);
    assert_eq!((before.read(), after.read()), (Ok(1), Err(Errno::EAGAIN)));
}

#[test]
fn masks_are_passed_on_and_one_that_is_refused_does_not_count() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let intx = eventfd();
    raw.succeed(SET_IRQS, &irqs(EVENTFD | TRIGGER, INTX, 0, 1), &[fd(&intx)]);
    passed_on(&server);
    refuse(&server, Some(Errno::EIO));
    raw.refused(EIO, SET_IRQS, &irqs(NONE | MASK, INTX, 0, 1), &[]);
    trigger(&server, INTX, 0);
    assert_eq!(intx.read(), Ok(1), "it is not masked");
    server.state.lock().unwrap().unmasked.clear();
    raw.refused(EIO, SET_IRQS, &irqs(NONE | UNMASK, INTX, 0, 1), &[]);
    trigger(&server, INTX, 0);
    assert_eq!(intx.read(), Err(Errno::EAGAIN), "it masked itself, and is not unmasked");
    assert!(server.state.lock().unwrap().unmasked.is_empty());
    refuse(&server, None);
    raw.succeed(SET_IRQS, &[irqs(BOOL | UNMASK, INTX, 0, 1), vec![0]].concat(), &[]);
    raw.succeed(SET_IRQS, &[irqs(BOOL | UNMASK, INTX, 0, 1), vec![1]].concat(), &[]);
    let expected = [Mask(INTX, 0, true), Mask(INTX, 0, false), Mask(INTX, 0, false)];
    assert_eq!(passed_on(&server), expected);
}

#[test]
fn eventfds_for_unmasking_are_passed_on_to_a_device_that_takes_them() {
    let server = Server::start();
    server.state.lock().unwrap().unmasks_by_eventfd = true;
    let mut raw = Raw::client(server.connect());
    let unmask = eventfd();
    raw.succeed(SET_IRQS, &irqs(EVENTFD | UNMASK, INTX, 0, 1), &[fd(&unmask)]);
    raw.succeed(SET_IRQS, &irqs(EVENTFD | UNMASK, INTX, 0, 1), &[]);
    assert_eq!(passed_on(&server), [ConnectUnmask(INTX, 0, vec![true]), ConnectUnmask(INTX, 0, vec![false])]);
    raw.refused(EINVAL, SET_IRQS, &irqs(EVENTFD | UNMASK, INTX, 0, 1), &[fd(&unmask); 2]);
    raw.refused(EINVAL, SET_IRQS, &irqs(EVENTFD | UNMASK, INTX, 0, 1), &[fd(&memfd(PAGE))]);
    raw.refused(EINVAL, SET_IRQS, &irqs(EVENTFD | UNMASK, MSIX, 0, 1), &[fd(&unmask)]);
    raw.refused(EINVAL, SET_IRQS, &irqs(EVENTFD | MASK, INTX, 0, 1), &[fd(&unmask)]);
    assert_eq!(passed_on(&server), []);
}

#[test]
fn our_client_asks_for_unmasking_by_eventfd() {
    let server = Server::start();
    let client = common::client(server.connect());
    let unmask = eventfd();
    assert!(client.set_unmask_eventfd(INTX, 0, Some(unmask.as_fd())).is_err(), "by a device that takes none");
    server.state.lock().unwrap().unmasks_by_eventfd = true;
    client.set_unmask_eventfd(INTX, 0, Some(unmask.as_fd())).unwrap();
    client.set_unmask_eventfd(INTX, 0, None).unwrap();
    assert_eq!(passed_on(&server), [ConnectUnmask(INTX, 0, vec![true]), ConnectUnmask(INTX, 0, vec![false])]);
}
