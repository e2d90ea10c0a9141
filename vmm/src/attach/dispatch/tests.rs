//! Accesses that came to the VMM, against a device with two ways to be asked: messages, and a socket.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_protocol::client::{IoFd, IoFdKind};
use outrigger_protocol::ioregionfd::{Endpoint, Handler, SocketType};
use outrigger_protocol::server::{self, Registers};
use outrigger_protocol::wire::IOREGION_POSTED_WRITES;

use super::*;
use crate::attach::death::Cause;
use crate::attach::ioregionfd::Ioregionfds;
use crate::attach::plan::AskedBy;
use crate::attach::testing::{self, description};
use crate::config::AllowedPaths;
use crate::machine::vm::Vm;
use crate::pci::Slot;

/// How an access arrived at the device: by message at an offset, or as a command with user data and an offset.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Message(usize, Vec<u8>),
    Command(u64, u64, usize, u64),
}

/// Reads as 0x11 by message; every access is noted.
struct Told(Sender<Seen>);

impl Registers for Told {
    fn read(&mut self, _: u32, offset: usize, data: &mut [u8]) {
        data.fill(0x11);
        self.0.send(Seen::Message(offset, data.to_vec())).unwrap();
    }
    fn write(&mut self, _: u32, offset: usize, data: &[u8], _: &mut server::Bus) {
        self.0.send(Seen::Message(offset, data.to_vec())).unwrap();
    }
    fn reset(&mut self) {}
}

/// Reads as 0x22 by command, after a pause.
struct Commands(Sender<Seen>, Duration);

impl Handler for Commands {
    fn read(&mut self, user_data: u64, offset: u64, size: Size) -> u64 {
        self.0.send(Seen::Command(user_data, offset, size.bytes(), 0)).unwrap();
        thread::sleep(self.1);
        0x2222_2222_2222_2222
    }
    fn write(&mut self, user_data: u64, offset: u64, size: Size, data: u64) {
        self.0.send(Seen::Command(user_data, offset, size.bytes(), data)).unwrap();
    }
}

struct Fixture {
    seen: Receiver<Seen>,
    endpoint: Endpoint,
    link: Arc<Link>,
    region: Dispatch,
}

/// A region of 0x1000 bytes; 0x100 to 0x1ff and 0x300 to 0x30f are offered with one socket, sent twice.
fn fixture(pause: Duration) -> Fixture {
    let (told, seen) = channel();
    let link = testing::link(Told(told.clone()));
    let endpoint = Endpoint::start("asked", SocketType::Seqpacket, Commands(told, pause)).unwrap();
    let region = dispatch(&link, &endpoint, &[(0x300..0x310, 3, true), (0x100..0x200, 1, false)]);
    assert!(Arc::ptr_eq(&region.channels[0], &region.channels[1]), "one socket has one turn at a time");
    Fixture { seen, endpoint, link, region }
}

/// Offers sub-regions, each with its user data and whether its writes are posted, as the server's region 0 does.
fn dispatch(link: &Arc<Link>, endpoint: &Endpoint, offered: &[(Range<u64>, u64, bool)]) -> Dispatch {
    let mut description = description();
    description.regions[0].size = 0x1000;
    let offer = |(range, user_data, posted): &(Range<u64>, u64, bool)| {
        let flags = if *posted { IOREGION_POSTED_WRITES } else { 0 };
        let kind = IoFdKind::Ioregionfd { user_data: *user_data, flags };
        let fd = Arc::new(endpoint.as_fd().try_clone_to_owned().unwrap().into());
        IoFd { offset: range.start, size: range.end - range.start, kind, fd }
    };
    description.io_fds[0] = offered.iter().map(offer).collect();
    let plan = Plan::choose(&description, 0, AllowedPaths::default(), AskedBy::Vmm);
    let mut ioregionfds = Ioregionfds::new(&Vm::new(1).unwrap(), link, AskedBy::Vmm);
    let channels = plan.ioregions.iter().map(|ioregion| ioregionfds.channel(&ioregion.fd).unwrap()).collect();
    Dispatch::new(
        plan,
        channels,
        None,
        Messages { link: link.clone(), region: 0, posted: false, warnings: Warnings::new(Slot(1)) },
        Served::unsucceeded(),
    )
}

