//! Records the corpus: our client and our server talk through this program, and what they say becomes the inputs that
//! make a hostile peer say the same.
//!
//!     cargo run --release --bin seeds -- corpus

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use outrigger_protocol::client::{Client, ClientError, Options, RegionWrite};
use outrigger_protocol::command::Command;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::server::{Options as ServerOptions, serve};
use outrigger_protocol::wire::{HEADER_SIZE, Header};
use outrigger_protocol_fuzz::client_session::{self, Call, RAM, Ram};
use outrigger_protocol_fuzz::device::{FuzzDevice, INTERRUPT, MESSAGES, ORDERS, Order};
use outrigger_protocol_fuzz::input::{JOURNAL_OFFER, JOURNAL_TAKE, Packet, VFIO_FILE, VFIO_OPEN};
use outrigger_protocol_fuzz::{client_codec, descriptors, ioregionfd, server_session, version};
use zerocopy::{FromBytes, IntoBytes};

const DEADLINE: Duration = Duration::from_secs(10);

/// A message that went by.
#[derive(Clone, Debug)]
struct Said {
    by_client: bool,
    header: Header,
    payload: Vec<u8>,
    fds: Vec<u8>,
}

type Log = Arc<Mutex<Vec<Said>>>;

fn main() {
    let corpus = PathBuf::from(std::env::args_os().nth(1).expect("the directory of the corpus"));
    for target in ["client_codec", "server_codec", "server_session", "client_session", "ioregionfd"] {
        let directory = corpus.join(target);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).expect("a directory");
    }
    for twin in [false, true] {
        let prefix = if twin { "twin-" } else { "" };
        for &(name, scenario) in SERVER_SCENARIOS {
            let log = exchange(twin, scenario);
            server_seeds(&corpus, &format!("{prefix}{name}"), twin, &log);
        }
        for (name, calls) in CLIENT_SCENARIOS {
            let log = exchange(twin, |client| {
                for &(what, index, length) in *calls {
                    if (what, u64::from(length)) == (6, ORDERS) {
                        obey(client, order(index, 0, 0x100, if index == 0 { 0xff00 } else { 0x80 }));
                        continue;
                    }
                    let (_, result) = client_session::call(client, Call { what, index, length });
                    assert!(matches!(result, Ok(()) | Err(ClientError::Refused { .. })), "{result:?}");
                }
            });
            client_seeds(&corpus, &format!("{prefix}{name}"), twin, calls, &log, false);
            if *name == "dma" {
                client_seeds(&corpus, &format!("{prefix}{name}-flood"), twin, calls, &log, true);
            }
        }
    }
    for choice in 0..4 {
        save(&corpus, "ioregionfd", &format!("accesses-{choice}"), &register_accesses(choice));
    }
    save(&corpus, "server_session", "journal", &journal());
    save(&corpus, "server_session", "vfio", &behind_vfio());
    let texts = [
        r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4096,"max_dma_maps":7,"pgsizes":4096,"write_multiple":true}}"#,
        r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0},"migration":{"pgsize":4096}}}"#,
        "{}",
    ];
    for (i, text) in texts.iter().enumerate() {
        save(&corpus, "client_codec", &format!("json-{i}"), &[&[1], text.as_bytes(), &[0]].concat());
    }
}

/// A journal is begun; a predecessor's is offered and taken.
fn journal() -> Vec<u8> {
    let offer = |flags: u32| {
        let payload = [16u32.to_le_bytes(), flags.to_le_bytes(), 8192u32.to_le_bytes(), [0; 4]].concat();
        Packet { command: JOURNAL_OFFER, payload, fds: vec![descriptors::JOURNAL], ..Packet::default() }
    };
    let take = Packet { command: JOURNAL_TAKE, ..Packet::default() };
    // The version's, with the capability.
    let mut seed = vec![8];
    for packet in [offer(1), take, offer(0)] {
        seed.push(server_session::PACKET);
        seed.extend(packet.encode());
    }
    seed
}

