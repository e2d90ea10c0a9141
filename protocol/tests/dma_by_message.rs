//! `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, server: a device reaches memory that the client shares no descriptor
//! of, from a request as well as from its own threads, with a twin socket and without.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::device::{self, COPY_OFFSET, copy};
use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, Server, memfd, watched};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outrigger_protocol::client::{Client, Options};
use outrigger_protocol::pci;
use outrigger_protocol::server::{Memory, MemoryError, ServeError};

const RAM: usize = 4 << 20;
const EVENTFD_FLAGS: EfdFlags = EfdFlags::EFD_NONBLOCK;

fn connect(server: &Server, twin_socket: bool) -> (Client, Arc<GuestMemory>) {
    let memory = GuestMemory::new(RAM);
    let options = Options { deadline: PATIENCE, twin_socket, ..Options::default() };
    let client = Client::new(server.connect(), memory.clone(), &options).unwrap();
    assert_eq!(client.watch().count(), if twin_socket { 2 } else { 1 });
    (client, memory)
}

fn device_memory(server: &Server) -> Memory {
    server.state.lock().unwrap().memory.clone()
}

fn request(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), longs(&[0, address, size])].concat()
}

#[test]
fn a_worker_reads_and_writes_by_messages_of_any_length() {
    for twin in [false, true] {
        let server = Server::start();
        let (client, ram) = connect(&server, twin);
        client.dma_map(0, RAM as u64, None).unwrap();
        let memory = device_memory(&server);
        watched(&client, || {
            // More than the client takes in one message.
            let data: Vec<u8> = (0..(1 << 20) + 4097u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
            memory.write(77, &data).unwrap();
            let mut back = vec![0; data.len()];
            memory.read(77, &mut back).unwrap();
            assert!(back == data && ram.0.lock().unwrap()[77..77 + data.len()] == data[..]);
            memory.store_u16(2, 0x1234, Ordering::Release).unwrap();
            assert_eq!(ram.0.lock().unwrap()[2..4], [0x34, 0x12]);
            assert_eq!(memory.load_u16(2, Ordering::Acquire).unwrap(), 0x1234);
            memory.read(0, &mut []).unwrap();
        });
    }
}

#[test]
fn a_range_that_continues_from_mapped_to_message_is_cut_at_the_border() {
    let server = Server::start();
    let (client, ram) = connect(&server, true);
    let file = memfd(4096);
    client.dma_map(0, 4096, None).unwrap();
    client.dma_map(4096, 4096, Some((file.as_fd(), 0))).unwrap();
    client.dma_map(8192, 4096, None).unwrap();
    let memory = device_memory(&server);
    assert!(memory.is_mapped(4096, 4096) && !memory.is_mapped(4095, 2) && !memory.is_mapped(8191, 2));
    assert!(memory.is_readable(0, 12288) && !memory.is_readable(0, 12289));
    watched(&client, || {
        let data: Vec<u8> = (0..4100u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        memory.write(4094, &data).unwrap();
        let mut back = vec![0; data.len()];
        memory.read(4094, &mut back).unwrap();
        assert_eq!(back, data);
    });
    let bytes = ram.0.lock().unwrap();
    assert_eq!((bytes[4093], bytes[4095], bytes[4096], bytes[8191], bytes[8193], bytes[8194]), (0, 1, 0, 0, 3, 0));
}

#[test]
fn what_was_not_mapped_is_refused_without_asking_the_client() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(DMA_MAP, &request(1, 0x1000, 0x1000), &[]);
    let memory = device_memory(&server);
    for (address, length) in [(0xfff, 2), (0x1fff, 2), (0, 1), (0x2000, 1), (u64::MAX, 2)] {
        let result = memory.read(address, &mut vec![0; length]);
        assert!(matches!(result, Err(MemoryError::NotMapped { .. })), "{result:?}");
    }
    assert!(matches!(memory.write(0x1000, &[0]), Err(MemoryError::NotMapped { .. })));
    assert!(matches!(memory.store_u16(0x1000, 0, Ordering::Release), Err(MemoryError::NotMapped { .. })));
    assert!(matches!(memory.load_u16(0x1fff, Ordering::Acquire), Err(MemoryError::NotMapped { .. })));
    raw.alive();
}

#[test]
fn requests_are_split_by_what_the_client_takes() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    raw.succeed(VERSION, &version(0, 1, r#"{"capabilities":{"max_data_xfer_size":4096}}"#), &[]);
    raw.succeed(DMA_MAP, &request(3, 0, 1 << 20), &[]);
    let memory = device_memory(&server);
    let worker = std::thread::spawn(move || memory.write(10, &[7; 8193]));
    for (address, count) in [(10, 4096), (4106, 4096), (8202, 1)] {
        let asked = raw.receive().unwrap();
        assert_eq!(
            (asked.command, asked.flags, asked.u64_at(0), asked.u64_at(8)),
            (DMA_WRITE, COMMAND, address, count)
        );
        // The text's reply, with a count of four bytes, will do.
        raw.answer(&asked, &asked.payload[..12], &[]);
    }
    worker.join().unwrap().unwrap();
    raw.alive();
}

#[test]
fn the_clients_refusal_is_the_devices_error_and_the_connection_stays() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
    let memory = device_memory(&server);
    let worker = std::thread::spawn(move || memory.read(0, &mut [0; 8]));
    let asked = raw.receive().unwrap();
    let mut refusal = message(asked.id, asked.command, REPLY | ERROR, &[]);
    refusal[12..16].copy_from_slice(&EFAULT.to_ne_bytes());
    raw.send(&refusal, &[]);
    let result = worker.join().unwrap();
    assert!(matches!(result, Err(MemoryError::Refused { errno: nix::errno::Errno::EFAULT, .. })), "{result:?}");
    raw.alive();
}

#[test]
fn malformed_answers_close_the_connection() {
    let good = [longs(&[0, 8]), vec![0; 8]].concat();
    for answer in [&good[..0], &good[..15], &good[..23], &[&good[..], &[0]].concat(), &[&[1], &good[1..]].concat()] {
        let server = Server::start();
        let mut raw = Raw::client(server.connect());
        raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
        let memory = device_memory(&server);
        let worker = std::thread::spawn(move || memory.read(0, &mut [0; 8]));
        let asked = raw.receive().unwrap();
        raw.answer(&asked, answer, &[]);
        assert!(matches!(worker.join().unwrap(), Err(MemoryError::Disconnected { .. })));
        raw.closed();
        assert!(matches!(server.ended(), Err(ServeError::Malformed { .. })));
    }
}

#[test]
fn answers_to_something_else_close_the_connection() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
    let memory = device_memory(&server);
    let worker = std::thread::spawn(move || memory.read(0, &mut [0; 8]));
    let asked = raw.receive().unwrap();
    raw.send(&message(asked.id.wrapping_add(1), asked.command, REPLY, &[0; 24]), &[]);
    assert!(matches!(worker.join().unwrap(), Err(MemoryError::Disconnected { .. })));
    raw.closed();
    assert!(matches!(server.ended(), Err(ServeError::NotACommand { .. })));
}

