//! `examples/paths.rs`: the same registers by every path that it offers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/paths.rs"]
mod paths;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use outrigger_protocol::client::{Client, ClientMemory, IoFdKind};
use outrigger_protocol::ioregionfd::{AccessError, Requester, Size, SocketType};
use outrigger_protocol::server::serve;
use outrigger_protocol::wire::IOREGION_POSTED_WRITES;
use paths::Paths;

const DEADLINE: Duration = Duration::from_secs(10);
const BAR_SIZE: u64 = 0x1_0000;

#[derive(Debug)]
struct NoMemory;

impl ClientMemory for NoMemory {
    fn read(&self, _address: u64, _data: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
    fn write(&self, _address: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

fn word(client: &Client, offset: u64) -> u32 {
    let mut data = [0; 4];
    client.region_read(0, offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

/// A client of the device, for as long as `body` takes.
fn with_client(device: &mut Paths, body: impl FnOnce(&Client)) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| serve(device, theirs, &Default::default()).unwrap());
        let client = Client::new(ours, Arc::new(NoMemory), &Default::default()).unwrap();
        body(&client);
        client.close();
    });
}

#[test]
fn each_page_has_the_same_registers_by_its_own_path() {
    let mut device = Paths::new().unwrap();
    with_client(&mut device, |client| {
        for page in [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x6000, 0x7000, 0x8000, 0x9000] {
            client.region_write(0, page, &0x1234_5678_u32.to_le_bytes()).unwrap();
            let kept = if page == 0x9000 { 0 } else { 0x1234_5678 };
            assert_eq!(word(client, page), kept, "{page:#x}");
        }
        let io_fds = client.region_io_fds(0, BAR_SIZE).unwrap();
        let mut posted_pages = Vec::new();
        for io_fd in &io_fds {
            let IoFdKind::Ioregionfd { user_data, flags } = io_fd.kind else { continue };
            let kind = if io_fd.offset / 0x1000 % 2 == 1 { SocketType::Stream } else { SocketType::Seqpacket };
            assert_eq!((SocketType::of(io_fd.fd.lend()).unwrap(), io_fd.size), (kind, 0x1000));
            let posted = flags == IOREGION_POSTED_WRITES;
            posted_pages.push((io_fd.offset, posted));
            let requester = Requester::new(Arc::clone(&io_fd.fd), DEADLINE).unwrap();
            for value in 0..100 {
                requester.write(user_data, 0, Size::Four, value, posted).unwrap();
                assert_eq!(requester.read(user_data, 0, Size::Four).unwrap(), value);
            }
            requester.write(user_data, 4, Size::Four, 7, posted).unwrap();
            assert_eq!(requester.read(user_data, 4, Size::Four).unwrap(), 101);
            assert_eq!(requester.read(user_data, 16, Size::Eight).unwrap(), 0);
            assert_eq!([word(client, io_fd.offset), word(client, io_fd.offset + 4)], [99, 101]);
        }
        let answered = [(0x1000, false), (0x2000, false)];
        let posted = [(0x3000, true), (0x4000, true), (0x7000, true), (0x8000, true)];
        assert_eq!(posted_pages, [&answered[..], &posted].concat());
        assert_eq!([word(client, 0x5000), word(client, 0x5004)], [0, 0]);
        let doorbell = io_fds.iter().find(|io_fd| matches!(io_fd.kind, IoFdKind::Ioeventfd { .. })).unwrap();
        assert_eq!((doorbell.offset, doorbell.size), (0x5000, 0));
        nix::unistd::write(doorbell.fd.lend(), &3_u64.to_ne_bytes()).unwrap();
        let start = Instant::now();
        while word(client, 0x5004) != 3 {
            assert!(start.elapsed() < DEADLINE, "the doorbell is not heard");
        }
        let region = client.region_info(0).unwrap();
        assert_eq!(region.areas, [(0x6000, 0x1000)]);
        let mapped = File::from(region.fd.unwrap().lend().try_clone_to_owned().unwrap());
        mapped.write_all_at(&[1, 2, 3, 4], region.offset + 0x6000).unwrap();
        assert_eq!(word(client, 0x6000), 0x0403_0201);
    });
}

#[test]
fn all_pages_share_a_word_that_is_in_the_mapped_one_and_numbers_that_come_once() {
    let mut device = Paths::new().unwrap();
    with_client(&mut device, |client| {
        let region = client.region_info(0).unwrap();
        let mapped = File::from(region.fd.unwrap().lend().try_clone_to_owned().unwrap());
        let io_fds = client.region_io_fds(0, BAR_SIZE).unwrap();
        let mut tickets = 0..;
        for io_fd in &io_fds {
            let IoFdKind::Ioregionfd { user_data, .. } = io_fd.kind else { continue };
            let requester = Requester::new(Arc::clone(&io_fd.fd), DEADLINE).unwrap();
            requester.write(user_data, 8, Size::Four, io_fd.offset, false).unwrap();
            let mut word_in_memory = [0; 4];
            mapped.read_exact_at(&mut word_in_memory, region.offset + 0x6008).unwrap();
            assert_eq!(u64::from(u32::from_le_bytes(word_in_memory)), io_fd.offset);
            assert_eq!(u64::from(word(client, 8)), io_fd.offset);
            assert_eq!(requester.read(user_data, 12, Size::Four).ok(), tickets.next());
            assert_eq!(u64::from(word(client, io_fd.offset + 12)), tickets.next().unwrap());
        }
        client.region_write(0, 0x7008, &77_u32.to_le_bytes()).unwrap();
        client.region_write(0, 0x5000, &1_u32.to_le_bytes()).unwrap();
        assert_eq!([word(client, 0x5000), word(client, 0x5004)], [77, 1], "as it was when the doorbell was rung");
    });
}

#[test]
fn two_pages_are_on_the_descriptors_of_others() {
    let mut device = Paths::new().unwrap();
    with_client(&mut device, |client| {
        let io_fds = client.region_io_fds(0, BAR_SIZE).unwrap();
        let inode = |page: u64| {
            let io_fd = io_fds.iter().find(|io_fd| io_fd.offset == page * 0x1000).unwrap();
            nix::sys::stat::fstat(io_fd.fd.lend()).unwrap().st_ino
        };
        assert_eq!((inode(7), inode(8)), (inode(1), inode(2)));
        assert!([3, 4, 5].iter().all(|page| inode(*page) != inode(1) && inode(*page) != inode(2)));
    });
}

#[test]
fn the_next_client_has_descriptors_of_its_own() {
    let mut device = Paths::new().unwrap();
    let mut old = Vec::new();
    let requester = |client: &Client| {
        let io_fds = client.region_io_fds(0, BAR_SIZE).unwrap();
        Requester::new(Arc::clone(&io_fds[0].fd), DEADLINE).unwrap()
    };
    with_client(&mut device, |client| {
        old.push(requester(client));
        old[0].write(0, 0, Size::Four, 5, false).unwrap();
    });
    with_client(&mut device, |client| {
        assert!(matches!(old[0].write(0, 0, Size::Four, 6, true), Err(AccessError::HungUp)));
        assert_eq!(requester(client).read(0, 0, Size::Four).unwrap(), 5);
        client.reset().unwrap();
        assert_eq!(requester(client).read(0, 0, Size::Four).unwrap(), 0);
    });
}
