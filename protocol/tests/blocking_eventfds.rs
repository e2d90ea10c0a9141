//! Clients that make their eventfds blocking and fill them. What stops then is their own device, and only until they leave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use common::Server;
use common::raw::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use outrigger_protocol::server::Interrupts;

const NONE_TRIGGER: u32 = 1 | 32;
const EVENTFD_TRIGGER: u32 = 4 | 32;
const MSIX: u32 = 2;
/// Long enough for a thread to be stuck, if it gets stuck.
const A_WHILE: Duration = Duration::from_millis(100);
/// Time for leaving on a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// Blocks whoever writes to it.
fn full() -> EventFd {
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
    eventfd.write(u64::MAX - 1).unwrap();
    eventfd
}

/// Connects `eventfd` to the first vector, and makes it blocking again.
fn rude_client(server: &Server, eventfd: &EventFd) -> Raw {
    let mut raw = Raw::client(server.connect());
    let number = eventfd.as_fd().as_raw_fd();
    raw.succeed(SET_IRQS, &words(&[20, EVENTFD_TRIGGER, MSIX, 0, 1]), &[number]);
    let blocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(eventfd, blocking).unwrap();
    raw
}

fn interrupts(server: &Server) -> Arc<Interrupts> {
    server.state.lock().unwrap().interrupts.clone().unwrap()
}

/// A device's thread that fires once.
fn fires(interrupts: Arc<Interrupts>) -> (JoinHandle<()>, Pthread) {
    let (sender, thread) = channel();
    let handle = std::thread::spawn(move || {
        sender.send(pthread_self()).unwrap();
        interrupts.trigger(MSIX, 0);
    });
    let thread = thread.recv().unwrap();
    sleep(A_WHILE);
    (handle, thread)
}

#[track_caller]
fn ends_soon(handle: JoinHandle<()>) {
    let start = Instant::now();
    while !handle.is_finished() {
        assert!(start.elapsed() < SOON, "it is stuck");
        sleep(Duration::from_millis(1));
    }
    handle.join().unwrap();
}

#[test]
fn the_serving_thread_goes_on_when_the_client_leaves() {
    let server = Server::start();
    let eventfd = full();
    let mut rude = rude_client(&server, &eventfd);
    for _ in 0..4 {
        rude.command(SET_IRQS, COMMAND, &words(&[20, NONE_TRIGGER, MSIX, 0, 1]), &[]);
    }
    sleep(A_WHILE);
    let start = Instant::now();
    drop(rude);
    let _ = server.ended();
    assert!(start.elapsed() < SOON, "the next client waits for {:?}", start.elapsed());
    Raw::client(server.connect()).succeed(GET_INFO, &words(&[16, 0, 0, 0]), &[]);
}

#[test]
fn a_thread_of_the_device_goes_on_when_the_client_leaves() {
    let server = Server::start();
    let eventfd = full();
    let rude = rude_client(&server, &eventfd);
    let (stuck, _) = fires(interrupts(&server));
    assert!(!stuck.is_finished(), "the client is there, and its eventfd is full");
    drop(rude);
    ends_soon(stuck);
    let _ = server.ended();
}

#[test]
fn a_client_that_fills_what_is_emptied_changes_nothing() {
    let server = Server::start();
    let eventfd = Arc::new(full());
    let rude = rude_client(&server, &eventfd);
    let (stuck, _) = fires(interrupts(&server));
    let filled = Arc::clone(&eventfd);
    // Never through; it ends with the test's process.
    std::thread::spawn(move || while filled.write(u64::MAX - 1).is_ok() {});
    drop(rude);
    ends_soon(stuck);
    let _ = server.ended();
}

#[test]
fn an_interrupt_of_a_client_that_is_there_is_not_lost() {
    let [server, other] = [Server::start(), Server::start()];
    let eventfd = full();
    let client = rude_client(&server, &eventfd);
    let (stuck, thread) = fires(interrupts(&server));
    // Of no concern to the first one's thread: another client that leaves, and a signal from anywhere.
    let leaving = rude_client(&other, &full());
    drop(leaving);
    let _ = other.ended();
    pthread_kill(thread, Signal::SIGURG).unwrap();
    sleep(A_WHILE);
    assert!(!stuck.is_finished(), "the interrupt is still to come");
    assert_eq!(eventfd.read().unwrap(), u64::MAX - 1);
    ends_soon(stuck);
    assert_eq!(eventfd.read().unwrap(), 1);
    drop(client);
    let _ = server.ended();
}
