//! The client's decoding: capabilities, framing, and replies that a server sends before it is asked, so that one thread
//! does and nothing waits.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use outrigger_protocol::capabilities::Capabilities;
use outrigger_protocol::client::{Client, ClientError, ClientMemory, Options, RegionWrite};
use outrigger_protocol::codec::{ReceiveError, Receiver};
use outrigger_protocol::command::Command;
use outrigger_protocol::pci::MAX_VECTORS;
use outrigger_protocol::socket::{Socket, Wait};
use outrigger_protocol::wire::TYPE_REPLY;

use crate::allocations::count_this_thread;
use crate::checks::{Limits, checked};
use crate::descriptors::Descriptors;
use crate::framing::Framing;
use crate::input::{Input, MAX_STEPS, Mutation, Packet};
use crate::peer::Peer;
use crate::version;

const LIMITS: Limits = Limits { total: 8 << 20, piece: 3 << 20, time: Duration::from_secs(10) };
/// Nothing waits: all replies are there, and so is the end of the stream.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest message in the test of framing.
const LIMIT: usize = 5000;

/// The first byte of an input: replies, capabilities, or framing.
pub const REPLIES: u8 = 0;

/// An input: which decoder, then what for.
pub fn run(data: &[u8]) {
    // And the peer's thread, too.
    count_this_thread();
    checked(LIMITS, || {
        let mut input = Input::new(data);
        match input.number::<u8>() % 3 {
            REPLIES => {
                // Where the replies lie in the client's buffer makes no difference.
                let shift = 1 + data.len() % 7;
                let here = replies(Input::new(&data[data.len().min(1)..]), 0);
                here.must_agree_with(&replies(input, shift));
            }
            1 => capabilities(input.rest()),
            _ => framing(input),
        }
    });
}

/// Accepted text survives the round trip.
fn capabilities(data: &[u8]) {
    if let Ok(capabilities) = Capabilities::parse(data) {
        assert!(capabilities.max_data_xfer_size > 0);
        let again = Capabilities::parse(&capabilities.to_version_data()).expect("our own text");
        assert_eq!(capabilities, again);
    }
}

/// However a stream is cut, the same messages come out of it, each with the descriptors that came with its bytes.
fn framing(mut input: Input<'_>) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut peer = Peer::new(ours);
    peer.sent = Framing::new(LIMIT, LIMIT);
    let mut socket = Socket::new(Arc::new(theirs.into()), DEADLINE).expect("a socket");
    let mut receiver = Receiver::new(LIMIT, Duration::from_secs(10));
    let descriptors = Descriptors::open();
    let (mut seen, mut failed) = (0, false);
    for id in 0..u16::try_from(MAX_STEPS).unwrap_or(0) {
        if input.is_empty() || failed {
            break;
        }
        let packet = Packet::decode(&mut input);
        let bytes = packet.bytes(id, packet.command.into(), TYPE_REPLY);
        for (i, part) in packet.parts(&bytes).iter().enumerate() {
            let fds = if i == 0 { descriptors.resolve(&packet.fds, &peer) } else { Vec::new() };
            if !peer.send(part, &fds, Duration::ZERO) {
                failed = true;
            }
            loop {
                match receiver.receive(&mut socket, Wait::No) {
                    Ok(Some(message)) => {
                        let expected = peer.sent.whole.get(seen).expect("a message that was sent");
                        assert_eq!(message.header, *expected);
                        assert_eq!(message.payload.len(), expected.message_size as usize - 16);
                        assert!(message.fds.len() <= 64);
                        seen += 1;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let explained = match error {
                            ReceiveError::Size { .. } => peer.sent.broken,
                            // More descriptors than one message may have.
                            ReceiveError::Fds | ReceiveError::Io(_) => true,
                            _ => false,
                        };
                        assert!(explained, "{error:?}");
                        return;
                    }
                }
            }
            assert!(peer.sent.broken || seen == peer.sent.whole.len(), "not everything that was sent came out");
        }
    }
    assert!(!peer.sent.broken, "an illegal size was not noticed");
}

#[derive(Debug)]
struct NoMemory;

impl ClientMemory for NoMemory {
    fn read(&self, _address: u64, _data: &mut [u8]) -> Result<(), Errno> {
        panic!("nothing was mapped");
    }

    fn write(&self, _address: u64, _data: &[u8]) -> Result<(), Errno> {
        panic!("nothing was mapped");
    }
}

/// The calls that [`replies`] makes, in a circle, and the command whose reply each takes.
pub const CALLS: [Command; 9] = [
    Command::DeviceGetInfo,
    Command::DeviceGetRegionInfo,
    Command::DeviceGetRegionIoFds,
    Command::DeviceGetIrqInfo,
    Command::RegionRead,
    Command::RegionWriteMulti,
    Command::DeviceFeature,
    Command::DeviceSetIrqs,
    Command::DmaUnmap,
];

/// How large the region is of which sub-regions are asked.
pub const REGION_SIZE: u64 = 2 << 20;