#[test]
fn commands_that_come_while_a_request_handler_waits_are_executed_afterwards_in_order() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
    let write = |offset: u64, data: &[u8]| {
        let count = u32::try_from(data.len()).unwrap();
        [longs(&[offset]), words(&[device::MESSAGES, count]), data.to_vec()].concat()
    };
    let copying = raw.command(REGION_WRITE, COMMAND, &write(COPY_OFFSET, &longs(&[0, 8])), &[]);
    let read = raw.receive().unwrap();
    assert_eq!(read.command, DMA_READ);
    for value in 0..100 {
        raw.command(REGION_WRITE, NO_REPLY, &write(0, &[value]), &[]);
    }
    let last = raw.command(GET_INFO, COMMAND, &words(&[16, 0, 0, 0]), &[]);
    raw.answer(&read, &[longs(&[0, 8]), vec![5; 8]].concat(), &[]);
    let written = raw.receive().unwrap();
    assert_eq!((written.command, &written.payload[..]), (DMA_WRITE, &[longs(&[8, 8]), vec![5; 8]].concat()[..]));
    assert!(server.state.lock().unwrap().writes.is_empty());
    raw.answer(&written, &longs(&[8, 8]), &[]);
    assert_eq!([raw.receive().unwrap().id, raw.receive().unwrap().id], [copying, last]);
    let state = server.state.lock().unwrap();
    assert_eq!(state.writes.iter().map(|(_, _, data)| data[0]).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_client_that_never_answers_is_cut_off_at_the_deadline_and_the_next_one_served() {
    // In which a client that negotiates gets a processor.
    let deadline = Duration::from_secs(1);
    for twin in ["{}", r#"{"capabilities":{"twin_socket":{"supported":true}}}"#] {
        let server = Server::with_deadline(deadline);
        let mut raw = Raw::new(server.connect());
        let _twin = raw.succeed(VERSION, &version(0, 1, twin), &[]).fds;
        raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
        let memory = device_memory(&server);
        let begun = Instant::now();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let memory = memory.clone();
                std::thread::spawn(move || memory.read(0, &mut [0; 8]))
            })
            .collect();
        for worker in workers {
            assert!(matches!(worker.join().unwrap(), Err(MemoryError::Disconnected { .. })));
        }
        assert!(begun.elapsed() >= deadline && begun.elapsed() < PATIENCE / 2);
        raw.closed();
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::Unanswered(_))), "{ended:?}");
        // From now on it fails at once.
        let begun = Instant::now();
        assert!(memory.read(0, &mut [0; 8]).is_err());
        assert!(begun.elapsed() < deadline);
        drop(memory);
        Raw::client(server.connect()).alive();
    }
}

