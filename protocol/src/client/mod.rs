//! The VMM's side of vfio-user: typed calls on a device that is another process.
//!
//! A call waits for its reply itself, and serves the server's own requests while it waits. When no call is under way,
//! somebody must watch the connection: see [`Client::watch`] and [`Client::serve_step`].

mod connection;
mod dma_logging;
mod error;
mod exported;
mod features;
mod interrupts;
mod journal;
mod migration;
mod negotiate;
mod queries;
mod region_capabilities;
mod replies;
mod requests;
mod serving;
mod step;
mod vfio;
mod write_multi;

pub use error::{ClientError, Fault};
pub use exported::ClientMemory;
pub use journal::Journal;
pub use migration::MigrationInfo;
pub use queries::DeviceInfo;
pub use replies::{IoFd, IoFdKind, IrqInfo, RegionInfo};
pub use serving::Watch;
pub use step::Step;
pub use write_multi::RegionWrite;

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use zerocopy::IntoBytes;

use crate::capabilities::{Capabilities, MAX_JSON};
use crate::codec::Message;
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::wire::{self, HEADER_SIZE};
use connection::{Connection, Twin};
use exported::ExportedMemory;
use negotiate::{Agreed, negotiate};

/// The most bytes that are asked for or sent in one message, whatever more the server would take.
const MAX_TRANSFER: usize = 1 << 20;

/// How to talk to a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for any one call's replies. Default: 10 s.
    pub deadline: Duration,
    /// Whether the server may send its requests on a second socket. Default: yes.
    pub twin_socket: bool,
    /// Whether the server is asked to keep a journal. Default: no.
    pub journal: bool,
    /// Whether a server whose device is behind VFIO waits until it is told to open it. Default: no.
    pub vfio: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), twin_socket: true, journal: false, vfio: false }
    }
}

/// A connection to a device process. Shared between threads: calls take turns.
#[derive(Debug)]
pub struct Client {
    main: Mutex<Connection>,
    twin: Option<Arc<Twin>>,
    main_stream: Arc<ForeignFd>,
    memory: Arc<ExportedMemory>,
    server: Capabilities,
    /// In nanoseconds.
    deadline: AtomicU64,
    closed: AtomicBool,
    fault: OnceLock<Fault>,
    /// Something came for [`Client::serve_step`] while a call held the connection.
    unserved: AtomicBool,
    /// How many calls want the connection. Serving gives way to them.
    callers: AtomicUsize,
    /// Signalled by a call that leaves something to [`Client::serve_step`] which no socket tells of.
    left_over: EventFd,
}

impl Client {
    /// Negotiates version and capabilities on a connected socket. `memory` is what the server may reach by messages,
    /// within what is later mapped with [`Client::dma_map`]. No other process may hold a duplicate of `stream`: whether
    /// it blocks, and for how long, are options that its holders share.
    pub fn new(
        stream: impl Into<ForeignFd>,
        memory: Arc<dyn ClientMemory>,
        options: &Options,
    ) -> Result<Self, ClientError> {
        Self::on(Arc::new(stream.into()), memory, options)
    }

