//! From a descriptor chain to an I/O operation (virtio 1.2, section 5.2.6, "Device Operation").

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use outrigger_protocol::server::{Memory, MemoryError};
use virtio_bindings::virtio_blk as spec;

use super::backing::{Backing, SECTOR};
use super::bounce::Bounce;
use super::{MAX_ZERO_SECTORS, SERIAL_SIZE};
use crate::byte;
use crate::transport::chain::{gather, part, scatter};
use crate::transport::{Chain, Segment, WorkerError};

/// Bytes of a request's header, and of a range to discard.
const HEADER_SIZE: u32 = 16;
const RANGE_SIZE: u32 = 16;

/// How a request ended, as its status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = byte(spec::VIRTIO_BLK_S_OK),
    /// Failed.
    IoError = byte(spec::VIRTIO_BLK_S_IOERR),
    /// This disk cannot do that.
    Unsupported = byte(spec::VIRTIO_BLK_S_UNSUPP),
}

/// The disk, as a queue's worker knows it.
#[derive(Debug)]
pub struct Disk {
    /// The file.
    pub backing: Arc<Backing>,
    /// The reply to `VIRTIO_BLK_T_GET_ID`.
    pub serial: [u8; SERIAL_SIZE],
    /// Every write must be on the disk when it is reported done.
    pub write_through: bool,
}

/// An operation for the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operation {
    /// Into the buffers.
    #[default]
    Read,
    /// From the buffers.
    Write,
    /// All writes reported done go to the disk.
    Flush,
    /// The range's content is not needed any more.
    Discard,
    /// The range reads as zeros; its space stays reserved.
    Zero,
    /// The range reads as zeros; its space may be given back.
    ZeroUnmap,
}

/// A request in progress. `Default` is an unused one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// The operation.
    pub operation: Operation,
    /// Byte on the disk where what remains starts.
    pub offset: u64,
    /// Bytes that remain.
    pub remaining: u32,
    /// Bytes as the driver asked.
    pub length: u32,
    /// Its first buffer with bytes that remain.
    first_buffer: u16,
    buffers: u16,
    /// Bytes that the driver lets us write before the status byte.
    room: u32,
    /// Where the status byte goes.
    pub status_address: u64,
    /// How often the kernel asked to try again.
    pub retries: u8,
}

/// The outcome of parsing a chain.
#[derive(Debug)]
pub enum Parsed {
    /// The kernel has to do something.
    Submit,
    /// It is done already: its status, and how many bytes of data were written to the buffers.
    Done(Status, u32),
    /// It failed, and somebody may want to know why.
    Failed(Status, RequestError),
}

/// A request that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A buffer is not in client memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Not within the disk, or not whole sectors.
    #[error("{length} bytes at sector {sector} of a disk of {capacity} sectors")]
    Range {
        /// First sector.
        sector: u64,
        /// Bytes.
        length: u64,
        /// Sectors of the disk.
        capacity: u64,
    },
    /// The disk is read-only.
    #[error("request type {0} on a read-only disk")]
    ReadOnly(u32),
}

impl Request {
    /// Takes the request in `chain` apart. Its data buffers go to `buffers`, which has room for the longest chain, or to
    /// `bounce` if not all of them are mapped.
    ///
    /// # Errors
    /// There is nowhere to put a status.
    pub fn parse(
        disk: &Disk,
        memory: &Memory,
        chain: &Chain,
        buffers: &mut [libc::iovec],
        bounce: &mut Option<Bounce>,
    ) -> Result<(Self, Parsed), WorkerError> {
        let (Some(last), true) = (chain.writable().last(), chain.readable_bytes() >= HEADER_SIZE) else {
            return Err(WorkerError::host("malformed request")(io::Error::other("no header or no status byte")));
        };
        let mut request = Self {
            status_address: last.address.saturating_add(u64::from(last.length - 1)),
            room: chain.writable_bytes() - 1,
            ..Self::default()
        };
        let parsed = match header(memory, chain) {
            Ok(header) => request.prepare(disk, memory, chain, &header, buffers, bounce),
            Err(error) => Err(error.into()),
        };
        match parsed {
            Ok(parsed) => Ok((request, parsed)),
            // There is nobody to report to.
            Err(RequestError::Memory(error @ MemoryError::Disconnected { .. })) => Err(error.into()),
            Err(error) => Ok((request, Parsed::Failed(Status::IoError, error))),
        }
    }

