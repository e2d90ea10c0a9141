//! The `vfio_user` crate (Cloud Hypervisor's) on the other side: our client with its server, its client with ours.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::device::{self, SPARSE_AREAS, SPARSE_OFFSET};
use common::{Server, client, memfd, number, same_file};
use nix::sys::eventfd::{EfdFlags, EventFd};
use outrigger_protocol::client::ClientError;
use outrigger_protocol::{pci, wire};
use vfio_bindings::bindings::vfio::{vfio_region_info, vfio_region_sparse_mmap_area};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion, SparseArea};

/// The requests to their server.
#[derive(Default)]
struct Seen {
    registers: [u8; 16],
    mapped: Vec<(u64, u64, u64, File)>,
    unmapped: Vec<(u64, u64)>,
    vectors: Vec<(u32, u32, u32, Vec<File>)>,
    resets: usize,
}

struct Backend(Arc<Mutex<Seen>>);

impl ServerBackend for Backend {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.0.lock().unwrap().registers[start..start + data.len()]);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.0.lock().unwrap().registers[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMapFlags, offset: u64, address: u64, size: u64, fd: Option<File>) -> io::Result<()> {
        self.0.lock().unwrap().mapped.push((offset, address, size, fd.unwrap()));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.0.lock().unwrap().unmapped.push((address, size));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().resets += 1;
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap();
        if index == pci::MSIX_IRQ && flags & wire::IRQ_SET_DATA_EVENTFD != 0 {
            seen.vectors.push((index, start, count, fds));
        }
        Ok(())
    }
}

fn their_region(index: u32, size: u64, flags: u32) -> ServerRegion {
    let argsz = u32::try_from(size_of::<vfio_region_info>()).unwrap();
    let region_info = vfio_region_info { argsz, flags, index, size, ..Default::default() };
    ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
}

/// Their server, serving one client; the thread ends when that leaves.
fn their_server(path: &Path, seen: &Arc<Mutex<Seen>>, memory: &impl AsRawFd) -> std::thread::JoinHandle<()> {
    let mut mappable = their_region(1, 0x8000, wire::REGION_READ | wire::REGION_WRITE | wire::REGION_MMAP);
    mappable.region_info.offset = SPARSE_OFFSET;
    mappable.mmap_fd = Some(memory.as_raw_fd());
    let areas = SPARSE_AREAS.iter().map(|&(offset, size)| vfio_region_sparse_mmap_area { offset, size });
    mappable.sparse_areas = areas.map(|area| SparseArea { area }).collect();
    let regions = vec![their_region(0, 16, wire::REGION_READ | wire::REGION_WRITE), mappable];
    let irqs = (0..3).map(|index| IrqInfo { index, flags: wire::IRQ_EVENTFD, count: index }).collect();
    let listener = UnixListener::bind(path).unwrap();
    let server = vfio_user::Server::from_owned_fd(listener.into(), true, irqs, regions);
    let mut backend = Backend(seen.clone());
    std::thread::spawn(move || server.run(&mut backend).unwrap())
}

#[test]
fn our_client_drives_their_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let seen = Arc::<Mutex<Seen>>::default();
    let memory = memfd(SPARSE_OFFSET + 0x8000);
    let server = their_server(&path, &seen, &memory);
    let client = client(UnixStream::connect(&path).unwrap());

    let info = client.device_info().unwrap();
    assert_eq!((info.num_regions, info.num_irqs), (2, 3));
    assert_eq!(info.flags, wire::DEVICE_IS_PCI | wire::DEVICE_RESET_SUPPORTED);
    assert_eq!(client.region_info(0).unwrap().size, 16);
    let mappable = client.region_info(1).unwrap();
    assert_eq!((mappable.offset, &mappable.areas[..]), (SPARSE_OFFSET, &SPARSE_AREAS[..]));
    assert!(same_file(&number(&mappable.fd.unwrap()), &memory));
    assert_eq!(client.irq_info(pci::MSIX_IRQ).unwrap().count, 2);

    // It knows no io fds, and takes the payload of what it does not know for the next header.
    for region in 0..2 {
        assert!(matches!(client.region_io_fds(region, 16), Err(ClientError::Refused { .. })));
    }

    client.region_write(0, 0, &[1, 2, 3, 4]).unwrap();
    client.region_write_posted(0, 4, &[5, 6, 7, 8]).unwrap();
    let mut registers = [0; 8];
    client.region_read(0, 0, &mut registers).unwrap();
    assert_eq!(registers, [1, 2, 3, 4, 5, 6, 7, 8]);

    client.dma_map(0x10_0000, 0x1000, Some((memory.as_fd(), 0x2000))).unwrap();
    client.dma_unmap(0x10_0000, 0x1000).unwrap();
    // It takes one descriptor a message, so two vectors are two messages.
    let eventfds: Vec<_> = (0..2).map(|_| EventFd::new().unwrap()).collect();
    client.set_irq_eventfds(pci::MSIX_IRQ, 0, &eventfds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
    client.disable_irqs(pci::MSIX_IRQ).unwrap();
    client.reset().unwrap();
    assert!(matches!(client.region_info(2), Err(ClientError::Refused { .. })));
    client.device_info().unwrap();
    drop(client);
    server.join().unwrap();

    let seen = seen.lock().unwrap();
    let (offset, address, size, file) = &seen.mapped[0];
    assert_eq!((*offset, *address, *size), (0x2000, 0x10_0000, 0x1000));
    assert!(same_file(file, &memory));
    assert_eq!((&seen.unmapped[..], seen.resets), (&[(0x10_0000, 0x1000)][..], 1));
    let vectors = seen.vectors.iter().map(|(index, start, count, fds)| (*index, *start, *count, fds.len()));
    let vectors: Vec<_> = vectors.collect();
    assert_eq!(vectors, [(pci::MSIX_IRQ, 0, 1, 1), (pci::MSIX_IRQ, 1, 1, 1)]);
}

