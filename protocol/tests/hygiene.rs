//! Connections that die at any byte leave nothing behind. Alone in its process: it counts the process's descriptors,
//! mappings and threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::held::{Numbers, assert_held, settled};
use common::memory::GuestMemory;
use common::raw::*;
use common::{Server, memfd};
use nix::sys::eventfd::EventFd;
use outrigger_protocol::client::{Client, Options};

const CONNECTIONS: usize = 1000;

/// All that a client says, and with which descriptors.
fn conversation<'a>(memory: &'a impl AsRawFd, eventfds: &'a [EventFd]) -> Vec<(Vec<u8>, Vec<i32>)> {
    let eventfds: Vec<_> = eventfds.iter().map(|eventfd| std::os::fd::AsFd::as_fd(eventfd).as_raw_fd()).collect();
    let map = |address| [words(&[32, 3]), longs(&[0, address, 4096])].concat();
    vec![
        (message(1, VERSION, COMMAND, &version(0, 1, r#"{"capabilities":{"max_msg_fds":64}}"#)), vec![]),
        (message(2, GET_INFO, COMMAND, &words(&[16, 0, 0, 0])), vec![]),
        (message(3, GET_REGION_INFO, COMMAND, &words(&[4096, 0, 1, 0, 0, 0, 0, 0])), vec![]),
        (message(4, GET_REGION_IO_FDS, COMMAND, &words(&[4096, 0, 0, 0])), vec![]),
        (message(5, DMA_MAP, COMMAND, &map(0)), vec![fd(memory)]),
        (message(6, DMA_MAP, COMMAND, &map(4096)), vec![fd(memory)]),
        (message(7, DMA_MAP, COMMAND, &map(4096)), vec![fd(memory)]),
        (message(8, DMA_MAP, COMMAND, &map(8192)), vec![fd(memory); 64]),
        (message(9, SET_IRQS, COMMAND, &words(&[20, 0x24, 2, 0, 4])), eventfds.clone()),
        (message(10, SET_IRQS, COMMAND, &words(&[20, 0x24, 2, 0, 4])), vec![fd(memory); 4]),
        (message(11, REGION_READ, COMMAND, &[longs(&[0]), words(&[0, 64])].concat()), eventfds),
        (message(12, 99, COMMAND, &[0; 64]), vec![fd(memory); 3]),
        (message(13, GET_INFO, REPLY, &[0; 16]), vec![fd(memory)]),
        (message_of_size(14, GET_INFO, COMMAND, 3, &[]), vec![fd(memory); 65]),
    ]
}

#[test]
fn a_thousand_connections_that_die_at_any_byte_leave_nothing_behind() {
    let memory = memfd(4096);
    let eventfds: Vec<_> = (0..4).map(|_| EventFd::new().unwrap()).collect();
    let conversation = conversation(&memory, &eventfds);
    let server = Server::start();
    let mut numbers = Numbers(1);

    let clients_die = |numbers: &mut Numbers| {
        let stream = server.connect();
        let all: usize = conversation.iter().map(|(bytes, _)| bytes.len()).sum();
        // Half of them get to the end of the conversation, in some order.
        let mut left = numbers.below(2 * all);
        let first = numbers.below(conversation.len() - 1);
        let order = std::iter::once(0).chain(1 + first..conversation.len()).chain(1..1 + first);
        let raw = Raw::new(stream);
        for (bytes, fds) in order.map(|i| &conversation[i]) {
            let now = bytes.len().min(left);
            left -= now;
            if now == 0 || !raw.send(&bytes[..now], fds) {
                break;
            }
        }
        drop(raw);
        let _ = server.ended();
    };

    let servers_die = |numbers: &mut Numbers| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, _end) = UnixStream::pair().unwrap();
        let twin = r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#;
        let info = [words(&[32, 7, 0, 0]), longs(&[4096, 0])].concat();
        let (bytes, fds) = match numbers.below(5) {
            0 => (message(1, VERSION, REPLY, &version(0, 1, twin)), vec![fd(&other); 3]),
            1 => (message(1, VERSION, REPLY, &version(0, 1, "{}")), vec![fd(&memory); 64]),
            2 => (message(1, VERSION, REPLY, &version(7, 1, "{}")), vec![fd(&memory); 65]),
            3 => (vec![0xff; 64], vec![fd(&memory); 200]),
            _ => (message(1, VERSION, REPLY, &version(0, 1, "{}")), vec![]),
        };
        let cut = if numbers.below(2) == 0 { bytes.len() } else { 1 + numbers.below(bytes.len()) };
        let raw = Raw::new(theirs);
        raw.send(&bytes[..cut], &fds);
        if cut == bytes.len() {
            raw.send(&message(2, GET_REGION_INFO, REPLY, &info), &vec![fd(&memory); numbers.below(4)]);
        }
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        if let Ok(client) =
            Client::new(ours, GuestMemory::new(0), &Options { deadline: Duration::from_secs(10), ..Default::default() })
        {
            let _ = client.region_info(0);
            let _ = client.serve_ready();
        }
    };

    clients_die(&mut numbers);
    servers_die(&mut numbers);
    let before = settled();
    for _ in 0..CONNECTIONS {
        clients_die(&mut numbers);
        servers_die(&mut numbers);
    }
    assert_held(before);
    Raw::client(server.connect()).alive();
}
