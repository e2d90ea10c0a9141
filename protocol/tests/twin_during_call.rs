//! A device that asks for client memory, on the twin socket, before it answers a call: the call serves it, whether or not
//! anybody else watches the twin.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Instant;

use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, watched};
use outrigger_protocol::client::{Client, Options};

const REQUESTS: usize = 200;

/// A server that reads client memory this often before it answers a register write, and checks what it gets.
fn start() -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let main = Raw::new(theirs);
        let (twin, given) = UnixStream::pair().unwrap();
        let json = r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#;
        let request = main.receive().unwrap();
        main.answer(&request, &version(0, 1, json), &[fd(&given)]);
        drop(given);
        let mut twin = Raw::new(twin);
        while let Some(request) = main.receive() {
            if request.command == REGION_WRITE {
                for _ in 0..REQUESTS {
                    let reply = twin.succeed(DMA_READ, &longs(&[0x1000, 8]), &[]);
                    assert_eq!(reply.payload, [longs(&[0x1000, 8]), vec![0; 8]].concat());
                }
            }
            main.answer(&request, &request.payload[..16.min(request.payload.len())], &[]);
        }
    });
    let client = Client::new(ours, GuestMemory::new(0x2000), &Options { deadline: PATIENCE, ..Options::default() });
    let client = client.unwrap();
    client.dma_map(0x1000, 0x1000, None).unwrap();
    (client, server)
}

#[test]
fn a_call_serves_the_twin_while_it_waits() {
    let (client, server) = start();
    for _ in 0..3 {
        let start = Instant::now();
        client.region_write(0, 0, &[1; 4]).unwrap();
        assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
    }
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_call_and_a_watching_thread_share_the_twin() {
    let (client, server) = start();
    watched(&client, || {
        for _ in 0..5 {
            let start = Instant::now();
            client.region_write(0, 0, &[1; 4]).unwrap();
            assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
        }
    });
    drop(client);
    server.join().unwrap();
}
