//! The client's state machine: its calls, from two threads, and a server that does anything, at any time.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use outrigger_protocol::client::{Client, ClientError, ClientMemory, Journal, Options, RegionWrite};
use outrigger_protocol::command::Command;
use outrigger_protocol::journal::MAX_KEPT;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::wire::{self, FLAG_ERROR, Header, RegionAccess, RegionWriteMulti, TYPE_COMMAND, TYPE_REPLY, VfioTerms};
use zerocopy::{FromBytes, IntoBytes};

use crate::allocations::count_this_thread;
use crate::checks::{Limits, checked};
use crate::descriptors::{Descriptors, memfd};
use crate::device::journal_format;
use crate::input::{Input, MAX_STEPS, Packet};
use crate::peer::{Arrived, Peer};
use crate::version;

/// The client's deadline.
const DEADLINE: Duration = Duration::from_millis(20);
/// The most that the client can hold: a call's data (2.3 MiB here), and for each socket a message in, a message out, the
/// backlog and one reply; more in buffers that grow.
const LIMITS: Limits = Limits { total: 14 << 20, piece: 5 << 20, time: Duration::from_secs(20) };
const TWIN_LIMITS: Limits = Limits { total: 24 << 20, ..LIMITS };
/// The time for a call beyond its deadlines: a machine with more to do than this was seen to stand still for 2.5 s.
const SLACK: Duration = Duration::from_secs(8);
/// How much memory the client has.
pub const RAM: usize = 64 << 10;

/// A step of an input: the next call of the client.
pub const CALL: u8 = 0;
/// The server gives the answer that it should give.
pub const HONEST: u8 = 1;
/// The server gives some answer.
pub const REPLY: u8 = 2;
/// The server makes a request of its own.
pub const REQUEST: u8 = 3;
/// The server makes the same request many times.
pub const FLOOD: u8 = 9;
/// From here on the server's next steps are for the next command.
pub const NEXT: u8 = 4;

/// The calls of a client; the numbers are those of [`Call::what`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    /// Which.
    pub what: u8,
    /// An index.
    pub index: u8,
    /// A length, or another argument.
    pub length: u16,
}

/// An act of the server.
#[derive(Debug)]
enum Deed {
    Honest,
    Reply(Packet),
    Request(Packet),
    Next,
    Bytes(Vec<u8>, Vec<u8>),
    Wait(u8),
    Hang(u8),
    /// On the twin, if there is one.
    Twin(Packet),
    /// The same request many times, on the twin, if there is one, when it is an odd number of times.
    Flood(Packet, u8),
}

/// An input: how to begin, then the client's calls and the server's deeds in any order.
pub fn run(data: &[u8]) {
    let twin = data.first().is_some_and(|twin| twin % 2 == 1);
    checked(if twin { TWIN_LIMITS } else { LIMITS }, || session(data));
}

fn session(data: &[u8]) {
    let mut input = Input::new(data);
    let twin = input.number::<u8>() % 2 == 1;
    let version = version::payload(&mut input, r#"{"supported":true,"fd_index":0}"#);
    let version_fds = input.bytes(65).to_vec();
    let (mut calls, mut deeds) = (Vec::new(), VecDeque::new());
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        match input.number::<u8>() % 10 {
            CALL => calls.push(Call { what: input.number(), index: input.number(), length: input.number() }),
            HONEST => deeds.push_back(Deed::Honest),
            REPLY => deeds.push_back(Deed::Reply(Packet::decode(&mut input))),
            REQUEST => deeds.push_back(Deed::Request(Packet::decode(&mut input))),
            NEXT => deeds.push_back(Deed::Next),
            5 => deeds.push_back(Deed::Bytes(input.bytes(2048).to_vec(), input.bytes(255).to_vec())),
            6 => deeds.push_back(Deed::Wait(input.number())),
            7 => deeds.push_back(Deed::Hang(input.number())),
            8 => deeds.push_back(Deed::Twin(Packet::decode(&mut input))),
            _ => deeds.push_back(Deed::Flood(Packet::decode(&mut input), input.number())),
        }
    }
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let (sender, ended) = channel();
    let caller = std::thread::spawn(move || {
        count_this_thread();
        client(theirs, twin, &calls);
        let _ = sender.send(());
    });
    let mut server = Server { main: Peer::new(ours), twin: None, descriptors: Descriptors::open(), deeds };
    // The limit for all calls together.
    let deadline = Instant::now() + LIMITS.time;
    server.begin(twin, version, version_fds);
    while !server.main.closed {
        assert!(Instant::now() < deadline, "the client does not come to an end");
        server.main.wait_with(server.twin.as_ref(), Duration::from_millis(50));
        server.serve();
    }
    drop(server);
    ended.recv_timeout(LIMITS.time).expect("the client comes to an end");
    caller.join().expect("the client does not panic");
}

