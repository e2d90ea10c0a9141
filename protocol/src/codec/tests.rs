use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::socket::Outgoing;

/// Passes in one test only. Everything else is there by then, and more than a moment is needed to look.
const PATIENCE: Duration = Duration::from_secs(1);

fn pair() -> (UnixStream, Socket) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (ours, Socket::new(Arc::new(theirs.into()), PATIENCE).unwrap())
}

fn message(id: u16, payload: &[u8]) -> Vec<u8> {
    let message_size = u32::try_from(HEADER_SIZE + payload.len()).unwrap();
    let header = Header { message_id: id, command: 4, message_size, ..Header::default() };
    [header.as_bytes(), payload].concat()
}

fn receive<'a>(receiver: &'a mut Receiver, socket: &mut Socket) -> Result<Message<'a>, ReceiveError> {
    let wait = Wait::Until(Instant::now() + PATIENCE);
    Ok(receiver.receive(socket, wait)?.expect("a wait with a deadline brings a message or an error"))
}

#[test]
fn a_size_below_the_header_or_above_the_limit_is_refused() {
    for size in [0, 15, 65, u32::MAX] {
        let (mut ours, mut socket) = pair();
        let header = Header { message_size: size, ..Header::default() };
        ours.write_all(header.as_bytes()).unwrap();
        let mut receiver = Receiver::new(64, PATIENCE);
        assert!(
            matches!(receive(&mut receiver, &mut socket), Err(ReceiveError::Size { size: s, limit: 64 }) if s == size)
        );
    }
}

#[test]
fn a_connection_closed_between_messages_and_within_one_is_told_apart() {
    for (bytes, truncated) in [(0, false), (7, true), (20, true)] {
        let (mut ours, mut socket) = pair();
        ours.write_all(&message(1, &[0; 32])[..bytes]).unwrap();
        drop(ours);
        let mut receiver = Receiver::new(64, PATIENCE);
        match receive(&mut receiver, &mut socket) {
            Err(ReceiveError::Closed) => assert!(!truncated),
            Err(ReceiveError::Truncated { received }) => assert_eq!((received, true), (bytes, truncated)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_message_that_never_ends_runs_into_the_deadline() {
    let (mut ours, mut socket) = pair();
    ours.write_all(&message(1, &[0; 32])[..40]).unwrap();
    let mut receiver = Receiver::new(64, PATIENCE);
    assert!(matches!(receiver.receive(&mut socket, Wait::Forever), Err(ReceiveError::TimedOut)));
}

#[test]
fn without_waiting_no_message_is_none() {
    let (_ours, mut socket) = pair();
    assert!(Receiver::new(64, PATIENCE).receive(&mut socket, Wait::No).unwrap().is_none());
}

#[test]
fn descriptors_belong_to_the_message_they_were_sent_with() {
    let (ours, mut socket) = pair();
    let deadline = Instant::now() + PATIENCE;
    for (id, count) in [(1, 0), (2, 2), (3, 0), (4, 1)] {
        let bytes = message(id, &[0; 8]);
        let fds = vec![ours.as_fd(); count];
        Outgoing::new([&bytes, &[], &[]], &fds).send(ours.as_fd(), deadline).unwrap();
    }
    let mut receiver = Receiver::new(64, PATIENCE);
    for (id, count) in [(1, 0), (2, 2), (3, 0), (4, 1)] {
        let message = receive(&mut receiver, &mut socket).unwrap();
        assert_eq!((message.header.message_id, message.fds.len()), (id, count));
    }
}

#[test]
fn too_many_descriptors_are_refused_and_closed() {
    let (ours, mut socket) = pair();
    let fds = vec![ours.as_fd(); MAX_FDS + 1];
    let bytes = message(1, &[]);
    Outgoing::new([&bytes, &[], &[]], &fds).send(ours.as_fd(), Instant::now() + PATIENCE).unwrap();
    let mut receiver = Receiver::new(64, PATIENCE);
    assert!(matches!(receive(&mut receiver, &mut socket), Err(ReceiveError::Fds)));
}

proptest! {
    #[test]
    fn messages_survive_any_fragmentation(
        sizes in prop::collection::vec(0usize..6000, 1..8), cuts in prop::collection::vec(1usize..3000, 1..16)
    ) {
        let (mut ours, mut socket) = pair();
        let payloads: Vec<Vec<u8>> = sizes.iter().enumerate()
            .map(|(i, &size)| vec![u8::try_from(i).unwrap(); size]).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| message(7, payload)).collect();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut rest = &stream[..];
                for cut in cuts.iter().cycle() {
                    let (now, later) = rest.split_at((*cut).min(rest.len()));
                    ours.write_all(now).unwrap();
                    rest = later;
                    if rest.is_empty() { break; }
                }
            });
            let mut receiver = Receiver::new(8192, Duration::from_secs(10));
            for payload in &payloads {
                let message = receiver.receive(&mut socket, Wait::Forever).unwrap().unwrap();
                assert_eq!(message.payload, payload);
            }
            assert!(matches!(receiver.receive(&mut socket, Wait::Forever), Err(ReceiveError::Closed)));
        });
    }
}
