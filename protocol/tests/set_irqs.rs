//! `VFIO_USER_DEVICE_SET_IRQS`, server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::device::VECTORS;
use common::raw::*;
use common::{Server, memfd};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outrigger_protocol::server::Interrupts;

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;

fn request(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, index, start, count])
}

fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap()
}

fn fired(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

fn interrupts(server: &Server) -> Arc<Interrupts> {
    server.state.lock().unwrap().interrupts.clone().unwrap()
}

#[test]
fn a_short_request_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in 0..20 {
        raw.refused(EINVAL, SET_IRQS, &request(NONE | TRIGGER, MSIX, 0, 0)[..length], &[]);
    }
}

#[test]
fn an_argsz_below_the_structure_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.refused(EINVAL, SET_IRQS, &words(&[19, NONE | TRIGGER, MSIX, 0, 0]), &[]);
}

#[test]
fn types_and_vectors_beyond_the_last_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for (index, start, count) in
        [(5, 0, 0), (!0, 0, 0), (MSIX, 0, VECTORS + 1), (MSIX, VECTORS, 1), (MSIX, !0, 2), (MSIX, 1, !0), (MSI, 0, 1)]
    {
        raw.refused(EINVAL, SET_IRQS, &request(NONE | TRIGGER, index, start, count), &[]);
    }
}

#[test]
fn flags_that_are_not_one_kind_of_data_and_one_action_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for flags in [
        0,
        NONE,
        TRIGGER,
        NONE | BOOL | TRIGGER,
        NONE | EVENTFD | TRIGGER,
        NONE | MASK | UNMASK,
        NONE | MASK | TRIGGER,
        NONE | TRIGGER | 64,
        NONE | 1 << 31,
        !0,
    ] {
        for count in [0, 1] {
            raw.refused(EINVAL, SET_IRQS, &request(flags, INTX, 0, count), &[]);
        }
    }
}

#[test]
fn no_vectors_at_all_means_disabling_the_type_and_nothing_else() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for flags in [NONE | MASK, NONE | UNMASK, BOOL | TRIGGER, EVENTFD | TRIGGER] {
        raw.refused(EINVAL, SET_IRQS, &request(flags, INTX, 0, 0), &[]);
    }
    raw.refused(EINVAL, SET_IRQS, &request(NONE | TRIGGER, MSIX, 1, 0), &[]);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, MSIX, 0, 0), &[]);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, MSI, 0, 0), &[]);
}

#[test]
fn booleans_that_are_missing_or_too_many_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for length in [0, 1, 3, 5, 1000] {
        let payload = [request(BOOL | TRIGGER, MSIX, 0, 4), vec![1; length]].concat();
        raw.refused(EINVAL, SET_IRQS, &payload, &[]);
    }
    raw.refused(EINVAL, SET_IRQS, &[request(NONE | TRIGGER, MSIX, 0, 1), vec![1]].concat(), &[]);
}

#[test]
fn descriptors_that_are_too_few_too_many_or_not_asked_for_are_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let eventfd = eventfd();
    let own = fd(&eventfd);
    raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 0, 2), &[own]);
    raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 0, 2), &[own; 3]);
    raw.refused(EINVAL, SET_IRQS, &request(NONE | TRIGGER, MSIX, 0, 1), &[own]);
    raw.refused(EINVAL, SET_IRQS, &request(NONE | TRIGGER, MSIX, 0, 0), &[own]);
    assert!(!interrupts(&server).is_connected(MSIX));
}

#[test]
fn descriptors_that_are_no_eventfds_are_refused_and_none_of_the_message_is_used() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let (eventfd, memory, (pipe, _other)) = (eventfd(), memfd(4096), nix::unistd::pipe().unwrap());
    for wrong in [fd(&pipe), fd(&memory), fd(&raw.stream)] {
        raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 0, 2), &[fd(&eventfd), wrong]);
        raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | TRIGGER, INTX, 0, 1), &[wrong]);
    }
    assert!(!interrupts(&server).is_connected(MSIX) && !interrupts(&server).is_connected(INTX));
}

#[test]
fn a_type_that_cannot_be_masked_is_not() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for action in [MASK, UNMASK] {
        raw.refused(EINVAL, SET_IRQS, &request(NONE | action, MSIX, 0, 1), &[]);
        raw.refused(EINVAL, SET_IRQS, &[request(BOOL | action, MSIX, 0, 1), vec![0]].concat(), &[]);
    }
    assert!(server.state.lock().unwrap().unmasked.is_empty());
}

