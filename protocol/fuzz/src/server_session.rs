//! The server's state machine: a client that does anything, at any time, and a device behind the server that uses all it
//! is given: memory that it mapped, memory that it reaches by messages, from two threads, and interrupts.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use outrigger_protocol::command::Command;
use outrigger_protocol::server::{Options, Unopened, serve, serve_unopened};
use outrigger_protocol::wire::{DmaAccess, FLAG_ERROR, TYPE_COMMAND, TYPE_REPLY, VfioTerms};
use zerocopy::{FromBytes, IntoBytes};

use crate::allocations::count_this_thread;
use crate::checks::{Limits, checked};
use crate::descriptors::{Descriptors, memfd};
use crate::device::FuzzDevice;
use crate::input::{Input, MAX_STEPS, Packet};
use crate::peer::{Arrived, Peer};
use crate::version;

/// The server's deadline.
const DEADLINE: Duration = Duration::from_millis(20);
/// How long the client waits for a reply: longer, so that it sees the server give up.
const PATIENCE: Duration = Duration::from_millis(30);
/// Room for a log of dirty pages besides, in MiB.
const DIRTY_LOG: usize = 32;
/// The most that the server can hold: the queue of 4 MiB and one message, a message in on each of two sockets, its
/// payload, a message out, and the device's data in two threads, 1 MiB each twice; more in buffers that grow.
const LIMITS: Limits = Limits { total: (20 + DIRTY_LOG) << 20, piece: 4 << 20, time: Duration::from_secs(20) };
/// When the server must have let go after the client has left: whatever it waits for ends with its deadline. A machine with
/// more to do than this was seen to stand still for 2.5 s.
const FAREWELL: Duration = Duration::from_secs(8);

/// A step of an input, see [`Client::step`].
pub const PACKET: u8 = 0;
/// Changes how requests of the device are answered.
pub const ANSWERS: u8 = 2;
/// Bytes that are no message.
pub const BYTES: u8 = 3;

/// An input: how to begin, then steps.
pub fn run(data: &[u8]) {
    checked(LIMITS, || session(data));
}

fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let (sender, ended) = channel();
    let behind_vfio = data.first().is_some_and(|how| how & version::VFIO != 0);
    let server = std::thread::spawn(move || {
        count_this_thread();
        let options = Options { deadline: DEADLINE, ..Options::default() };
        let _ = match behind_vfio {
            true => serve_unopened(&mut Closed(memfd(1)), theirs, &options),
            false => serve(&mut FuzzDevice::new(true), theirs, &options),
        };
        let _ = sender.send(());
    });
    let mut client = Client {
        main: Peer::new(ours),
        twin: None,
        descriptors: Descriptors::open(),
        answers: 0,
        last_request: None,
        answered: Vec::new(),
    };
    if let Some(payload) = version::payload(&mut input, r#"{"supported":true}"#) {
        client.say(&Packet { command: Command::Version as u8, payload, ..Packet::default() }, 0);
        client.twin = client.main.fds.pop().map(|fd| Peer::new(fd.into()));
    }
    for id in 1..=u16::try_from(MAX_STEPS).unwrap_or(0) {
        if input.is_empty() || client.main.closed {
            break;
        }
        client.step(&mut input, id);
    }
    client.pump();
    let to_answer = client.main.sent.to_answer();
    assert!(to_answer.starts_with(&client.answered), "{to_answer:?} was answered by {:?}", client.answered);
    drop(client);
    ended.recv_timeout(FAREWELL).expect("the server lets go of a client that has left");
    server.join().expect("the server does not panic");
}

/// A device behind VFIO.
struct Closed(OwnedFd);

impl Unopened for Closed {
    type Device = FuzzDevice;

    fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn open(&mut self, terms: VfioTerms) -> Result<FuzzDevice, Errno> {
        if terms.known_to_kvm { Ok(FuzzDevice::new(true)) } else { Err(Errno::EBUSY) }
    }
}

struct Client {
    main: Peer,
    twin: Option<Peer>,
    descriptors: Descriptors,
    /// How requests are answered, see [`Client::answer`].
    answers: u8,
    last_request: Option<Arrived>,
    /// The replies that came, in order.
    answered: Vec<(u16, u16)>,
}

