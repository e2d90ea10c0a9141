//! `examples/paths.rs`: the same registers by every path that it offers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/paths.rs"]
mod paths;

use std::fs::File;
use std::os::fd::AsFd;
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
const BAR_SIZE: u64 = 0x8000;

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
        for page in [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x6000, 0x7000] {
            client.region_write(0, page, &0x1234_5678_u32.to_le_bytes()).unwrap();
            let kept = if page == 0x7000 { 0 } else { 0x1234_5678 };
            assert_eq!(word(client, page), kept, "{page:#x}");
        }
        let io_fds = client.region_io_fds(0, BAR_SIZE).unwrap();
        let mut posted_pages = Vec::new();
        for io_fd in &io_fds {
            let IoFdKind::Ioregionfd { user_data, flags } = io_fd.kind else { continue };
            let kind = if io_fd.offset / 0x1000 % 2 == 1 { SocketType::Stream } else { SocketType::Seqpacket };
            assert_eq!((SocketType::of(io_fd.fd.as_fd()).unwrap(), io_fd.size), (kind, 0x1000));
            let posted = flags == IOREGION_POSTED_WRITES;
            posted_pages.push((io_fd.offset, posted));
            let requester = Requester::new(Arc::clone(&io_fd.fd), DEADLINE).unwrap();
            for value in 0..100 {
                requester.write(user_data, 0, Size::Four, value, posted).unwrap();
                assert_eq!(requester.read(user_data, 0, Size::Four).unwrap(), value);
            }
            requester.write(user_data, 4, Size::Four, 7, posted).unwrap();
            assert_eq!(requester.read(user_data, 4, Size::Four).unwrap(), 101);
            assert_eq!(requester.read(user_data, 8, Size::Eight).unwrap(), 0);
            assert_eq!([word(client, io_fd.offset), word(client, io_fd.offset + 4)], [99, 101]);
        }
        assert_eq!(posted_pages, [(0x1000, false), (0x2000, false), (0x3000, true), (0x4000, true)]);
        assert_eq!([word(client, 0x5000), word(client, 0x5004)], [0, 0]);
        let doorbell = io_fds.iter().find(|io_fd| matches!(io_fd.kind, IoFdKind::Ioeventfd { .. })).unwrap();
        assert_eq!((doorbell.offset, doorbell.size), (0x5000, 0));
        nix::unistd::write(&*doorbell.fd, &3_u64.to_ne_bytes()).unwrap();
        let start = Instant::now();
        while word(client, 0x5004) != 3 {
            assert!(start.elapsed() < DEADLINE, "the doorbell is not heard");
        }
        let region = client.region_info(0).unwrap();
        assert_eq!(region.areas, [(0x6000, 0x1000)]);
        let mapped = File::from(region.fd.unwrap());
        mapped.write_all_at(&[1, 2, 3, 4], region.offset + 0x6000).unwrap();
        assert_eq!(word(client, 0x6000), 0x0403_0201);
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
