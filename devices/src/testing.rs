//! A driver without a guest: drives a device in this process through a real socket, in memory of its own.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{Client, ClientMemory, Options};
use outrigger_protocol::server::{Device, Interrupts, Irq, Memory, Region, serve};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::transport::{Iommu, PciFunction, VirtioDevice};

mod driver;

pub use driver::{Buffer, Driver};

pub const RAM_START: u64 = 0x10_0000;
pub const RAM_SIZE: u64 = 0x40_0000;
/// Buffers go here; rings are below.
pub const BUFFERS: u64 = RAM_START + 0x10_0000;
/// The limit of every wait. A flush of a file waits for what others write to the same disk, on a machine that builds 10 s and more.
const DEADLINE: Duration = Duration::from_secs(60);

/// Memory in a memfd.
pub fn ram() -> (GuestMemoryMmap, std::fs::File) {
    let fd = nix::sys::memfd::memfd_create(c"ram", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let file = std::fs::File::from(fd);
    file.set_len(RAM_SIZE).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let range = (GuestAddress(RAM_START), usize::try_from(RAM_SIZE).unwrap(), Some(offset));
    (GuestMemoryMmap::from_ranges_with_files([range]).unwrap(), file)
}

/// How driver and device reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Memory is mapped, registers are accessed by message.
    Mapped,
    /// Both by message.
    Messages,
    /// Registers by ioregionfd, memory by message.
    Ioregionfd,
}

/// Makes a test of each function named for each [`Way`].
macro_rules! every_way {
    ($($name:ident)*) => {
        mod mapped { $(#[test] fn $name() { super::$name(crate::testing::Way::Mapped) })* }
        mod by_messages { $(#[test] fn $name() { super::$name(crate::testing::Way::Messages) })* }
        mod by_ioregionfd { $(#[test] fn $name() { super::$name(crate::testing::Way::Ioregionfd) })* }
    };
}
pub(crate) use every_way;

#[derive(Debug)]
struct Ram(GuestMemoryMmap);

impl ClientMemory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.0.read_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT)
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.0.write_slice(data, GuestAddress(address)).map_err(|_| Errno::EFAULT)
    }
}

fn connect(stream: UnixStream, ram: &GuestMemoryMmap) -> Client {
    let options = Options { journal: true, ..Options::default() };
    Client::new(stream, Arc::new(Ram(ram.clone())), &options).unwrap()
}

/// Serves the device's requests for memory until the connection ends.
fn serve_memory(client: &Client) {
    while !client.is_closed() {
        let mut fds: Vec<_> = client.watch().map(|watch| PollFd::new(watch.fd, PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::from(100u8)).unwrap();
        let _ = client.serve_ready();
    }
}

/// The memory as a device gets it.
pub fn device_memory(file: &std::fs::File) -> Memory {
    device_memory_in_pieces(file, &[RAM_SIZE])
}

/// The memory as a device gets it from a client that maps it in pieces of these sizes.
pub fn device_memory_in_pieces(file: &std::fs::File, sizes: &[u64]) -> Memory {
    struct Capture(Sender<Memory>);
    impl Device for Capture {
        fn regions(&self) -> &[Region] {
            &[]
        }
        fn irqs(&self) -> &[Irq] {
            &[]
        }
        fn connected(&mut self, _: &Arc<Interrupts>) {}
        fn memory_changed(&mut self, memory: &Memory) {
            self.0.send(memory.clone()).unwrap();
        }
        fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
            Err(Errno::EINVAL)
        }
        fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
            Err(Errno::EINVAL)
        }
        fn reset(&mut self) {}
        fn disconnected(&mut self) {}
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, receiver) = channel();
    let server = std::thread::spawn(move || serve(&mut Capture(sender), theirs, &Default::default()));
    let client = connect(ours, &GuestMemoryMmap::default());
    let mut offset = 0;
    let mut memory = None;
    for &size in sizes {
        client.dma_map(RAM_START + offset, size, Some((file.as_fd(), offset))).unwrap();
        memory = receiver.recv().ok();
        offset += size;
    }
    client.close();
    server.join().unwrap().unwrap();
    memory.unwrap()
}

/// A device being served, for one client after the other.
pub struct Served<D: VirtioDevice> {
    function: Arc<Mutex<PciFunction<D>>>,
}

impl<D: VirtioDevice + Send + 'static> Served<D> {
    pub fn new(device: D) -> Self {
        Self { function: Arc::new(Mutex::new(PciFunction::new(device, Iommu::Possible).unwrap())) }
    }

    /// Attaches a client that shares its memory.
    pub fn attach(&self) -> Driver {
        self.attach_with(Way::Mapped)
    }

    /// Attaches a client.
    pub fn attach_with(&self, way: Way) -> Driver {
        let (ram, file) = ram();
        let (client, threads) = self.connect(&ram);
        Driver::new(client, threads, (ram, file), way)
    }

    fn connect(&self, ram: &GuestMemoryMmap) -> (Arc<Client>, Vec<JoinHandle<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let function = Arc::clone(&self.function);
        let server = std::thread::spawn(move || {
            // A client that was dropped is on its way out.
            serve(&mut *function.lock().unwrap(), theirs, &Default::default()).unwrap();
        });
        let client = Arc::new(connect(ours, ram));
        let watched = Arc::clone(&client);
        let watcher = std::thread::spawn(move || serve_memory(&watched));
        (client, vec![server, watcher])
    }
}
