//! Our client against our server: every message that both sides speak, as a VMM would use them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::device::{self, SPARSE_AREAS, SPARSE_OFFSET};
use common::{Server, client, memfd, number, same_file};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use outrigger_protocol::client::{ClientError, IoFdKind};
use outrigger_protocol::{pci, wire};

fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

fn fired(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

#[test]
fn device_info_counts_regions_and_interrupts() {
    let server = Server::start();
    let client = client(server.connect());
    let info = client.device_info().unwrap();
    assert_eq!((info.num_regions, info.num_irqs), (device::NUM_REGIONS, pci::NUM_IRQS));
    assert_eq!(info.flags, wire::DEVICE_IS_PCI | wire::DEVICE_RESET_SUPPORTED);
    let intx = client.irq_info(pci::INTX_IRQ).unwrap();
    assert_eq!((intx.count, intx.flags), (1, wire::IRQ_EVENTFD | wire::IRQ_MASKABLE | wire::IRQ_AUTOMASKED));
    assert_eq!(client.irq_info(pci::MSI_IRQ).unwrap().count, 0);
    assert_eq!(client.irq_info(pci::MSIX_IRQ).unwrap().count, device::VECTORS);
}

#[test]
fn regions_arrive_with_their_descriptors_and_areas() {
    let server = Server::start();
    let client = client(server.connect());
    let messages = client.region_info(device::MESSAGES).unwrap();
    assert_eq!((messages.size, messages.flags), (device::MESSAGES_SIZE, wire::REGION_READ | wire::REGION_WRITE));
    assert!(messages.fd.is_none() && messages.areas.is_empty());

    let sparse = client.region_info(device::SPARSE).unwrap();
    assert_eq!((sparse.offset, &sparse.areas[..]), (SPARSE_OFFSET, &SPARSE_AREAS[..]));
    assert!(sparse.fd.is_some());

    let whole = client.region_info(device::WHOLE).unwrap();
    assert_eq!(whole.areas, [(0, whole.size)]);
    assert!(whole.fd.is_some());

    let absent = client.region_info(device::ABSENT).unwrap();
    assert_eq!((absent.size, absent.fd.is_none()), (0, true));
}

#[test]
fn a_description_that_needs_more_room_is_asked_for_again() {
    let server = Server::start();
    let client = client(server.connect());
    let many = client.region_info(device::MANY_AREAS).unwrap();
    let expected: Vec<_> = (0..device::MANY).map(|i| (i * 0x2000, 0x1000)).collect();
    assert_eq!(many.areas, expected);
    assert!(many.fd.is_some());
}

#[test]
fn io_fds_name_sub_regions_and_signal_the_device() {
    let server = Server::start();
    let client = client(server.connect());
    let io_fds = client.region_io_fds(device::MESSAGES, device::MESSAGES_SIZE).unwrap();
    let described: Vec<_> = io_fds.iter().map(|io_fd| (io_fd.offset, io_fd.size, io_fd.kind)).collect();
    let first = (0x100, 4, IoFdKind::Ioeventfd { datamatch: Some(7) });
    let second = (0x200, 0, IoFdKind::Ioeventfd { datamatch: None });
    assert_eq!(described, [first, second]);
    assert!(number(&io_fds[0].fd) != number(&io_fds[1].fd));
    assert!(client.region_io_fds(device::SPARSE, 0x8000).unwrap().is_empty());
}

#[test]
fn reads_and_writes_reach_the_device_in_order_posted_or_not() {
    let server = Server::start();
    let client = client(server.connect());
    for i in 0..100u64 {
        let value = u8::try_from(i).unwrap();
        match i % 3 {
            0 => client.region_write(device::MESSAGES, 8, &[value]).unwrap(),
            _ => client.region_write_posted(device::MESSAGES, 8, &[value]).unwrap(),
        }
    }
    let mut last = [0];
    client.region_read(device::MESSAGES, 8, &mut last).unwrap();
    assert_eq!(last, [99]);
    let written: Vec<_> = server.state.lock().unwrap().writes.iter().map(|(_, _, data)| data[0]).collect();
    assert_eq!(written, (0..100).collect::<Vec<u8>>());
}

#[test]
fn transfers_larger_than_negotiated_are_split() {
    let server = Server::start();
    let client = client(server.connect());
    let data: Vec<u8> = (0..(1 << 20) + 4097).map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    client.region_write(device::MESSAGES, 32, &data).unwrap();
    let mut back = vec![0; data.len()];
    client.region_read(device::MESSAGES, 32, &mut back).unwrap();
    assert_eq!(back, data);
    assert_eq!(server.state.lock().unwrap().writes.len(), 2);
}

#[test]
fn the_devices_errors_are_the_clients_errors_and_leave_the_connection_usable() {
    let server = Server::start();
    let client = client(server.connect());
    let errno = |result: Result<(), ClientError>| match result {
        Err(ClientError::Refused { errno, .. }) => errno,
        other => panic!("{other:?}"),
    };
    assert_eq!(errno(client.region_read(device::MESSAGES, device::BAD_OFFSET, &mut [0])), Errno::EIO);
    assert_eq!(errno(client.region_write(device::READ_ONLY, 0, &[0])), Errno::EINVAL);
    assert_eq!(errno(client.region_read(device::ABSENT, 0, &mut [0])), Errno::EINVAL);
    assert_eq!(errno(client.dma_unmap(0x1000, 0x1000)), Errno::ENOENT);
    client.device_info().unwrap();
}

#[test]
fn interrupts_fire_the_clients_eventfds() {
    let server = Server::start();
    let client = client(server.connect());
    let vectors: Vec<_> = (0..device::VECTORS).map(|_| eventfd()).collect();
    let fds: Vec<_> = vectors.iter().map(AsFd::as_fd).collect();
    client.set_irq_eventfds(pci::MSIX_IRQ, 0, &fds).unwrap();
    let interrupts = server.state.lock().unwrap().interrupts.clone().unwrap();
    assert!(interrupts.is_connected(pci::MSIX_IRQ) && !interrupts.is_connected(pci::INTX_IRQ));
    interrupts.trigger(pci::MSIX_IRQ, 2);
    interrupts.trigger(pci::MSIX_IRQ, device::VECTORS);
    assert_eq!(vectors.iter().map(fired).collect::<Vec<_>>(), [0, 0, 1, 0]);
    client.disable_irqs(pci::MSIX_IRQ).unwrap();
    interrupts.trigger(pci::MSIX_IRQ, 2);
    assert_eq!(fired(&vectors[2]), 0);
}

#[test]
fn an_automasked_interrupt_fires_once_until_it_is_unmasked() {
    let server = Server::start();
    let client = client(server.connect());
    let intx = eventfd();
    client.set_irq_eventfds(pci::INTX_IRQ, 0, &[intx.as_fd()]).unwrap();
    let interrupts = server.state.lock().unwrap().interrupts.clone().unwrap();
    server.state.lock().unwrap().unmasked.clear();
    for _ in 0..2 {
        interrupts.trigger(pci::INTX_IRQ, 0);
        interrupts.trigger(pci::INTX_IRQ, 0);
        assert_eq!(fired(&intx), 1);
        client.unmask_irq(pci::INTX_IRQ, 0).unwrap();
    }
    assert_eq!(server.state.lock().unwrap().unmasked, [pci::INTX_IRQ, pci::INTX_IRQ]);
    client.mask_irq(pci::INTX_IRQ, 0).unwrap();
    interrupts.trigger(pci::INTX_IRQ, 0);
    assert_eq!(fired(&intx), 0);
}

#[test]
fn the_device_reaches_mapped_memory_and_nothing_else() {
    let server = Server::start();
    let client = client(server.connect());
    let ram = memfd(0x4000);
    client.dma_map(0x10_0000, 0x2000, Some((ram.as_fd(), 0x1000))).unwrap();
    let memory = server.state.lock().unwrap().memory.clone();
    memory.write(0x10_0ffe, b"hello").unwrap();
    let mut seen = [0; 5];
    nix::sys::uio::pread(&ram, &mut seen, 0x1ffe).unwrap();
    assert_eq!(&seen, b"hello");
    assert!(memory.write(0x10_1fff, b"hello").is_err());
    assert!(memory.read(0xf_ffff, &mut [0]).is_err());
    drop(memory);
    client.dma_unmap(0x10_0000, 0x2000).unwrap();
    let memory = server.state.lock().unwrap().memory.clone();
    assert!(memory.read(0x10_0000, &mut [0]).is_err());
}

#[test]
fn reset_reaches_the_device() {
    let server = Server::start();
    let client = client(server.connect());
    client.region_write(device::MESSAGES, 0, &[7]).unwrap();
    client.reset().unwrap();
    let mut byte = [7];
    client.region_read(device::MESSAGES, 0, &mut byte).unwrap();
    assert_eq!((byte, server.state.lock().unwrap().resets), ([0], 1));
}

#[test]
fn after_a_client_left_the_next_one_finds_the_device_as_it_was_but_for_memory_and_interrupts() {
    let server = Server::start();
    let ram = memfd(0x1000);
    let intx = eventfd();
    for round in 0..3 {
        let client = client(server.connect());
        let mut byte = [0];
        client.region_read(device::MESSAGES, 0, &mut byte).unwrap();
        assert_eq!(byte, [round]);
        client.dma_map(0, 0x1000, Some((ram.as_fd(), 0))).unwrap();
        client.set_irq_eventfds(pci::INTX_IRQ, 0, &[intx.as_fd()]).unwrap();
        client.region_write(device::MESSAGES, 0, &[round + 1]).unwrap();
        let held = server.state.lock().unwrap().interrupts.clone().unwrap();
        drop(client);
        server.ended().unwrap();
        assert!(server.state.lock().unwrap().memory.read(0, &mut [0]).is_err());
        assert!(!held.is_connected(pci::INTX_IRQ));
    }
    assert_eq!(server.state.lock().unwrap().disconnected, 3);
}

#[test]
fn a_call_under_way_fails_when_the_connection_is_closed_from_another_thread() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let raw = std::thread::spawn(move || common::raw::Raw::server(theirs, "{}"));
    let client = Arc::new(client(ours));
    let raw = raw.join().unwrap();
    let (started, start) = std::sync::mpsc::channel();
    let result = Arc::new(Mutex::new(None));
    let thread = std::thread::spawn({
        let (client, result) = (client.clone(), result.clone());
        move || {
            started.send(()).unwrap();
            *result.lock().unwrap() = Some(client.device_info());
        }
    });
    start.recv().unwrap();
    assert_eq!(raw.receive().unwrap().command, common::raw::GET_INFO);
    std::thread::sleep(Duration::from_millis(10));
    client.close();
    thread.join().unwrap();
    assert!(matches!(*result.lock().unwrap(), Some(Err(ClientError::Disconnected(_)))));
    assert!(client.is_closed());
    assert!(matches!(client.reset(), Err(ClientError::Disconnected(_))));
}

#[test]
fn a_descriptor_that_came_is_the_one_that_was_sent() {
    let server = Server::start();
    let client = client(server.connect());
    let first = client.region_info(device::SPARSE).unwrap().fd.unwrap();
    let again = client.region_info(device::SPARSE).unwrap().fd.unwrap();
    let other = client.region_info(device::WHOLE).unwrap().fd.unwrap();
    assert!(same_file(&number(&first), &number(&again)) && !same_file(&number(&first), &number(&other)));
}
