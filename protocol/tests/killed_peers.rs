//! A peer that is killed, at any point of a busy connection, leaves nothing behind on the other side, which notices at
//! once. The peers are processes: this test starts itself again as one. Alone in its process: it counts the process's
//! descriptors, mappings and threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::device::{self, COPY_OFFSET, MESSAGES, MESSAGES_SIZE, State, TestDevice};
use common::held::{Numbers, assert_held, settled};
use common::memory::GuestMemory;
use common::raw::Raw;
use common::{PATIENCE, Server, memfd, watched};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use outrigger_protocol::client::{Client, ClientError, Options};
use outrigger_protocol::pci;
use outrigger_protocol::server::{Options as ServerOptions, serve};

const KILLS: usize = 1000;
/// When a dead peer must have been noticed: the deadline is [`PATIENCE`], twenty times as long.
/// Not at the deadline. A machine that is busy may need seconds to end a process.
const AT_ONCE: Duration = Duration::from_secs(PATIENCE.as_secs() / 2);
/// Says to a process which peer it is.
const ROLE: &str = "OUTRIGGER_KILLED_PEER";
const NAME: &str = "killed_peers_leave_nothing_behind_and_are_noticed_at_once";
const RAM: usize = 1 << 20;

/// This test, in another process, at the other end of a socket.
struct Peer(Child);

impl Peer {
    fn start(role: &str, socket: UnixStream) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([NAME, "--exact", "--nocapture"]).env(ROLE, role);
        // The socket is its standard input.
        Self(command.stdin(OwnedFd::from(socket)).stdout(Stdio::null()).spawn().unwrap())
    }

    /// Kills it; it must not have ended by itself.
    fn kill(mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(status.signal(), Some(nix::libc::SIGKILL), "a peer ended by itself: {status}");
    }
}

/// The main function of a process that was started as a peer.
fn be(role: &str) -> ! {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    if role == "server" {
        let mut device = TestDevice::new(Arc::new(Mutex::new(State::default())));
        let ended = serve(&mut device, socket, &ServerOptions { deadline: PATIENCE, ..ServerOptions::default() });
        panic!("the client left: {ended:?}");
    }
    let mut numbers = Numbers(role.parse().unwrap());
    let client = client(socket, numbers.below(2) == 0).unwrap();
    let error = watched(&client, || be_busy(&client, &mut numbers).unwrap_err());
    panic!("the server failed: {error}");
}

/// A busy client: all kinds of calls, until it is killed or the server has gone.
fn be_busy(client: &Client, numbers: &mut Numbers) -> Result<(), ClientError> {
    let files = [memfd(0x10000), memfd(0x10000)];
    let eventfds: Vec<_> = (0..4).map(|_| EventFd::new().unwrap()).collect();
    let vectors: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
    client.dma_map(0x40000, 0x40000, None)?;
    let mut data = vec![7; 0x50000];
    let mut mapped = Vec::new();
    loop {
        let most = if numbers.below(20) == 0 { data.len() } else { 64 };
        let length = 1 + numbers.below(most);
        let offset = numbers.below(0x100000) as u64;
        match numbers.below(10) {
            0 if mapped.len() < 4 => {
                let (address, file) = (mapped.len() as u64 * 0x10000, &files[mapped.len() % 2]);
                let file = (numbers.below(2) == 0).then_some((file.as_fd(), 0));
                client.dma_map(address, 0x10000, file)?;
                mapped.push(address);
            }
            0 => {
                for address in mapped.drain(..) {
                    client.dma_unmap(address, 0x10000)?;
                }
            }
            1 => client.set_irq_eventfds(pci::MSIX_IRQ, 0, &vectors)?,
            2 => client.disable_irqs(pci::MSIX_IRQ)?,
            3 => drop((client.region_info(device::SPARSE)?, client.region_io_fds(MESSAGES, MESSAGES_SIZE)?)),
            4 | 5 => client.region_read(MESSAGES, offset, &mut data[..length])?,
            6 => client.region_write(MESSAGES, offset, &data[..length])?,
            7 => client.region_write_posted(MESSAGES, offset, &data[..length])?,
            // The device copies memory that it reaches by messages only.
            _ => {
                let order = [0x40000u64, 1 + numbers.below(0x20000) as u64].map(u64::to_ne_bytes);
                client.region_write(MESSAGES, COPY_OFFSET, order.as_flattened())?;
            }
        }
    }
}