/// The client's memory, from DMA address 0 on.
#[derive(Debug)]
pub struct Ram(pub Mutex<Vec<u8>>);

impl ClientMemory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        let ram = self.0.lock().map_err(|_| Errno::EFAULT)?;
        // Only what was mapped is asked for.
        let start = usize::try_from(address).expect("within memory");
        data.copy_from_slice(&ram[start..start + data.len()]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        let mut ram = self.0.lock().map_err(|_| Errno::EFAULT)?;
        let start = usize::try_from(address).expect("within memory");
        ram[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Connects, makes all calls, and leaves. Another thread serves what comes meanwhile, as a VMM's does.
fn client(stream: UnixStream, twin_socket: bool, calls: &[Call]) {
    let start = Instant::now();
    let ram = Arc::new(Ram(Mutex::new(vec![0; RAM])));
    let client = Client::new(stream, ram, &Options { deadline: DEADLINE, twin_socket, journal: true, vfio: true });
    assert!(start.elapsed() < DEADLINE + SLACK, "the version took {:?}", start.elapsed());
    let Ok(client) = client else { return };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            count_this_thread();
            watch(&client, &done);
        });
        for &what in calls {
            let start = Instant::now();
            let (messages, result) = call(&client, what);
            let (elapsed, limit) = (start.elapsed(), DEADLINE * (messages + 1) + SLACK);
            assert!(elapsed < limit, "{what:?} took {elapsed:?}: {result:?}");
            match result {
                Ok(()) | Err(ClientError::Refused { .. } | ClientError::Local { .. }) => {}
                Err(_) => assert!(client.is_closed(), "{result:?} did not end the connection"),
            }
        }
        done.store(true, Ordering::SeqCst);
    });
}

/// Serves the server's requests until all is done, or the connection has ended.
pub fn watch(client: &Client, done: &AtomicBool) {
    while !done.load(Ordering::SeqCst) {
        let events = |requests| if requests { PollFlags::POLLIN } else { PollFlags::empty() };
        let watched: Vec<_> = client.watch().collect();
        let mut fds: Vec<_> = watched.iter().map(|w| PollFd::new(w.fd, events(w.requests))).collect();
        if poll(&mut fds, PollTimeout::from(2u8)).unwrap_or(0) == 0 {
            continue;
        }
        let start = Instant::now();
        let served = client.serve_ready();
        // The requests that come without a pause, the replies that are not taken, and the same on the twin.
        assert!(start.elapsed() < DEADLINE * 4 + SLACK, "serving took {:?}", start.elapsed());
        if served.is_err() {
            assert!(client.is_closed());
            return;
        }
    }
}