    fn prepare(
        &mut self,
        disk: &Disk,
        memory: &Memory,
        chain: &Chain,
        header: &[u8; HEADER_SIZE as usize],
        buffers: &mut [libc::iovec],
        bounce: &mut Option<Bounce>,
    ) -> Result<Parsed, RequestError> {
        let (kind, sector) = (u32_at(header, 0), u64::from_le_bytes(header[8..].try_into().expect("eight bytes")));
        let (sent, wanted) = (chain.readable_bytes() - HEADER_SIZE, self.room);
        let writes = [spec::VIRTIO_BLK_T_OUT, spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES];
        if disk.backing.readonly && writes.contains(&kind) {
            return Err(RequestError::ReadOnly(kind));
        }
        match kind {
            spec::VIRTIO_BLK_T_IN => {
                self.set_range(disk, Operation::Read, sector, wanted.into())?;
                let data = part(chain.writable(), 0, wanted);
                let direct = collect(data.clone(), |s| memory.writable_slice(s.address, s.length as usize), buffers);
                let open = |s: Segment| memory.is_writable(s.address, s.length as usize);
                self.buffers = direct.or_else(|error| self.detour(error, data, open, bounce))?;
            }
            spec::VIRTIO_BLK_T_OUT => {
                self.set_range(disk, Operation::Write, sector, sent.into())?;
                let data = part(chain.readable(), HEADER_SIZE, sent);
                let direct = collect(data.clone(), |s| memory.readable_slice(s.address, s.length as usize), buffers);
                let open = |s: Segment| memory.is_readable(s.address, s.length as usize);
                self.buffers = direct.or_else(|error| self.detour(error, data, open, bounce))?;
            }
            spec::VIRTIO_BLK_T_FLUSH => self.operation = Operation::Flush,
            spec::VIRTIO_BLK_T_DISCARD | spec::VIRTIO_BLK_T_WRITE_ZEROES => {
                return self.prepare_range(disk, memory, chain, kind, sent);
            }
            spec::VIRTIO_BLK_T_GET_ID => {
                let length = wanted.min(spec::VIRTIO_BLK_ID_BYTES);
                scatter(memory, chain.writable().iter().copied(), &disk.serial[..length as usize])?;
                return Ok(Parsed::Done(Status::Ok, length));
            }
            _ => return Ok(Parsed::Done(Status::Unsupported, 0)),
        }
        let empty = self.operation != Operation::Flush && self.length == 0;
        Ok(if empty { Parsed::Done(Status::Ok, 0) } else { Parsed::Submit })
    }

    /// Discard and write-zeroes: the data is one range, as one is all we announce.
    fn prepare_range(
        &mut self,
        disk: &Disk,
        memory: &Memory,
        chain: &Chain,
        kind: u32,
        sent: u32,
    ) -> Result<Parsed, RequestError> {
        if sent != RANGE_SIZE {
            return Ok(Parsed::Done(Status::Unsupported, 0));
        }
        let mut bytes = [0; (HEADER_SIZE + RANGE_SIZE) as usize];
        gather(memory, chain.readable().iter().copied(), &mut bytes)?;
        let range = &bytes[HEADER_SIZE as usize..];
        let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
        let (sectors, flags) = (u32_at(range, 8), u32_at(range, 12));
        let Backing { can_punch, can_zero, .. } = *disk.backing;
        let operation = match (kind, flags) {
            (spec::VIRTIO_BLK_T_DISCARD, 0) if can_punch => Operation::Discard,
            (spec::VIRTIO_BLK_T_WRITE_ZEROES, 1) if can_punch => Operation::ZeroUnmap,
            (spec::VIRTIO_BLK_T_WRITE_ZEROES, 0 | 1) if can_zero => Operation::Zero,
            _ => return Ok(Parsed::Done(Status::Unsupported, 0)),
        };
        if sectors > MAX_ZERO_SECTORS {
            return Ok(Parsed::Done(Status::Unsupported, 0));
        }
        self.set_range(disk, operation, sector, u64::from(sectors) * SECTOR)?;
        Ok(if self.length == 0 { Parsed::Done(Status::Ok, 0) } else { Parsed::Submit })
    }