#[test]
fn a_command_on_the_twin_socket_closes_both() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    let proposal = version(0, 1, r#"{"capabilities":{"twin_socket":{"supported":true}}}"#);
    let twin = raw.succeed(VERSION, &proposal, &[]).fds.pop().unwrap();
    let twin = Raw::new(std::os::fd::OwnedFd::from(twin).into());
    raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
    let memory = device_memory(&server);
    let worker = std::thread::spawn(move || memory.read(0, &mut [0; 8]));
    assert_eq!(twin.receive().unwrap().command, DMA_READ);
    twin.send(&message(1, GET_INFO, COMMAND, &words(&[16, 0, 0, 0])), &[]);
    assert!(worker.join().unwrap().is_err());
    raw.closed();
    twin.closed();
    assert!(matches!(server.ended(), Err(ServeError::NotACommand { .. })));
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_request_is_let_go_at_once() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.succeed(DMA_MAP, &request(3, 0, 4096), &[]);
    let copying = [longs(&[COPY_OFFSET]), words(&[device::MESSAGES, 16]), longs(&[0, 8])].concat();
    raw.command(REGION_WRITE, COMMAND, &copying, &[]);
    assert_eq!(raw.receive().unwrap().command, DMA_READ);
    let begun = Instant::now();
    drop(raw);
    server.ended().unwrap();
    assert!(begun.elapsed() < PATIENCE / 2);
}

#[test]
fn both_directions_at_once_from_many_threads_never_stall() {
    const ROUNDS: u64 = 300;
    for twin in [false, true] {
        let server = Server::start();
        let (client, ram) = connect(&server, twin);
        client.dma_map(0, RAM as u64, None).unwrap();
        let vector = EventFd::from_value_and_flags(0, EVENTFD_FLAGS).unwrap();
        client.set_irq_eventfds(pci::MSIX_IRQ, 0, &[vector.as_fd()]).unwrap();
        let memory = device_memory(&server);
        let interrupts = server.state.lock().unwrap().interrupts.clone().unwrap();
        ram.0.lock().unwrap().fill(9);
        watched(&client, || {
            std::thread::scope(|scope| {
                for worker in 0..2 {
                    let (memory, interrupts) = (&memory, &interrupts);
                    scope.spawn(move || {
                        for _ in 0..ROUNDS {
                            copy(memory, (worker + 1) << 20, 5000).unwrap();
                            interrupts.trigger(pci::MSIX_IRQ, 0);
                        }
                    });
                }
                for vcpu in 0..4u64 {
                    let client = &client;
                    scope.spawn(move || {
                        for round in 0..ROUNDS {
                            client.region_write_posted(device::MESSAGES, vcpu * 64, &round.to_le_bytes()).unwrap();
                            let order = longs(&[vcpu * 0x1000, 64]);
                            client.region_write(device::MESSAGES, COPY_OFFSET, &order).unwrap();
                            let mut seen = [0; 8];
                            client.region_read(device::MESSAGES, vcpu * 64, &mut seen).unwrap();
                            assert_eq!(u64::from_le_bytes(seen), round);
                        }
                    });
                }
            });
        });
        assert_eq!(vector.read().unwrap(), 2 * ROUNDS);
        drop(memory);
        drop(client);
        server.ended().unwrap();
    }
}

#[test]
fn large_transfers_both_ways_at_once_on_one_socket_do_not_wait_for_each_other() {
    let server = Server::start();
    let (client, _ram) = connect(&server, false);
    client.dma_map(0, RAM as u64, None).unwrap();
    let memory = device_memory(&server);
    watched(&client, || {
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20).for_each(|_| memory.write(0, &vec![3; 2 << 20]).unwrap()));
            let data = vec![4; 1 << 20];
            (0..20).for_each(|_| client.region_write(device::MESSAGES, 0, &data).unwrap());
        });
    });
}
