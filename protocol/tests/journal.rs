//! `OUTRIGGER_JOURNAL_OFFER` and `OUTRIGGER_JOURNAL_TAKE`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use common::journal::{FOREIGN, SIZE, format};
use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, Server, memfd};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::client::{Client, ClientError, Journal, Options};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::journal::{JournalFormat, JournalMemory, MAX_SIZE};

const PROPOSAL: &str = r#"{"capabilities":{"max_msg_fds":64,"outrigger_journal":{}}}"#;

fn client(stream: UnixStream) -> Client {
    let options = Options { deadline: PATIENCE, journal: true, ..Options::default() };
    Client::new(stream, GuestMemory::new(0), &options).unwrap()
}

fn raw_client(stream: UnixStream) -> Raw {
    let mut raw = Raw::new(stream);
    assert_eq!(raw.ask(VERSION, &version(0, 1, PROPOSAL), &[]).error, 0);
    raw
}

fn journal() -> Journal {
    Journal::create(&format()).unwrap()
}

fn words_of(journal: &Journal) -> JournalMemory {
    JournalMemory::map(ForeignFd::from(journal.fd().try_clone_to_owned().unwrap()), SIZE).unwrap()
}

fn offer(flags: u32, size: u64) -> Vec<u8> {
    [words(&[16, flags]), longs(&[size])].concat()
}

#[test]
fn a_journal_is_begun_offered_to_a_successor_and_taken() {
    let journal = journal();
    let first = Server::journaled();
    let before = client(first.connect());
    assert_eq!(before.journal_format(), Some(&format()));
    let kept = before.begin_journal(&journal).unwrap();
    let lengths: Vec<_> = kept.iter().map(|fd| fd.memory().unwrap().length).collect();
    assert_eq!(lengths, [1, 2], "the descriptors to keep, in their order");
    let second = Server::journaled();
    let after = client(second.connect());
    after.offer_journal(&journal).unwrap();
    assert_eq!(words_of(&journal).words()[0].load(Ordering::Acquire), 7, "an offer changes nothing");
    // A second look is allowed; a take is for good.
    after.offer_journal(&journal).unwrap();
    after.take_journal().unwrap();
    assert_eq!(words_of(&journal).words()[0].load(Ordering::Acquire), 8);
    assert_eq!(first.state.lock().unwrap().journal, [("begin", 0)]);
    assert_eq!(second.state.lock().unwrap().journal, [("offer", 7), ("offer", 7), ("take", 7)]);
    let is_refused = |result| matches!(result, Err(ClientError::Refused { errno: Errno::EINVAL, .. }));
    assert!(is_refused(after.take_journal()) && is_refused(after.offer_journal(&journal)));
    assert!(is_refused(before.begin_journal(&journal).map(drop)) && is_refused(before.take_journal()));
}

#[test]
fn what_a_device_cannot_go_on_from_is_refused_and_the_connection_stays() {
    let (server, journal) = (Server::journaled(), journal());
    let client = client(server.connect());
    words_of(&journal).words()[0].store(FOREIGN, Ordering::Release);
    let refusal = client.offer_journal(&journal);
    assert!(matches!(refusal, Err(ClientError::Refused { errno: Errno::EPROTO, .. })), "{refusal:?}");
    assert!(client.take_journal().is_err_and(|error| !error.is_fatal()), "what was refused cannot be taken");
    client.device_info().unwrap();
}

#[test]
fn who_does_not_ask_gets_none() {
    let server = Server::journaled();
    let client = common::client(server.connect());
    assert_eq!(client.journal_format(), None);
    let refusal = client.begin_journal(&journal());
    assert!(matches!(refusal, Err(ClientError::Refused { errno: Errno::EOPNOTSUPP, .. })), "{refusal:?}");
    drop(client);
    let plain = Server::start();
    let mut raw = raw_client(plain.connect());
    raw.refused(ENOTSUP, JOURNAL_OFFER, &offer(0, SIZE), &[fd(&journal().fd())]);
    raw.refused(EINVAL, JOURNAL_TAKE, &[], &[]);
}