    /// No buffers for the kernel, as not all are mapped: the data goes through a bounce buffer, if messages reach it.
    fn detour(
        &self,
        error: MemoryError,
        data: impl Iterator<Item = Segment> + Clone,
        open: impl Fn(Segment) -> bool,
        bounce: &mut Option<Bounce>,
    ) -> Result<u16, MemoryError> {
        if !data.clone().all(open) {
            return Err(error);
        }
        *bounce = Some(Bounce::new(data, self.length));
        Ok(0)
    }

    fn set_range(&mut self, disk: &Disk, operation: Operation, sector: u64, length: u64) -> Result<(), RequestError> {
        let capacity = disk.backing.sectors();
        let end = sector.checked_add(length / SECTOR);
        let short = u32::try_from(length).ok().filter(|_| length.is_multiple_of(SECTOR));
        let (Some(length), true) = (short, end.is_some_and(|end| end <= capacity)) else {
            return Err(RequestError::Range { sector, length, capacity });
        };
        (self.operation, self.offset, self.remaining, self.length) = (operation, sector * SECTOR, length, length);
        Ok(())
    }

    /// Those of `buffers`, filled by [`Request::parse`], that have bytes that remain.
    pub fn left<'b>(&self, buffers: &'b [libc::iovec]) -> &'b [libc::iovec] {
        &buffers[usize::from(self.first_buffer)..usize::from(self.buffers)]
    }

    /// Whether something is to be done, now that the operation is: without a way to flush, the driver expects what it was told
    /// is done to be on the disk. A write sees to that by itself.
    pub fn becomes_flush(&mut self, disk: &Disk) -> bool {
        let is_range = matches!(self.operation, Operation::Discard | Operation::Zero | Operation::ZeroUnmap);
        let flush = disk.write_through && is_range;
        if flush {
            self.operation = Operation::Flush;
        }
        flush
    }

    /// Whether nothing has been tried yet.
    pub fn is_new(&self) -> bool {
        self.remaining == self.length && self.retries == 0
    }

    /// The submission for what remains. `buffers` are those that [`Request::parse`] filled; they and the memory they
    /// point to must stay until the kernel is done.
    pub fn submission(&self, disk: &Disk, buffers: &[libc::iovec]) -> squeue::Entry {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        // Not registered with the ring: a request has it open as long as it takes, and no longer, see `Backing::lock`.
        let file = types::Fd(disk.backing.file.as_raw_fd());
        let buffers = self.left(buffers);
        let sync = if disk.write_through { libc::RWF_DSYNC } else { 0 };
        let allocate = |mode| opcode::Fallocate::new(file, self.length.into()).offset(self.offset).mode(mode).build();
        match (self.operation, buffers) {
            (Operation::Read, &[buffer]) => {
                opcode::Read::new(file, buffer.iov_base.cast(), length(buffer)).offset(self.offset).build()
            }
            (Operation::Read, _) => {
                opcode::Readv::new(file, buffers.as_ptr(), count(buffers)).offset(self.offset).build()
            }
            (Operation::Write, &[buffer]) => {
                let write = opcode::Write::new(file, buffer.iov_base.cast(), length(buffer)).offset(self.offset);
                write.rw_flags(sync).build()
            }
            (Operation::Write, _) => {
                let write = opcode::Writev::new(file, buffers.as_ptr(), count(buffers)).offset(self.offset);
                write.rw_flags(sync).build()
            }
            (Operation::Flush, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            (Operation::Zero, _) => allocate(zero),
            (Operation::Discard | Operation::ZeroUnmap, _) => allocate(punch),
        }
    }

    /// Makes `buffer` the only one: it holds the next piece of the data.
    pub fn set_buffer(&mut self, buffer: libc::iovec, buffers: &mut [libc::iovec]) {
        buffers[0] = buffer;
        (self.first_buffer, self.buffers) = (0, 1);
    }

    /// Bytes that have been moved.
    pub fn done(&self) -> u32 {
        self.length - self.remaining
    }

    /// Bytes of data in the driver's buffers when the request ends with `status`, from their start.
    pub fn written(&self, status: Status) -> u32 {
        match (self.operation, status) {
            (Operation::Read, Status::Ok) => self.length,
            // Short: what was there has been read.
            (Operation::Read, _) => self.done(),
            _ => 0,
        }
    }

    /// The length in the used ring when `written` bytes of data were written: the driver may rely on as many bytes from the
    /// start of its buffers (virtio 1.2, section 2.7.8.2), so the status byte counts only if nothing is missing before it.
    pub fn used_length(&self, written: u32) -> u32 {
        if written == self.room { written.saturating_add(1) } else { written }
    }

    /// Takes note of `bytes` that the kernel has moved, fewer than remain.
    pub fn advance(&mut self, bytes: u32, buffers: &mut [libc::iovec]) {
        self.offset += u64::from(bytes);
        self.remaining -= bytes;
        let mut bytes = bytes as usize;
        for buffer in &mut buffers[usize::from(self.first_buffer)..usize::from(self.buffers)] {
            let taken = bytes.min(buffer.iov_len);
            // Within the buffer, so this is not going anywhere that it must not.
            buffer.iov_base = buffer.iov_base.wrapping_byte_add(taken);
            buffer.iov_len -= taken;
            bytes -= taken;
            if buffer.iov_len != 0 {
                return;
            }
            self.first_buffer += 1;
        }
    }
}