/// How calls ended.
#[derive(Debug)]
struct Ends {
    calls: Vec<String>,
    /// The last call found that the stream cannot be read on: a size that is not legal, or more descriptors than can be
    /// taken. Which of the two is noticed, and how many messages before, is a matter of what was received at once.
    broken_off: bool,
}

impl Ends {
    fn must_agree_with(&self, other: &Self) {
        match self.broken_off || other.broken_off {
            true => assert!(self.calls.iter().zip(&other.calls).all(|(a, b)| a == b), "{self:?}, but {other:?}"),
            false => assert_eq!(self.calls, other.calls),
        }
    }
}

/// The version is the first reply, with as many descriptors as the input says; then each step is a call and its reply. Before
/// these comes a request with `shift` bytes of payload, which nobody answers. Returns how the calls ended.
fn replies(mut input: Input<'_>, shift: usize) -> Ends {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut peer = Peer::new(ours);
    let descriptors = Descriptors::open();
    let mut send = |packet: &Packet, id: u16, command: Command| {
        let bytes = packet.bytes(id, command as u16, TYPE_REPLY);
        let fds = descriptors.resolve(&packet.fds, &peer);
        packet.parts(&bytes).iter().enumerate().all(|(i, part)| {
            let fds = if i == 0 { &fds[..] } else { &[] };
            peer.send(part, fds, Duration::ZERO)
        })
    };
    let fds = input.bytes(65).to_vec();
    let payload = version::payload(&mut input, r#"{"supported":true,"fd_index":0}"#);
    send(&Packet { payload: payload.unwrap_or_default(), fds, ..Packet::default() }, 1, Command::Version);
    let request =
        Packet { payload: vec![0; shift], no_reply: true, mutation: Some(Mutation::to_command()), ..Packet::default() };
    send(&request, 1, Command::DmaWrite);
    let mut calls = Vec::new();
    for id in 2..=u16::try_from(MAX_STEPS).unwrap_or(0) {
        if input.is_empty() {
            break;
        }
        let call: u8 = input.number();
        let packet = Packet::decode(&mut input);
        let command = CALLS[usize::from(call) % CALLS.len()];
        // A call that is told to need more room asks again; the reply to that is the next step's.
        if packet.command != 0 || calls.is_empty() || !matches!(calls.last(), Some((last, _)) if *last == command) {
            calls.push((command, packet.command));
        }
        if !send(&packet, id, command) {
            break;
        }
    }
    peer.shutdown(Shutdown::Write);
    let mut ends = Ends { calls: Vec::new(), broken_off: false };
    let Ok(client) = Client::new(theirs, Arc::new(NoMemory), &Options { deadline: DEADLINE, ..Options::default() })
    else {
        return ends;
    };
    for (command, argument) in calls {
        let result = call(&client, command, argument);
        let source = if let Err(ClientError::Receive { source, .. }) = &result { Some(source) } else { None };
        ends.broken_off = matches!(source, Some(ReceiveError::Size { .. } | ReceiveError::Fds | ReceiveError::Io(_)));
        if ends.broken_off {
            break;
        }
        ends.calls.push(format!("{command:?} {argument}: {result:?}"));
        if result.is_err() && client.is_closed() {
            break;
        }
    }
    let _ = client.serve_ready();
    ends
}

/// Makes a call; what it returns must be possible.
fn call(client: &Client, command: Command, argument: u8) -> Result<(), ClientError> {
    match command {
        Command::DeviceGetInfo => {
            let info = client.device_info()?;
            assert!(info.num_regions <= 256 && info.num_irqs <= 256);
        }
        Command::DeviceGetRegionInfo => {
            let info = client.region_info(argument.into())?;
            assert_eq!(info.index, u32::from(argument));
            assert!(info.areas.is_empty() || info.fd.is_some());
            let mut end = 0;
            for (offset, size) in info.areas {
                assert!(offset >= end && size > 0 && offset % 4096 == 0 && size % 4096 == 0);
                end = offset.checked_add(size).expect("an area does not wrap");
                let file_end = info.offset.checked_add(end).expect("an area lies within a file");
                assert!(end <= info.size && i64::try_from(file_end).is_ok());
            }
        }
        Command::DeviceGetRegionIoFds => {
            for io_fd in client.region_io_fds(argument.into(), REGION_SIZE)? {
                assert!(io_fd.offset < REGION_SIZE && io_fd.size <= REGION_SIZE - io_fd.offset);
            }
        }
        Command::DeviceGetIrqInfo => assert!(client.irq_info(argument.into())?.count <= MAX_VECTORS),
        Command::RegionRead => client.region_read(0, 0, &mut vec![0; argument.into()])?,
        Command::RegionWriteMulti => {
            let writes = vec![RegionWrite { region: 0, offset: 0, data: &[1, 2, 3] }; usize::from(argument % 64)];
            assert!(client.region_write_multi(&writes)? <= writes.len());
        }
        Command::DeviceFeature => {
            client.get_feature(argument.into(), &[])?;
        }
        Command::DeviceSetIrqs => client.disable_irqs(argument.into())?,
        _ => client.dma_unmap(0, 4096)?,
    }
    Ok(())
}