/// Makes a call; returns how many messages it may have sent.
pub fn call(client: &Client, call: Call) -> (u32, Result<(), ClientError>) {
    let Call { what, index, length } = call;
    let region = u32::from(index);
    let xfer = usize::try_from(client.server_capabilities().max_data_xfer_size).unwrap_or(usize::MAX);
    // Enough for several messages, and no more than a few of them.
    let bytes = usize::from(length).saturating_mul(if length % 2 == 1 { 37 } else { 1 }).min(xfer.saturating_mul(20));
    let messages = u32::try_from(bytes.div_ceil(xfer)).expect("at most twenty") + 1;
    let result = match what % 28 {
        0 => client.device_info().map(|_| ()),
        1 => client.region_info(region).map(|info| drop(info.fd)),
        2 => client.region_io_fds(region, u64::from(length) << 8).map(drop),
        3 => client.irq_info(region).map(|_| ()),
        4 | 5 => client.region_read(region, length.into(), &mut vec![0; bytes]),
        6 => client.region_write(region, length.into(), &vec![index; bytes]),
        7 | 8 => client.region_write_posted(region, length.into(), &vec![index; bytes]),
        9 => {
            let writes = vec![RegionWrite { region, offset: length.into(), data: &[7; 8] }; usize::from(length % 20)];
            let done = client.region_write_multi(&writes);
            return (20, done.map(|done| assert!(done <= writes.len())));
        }
        // All memory, so that answers are long.
        10 if length % 2 == 1 => client.dma_map(0, RAM as u64, None),
        10 => client.dma_map(u64::from(index % 16) << 12, 4096, None),
        11 => {
            let file = memfd(8192);
            client.dma_map(u64::from(index % 16) << 12, 4096, Some((file.as_fd(), 4096)))
        }
        12 if length % 2 == 1 => client.dma_unmap(0, RAM as u64),
        12 => client.dma_unmap(u64::from(index % 16) << 12, 4096),
        13 => {
            let eventfds: Vec<_> = (0..length % 12).map(|_| EventFd::new().expect("an eventfd")).collect();
            let fds: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
            return (13, client.set_irq_eventfds(2, region, &fds));
        }
        14 => client.disable_irqs(region),
        15 => client.unmask_irq(region, length.into()),
        16 => client.get_feature(length, &vec![index; usize::from(index)]).map(drop),
        17 => client.set_feature(length, &vec![index; usize::from(index)]),
        18 => client.reset(),
        19 if length % 2 == 1 => {
            let journal = Journal::create(&journal_format()).expect("a journal");
            match index % 3 {
                0 => client.begin_journal(&journal).map(|kept| assert!(kept.len() <= MAX_KEPT)),
                1 => client.offer_journal(&journal),
                _ => client.take_journal(),
            }
        }
        20 if length % 2 == 1 => match index % 2 {
            0 => client.vfio_file().map(drop),
            _ => client.open_vfio(VfioTerms { known_to_kvm: index % 4 == 1, client_maps: index % 8 == 1 }),
        },
        20 => client.migration().map(drop),
        21 => client.device_state().map(drop),
        22 => client.set_device_state(DeviceState::from_number(u32::from(index % 7)).unwrap_or(DeviceState::Stop)),
        23 => client.read_migration_data(&mut vec![0; bytes]).map(|read| assert!(read <= bytes)),
        24 => client.write_migration_data(&vec![index; bytes]),
        25 => client.start_dma_logging(4096, &[(0, u64::from(length) << 12), (1 << 40, 4096)]).map(drop),
        26 => client.dirty_pages(0, u64::from(length) << 12, 4096).map(drop),
        27 => client.stop_dma_logging(),
        _ => {
            // A moment without a call.
            std::thread::sleep(Duration::from_millis(u64::from(length % 3)));
            client.probe_feature(length, true, index % 2 == 0).map(|_| ())
        }
    };
    (messages.max(3), result)
}

struct Server {
    main: Peer,
    twin: Option<Peer>,
    descriptors: Descriptors,
    deeds: VecDeque<Deed>,
}

impl Server {
    /// Answers the first message as the input says.
    fn begin(&mut self, twin: bool, version: Option<Vec<u8>>, mut fds: Vec<u8>) {
        self.main.wait_with(None, Duration::from_secs(2));
        self.main.receive();
        let Some(proposal) = self.main.next_message() else { return };
        assert_eq!(proposal.header.command, Command::Version as u16);
        let Some(payload) = version else { return };
        // Only a real twin socket is of use later.
        let mut given = None;
        if twin && fds.is_empty() {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            self.twin = Some(Peer::new(ours));
            given = Some(theirs);
            fds.clear();
        }
        let packet = Packet { payload, fds, ..Packet::default() };
        let bytes = packet.bytes(proposal.header.message_id, Command::Version as u16, TYPE_REPLY);
        match given {
            Some(given) => {
                let given = [std::os::fd::AsRawFd::as_raw_fd(&given)];
                self.main.send(&bytes, &given, DEADLINE);
            }
            None => {
                send(&mut self.main, &packet, &bytes, &self.descriptors);
            }
        }
    }

    /// Takes what is there; each command is answered by the deeds up to [`Deed::Next`], or honestly when none are left.
    fn serve(&mut self) {
        self.main.receive();
        while let Some(message) = self.main.next_message() {
            if message.header.is_command() {
                self.answer(&message);
            }
        }
        if let Some(twin) = &mut self.twin {
            twin.receive();
            while let Some(message) = twin.next_message() {
                assert!(message.header.is_reply(), "a command came on the twin socket");
            }
            if twin.closed && !self.main.closed {
                self.twin = None;
            }
        }
    }