/// In the specification such an eventfd tells the client of a mask; in the kernel and QEMU the client unmasks by it. A
/// client that is refused uses messages, which work in both readings.
#[test]
fn eventfds_for_masking_are_refused_and_messages_go_on_to_do_it() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let (intx, masking) = (eventfd(), eventfd());
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, INTX, 0, 1), &[fd(&intx)]);
    server.state.lock().unwrap().unmasked.clear();
    for action in [MASK, UNMASK] {
        for count in 0..3 {
            raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | action, INTX, 0, 1), &vec![fd(&masking); count]);
        }
        raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | action, INTX, 0, 0), &[]);
        raw.refused(EINVAL, SET_IRQS, &request(EVENTFD | action, MSIX, 0, 1), &[fd(&masking)]);
    }
    let interrupts = interrupts(&server);
    interrupts.trigger(INTX, 0);
    interrupts.trigger(INTX, 0);
    assert_eq!((fired(&intx), fired(&masking)), (1, 0));
    assert!(server.state.lock().unwrap().unmasked.is_empty());
    raw.succeed(SET_IRQS, &request(NONE | UNMASK, INTX, 0, 1), &[]);
    interrupts.trigger(INTX, 0);
    assert_eq!((fired(&intx), fired(&masking)), (1, 0));
}

#[test]
fn eventfds_are_connected_and_a_range_without_them_is_disconnected() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let eventfds: Vec<_> = (0..2).map(|_| eventfd()).collect();
    let fds: Vec<_> = eventfds.iter().map(fd).collect();
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 1, 2), &fds);
    let interrupts = interrupts(&server);
    (0..VECTORS).for_each(|vector| interrupts.trigger(MSIX, vector));
    assert_eq!(eventfds.iter().map(fired).collect::<Vec<_>>(), [1, 1]);
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 1, 1), &[]);
    (0..VECTORS).for_each(|vector| interrupts.trigger(MSIX, vector));
    assert_eq!(eventfds.iter().map(fired).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn a_client_may_trigger_an_interrupt_itself_all_or_those_chosen() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let eventfds: Vec<_> = (0..VECTORS).map(|_| eventfd()).collect();
    let fds: Vec<_> = eventfds.iter().map(fd).collect();
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 0, VECTORS), &fds);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, MSIX, 1, 2), &[]);
    assert_eq!(eventfds.iter().map(fired).collect::<Vec<_>>(), [0, 1, 1, 0]);
    raw.succeed(SET_IRQS, &[request(BOOL | TRIGGER, MSIX, 0, 4), vec![1, 0, 0, 255]].concat(), &[]);
    assert_eq!(eventfds.iter().map(fired).collect::<Vec<_>>(), [1, 0, 0, 1]);
}

#[test]
fn a_masked_interrupt_does_not_fire_and_the_device_hears_of_the_unmasking() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let intx = eventfd();
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, INTX, 0, 1), &[fd(&intx)]);
    server.state.lock().unwrap().unmasked.clear();
    raw.succeed(SET_IRQS, &request(NONE | MASK, INTX, 0, 1), &[]);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, INTX, 0, 1), &[]);
    raw.succeed(SET_IRQS, &[request(BOOL | UNMASK, INTX, 0, 1), vec![0]].concat(), &[]);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, INTX, 0, 1), &[]);
    assert_eq!((fired(&intx), server.state.lock().unwrap().unmasked.len()), (0, 0));
    raw.succeed(SET_IRQS, &[request(BOOL | UNMASK, INTX, 0, 1), vec![1]].concat(), &[]);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, INTX, 0, 1), &[]);
    assert_eq!((fired(&intx), server.state.lock().unwrap().unmasked.len()), (1, 1));
}

#[test]
fn an_eventfd_whose_counter_is_full_does_not_block_the_device() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let full = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
    full.write(u64::MAX - 1).unwrap();
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 0, 1), &[fd(&full)]);
    raw.succeed(SET_IRQS, &request(NONE | TRIGGER, MSIX, 0, 1), &[]);
    raw.alive();
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let intx = eventfd();
    raw.command(SET_IRQS, NO_REPLY, &request(EVENTFD | TRIGGER, INTX, 0, 1), &[fd(&intx)]);
    raw.command(SET_IRQS, NO_REPLY, &request(!0, INTX, 0, 1), &[]);
    raw.alive();
    assert!(interrupts(&server).is_connected(INTX));
}

#[test]
fn the_device_hears_of_the_connection_of_what_can_be_masked() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let (intx, vector) = (eventfd(), eventfd());
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, MSIX, 0, 1), &[fd(&vector)]);
    assert!(server.state.lock().unwrap().unmasked.is_empty());
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, INTX, 0, 1), &[fd(&intx)]);
    assert_eq!(server.state.lock().unwrap().unmasked, [INTX]);
    raw.succeed(SET_IRQS, &request(EVENTFD | TRIGGER, INTX, 0, 1), &[]);
    assert_eq!(server.state.lock().unwrap().unmasked, [INTX]);
}
