//! `outrigger-net`, killed with SIGKILL at random moments while frames go both ways. Needs root, as taps do.
//!
//! A card may lose the frames that it was at, and send one twice; it delivers nothing else than was sent, no receive buffer
//! is lost or comes back twice, and the interface stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest_ram;
mod packet_socket;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_protocol::client::{Client, Journal, Options};
use outrigger_protocol::pci::{BAR0_REGION, MSIX_IRQ};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use guest_ram::Ram;

const RAM_SIZE: u64 = 0x20_0000;
const SIZE: u16 = 64;
const HEADER: usize = 12;
const FRAME: usize = 200;
/// An EtherType for experiments, which nothing on the host answers.
const ETHER_TYPE: u16 = 0x88b5;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

fn frame(from: u8, number: u64) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, from]);
    frame.extend(ETHER_TYPE.to_be_bytes());
    frame.extend(number.to_le_bytes());
    let fill = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    frame.extend((0..).map(|at: u64| fill.wrapping_mul(at + 3).to_le_bytes()[5]).take(FRAME - frame.len()));
    frame
}

/// Which frame of `from` this is.
fn number(from: u8, bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[14..22].try_into().unwrap());
    assert_eq!(bytes, frame(from, number), "a frame that nobody sent");
    number
}

struct Process(Child);