impl Client {
    fn step(&mut self, input: &mut Input<'_>, id: u16) {
        match input.number::<u8>() % 8 {
            PACKET | 1 => self.say(&Packet::decode(input), id),
            ANSWERS => self.answers = input.number(),
            BYTES => {
                let fds = self.descriptors.resolve(input.bytes(255), &self.main);
                self.main.send(input.bytes(2048), &fds, DEADLINE);
            }
            4 => {
                let packet = Packet::decode(input);
                if let Some(twin) = &mut self.twin {
                    send(twin, &packet, &packet.bytes(id, packet.number(), TYPE_COMMAND), &self.descriptors);
                }
            }
            5 => {
                let wait = Duration::from_millis(u64::from(input.number::<u8>() % 4));
                self.main.wait_with(self.twin.as_ref(), wait);
                self.pump();
            }
            6 => {
                let which: u8 = input.number();
                let how = [Shutdown::Write, Shutdown::Read, Shutdown::Both][usize::from(which % 3)];
                match &mut self.twin {
                    Some(_) if which & 0x80 != 0 => self.twin = None,
                    Some(twin) if which & 0x40 != 0 => twin.shutdown(how),
                    _ => self.main.shutdown(how),
                }
            }
            _ => {
                // An answer that may come too early, too late, or to nothing.
                let packet = Packet::decode(input);
                let (id, command) = self
                    .last_request
                    .as_ref()
                    .map_or((id, packet.number()), |request| (request.header.message_id, request.header.command));
                let peer = self.twin.as_mut().unwrap_or(&mut self.main);
                send(peer, &packet, &packet.bytes(id, command, TYPE_REPLY), &self.descriptors);
            }
        }
    }

    /// Sends a command, and waits for its reply as a client does: serving requests.
    fn say(&mut self, packet: &Packet, id: u16) {
        let before = self.answered.len();
        let bytes = packet.bytes(id, packet.number(), TYPE_COMMAND);
        let whole = send(&mut self.main, packet, &bytes, &self.descriptors);
        let deadline = Instant::now() + PATIENCE;
        let wait = whole && !packet.impatient && !packet.no_reply && packet.mutation.is_none();
        self.pump();
        while wait && self.answered.len() == before && !self.main.closed && Instant::now() < deadline {
            self.main.wait_with(self.twin.as_ref(), Duration::from_millis(5));
            self.pump();
        }
    }

    /// Takes what is there, and answers requests.
    fn pump(&mut self) {
        self.main.receive();
        while let Some(message) = self.main.next_message() {
            self.take(message);
        }
        let Some(mut twin) = self.twin.take() else { return };
        twin.receive();
        self.twin = Some(twin);
        while let Some(message) = self.twin.as_mut().and_then(Peer::next_message) {
            assert!(message.header.is_command(), "a reply came on the twin socket");
            self.take(message);
        }
    }

    fn take(&mut self, message: Arrived) {
        if message.header.is_reply() {
            self.answered.push((message.header.message_id, message.header.command));
        } else {
            self.answer(&message);
            self.last_request = Some(message);
        }
    }

    /// Answers a request of the device: 0 as it should, else in some other way.
    fn answer(&mut self, request: &Arrived) {
        let how = self.answers;
        let (access, data) = DmaAccess::read_from_prefix(&request.payload).expect("a DMA request has its structure");
        let is_read = request.header.command == Command::DmaRead as u16;
        let count = usize::try_from(access.count).expect("a length");
        assert!(count <= 1 << 20 && (is_read || data.len() == count), "{access:?} was asked of us");
        let mut reply = access.as_bytes().to_vec();
        reply.resize(16 + if is_read { count } else { 0 }, how);
        let (mut id, mut command, mut flags) = (request.header.message_id, request.header.command, TYPE_REPLY);
        let mut fds = Vec::new();
        match how % 20 {
            1 => {
                flags |= FLAG_ERROR;
                reply.clear();
            }
            2 => reply.truncate(reply.len().saturating_sub(usize::from(how / 16))),
            3 => reply.extend([0; 7]),
            4 => reply[8] ^= 1,
            5 => id ^= 1,
            6 => command ^= 7,
            7 => fds = vec![how; usize::from(how / 8)],
            8 => return,
            9 => flags = 2,
            10 => reply.truncate(12),
            11 => flags |= FLAG_ERROR,
            12 => reply.clear(),
            // The client goes on with something else first.
            13 => self.say(
                &Packet { command: 4, payload: [16, 0, 0, 0].repeat(4), impatient: true, ..Packet::default() },
                99,
            ),
            14 => {
                let packet = Packet { payload: reply.clone(), ..Packet::default() };
                send(&mut self.main, &packet, &packet.bytes(id, command, flags), &self.descriptors);
            }
            15 => flags = TYPE_COMMAND,
            _ => {}
        }
        let packet = Packet { payload: reply, fds, ..Packet::default() };
        let bytes = packet.bytes(id, command, flags);
        let cut = if how % 20 == 16 { bytes.len() / 2 } else { bytes.len() };
        let peer = self.twin.as_mut().unwrap_or(&mut self.main);
        send(peer, &packet, &bytes[..cut], &self.descriptors);
    }
}

fn send(peer: &mut Peer, packet: &Packet, bytes: &[u8], descriptors: &Descriptors) -> bool {
    let fds = descriptors.resolve(&packet.fds, peer);
    packet.parts(bytes).iter().enumerate().all(|(i, part)| {
        let fds = if i == 0 { &fds[..] } else { &[] };
        peer.send(part, fds, DEADLINE)
    })
}
