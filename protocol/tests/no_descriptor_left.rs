//! A process that may have no more descriptors does not take a message whose descriptors found no room for one that has none.
//! Alone in its process: its limit is everybody's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;

use common::raw::*;
use common::{Server, memfd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PAGE: u64 = 4096;

/// Leaves no room, as long as its result lives.
fn fill() -> Vec<File> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn memory_whose_descriptor_found_no_room_is_not_memory_by_messages() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    let memory = memfd(PAGE);
    let filled = fill();
    raw.command(DMA_MAP, 0, &[words(&[32, 3]), longs(&[0, 0, PAGE])].concat(), &[memory.as_raw_fd()]);
    raw.closed();
    drop(filled);
    let error = server.ended().unwrap_err();
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    assert!(causes.into_iter().any(|error| error.to_string().starts_with("Too many open files")), "{error:?}");
}