impl Process {
    fn start(tap: &str, ram: &GuestMemoryMmap, kept: &[OwnedFd]) -> (Self, Client) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-net"));
        command.args(["--options", &format!("tap={tap}"), "--fd", "0"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        if !kept.is_empty() {
            let numbers: Vec<_> = kept.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
            command.env("OUTRIGGER_SUCCESSOR", "1").env("OUTRIGGER_KEPT", numbers.join(","));
        }
        let child = Self(command.spawn().unwrap());
        let options = Options { journal: true, ..Options::default() };
        (child, Client::new(ours, Arc::new(Ram(ram.clone())), &options).unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A queue whose chains are one buffer each, which is that of its descriptor.
struct Queue {
    index: u16,
    available: u16,
    used: u16,
    /// The device has them.
    posted: HashSet<u16>,
}

impl Queue {
    fn new(index: u16) -> Self {
        Self { index, available: 0, used: 0, posted: HashSet::new() }
    }

    fn parts(&self) -> [u64; 3] {
        let base = u64::from(self.index) * 0x4000;
        [base, base + 0x1000, base + 0x2000]
    }

    fn buffer(&self, head: u16) -> u64 {
        0x10_0000 + u64::from(self.index * SIZE + head) * 0x800
    }

    fn post(&mut self, ram: &GuestMemoryMmap, head: u16, length: usize) {
        let [descriptors, driver, _] = self.parts();
        let at = descriptors + 16 * u64::from(head);
        ram.write_obj(self.buffer(head), GuestAddress(at)).unwrap();
        ram.write_obj(u32::try_from(length).unwrap(), GuestAddress(at + 8)).unwrap();
        ram.write_obj(if self.index == RECEIVE { 2u32 } else { 0 }, GuestAddress(at + 12)).unwrap();
        ram.write_obj(head, GuestAddress(driver + 4 + 2 * u64::from(self.available % SIZE))).unwrap();
        self.available = self.available.wrapping_add(1);
        ram.store(self.available, GuestAddress(driver + 2), Ordering::SeqCst).unwrap();
        assert!(self.posted.insert(head));
    }

    /// The next buffer that came back, and its length.
    fn take(&mut self, ram: &GuestMemoryMmap) -> Option<(u16, usize)> {
        let [_, _, device] = self.parts();
        if ram.load::<u16>(GuestAddress(device + 2), Ordering::SeqCst).unwrap() == self.used {
            return None;
        }
        let entry = device + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(ram.read_obj::<u32>(GuestAddress(entry)).unwrap()).unwrap();
        assert!(self.posted.remove(&head), "buffer {head} comes back twice");
        Some((head, ram.read_obj::<u32>(GuestAddress(entry + 4)).unwrap() as usize))
    }
}

fn bring_up(client: &Client, queues: &[&Queue]) {
    let write = |offset: u64, data: &[u8]| client.region_write(BAR0_REGION, offset, data).unwrap();
    write(0x14, &[3]);
    for (select, half) in (0u32..).zip((1u64 << 32 | 1 << 15).to_le_bytes().chunks(4)) {
        write(0x08, &select.to_le_bytes());
        write(0x0c, half);
    }
    write(0x14, &[0xb]);
    for queue in queues {
        write(0x16, &queue.index.to_le_bytes());
        write(0x18, &SIZE.to_le_bytes());
        write(0x1a, &(queue.index + 1).to_le_bytes());
        for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(queue.parts()) {
            write(offset, &address.to_le_bytes());
        }
        write(0x1c, &[1, 0]);
    }
    write(0x14, &[0xf]);
}

#[test]
fn a_card_is_killed_under_load() {
    let kills = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(150u64);
    let tap = format!("ork{}", std::process::id() % 1_000_000);
    let file = File::from(nix::sys::memfd::memfd_create(c"ram", nix::sys::memfd::MFdFlags::empty()).unwrap());
    file.set_len(RAM_SIZE).unwrap();
    let range =
        (GuestAddress(0), usize::try_from(RAM_SIZE).unwrap(), Some(FileOffset::new(file.try_clone().unwrap(), 0)));
    let ram = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
    let interrupts: Vec<_> = (0..4).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap()).collect();
    let connect = |client: &Client| {
        client.dma_map(0, RAM_SIZE, Some((file.as_fd(), 0))).unwrap();
        // SAFETY: the eventfds live until after the call.
        let fds: Vec<_> = interrupts.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }).collect();
        client.set_irq_eventfds(MSIX_IRQ, 0, &fds).unwrap();
    };
    let (mut process, mut client) = Process::start(&tap, &ram, &[]);
    let journal = Journal::create(client.journal_format().unwrap()).unwrap();
    let kept: Vec<_> = client.begin_journal(&journal).unwrap();
    let inheritable = |fd: &outrigger_protocol::foreign::ForeignFd| {
        // SAFETY: copies a descriptor that is open, without FD_CLOEXEC.
        let copy = unsafe { libc::dup(fd.lend().as_raw_fd()) };
        assert!(copy > 2);
        // SAFETY: it is ours alone.
        unsafe { OwnedFd::from_raw_fd(copy) }
    };
    let kept: Vec<OwnedFd> = kept.iter().map(inheritable).collect();
    connect(&client);
    let (index, wire) = (
        nix::net::if_::if_nametoindex(&*tap).unwrap(),
        packet_socket::bound(&tap, ETHER_TYPE, nix::libc::SOCK_NONBLOCK),
    );
    let (mut receive, mut transmit) = (Queue::new(RECEIVE), Queue::new(TRANSMIT));
    (0..SIZE).for_each(|head| receive.post(&ram, head, 0x800));
    bring_up(&client, &[&receive, &transmit]);

    let (mut sent_in, mut sent_out, mut random) = (0u64, 0u64, u64::from(std::process::id()) << 8 | 1);
    let (mut arrived_in, mut arrived_out) = (HashSet::new(), HashSet::new());
    let mut bytes = vec![0; 0x1000];
    for kill in 0..=kills {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        for _ in 0..random % 24 {
            assert_eq!(nix::unistd::write(&wire, &frame(1, sent_in)), Ok(FRAME));
            sent_in += 1;
            let free = (0..SIZE).find(|head| !transmit.posted.contains(head));
            if let Some(head) = free {
                let at = transmit.buffer(head);
                ram.write_slice(&[&[0; HEADER], &frame(2, sent_out)[..]].concat(), GuestAddress(at)).unwrap();
                transmit.post(&ram, head, HEADER + FRAME);
                client.region_write(BAR0_REGION, 0x3004, &[1, 0]).unwrap();
                sent_out += 1;
            }
        }
        let pause = Duration::from_nanos(random >> 20 & 0x1_ffff);
        let now = Instant::now();
        while now.elapsed() < pause {}
        if kill < kills {
            drop(process);
            (process, client) = Process::start(&tap, &ram, &kept);
            client.offer_journal(&journal).unwrap();
            connect(&client);
            client.take_journal().unwrap();
        }
        // All that has come back by now; at the end, until everything is quiet.
        let mut quiet = Instant::now();
        loop {
            while let Some((head, length)) = receive.take(&ram) {
                bytes.resize(length, 0);
                ram.read_slice(&mut bytes, GuestAddress(receive.buffer(head))).unwrap();
                // The host has announcements of its own to make.
                if bytes[HEADER + 12..HEADER + 14] == ETHER_TYPE.to_be_bytes() {
                    assert!(arrived_in.insert(number(1, &bytes[HEADER..])), "a frame arrives twice");
                }
                receive.post(&ram, head, 0x800);
                client.region_write(BAR0_REGION, 0x3000, &[0, 0]).unwrap();
                quiet = Instant::now();
            }
            while transmit.take(&ram).is_some() {
                quiet = Instant::now();
            }
            bytes.resize(0x1000, 0);
            while let Ok(length) = nix::unistd::read(&wire, &mut bytes) {
                arrived_out.insert(number(2, &bytes[..length]));
                quiet = Instant::now();
            }
            if kill < kills || quiet.elapsed() > Duration::from_millis(300) {
                break;
            }
        }
    }
    println!(
        "{kills} kills; {} of {sent_in} frames arrived, {} of {sent_out} left",
        arrived_in.len(),
        arrived_out.len()
    );
    assert_eq!((receive.posted.len(), transmit.posted.len()), (usize::from(SIZE), 0), "no buffer is lost");
    assert_eq!(arrived_out.len() as u64, sent_out, "a frame is sent twice rather than not at all");
    assert!(sent_in - arrived_in.len() as u64 <= 3 * kills, "at most what was being read is lost");
    assert_eq!(nix::net::if_::if_nametoindex(&*tap), Ok(index), "the interface is the same");
    drop((process, client, kept));
}
