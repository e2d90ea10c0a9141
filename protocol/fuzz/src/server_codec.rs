//! The server's decoding: a client says all it has to say, leaves, and then the server reads it. One thread, no timing.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use outrigger_protocol::command::Command;
use outrigger_protocol::server::{Options, serve};
use outrigger_protocol::wire::TYPE_COMMAND;

use crate::allocations::count_this_thread;
use crate::checks::{Limits, checked};
use crate::descriptors::Descriptors;
use crate::device::FuzzDevice;
use crate::input::{Input, MAX_STEPS, Packet};
use crate::peer::Peer;
use crate::version;

/// Room for a log of dirty pages besides, in MiB.
const DIRTY_LOG: usize = 32;
/// The limits of the server for one client, and of this client: a message in, a message out, more in buffers that grow.
const LIMITS: Limits = Limits { total: (8 + DIRTY_LOG) << 20, piece: 3 << 20, time: Duration::from_secs(10) };

/// Replies of this many bytes together always find room, even without a receiver: each counts for at most 1.25 KiB more
/// than it has, and Linux gives a socket 208 KiB.
const ROOM: usize = 64 << 10;

/// An input: how to begin, then messages.
pub fn run(data: &[u8]) {
    // And the peer's thread, too.
    count_this_thread();
    checked(LIMITS, || session(data));
}

fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut peer = Peer::new(ours);
    let descriptors = Descriptors::open();
    let mut send = |packet: &Packet, id: u16| {
        let bytes = packet.bytes(id, packet.command.into(), TYPE_COMMAND);
        let fds = descriptors.resolve(&packet.fds, &peer);
        packet.parts(&bytes).iter().enumerate().all(|(i, part)| {
            let fds = if i == 0 { &fds[..] } else { &[] };
            peer.send(part, fds, Duration::ZERO)
        })
    };
    let mut going = match version::payload(&mut input, r#"{"supported":true}"#) {
        Some(payload) => send(&Packet { command: Command::Version as u8, payload, ..Packet::default() }, 0),
        None => true,
    };
    for id in 1..=u16::try_from(MAX_STEPS).unwrap_or(0) {
        if input.is_empty() || !going {
            break;
        }
        going = send(&Packet::decode(&mut input), id);
    }
    peer.shutdown(Shutdown::Write);
    let result = serve(
        &mut FuzzDevice::new(false),
        theirs,
        &Options { deadline: Duration::from_millis(20), ..Options::default() },
    );
    peer.receive();
    let to_answer = peer.sent.to_answer();
    let (mut answered, mut asked) = (Vec::new(), false);
    while let Some(message) = peer.next_message() {
        match message.header.is_reply() {
            true => answered.push((message.header.message_id, message.header.command)),
            // A device that waits for a client that has left: nothing that this client wanted after that is done.
            false => asked = true,
        }
    }
    assert!(to_answer.starts_with(&answered), "{to_answer:?} was answered by {answered:?}");
    // A reply that finds no room while the client has left is given up, whole or in the middle.
    let found_room = peer.bytes_received <= ROOM && !peer.has_part_of_a_message();
    if result.is_ok() && !asked && found_room && !peer.sent.whole.is_empty() {
        assert_eq!(to_answer, answered, "the server took leave, but not everything is answered");
    }
}