/// A device behind VFIO is asked for its file, opened, and asked what it is.
fn behind_vfio() -> Vec<u8> {
    let open = [8u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    let mut seed = vec![version::VFIO];
    for (command, payload) in [(VFIO_FILE, vec![]), (VFIO_OPEN, open), (4, [vec![16], vec![0; 15]].concat())] {
        seed.push(server_session::PACKET);
        seed.extend(Packet { command, payload, ..Packet::default() }.encode());
    }
    seed
}

type Scenario = fn(&Client);

fn order(what: u8, elsewhere: u8, address: u64, length: u32) -> Order {
    Order { what, irq: 2, vector: 1, elsewhere, length, address }
}

fn obey(client: &Client, order: Order) {
    client.region_write(MESSAGES, ORDERS, order.as_bytes()).expect("an order that can be obeyed");
}

const SERVER_SCENARIOS: &[(&str, Scenario)] = &[
    ("queries", |client| {
        client.device_info().expect("device info");
        for index in 0..9 {
            client.region_info(index).expect("region info");
            client.region_io_fds(index, 2 << 20).expect("io fds");
        }
        for index in 0..5 {
            client.irq_info(index).expect("irq info");
        }
    }),
    ("access", |client| {
        client.region_write(MESSAGES, 64, &[1; 100]).expect("a write");
        client.region_write_posted(MESSAGES, 64, &[2; 8]).expect("a posted write");
        client.region_read(MESSAGES, 64, &mut [0; 100]).expect("a read");
        client.region_read(MESSAGES, 0, &mut vec![0; 5000]).expect("a long read");
        client.region_read(7, 0, &mut [0; 256]).expect("a read of configuration space");
        client.region_read(MESSAGES, (2 << 20) - 16, &mut [0; 4]).expect_err("a read that fails");
        client.reset().expect("a reset");
    }),
    ("several-writes", |client| {
        let write = |offset| RegionWrite { region: MESSAGES, offset, data: &[1, 2, 3, 4, 5, 6, 7, 8] };
        client.region_write_multi(&[write(0), write(8), write(16)]).expect("three writes");
        client.region_write_multi(&[write(0), write((2 << 20) - 16), write(8)]).expect("the first of them");
    }),
    ("mapped-memory", |client| {
        let memory = descriptors::memfd(descriptors::LARGE);
        client.dma_map(0, 0x10000, Some((memory.as_fd(), 0))).expect("a mapping");
        client.dma_map(0x10000, 0x1000, Some((memory.as_fd(), 0x4000))).expect("a mapping");
        for what in 0..8 {
            obey(client, order(what, 0, 0xff00, 0x80));
            obey(client, order(what, 1, 0xff00, 0x80));
        }
        client.dma_map(0x8000, 0x1000, None).expect_err("an overlap");
        client.dma_unmap(0x10000, 0x1000).expect("what was mapped");
        client.dma_unmap(0x4000, 0x1000).expect_err("what was not mapped");
    }),
    ("memory-by-message", |client| {
        let memory = descriptors::memfd(descriptors::LARGE);
        client.dma_map(0, 0x4000, None).expect("a range");
        client.dma_map(0x4000, 0x1000, Some((memory.as_fd(), 0))).expect("a mapping");
        client.dma_map(0x5000, 0x1000, None).expect("a range");
        for what in [0, 1, 2, 3, 4, 7] {
            obey(client, order(what, 0, 0x100, 0x80));
        }
        obey(client, order(0, 1, 0x3f00, 0x1800));
        obey(client, order(1, 0, 0x3f00, 0x1800));
        client.region_read(MESSAGES, 0, &mut [0; 8]).expect("a read");
        client.dma_unmap(0, 0x4000).expect("what was mapped");
    }),
    ("interrupts", |client| {
        let eventfds: Vec<EventFd> = (0..20).map(|_| EventFd::new().expect("an eventfd")).collect();
        let fds: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
        client.set_irq_eventfds(2, 0, &fds).expect("MSI-X");
        obey(client, order(INTERRUPT, 0, 0, 0));
        obey(client, order(INTERRUPT, 1, 0, 0));
        client.disable_irqs(2).expect("MSI-X off");
        client.set_irq_eventfds(0, 0, &fds[..1]).expect("INTx");
        client.unmask_irq(0, 0).expect("an unmasked pin");
        client.mask_irq(0, 0).expect("a masked pin");
        client.set_irq_eventfds(1, 0, &fds[..2]).expect("MSI");
    }),
    ("features", |client| {
        client.probe_feature(9, true, false).expect("an answer");
        client.probe_feature(40, true, false).expect("an answer");
        client.set_feature(10, &[7; 40]).expect("a change");
        for index in 9..12 {
            client.get_feature(index, &[1, 2, 3]).expect("data");
        }
        client.get_feature(13, &[]).expect_err("too much");
    }),
    ("migration", |client| {
        client.migration().expect("an answer").expect("a device that migrates");
        client.set_device_state(DeviceState::StopCopy).expect("a stop");
        let mut state = vec![0; 8000];
        let length = client.read_migration_data(&mut state).expect("data");
        client.set_device_state(DeviceState::Resuming).expect("a stop");
        client.write_migration_data(&state[..length]).expect("a new state");
        client.set_device_state(DeviceState::Running).expect("a start");
        client.device_state().expect("a state");
    }),
    ("logging", |client| {
        client.dma_map(0, 0x10000, None).expect("memory");
        client.can_log_dma().expect("an answer");
        client.start_dma_logging(4096, &[(0, 0x10000)]).expect("a log");
        client.dirty_pages(0, 0x10000, 4096).expect("a report");
        client.stop_dma_logging().expect("an end");
    }),
];

/// [`Call`]s: what, index, length.
type Calls = &'static [(u8, u8, u16)];

const CLIENT_SCENARIOS: &[(&str, Calls)] = &[
    ("info", &[(0, 0, 0), (1, 0, 0), (1, 1, 0), (3, 0, 0), (3, 2, 0)]),
    ("regions", &[(1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 0), (1, 5, 0), (1, 6, 0)]),
    ("io-fds", &[(2, 0, 0x2000), (2, 1, 0x80), (1, 3, 0)]),
    ("read", &[(4, 0, 8), (5, 7, 4), (4, 0, 2000), (5, 0, 101)]),
    ("write", &[(6, 0, 8), (7, 0, 4), (8, 0, 100), (4, 0, 8), (7, 0, 8), (6, 7, 4)]),
    ("several-writes", &[(9, 0, 5), (9, 0, 19), (4, 0, 8)]),
    ("memory", &[(10, 0, 0), (11, 1, 0), (10, 2, 0), (12, 0, 0), (12, 1, 0), (10, 0, 0)]),
    ("interrupts", &[(13, 0, 4), (14, 2, 0), (13, 0, 11), (18, 0, 0)]),
    ("features", &[(19, 0, 9), (16, 0, 9), (17, 40, 10), (16, 0, 10), (16, 3, 12), (16, 0, 11)]),
    ("migration", &[(20, 0, 0), (22, 3, 0), (23, 0, 8000), (22, 4, 0), (24, 9, 3000), (22, 2, 0), (21, 0, 0)]),
    ("logging", &[(10, 0, 1), (25, 0, 16), (26, 0, 16), (27, 0, 0)]),
    // The device asks for client memory before it answers: these writes are orders.
    ("dma", &[(10, 0, 1), (6, 0, 0x1000), (6, 1, 0x1000), (6, 2, 0x1000), (4, 0, 8), (12, 0, 1)]),
];

/// Our client and our server through a recorder, which sees all but a twin socket.
fn exchange(twin_socket: bool, scenario: impl FnOnce(&Client)) -> Vec<Said> {
    let (client_end, ours) = UnixStream::pair().expect("a socket pair");
    let (theirs, server_end) = UnixStream::pair().expect("a socket pair");
    let log = Log::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            serve(
                &mut FuzzDevice::new(true),
                server_end,
                &ServerOptions { deadline: DEADLINE, ..ServerOptions::default() },
            )
        });
        scope.spawn(|| forward(&ours, &theirs, true, &log));
        scope.spawn(|| forward(&theirs, &ours, false, &log));
        let ram = Arc::new(Ram(Mutex::new(vec![0; RAM])));
        let options = Options { deadline: DEADLINE, twin_socket, ..Options::default() };
        let client = Client::new(client_end, ram, &options).expect("a version");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| client_session::watch(&client, &done));
            scenario(&client);
            // Time for the device's other thread.
            std::thread::sleep(Duration::from_millis(50));
            done.store(true, Ordering::SeqCst);
        });
    });
    let log = log.lock().expect("no panic");
    log.clone()
}