/// The header, which drivers put at the start of a buffer, and may put across several.
fn header(memory: &Memory, chain: &Chain) -> Result<[u8; HEADER_SIZE as usize], MemoryError> {
    match chain.readable() {
        [Segment { address, length: HEADER_SIZE.. }, ..] => memory.read_array(*address),
        several => {
            let mut header = [0; HEADER_SIZE as usize];
            gather(memory, several.iter().copied(), &mut header)?;
            Ok(header)
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn length(buffer: libc::iovec) -> u32 {
    u32::try_from(buffer.iov_len).expect("a buffer is at most as long as its descriptor says")
}

fn count(buffers: &[libc::iovec]) -> u32 {
    u32::try_from(buffers.len()).expect("a chain has at most MAX_SEGMENTS buffers")
}

/// Puts where the kernel finds `segments` to `buffers`, those that are neighbours as one; returns how many.
fn collect<'m>(
    segments: impl Iterator<Item = Segment>,
    slice: impl Fn(Segment) -> Result<vm_memory::VolatileSlice<'m>, MemoryError>,
    buffers: &mut [libc::iovec],
) -> Result<u16, MemoryError> {
    let mut count = 0u16;
    for segment in segments {
        let (iov_base, iov_len) = (slice(segment)?.ptr_guard_mut().as_ptr(), segment.length as usize);
        match buffers[..usize::from(count)].last_mut() {
            Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == iov_base.cast() => last.iov_len += iov_len,
            _ => {
                buffers[usize::from(count)] = libc::iovec { iov_base: iov_base.cast(), iov_len };
                count += 1;
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod parse_tests;
#[cfg(test)]
mod tests;