#[test]
fn malformed_requests_and_files_that_are_no_journal_are_refused() {
    let (server, journal) = (Server::journaled(), journal());
    let mut raw = raw_client(server.connect());
    let file = fd(&journal.fd());
    for length in 0..16 {
        raw.refused(EINVAL, JOURNAL_OFFER, &offer(0, SIZE)[..length], &[file]);
    }
    raw.refused(EINVAL, JOURNAL_OFFER, &[offer(0, SIZE), vec![0]].concat(), &[file]);
    for (flags, size) in [(2, SIZE), (0, SIZE - 8), (0, SIZE + 8), (1, 0), (1, u64::MAX)] {
        raw.refused(EINVAL, JOURNAL_OFFER, &offer(flags, size), &[file]);
    }
    raw.refused(EINVAL, JOURNAL_OFFER, &offer(0, SIZE), &[]);
    raw.refused(EINVAL, JOURNAL_OFFER, &offer(0, SIZE), &[file, file]);
    let short = Journal::create(&JournalFormat { size: SIZE / 2, ..format() }).unwrap();
    let unsealed = memfd(SIZE);
    let sealable: OwnedFd = memfd_create("journal", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let socket = UnixStream::pair().unwrap().0;
    for file in [fd(&short.fd()), fd(&unsealed), fd(&sealable), fd(&socket)] {
        for flags in [0, 1] {
            raw.refused(EINVAL, JOURNAL_OFFER, &offer(flags, SIZE), &[file]);
        }
    }
    raw.refused(EINVAL, JOURNAL_TAKE, &[], &[]);
    raw.refused(EINVAL, JOURNAL_TAKE, &[0], &[]);
    assert!(server.state.lock().unwrap().journal.is_empty(), "the device was asked");
    // A refused file is no journal: one can still be begun.
    let reply = raw.succeed(JOURNAL_OFFER, &offer(0, SIZE), &[file]);
    assert_eq!((reply.payload, reply.fds.len()), (offer(0, SIZE), 2));
}

#[test]
fn a_client_that_takes_too_few_descriptors_is_told() {
    let server = Server::journaled();
    let mut raw = Raw::new(server.connect());
    let proposal = r#"{"capabilities":{"max_msg_fds":1,"outrigger_journal":{}}}"#;
    assert_eq!(raw.ask(VERSION, &version(0, 1, proposal), &[]).error, 0);
    raw.refused(Errno::EMFILE as u32, JOURNAL_OFFER, &offer(0, SIZE), &[fd(&journal().fd())]);
}

#[test]
fn a_format_that_cannot_be_is_none() {
    let long = "x".repeat(65);
    for answer in [
        r#"{"format":"","size":0}"#.to_owned(),
        r#"{"format":"a b","size":8}"#.to_owned(),
        format!(r#"{{"format":"{long}","size":8}}"#),
        r#"{"format":"a","size":4}"#.to_owned(),
        r#"{"format":"a","size":12}"#.to_owned(),
        format!(r#"{{"format":"a","size":{}}}"#, MAX_SIZE + 8),
    ] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || Raw::server(theirs, &format!(r#"{{"outrigger_journal":{answer}}}"#)));
        assert_eq!(client(ours).journal_format(), None);
        drop(server.join().unwrap());
    }
}

#[test]
fn answers_for_another_journal_close_the_connection() {
    for answer in [vec![], offer(0, SIZE)[..8].to_vec(), offer(1, SIZE), offer(0, SIZE - 8)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let raw = Raw::server(theirs, r#"{"outrigger_journal":{"format":"test/1","size":4096}}"#);
            let request = raw.receive().unwrap();
            raw.send(&message(request.id, request.command, REPLY, &answer), &[]);
        });
        let client = client(ours);
        let result = client.begin_journal(&journal());
        assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
        server.join().unwrap();
    }
}

#[test]
fn a_journal_cannot_become_shorter() {
    let journal = journal();
    let file = std::fs::File::from(journal.fd().as_fd().try_clone_to_owned().unwrap());
    assert!(file.set_len(0).is_err() && file.set_len(SIZE * 2).is_err());
    assert_eq!(words_of(&journal).words().len(), 512);
}