#[test]
fn their_client_drives_our_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = outrigger_protocol::server::Listener::bind(&path).unwrap();
    let server = Server::start();
    let mut client = std::thread::scope(|scope| {
        let client = scope.spawn(|| vfio_user::Client::new(&path).unwrap());
        server.accept(&listener);
        client.join().unwrap()
    });

    let messages = client.region(device::MESSAGES).unwrap();
    assert_eq!((messages.size, messages.file_offset.is_none()), (device::MESSAGES_SIZE, true));
    let sparse = client.region(device::SPARSE).unwrap();
    let areas: Vec<_> = sparse.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, SPARSE_AREAS);
    assert_eq!(sparse.file_offset.as_ref().unwrap().start(), SPARSE_OFFSET);
    assert!(client.region(device::WHOLE).unwrap().file_offset.is_some());
    assert_eq!(client.region(device::MANY_AREAS).unwrap().sparse_areas.len(), 100);

    client.region_write(device::MESSAGES, 8, &[1, 2, 3, 4]).unwrap();
    let mut registers = [0; 4];
    client.region_read(device::MESSAGES, 8, &mut registers).unwrap();
    assert_eq!(registers, [1, 2, 3, 4]);

    let memory = memfd(0x4000);
    client.dma_map(0x1000, 0x10_0000, 0x2000, memory.as_raw_fd()).unwrap();
    server.state.lock().unwrap().memory.write(0x10_0000, b"dma").unwrap();
    let mut seen = [0; 3];
    nix::sys::uio::pread(&memory, &mut seen, 0x1000).unwrap();
    assert_eq!(&seen, b"dma");
    client.dma_unmap(0x10_0000, 0x2000).unwrap();
    assert!(server.state.lock().unwrap().memory.read(0x10_0000, &mut [0]).is_err());

    assert_eq!(client.get_irq_info(pci::MSIX_IRQ).unwrap().count, device::VECTORS);
    let eventfds: Vec<_> = (0..2).map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()).collect();
    let fds: Vec<_> = eventfds.iter().map(|eventfd| eventfd.as_fd().as_raw_fd()).collect();
    let flags = wire::IRQ_SET_DATA_EVENTFD | wire::IRQ_SET_ACTION_TRIGGER;
    client.set_irqs(pci::MSIX_IRQ, flags, 1, 2, &fds).unwrap();
    let interrupts = server.state.lock().unwrap().interrupts.clone().unwrap();
    interrupts.trigger(pci::MSIX_IRQ, 2);
    assert_eq!((eventfds[0].read().is_err(), eventfds[1].read()), (true, Ok(1)));
    let flags = wire::IRQ_SET_DATA_NONE | wire::IRQ_SET_ACTION_TRIGGER;
    client.set_irqs(pci::MSIX_IRQ, flags, 0, 0, &[]).unwrap();
    assert!(!interrupts.is_connected(pci::MSIX_IRQ));

    client.reset().unwrap();
    assert_eq!(server.state.lock().unwrap().resets, 1);
    client.shutdown().unwrap();
    server.ended().unwrap();
}