    fn answer(&mut self, command: &Arrived) {
        if self.deeds.is_empty() {
            return self.honest(command);
        }
        let Header { message_id: id, command: number, .. } = command.header;
        while let Some(deed) = self.deeds.pop_front() {
            match deed {
                Deed::Next => return,
                Deed::Honest => self.honest(command),
                Deed::Reply(packet) => self.say(&packet, id, number, TYPE_REPLY),
                Deed::Request(packet) => self.say(&packet, 7, packet.command.into(), TYPE_COMMAND),
                Deed::Bytes(bytes, fds) => {
                    let fds = self.descriptors.resolve(&fds, &self.main);
                    self.main.send(&bytes, &fds, DEADLINE);
                }
                Deed::Wait(time) => std::thread::sleep(Duration::from_millis(u64::from(time % 8))),
                Deed::Hang(which) => {
                    let how = [Shutdown::Write, Shutdown::Read, Shutdown::Both][usize::from(which % 3)];
                    match &mut self.twin {
                        Some(_) if which & 0x80 != 0 => self.twin = None,
                        Some(twin) if which & 0x40 != 0 => twin.shutdown(how),
                        _ => self.main.shutdown(how),
                    }
                }
                Deed::Twin(packet) => {
                    if let Some(twin) = &mut self.twin {
                        let bytes = packet.bytes(9, packet.command.into(), TYPE_COMMAND);
                        send(twin, &packet, &bytes, &self.descriptors);
                    }
                }
                Deed::Flood(packet, times) => {
                    let bytes = packet.bytes(8, packet.command.into(), TYPE_COMMAND);
                    let peer = self.twin.as_mut().filter(|_| times % 2 == 0).unwrap_or(&mut self.main);
                    // Without taking what the client says.
                    peer.deaf = packet.impatient;
                    let _ = (0..=times).all(|_| send(peer, &packet, &bytes, &self.descriptors));
                }
            }
        }
    }

    fn say(&mut self, packet: &Packet, id: u16, command: u16, flags: u32) {
        send(&mut self.main, packet, &packet.bytes(id, command, flags), &self.descriptors);
    }

    /// Answers as a small device would.
    fn honest(&mut self, command: &Arrived) {
        if command.header.no_reply() {
            return;
        }
        let payload = &command.payload;
        let (mut flags, mut fds) = (TYPE_REPLY, Vec::new());
        let reply = match Command::from_number(command.header.command) {
            Some(Command::DeviceGetInfo) => {
                wire::DeviceInfo { argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 }.as_bytes().to_vec()
            }
            Some(Command::DeviceGetRegionInfo) => {
                let (request, _) = wire::RegionInfo::read_from_prefix(payload).expect("a whole request");
                fds.push(0);
                wire::RegionInfo { argsz: 32, flags: 7, cap_offset: 0, size: 4096, offset: 0, ..request }
                    .as_bytes()
                    .to_vec()
            }
            Some(Command::DeviceGetIrqInfo) => {
                let (request, _) = wire::IrqInfo::read_from_prefix(payload).expect("a whole request");
                wire::IrqInfo { argsz: 16, flags: 1, count: 4, ..request }.as_bytes().to_vec()
            }
            Some(Command::RegionRead) => {
                let (request, _) = RegionAccess::read_from_prefix(payload).expect("a whole request");
                assert!(request.count <= 1 << 20);
                let mut reply = request.as_bytes().to_vec();
                reply.resize(16 + request.count as usize, 7);
                reply
            }
            Some(Command::RegionWrite) => payload[..16].to_vec(),
            Some(Command::RegionWriteMulti) => {
                let (request, _) = RegionWriteMulti::read_from_prefix(payload).expect("a whole request");
                request.as_bytes().to_vec()
            }
            Some(Command::DmaUnmap | Command::DeviceFeature) => payload.clone(),
            Some(Command::DmaMap | Command::DeviceSetIrqs | Command::DeviceReset) => Vec::new(),
            _ => {
                flags |= FLAG_ERROR;
                Vec::new()
            }
        };
        let packet = Packet { payload: reply, fds, ..Packet::default() };
        self.say(&packet, command.header.message_id, command.header.command, flags);
    }
}

fn send(peer: &mut Peer, packet: &Packet, bytes: &[u8], descriptors: &Descriptors) -> bool {
    let fds = descriptors.resolve(&packet.fds, peer);
    packet.parts(bytes).iter().enumerate().all(|(i, part)| {
        let fds = if i == 0 { &fds[..] } else { &[] };
        peer.send(part, fds, DEADLINE)
    })
}