fn forward(from: &UnixStream, to: &UnixStream, by_client: bool, log: &Log) {
    loop {
        let mut start = [0; HEADER_SIZE];
        let mut fds = Vec::new();
        if !fill(from, &mut start, &mut fds) {
            let _ = to.shutdown(std::net::Shutdown::Both);
            return;
        }
        let header = Header::read_from_bytes(&start).expect("it is as long as a header");
        let mut payload = vec![0; header.message_size as usize - HEADER_SIZE];
        assert!(payload.is_empty() || fill(from, &mut payload, &mut fds));
        let kinds = fds.iter().map(kind).collect();
        log.lock().expect("no panic").push(Said { by_client, header, payload: payload.clone(), fds: kinds });
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let sent = sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&start)], control, MsgFlags::MSG_NOSIGNAL, None);
        if sent.is_err() || { to }.write_all(&payload).is_err() {
            return;
        }
    }
}

fn fill(from: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> bool {
    let mut have = 0;
    while have < buffer.len() {
        let mut control = cmsg_space!([RawFd; 253]);
        let mut parts = [IoSliceMut::new(&mut buffer[have..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(message) = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut control), flags) else { return false };
        for rights in message.cmsgs().expect("room for all descriptors") {
            if let ControlMessageOwned::ScmRights(new) = rights {
                // SAFETY: the kernel has just installed these descriptors, and nobody else knows them.
                fds.extend(new.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.bytes == 0 {
            return false;
        }
        have += message.bytes;
    }
    true
}

fn kind(fd: &OwnedFd) -> u8 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("an open descriptor");
    match link.to_str().expect("ASCII") {
        link if link.contains("eventfd") => descriptors::EVENTFD,
        link if link.starts_with("socket") => descriptors::SOCKET,
        _ => descriptors::MEMORY,
    }
}

fn packet(said: &Said, command: u8) -> Packet {
    let (payload, more) = match said.payload.len() {
        0..=2000 => (said.payload.clone(), 0),
        long => (said.payload[..16].to_vec(), u8::try_from(long.ilog2()).expect("less than 32")),
    };
    Packet { command, payload, more, fds: said.fds.clone(), no_reply: said.header.no_reply(), ..Packet::default() }
}

/// Whether the reply has a size of its own.
fn is_description(header: &Header) -> bool {
    let descriptions = [Command::DeviceGetRegionInfo, Command::DeviceGetRegionIoFds, Command::DeviceFeature];
    descriptions.iter().any(|&command| command as u16 == header.command)
}

fn number(header: &Header) -> u8 {
    u8::try_from(header.command).expect("a command that we speak")
}

fn server_seeds(corpus: &Path, name: &str, twin: bool, log: &[Said]) {
    let (mut codec, mut session) = (vec![u8::from(twin)], vec![u8::from(twin)]);
    for said in log.iter().filter(|said| said.by_client && said.header.is_command()).skip(1) {
        let packet = packet(said, number(&said.header)).encode();
        session.push(server_session::PACKET);
        session.extend(&packet);
        if !twin {
            save(corpus, "server_codec", &format!("one-{name}-{}", codec.len()), &[&[0], &packet[..]].concat());
        }
        codec.extend(packet);
    }
    save(corpus, "server_codec", name, &codec);
    save(corpus, "server_session", name, &session);
}

/// `flood`: each request of the server comes 256 times, and it takes no answer meanwhile.
fn client_seeds(corpus: &Path, name: &str, twin: bool, calls: Calls, log: &[Said], flood: bool) {
    let mut session = vec![u8::from(twin), u8::from(twin), 0, 0];
    for &(what, index, length) in calls {
        session.extend([client_session::CALL, what, index]);
        session.extend(length.to_le_bytes());
    }
    let fds: &[u8] = if twin { &[1, 0, descriptors::SOCKET] } else { &[0, 0] };
    let beginning = [&[client_codec::REPLIES], fds, &[u8::from(twin)]].concat();
    let (mut codec, mut again) = (beginning.clone(), false);
    // After the version and its reply.
    for said in log.iter().skip(2) {
        if !said.by_client {
            let is_reply = said.header.is_reply();
            let message = packet(said, number(&said.header));
            match is_reply {
                true => session.extend([&[client_session::REPLY], &message.encode()[..]].concat()),
                false if flood => {
                    session.push(client_session::FLOOD);
                    session.extend(Packet { impatient: true, ..message }.encode());
                    session.push(u8::MAX);
                }
                false => session.extend([&[client_session::REQUEST], &message.encode()[..]].concat()),
            }
            let call = client_codec::CALLS.iter().position(|&call| call as u16 == said.header.command);
            if let Some(call) = call.filter(|_| is_reply && said.header.error == 0) {
                let at = |i: usize| said.payload.get(i).copied().unwrap_or(0);
                let argument = match client_codec::CALLS[call] {
                    Command::RegionRead => at(12),
                    Command::RegionWriteMulti => at(0),
                    Command::DeviceFeature => at(4),
                    _ => at(8),
                };
                let call = u8::try_from(call).expect("few calls");
                // After a reply that says how much room it needs, the next one is for the same call.
                let argument = if std::mem::take(&mut again) { 0 } else { argument };
                let argsz = u32::from_le_bytes([at(0), at(1), at(2), at(3)]) as usize;
                again = argument != 0 && is_description(&said.header) && argsz > said.payload.len();
                let reply = [&[call], &packet(said, argument).encode()[..]].concat();
                if !twin {
                    save(
                        corpus,
                        "client_codec",
                        &format!("one-{name}-{}", codec.len()),
                        &[&beginning, &reply[..]].concat(),
                    );
                }
                codec.extend(reply);
            }
        } else if said.header.is_command() && log.iter().skip(2).position(|first| std::ptr::eq(first, said)) > Some(0) {
            session.push(client_session::NEXT);
        }
    }
    save(corpus, "client_session", name, &session);
    save(corpus, "client_codec", name, &codec);
    let framing: Vec<u8> = log.iter().flat_map(|said| packet(said, number(&said.header)).encode()).collect();
    save(corpus, "client_codec", &format!("framing-{name}"), &[&[2][..], &framing].concat());
}

/// Accesses of every kind by ioregionfd, as `ioregionfd::run` reads them, all of them right.
fn register_accesses(choice: u8) -> Vec<u8> {
    let mut input = vec![choice];
    for kind in 0..16u8 {
        if choice & ioregionfd::ASKING == 0 {
            // A whole command without noise; a read or write of each size, waited for or not.
            let info = (kind & 3) << 4 | (kind >> 2 & 1) << 6 | kind >> 3;
            input.extend([0, 0, info]);
            input.extend([kind; 24]);
        } else {
            input.extend([kind, 0]);
            input.extend([kind; 8]);
        }
    }
    input
}

fn save(corpus: &Path, target: &str, name: &str, input: &[u8]) {
    assert!(input.len() <= 4096, "{target}/{name} has {} bytes", input.len());
    std::fs::write(corpus.join(target).join(name), input).expect("the corpus can be written");
}
