//! `OUTRIGGER_VFIO_FILE` and `OUTRIGGER_VFIO_OPEN`, both sides: nothing of a device is touched before its client says so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use common::device::{State, TestDevice};
use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, Server, memfd};
use nix::errno::Errno;
use outrigger_protocol::client::{Client, ClientError, Options};
use outrigger_protocol::server::{self, ServeError, Unopened, serve_unopened};
use outrigger_protocol::wire::VfioTerms;

const PROPOSAL: &str = r#"{"capabilities":{"max_msg_fds":1,"outrigger_vfio":{}}}"#;
const FILE_SIZE: u64 = 12_288;
const KNOWN: VfioTerms = VfioTerms { known_to_kvm: true, client_maps: false };

/// Opens a test device for each client, and writes down how.
struct Behind {
    file: OwnedFd,
    opened: Arc<Mutex<Vec<VfioTerms>>>,
    refusal: Option<Errno>,
}

impl Unopened for Behind {
    type Device = TestDevice;

    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn open(&mut self, terms: VfioTerms) -> Result<TestDevice, Errno> {
        self.opened.lock().unwrap().push(terms);
        match self.refusal.take() {
            Some(errno) => Err(errno),
            None => Ok(TestDevice::new(Arc::new(Mutex::new(State::default())))),
        }
    }
}

/// Serves the clients at the other ends of some sockets, one after the other.
struct Tied<const CLIENTS: usize> {
    streams: Vec<UnixStream>,
    opened: Arc<Mutex<Vec<VfioTerms>>>,
    results: Receiver<Result<(), ServeError>>,
    thread: JoinHandle<()>,
}

impl<const CLIENTS: usize> Tied<CLIENTS> {
    fn start(refusal: Option<Errno>) -> Self {
        let (mut ours, theirs): (Vec<_>, Vec<_>) = (0..CLIENTS).map(|_| UnixStream::pair().unwrap()).unzip();
        ours.reverse();
        let opened = Arc::new(Mutex::new(Vec::new()));
        let mut behind = Behind { file: memfd(FILE_SIZE), opened: opened.clone(), refusal };
        let (sender, results) = channel();
        let thread = std::thread::spawn(move || {
            for stream in theirs {
                sender.send(serve_unopened(&mut behind, stream, &server::Options::default())).unwrap();
            }
        });
        Self { streams: ours, opened, results, thread }
    }

    fn stream(&mut self) -> UnixStream {
        self.streams.pop().unwrap()
    }

    fn opened(&self) -> Vec<VfioTerms> {
        self.opened.lock().unwrap().clone()
    }

    fn ended(&self) -> Result<(), ServeError> {
        self.results.recv_timeout(PATIENCE).expect("the server lets go of the connection")
    }
}

fn client(stream: UnixStream) -> Client {
    let options = Options { deadline: PATIENCE, vfio: true, ..Options::default() };
    Client::new(stream, GuestMemory::new(0), &options).unwrap()
}

fn raw_client(stream: UnixStream) -> Raw {
    let mut raw = Raw::new(stream);
    assert_eq!(raw.ask(VERSION, &version(0, 1, PROPOSAL), &[]).error, 0);
    raw
}

#[test]
fn a_device_is_opened_when_its_client_says_so_and_for_each_anew() {
    let mut tied = Tied::<3>::start(None);
    for (known_to_kvm, client_maps) in [(true, false), (false, false), (true, true)] {
        let terms = VfioTerms { known_to_kvm, client_maps };
        let client = client(tied.stream());
        let opened = tied.opened();
        let file = client.vfio_file().unwrap().expect("the device is behind VFIO");
        assert_eq!(file.memory().unwrap().length, FILE_SIZE, "it is the server's file");
        assert_eq!(tied.opened(), opened, "asking for the file opens nothing");
        client.open_vfio(terms).unwrap();
        assert_eq!(tied.opened(), [opened, vec![terms]].concat());
        assert!(client.device_info().unwrap().num_regions > 0);
        let refusal = client.open_vfio(KNOWN);
        assert!(matches!(refusal, Err(ClientError::Refused { errno: Errno::EINVAL, .. })), "{refusal:?}");
        drop(client);
        tied.ended().unwrap();
    }
    tied.thread.join().unwrap();
}