fn client(socket: UnixStream, twin_socket: bool) -> Result<Client, ClientError> {
    Client::new(socket, GuestMemory::new(RAM), &Options { deadline: PATIENCE, twin_socket, ..Options::default() })
}

/// A moment before a peer is killed: it takes some milliseconds to start.
fn moment(numbers: &mut Numbers) -> Duration {
    Duration::from_micros(numbers.below(6000) as u64)
}

#[test]
fn killed_peers_leave_nothing_behind_and_are_noticed_at_once() {
    if let Ok(role) = std::env::var(ROLE) {
        be(&role);
    }
    let mut numbers = Numbers::seeded();
    kill_clients(&mut numbers);
    kill_servers(&mut numbers);
}

fn kill_clients(numbers: &mut Numbers) {
    let server = Server::start();
    let before = settled();
    let (mut slowest, mut busy) = (Duration::ZERO, 0);
    for _ in 0..KILLS {
        let peer = Peer::start(&numbers.below(1 << 30).to_string(), server.connect());
        // Every tenth is killed while it starts.
        if numbers.below(10) > 0 {
            let start = Instant::now();
            while server.state.lock().unwrap().writes.is_empty() {
                assert!(start.elapsed() < PATIENCE, "a client does nothing");
                std::thread::sleep(Duration::from_micros(200));
            }
            busy += 1;
        }
        std::thread::sleep(moment(numbers));
        let killed = Instant::now();
        peer.kill();
        // How it ended is a matter of where it was.
        let _ = server.ended();
        slowest = slowest.max(killed.elapsed());
        server.state.lock().unwrap().writes.clear();
        assert_held(before);
    }
    eprintln!("{KILLS} clients killed, {busy} of them busy; the server was free after at most {slowest:?}");
    assert!(slowest < AT_ONCE);
    Raw::client(server.connect()).alive();
}

fn kill_servers(numbers: &mut Numbers) {
    let before = settled();
    let mut slowest = Duration::ZERO;
    for round in 0..KILLS {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::start("server", theirs);
        let (early, moment, twin_socket) = (numbers.below(10) == 0, moment(numbers), numbers.below(2) == 0);
        let (connected, wait) = channel();
        let killer = std::thread::spawn(move || {
            if !early {
                wait.recv_timeout(PATIENCE).unwrap();
            }
            std::thread::sleep(moment);
            let killed = Instant::now();
            peer.kill();
            killed
        });
        let error = client(ours, twin_socket).map_or_else(
            |error| error,
            |client| {
                let _ = connected.send(());
                match round % 4 {
                    0 => be_idle(&client),
                    _ => watched(&client, || be_busy(&client, numbers).unwrap_err()),
                }
            },
        );
        let noticed = Instant::now();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error}");
        slowest = slowest.max(noticed.saturating_duration_since(killer.join().unwrap()));
        assert_held(before);
    }
    eprintln!("{KILLS} servers killed; the client noticed after at most {slowest:?}");
    assert!(slowest < AT_ONCE);
}

/// Without a call under way, watching the sockets shows the hang-up.
fn be_idle(client: &Client) -> ClientError {
    loop {
        let events = |requests| if requests { PollFlags::POLLIN } else { PollFlags::empty() };
        let watched: Vec<_> = client.watch().collect();
        let mut fds: Vec<_> = watched.iter().map(|w| PollFd::new(w.fd, events(w.requests))).collect();
        assert!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap() > 0, "no hang-up");
        if let Err(error) = client.serve_ready() {
            return error;
        }
    }
}