impl Fixture {
    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.region.read(offset, &mut data);
        data
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(Duration::from_secs(5)).unwrap()
    }
}

#[test]
fn an_access_takes_the_path_of_its_range() {
    let fixture = fixture(Duration::ZERO);
    for (offset, length, at) in [(0x100, 1, 0), (0x102, 2, 2), (0x1fc, 4, 0xfc), (0x1f8, 8, 0xf8)] {
        assert_eq!(fixture.read(offset, length), vec![0x22; length]);
        assert_eq!(fixture.next(), Seen::Command(1, at, length, 0));
    }
    fixture.region.write(0x104, &[1, 2, 3, 4]);
    assert_eq!(fixture.next(), Seen::Command(1, 4, 4, 0x0403_0201));
    fixture.region.write(0x30f, &[9]);
    assert_eq!(fixture.next(), Seen::Command(3, 0xf, 1, 9));
    fixture.region.write(0x200, &[5, 6]);
    assert_eq!(fixture.next(), Seen::Message(0x200, vec![5, 6]));
    assert_eq!(fixture.region.counts(), AccessCounts { msix: 0, stand_in: 6, message: 1 });
}

#[test]
fn what_the_protocol_cannot_say_goes_by_message() {
    let fixture = fixture(Duration::ZERO);
    // Of three bytes, across either end, and in between.
    for (offset, length) in [(0x100, 3), (0xff, 2), (0x1fe, 4), (0x310, 1), (0x2ff, 2), (0, 8)] {
        assert_eq!(fixture.read(offset, length), vec![0x11; length]);
        assert!(matches!(fixture.next(), Seen::Message(..)));
    }
    assert_eq!(fixture.read(0xfff, 2), [0xff; 2], "beyond the region");
    assert_eq!(fixture.region.counts(), AccessCounts { msix: 0, stand_in: 0, message: 6 });
}

#[test]
fn a_socket_that_breaks_is_the_death_of_the_device() {
    let Fixture { endpoint, region, link, .. } = fixture(Duration::ZERO);
    drop(endpoint);
    let mut data = [0; 4];
    region.read(0x300, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(link.lost(), Some(&Cause::HungUp));
    assert!(link.call(|client| client.region_read(0, 0, &mut data)).is_err(), "the connection is closed");
    region.read(0x100, &mut data);
    region.write(0x100, &data);
    region.read(0, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn closing_ends_the_wait_of_a_vcpu() {
    let Fixture { seen, endpoint, region, link } = fixture(Duration::from_secs(3));
    let start = Instant::now();
    thread::scope(|threads| {
        let vcpu = threads.spawn(|| {
            let mut data = [0; 4];
            region.read(0x100, &mut data);
            data
        });
        seen.recv_timeout(Duration::from_secs(5)).unwrap();
        link.end();
        assert_eq!(vcpu.join().unwrap(), [0xff; 4]);
    });
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(link.lost(), Some(&Cause::Ended), "who is let go is not to blame");
    drop(endpoint);
}

/// Answers with what was asked for.
struct Echo;

impl Handler for Echo {
    fn read(&mut self, user_data: u64, offset: u64, _: Size) -> u64 {
        user_data << 16 | offset
    }
    fn write(&mut self, _: u64, _: u64, _: Size, _: u64) {}
}

/// One access at a time is on the socket, so each gets its own answer.
#[test]
fn vcpus_that_share_a_socket_get_their_own_answers() {
    let Fixture { link, .. } = fixture(Duration::ZERO);
    let endpoint = Endpoint::start("echo", SocketType::Stream, Echo).unwrap();
    let region = dispatch(&link, &endpoint, &[(0x100..0x200, 0x100, false), (0x200..0x300, 0x200, true)]);
    thread::scope(|threads| {
        for start in [0x100, 0x200, 0x100, 0x200] {
            let region = &region;
            threads.spawn(move || {
                for offset in (0..0x100).step_by(4).cycle().take(2000) {
                    let mut data = [0; 4];
                    region.write(start + offset, &data);
                    region.read(start + offset, &mut data);
                    assert_eq!(u64::from(u32::from_le_bytes(data)), start << 16 | offset);
                }
            });
        }
    });
    assert_eq!(region.counts().stand_in, 4 * 2 * 2000);
}