#[test]
fn nothing_is_answered_before_the_device_is_open() {
    let mut tied = Tied::<1>::start(None);
    let mut raw = raw_client(tied.stream());
    let file = memfd(1);
    let open = words(&[8, 1]);
    for command in (0..20).chain([JOURNAL_OFFER, JOURNAL_TAKE, 0x4f05]) {
        raw.refused(EINVAL, command, &[0; 32], &[]);
    }
    for length in 0..8 {
        raw.refused(EINVAL, VFIO_OPEN, &open[..length], &[]);
    }
    for malformed in [words(&[7, 1]), words(&[8, 4]), words(&[8, 1 << 31]), words(&[8, 1, 0])] {
        raw.refused(EINVAL, VFIO_OPEN, &malformed, &[]);
    }
    raw.refused(EINVAL, VFIO_OPEN, &open, &[file.as_raw_fd()]);
    raw.refused(EINVAL, VFIO_FILE, &[0], &[]);
    raw.refused(EINVAL, VFIO_FILE, &[], &[file.as_raw_fd()]);
    assert!(tied.opened().is_empty());
    assert_eq!(raw.succeed(VFIO_FILE, &[], &[]).fds.len(), 1);
    assert_eq!(raw.succeed(VFIO_OPEN, &open, &[]).payload, open);
    raw.refused(EINVAL, VFIO_FILE, &[], &[]);
    raw.alive();
    drop(raw);
    tied.ended().unwrap();
}

#[test]
fn a_client_that_knows_nothing_of_it_gets_a_device_that_is_open() {
    let mut tied = Tied::<1>::start(None);
    let client = common::client(tied.stream());
    assert!(client.vfio_file().unwrap().is_none());
    client.device_info().unwrap();
    assert_eq!(tied.opened(), [VfioTerms::default()]);
}

#[test]
fn a_device_that_cannot_be_opened_says_why_and_waits_for_the_next_client() {
    let mut tied = Tied::<3>::start(Some(Errno::EBUSY));
    let first = client(tied.stream());
    let refusal = first.open_vfio(KNOWN);
    assert!(matches!(refusal, Err(ClientError::Refused { errno: Errno::EBUSY, .. })), "{refusal:?}");
    assert!(matches!(tied.ended(), Err(ServeError::NotOpened(Errno::EBUSY))));
    // One that leaves before it says anything opens nothing.
    drop(client(tied.stream()));
    tied.ended().unwrap();
    assert_eq!(tied.opened(), [KNOWN]);
    let last = client(tied.stream());
    last.open_vfio(KNOWN).unwrap();
    last.device_info().unwrap();
}

#[test]
fn a_client_that_takes_no_descriptors_is_told() {
    let mut tied = Tied::<1>::start(None);
    let mut raw = Raw::new(tied.stream());
    let proposal = r#"{"capabilities":{"max_msg_fds":0,"outrigger_vfio":{}}}"#;
    assert_eq!(raw.ask(VERSION, &version(0, 1, proposal), &[]).error, 0);
    raw.refused(Errno::EMFILE as u32, VFIO_FILE, &[], &[]);
}

#[test]
fn a_device_that_is_not_behind_vfio_has_no_file() {
    let server = Server::start();
    let client = client(server.connect());
    assert!(client.vfio_file().unwrap().is_none());
    let refusal = client.open_vfio(VfioTerms::default());
    assert!(matches!(refusal, Err(ClientError::Refused { errno: Errno::EOPNOTSUPP, .. })), "{refusal:?}");
}

#[test]
fn a_server_that_brings_another_number_of_files_or_answers_something_else_is_out_of_step() {
    let file = memfd(1);
    for (fds, payload) in [(0, vec![]), (2, vec![]), (1, words(&[8])), (1, words(&[8, 0])), (1, words(&[16, 1]))] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let number = file.as_raw_fd();
        let server = std::thread::spawn(move || {
            let raw = Raw::server(theirs, r#"{"outrigger_vfio":{}}"#);
            let asked = raw.receive().unwrap();
            let files = vec![number; fds];
            assert!(raw.answer(&asked, &[], &files));
            if let Some(asked) = raw.receive() {
                raw.answer(&asked, &payload, &[]);
            }
        });
        let client = client(ours);
        match client.vfio_file() {
            Ok(Some(_)) => {
                assert_eq!(fds, 1);
                assert!(client.open_vfio(KNOWN).is_err_and(|error| error.is_fatal()));
            }
            Ok(None) => panic!("the server has answered the capability"),
            Err(error) => assert!(fds != 1 && error.is_fatal(), "{error}"),
        }
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn a_server_that_was_not_asked_has_no_file() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || drop(Raw::server(theirs, r#"{"outrigger_vfio":{}}"#)));
    let client = common::client(ours);
    assert!(client.vfio_file().unwrap().is_none());
    server.join().unwrap();
}