    /// The same on a socket that the caller may hang up meanwhile, which ends the negotiation.
    pub fn on(
        main_stream: Arc<ForeignFd>,
        memory: Arc<dyn ClientMemory>,
        options: &Options,
    ) -> Result<Self, ClientError> {
        let ours = negotiate::ours(options);
        let memory = Arc::new(ExportedMemory::new(memory, ours.max_data_xfer_size));
        let connect = |stream: &Arc<ForeignFd>, limit| {
            let connection = Connection::new(stream.clone(), memory.clone(), limit, options.deadline);
            connection.map_err(|source| ClientError::Io { command: Command::Version, source })
        };
        let mut main = connect(&main_stream, HEADER_SIZE + size_of::<wire::Version>() + MAX_JSON)?;
        let Agreed { server, twin } = negotiate(&mut main, &ours, Instant::now() + options.deadline)?;
        let limit = HEADER_SIZE + size_of::<wire::RegionAccess>() + MAX_TRANSFER;
        main.set_limit(limit);
        let twin = match twin.map(Arc::new) {
            Some(stream) => {
                let twin = Arc::new(Twin::new(stream.clone(), connect(&stream, limit)?));
                let failed = |source| ClientError::Io { command: Command::Version, source };
                main.serve_beside(&twin, &main_stream).map_err(failed)?;
                Some(twin)
            }
            None => None,
        };
        let (deadline, main) = (AtomicU64::new(nanoseconds(options.deadline)), Mutex::new(main));
        let left_over = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| ClientError::Io { command: Command::Version, source: errno.into() })?;
        let (closed, fault, unserved, callers) = Default::default();
        Ok(Self { main, twin, main_stream, memory, server, deadline, closed, fault, unserved, callers, left_over })
    }

    /// Changes how long the server may take for an answer, from the next call on. Waits for a call that is under way.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline.store(nanoseconds(deadline), Ordering::Relaxed);
        lock(&self.main).set_deadline(deadline);
        self.twin.iter().for_each(|twin| twin.set_deadline(deadline));
    }

    /// The server's capabilities.
    pub fn server_capabilities(&self) -> &Capabilities {
        &self.server
    }

    /// Reads from a region, in as many messages as the server's `max_data_xfer_size` asks for. One deadline covers them all.
    pub fn region_read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        let (mut offset, deadline) = (offset, self.deadline_from_now());
        for chunk in data.chunks_mut(self.max_transfer()) {
            let access = region_access(region, offset, chunk.len());
            self.request_until(deadline, Command::RegionRead, [access.as_bytes(), &[]], &[], |message| {
                let (reply, data) = message.parse::<wire::RegionAccess>().ok_or("a region read is too short")?;
                if reply.count != access.count || data.len() != chunk.len() {
                    return Err("a region read brings another amount of data");
                }
                chunk.copy_from_slice(data);
                Ok(())
            })?;
            offset = offset.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Writes to a region and waits until the device has taken it. One deadline covers all messages that this takes.
    pub fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let (mut offset, deadline) = (offset, self.deadline_from_now());
        for chunk in data.chunks(self.max_transfer()) {
            let access = region_access(region, offset, chunk.len());
            self.request_until(deadline, Command::RegionWrite, [access.as_bytes(), chunk], &[], |_| Ok(()))?;
            offset = offset.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Writes to a region without waiting. The device takes it before any later request of this client
    /// (specification: "Command Concurrency").
    pub fn region_write_posted(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let (mut offset, deadline) = (offset, self.deadline_from_now());
        for chunk in data.chunks(self.max_transfer()) {
            let access = region_access(region, offset, chunk.len());
            let parts = [access.as_bytes(), chunk];
            self.locked(Command::RegionWrite, |main| main.post(Command::RegionWrite, parts, deadline))?;
            offset = offset.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Makes a range of memory valid for DMA; with a descriptor, the server may map it (a server that takes no
    /// descriptors is not given it). [`ClientError::Local`]: the server takes no more, or only whole (larger) pages.
    pub fn dma_map(&self, address: u64, size: u64, file: Option<(BorrowedFd<'_>, u64)>) -> Result<(), ClientError> {
        let command = Command::DmaMap;
        let (rest, limit) = ((address | size) % self.server.page_size(), self.server.page_size());
        if rest > 0 {
            return Err(ClientError::Local { command, problem: "DMA mapping within a page", value: rest, limit });
        }
        let (value, limit) = (self.memory.count() as u64 + 1, self.server.max_dma_maps);
        if value > limit {
            return Err(ClientError::Local { command, problem: "DMA mappings", value, limit });
        }
        let file = file.filter(|_| self.server.max_msg_fds > 0);
        let flags = wire::DMA_READABLE | wire::DMA_WRITEABLE;
        let offset = file.map_or(0, |(_, offset)| offset);
        let request = wire::DmaMap { argsz: size_u32::<wire::DmaMap>(), flags, offset, address, size };
        let fds: Vec<_> = file.iter().map(|(fd, _)| *fd).collect();
        // Before the server knows of it: its first access may come before its reply.
        self.memory.export(address, size, flags);
        self.locked(command, |main| {
            let result = main.request(self.deadline_from_now(), command, [request.as_bytes(), &[]], &fds, |_| Ok(()));
            if result.is_err() {
                self.memory.withdraw(address, size);
            }
            result
        })
    }

    /// Takes a range back that was mapped earlier. Whatever the server answers, it is out of reach of messages then;
    /// a server that has mapped a descriptor and does not let go of it cannot be made to.
    pub fn dma_unmap(&self, address: u64, size: u64) -> Result<(), ClientError> {
        let request = wire::DmaUnmap { argsz: size_u32::<wire::DmaUnmap>(), flags: 0, address, size };
        self.locked(Command::DmaUnmap, |main| {
            let result =
                main.request(self.deadline_from_now(), Command::DmaUnmap, [request.as_bytes(), &[]], &[], |_| Ok(()));
            // After the reply, for until then the server may be finishing what it had begun; before anything else.
            self.memory.withdraw(address, size);
            result
        })
    }

    /// `VFIO_USER_DEVICE_RESET`.
    pub fn reset(&self) -> Result<(), ClientError> {
        self.request(Command::DeviceReset, [&[], &[]], &[], |_| Ok(()))
    }

    /// Ends the connection; calls under way fail at once.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for stream in [Some(&self.main_stream), self.twin.as_ref().map(|twin| &twin.stream)].into_iter().flatten() {
            stream.hang_up();
        }
    }

    /// Whether the connection has ended, by either side.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// The first fault of the server's for which this side has closed the connection.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.get()
    }

    fn request<T>(
        &self,
        command: Command,
        parts: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(Message<'_>) -> Result<T, &'static str>,
    ) -> Result<T, ClientError> {
        self.request_until(self.deadline_from_now(), command, parts, fds, read)
    }

    fn request_until<T>(
        &self,
        deadline: Instant,
        command: Command,
        parts: [&[u8]; 2],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(Message<'_>) -> Result<T, &'static str>,
    ) -> Result<T, ClientError> {
        self.locked(command, |main| main.request(deadline, command, parts, fds, read))
    }

    fn locked<T>(
        &self,
        command: Command,
        call: impl FnOnce(&mut Connection) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        if self.is_closed() {
            return Err(ClientError::Disconnected(command));
        }
        self.callers.fetch_add(1, Ordering::SeqCst);
        let mut main = lock(&self.main);
        self.callers.fetch_sub(1, Ordering::SeqCst);
        if self.is_closed() {
            return Err(ClientError::Disconnected(command));
        }
        let result = call(&mut main);
        let mut after = Ok(Step::Idle);
        if let Err(error) = &result
            && error.is_fatal()
        {
            self.close_for(error);
        } else if main.is_unsettled() {
            after = self.closing(main.settle());
        }
        let twin_left = main.take_twin_left();
        drop(main);
        fence(Ordering::SeqCst);
        if self.unserved.load(Ordering::SeqCst) && !self.is_closed() {
            after = after.and_then(|step| Ok(step.and(self.serve_unserved()?)));
        }
        match after {
            Ok(Step::Idle) if !twin_left => {}
            Ok(_) => self.leave_over(),
            // Not this call's failure. Whoever serves the connection finds it closed.
            Err(error) => log::info!("closing the connection to a device: {error}"),
        }
        result
    }

    /// Closes the connection when it can no longer be trusted to be in step.
    fn closing<T>(&self, result: Result<T, ClientError>) -> Result<T, ClientError> {
        result.inspect_err(|error| {
            if error.is_fatal() {
                self.close_for(error);
            }
        })
    }

    /// Notes why before anybody can see that the connection is closed: others may notice that first.
    fn close_for(&self, error: &ClientError) {
        // An error says that there was a fault already.
        let _ = self.fault.set(error.into());
        self.close();
    }

    fn deadline_from_now(&self) -> Instant {
        Instant::now() + Duration::from_nanos(self.deadline.load(Ordering::Relaxed))
    }

    fn max_transfer(&self) -> usize {
        // The least that makes any progress is one byte; zero was refused when it was negotiated.
        usize::try_from(self.server.max_data_xfer_size).unwrap_or(usize::MAX).min(MAX_TRANSFER)
    }
}

fn region_access(region: u32, offset: u64, length: usize) -> wire::RegionAccess {
    wire::RegionAccess { offset, region, count: u32::try_from(length).expect("transfers are at most 1 MiB") }
}

fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("wire structures are small")
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
