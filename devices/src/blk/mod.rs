//! The block device (virtio 1.2, section 5.2, "Block Device"): a raw file or a host block device.

mod at_once;
mod backing;
mod bounce;
mod format;
mod request;
mod ring;
mod uring;

use std::io;
use std::sync::Arc;

use outrigger_process::launch;
use outrigger_process::options::{OptionError, Options, named};
use virtio_bindings::virtio_blk as spec;

use crate::process::StartError;
use crate::sandbox::{Kind, Profile};
use crate::transport::journal::JournalError;
use crate::transport::{Identity, Predecessor, VirtioDevice, Work, WorkerError};

pub use backing::{Backing, Locking, OpenError};

/// The disk's part of `--help`.
pub const HELP: &str = "\
Keys of --disk:
  path=FILE     a raw image (size a multiple of 512 bytes) or a block device; locked while in use
  readonly=on   the guest cannot write; several processes may share the file
  format=raw    serve the file as it is, even if it looks like an image in another format (qcow2, VMDK, VHD…)
  serial=ID     what the guest sees as the disk's serial, up to 20 bytes
  queues=N      request queues, 1 to 64 (default: one per virtual CPU, or 1 if outrigger did not start this process)

Examples:
  truncate -s 1G disk.img && outrigger-blk --disk path=disk.img --socket /run/disk.sock
  outrigger run --kernel vmlinuz --device socket=/run/disk.sock
  outrigger-blk --disk path=/dev/nvme0n1p3,readonly=on,serial=backup --socket /run/disk.sock

Log level: RUST_LOG=error|warn|info|debug (default warn), on standard error.
Exit status: 0 when told to end or the client of --fd left, 1 when that client broke the protocol,
2 for bad usage, 3 when the host lacks something (a permission, io_uring).";

/// Feature bits that every disk has.
const FEATURES: u64 =
    1 << spec::VIRTIO_BLK_F_SEG_MAX | 1 << spec::VIRTIO_BLK_F_BLK_SIZE | 1 << spec::VIRTIO_BLK_F_TOPOLOGY;
/// A chain is as long as the queue: these, a header and a status.
const SEG_MAX: u32 = crate::transport::layout::MAX_QUEUE_SIZE as u32 - 2;
/// The most sectors one discard or write-zeroes may cover: 2 GiB.
const MAX_ZERO_SECTORS: u32 = 1 << 22;
/// Bytes of a disk's serial.
const SERIAL_SIZE: usize = spec::VIRTIO_BLK_ID_BYTES as usize;
const MAX_QUEUES: u16 = 64;

/// A disk.
#[derive(Debug)]
pub struct Blk {
    backing: Arc<Backing>,
    serial: [u8; SERIAL_SIZE],
    queues: u16,
    config: Vec<u8>,
}

/// A disk that cannot be had; one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The argument makes no sense.
    #[error("{}: {problem}", named("--disk", argument))]
    Option {
        /// As it was given.
        argument: String,
        /// The error in it.
        problem: OptionError,
    },
    /// The file cannot be used.
    #[error("{}: {source}", named("--disk", argument))]
    Open {
        /// As it was given.
        argument: String,
        /// Why.
        source: OpenError,
    },
    /// The host lacks something.
    #[error("io_uring is not available: {0}")]
    IoUring(std::io::Error),
}

impl StartError for BlkError {
    fn is_lack_of_host(&self) -> bool {
        matches!(self, Self::IoUring(_))
    }
}

impl Blk {
    /// Opens the disk that a `--disk` argument describes.
    pub fn open(argument: &str) -> Result<Self, BlkError> {
        Self::open_with(argument, if launch::is_successor() { Locking::Later } else { Locking::AtOnce })
    }

    fn open_with(argument: &str, locking: Locking) -> Result<Self, BlkError> {
        let options = DiskOptions::parse(argument)
            .map_err(|problem| BlkError::Option { argument: argument.to_owned(), problem })?;
        let backing = Backing::open(options.path.as_ref(), options.readonly, options.raw, locking)
            .map_err(|source| BlkError::Open { argument: argument.to_owned(), source })?;
        uring::probe().map_err(BlkError::IoUring)?;
        let queues = options.queues.unwrap_or(launch::vcpus().unwrap_or(1).clamp(1, MAX_QUEUES));
        let config = config(&backing, queues);
        Ok(Self { backing: Arc::new(backing), serial: options.serial, queues, config })
    }
}

/// The keys of a `--disk` argument.
struct DiskOptions {
    path: String,
    readonly: bool,
    raw: bool,
    serial: [u8; SERIAL_SIZE],
    queues: Option<u16>,
}

impl DiskOptions {
    fn parse(argument: &str) -> Result<Self, OptionError> {
        let options = Options::parse(argument, &["path", "readonly", "format", "serial", "queues"], None)?;
        Ok(Self {
            path: options.required("path", "FILE")?.to_owned(),
            readonly: options.switch("readonly")?,
            raw: options.parsed("format", raw)?.is_some(),
            serial: options.parsed("serial", serial)?.unwrap_or_default(),
            queues: options.number("queues", 1..=MAX_QUEUES)?,
        })
    }
}

fn raw(text: &str) -> Result<(), &'static str> {
    if text == "raw" { Ok(()) } else { Err("must be raw") }
}

fn serial(text: &str) -> Result<[u8; SERIAL_SIZE], String> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be printable ASCII without spaces".to_owned());
    }
    let mut serial = [0; SERIAL_SIZE];
    let Some(room) = serial.get_mut(..text.len()) else {
        return Err(format!("is {} bytes long, at most {SERIAL_SIZE} are possible", text.len()));
    };
    room.copy_from_slice(text.as_bytes());
    Ok(serial)
}

/// `struct virtio_blk_config` (virtio 1.2, section 5.2.4, "Device configuration layout").
fn config(backing: &Backing, queues: u16) -> Vec<u8> {
    let topology = &backing.topology;
    let mut config = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &backing.sectors().to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &topology.logical.to_le_bytes());
    put(24, &[topology.physical_exponent, 0]);
    put(26, &topology.minimum_io.to_le_bytes());
    put(28, &topology.optimal_io.to_le_bytes());
    put(34, &queues.to_le_bytes());
    if backing.can_punch {
        put(36, &MAX_ZERO_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &topology.physical_sectors().to_le_bytes());
    }
    if backing.can_zero {
        put(48, &MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[u8::from(backing.can_punch)]);
    }
    config
}

impl VirtioDevice for Blk {
    fn identity(&self) -> Identity {
        // Mass storage, SCSI: what virtio disks call themselves.
        Identity { device_type: 2, class: 0x01_00_00 }
    }

    fn name(&self) -> &'static str {
        "blk"
    }

    fn features(&self) -> u64 {
        let bit = |feature: u32, offered: bool| u64::from(offered) << feature;
        FEATURES
            | bit(spec::VIRTIO_BLK_F_RO, self.backing.readonly)
            | bit(spec::VIRTIO_BLK_F_FLUSH, !self.backing.readonly)
            | bit(spec::VIRTIO_BLK_F_DISCARD, self.backing.can_punch)
            | bit(spec::VIRTIO_BLK_F_WRITE_ZEROES, self.backing.can_zero)
            | bit(spec::VIRTIO_BLK_F_MQ, self.queues > 1)
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn profile(&self) -> Option<Profile> {
        Some(Profile { kind: Kind::Disk, file_size: self.backing.size })
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, _features: u64) -> io::Result<()> {
        self.succeed()
    }

    /// A disk may have grown: its capacity comes first.
    fn offer(&mut self, predecessor: &Predecessor) -> Result<(), JournalError> {
        let sectors = |config: &[u8]| config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        if predecessor.config.get(8..) != self.config.get(8..) {
            return Err(JournalError::Config);
        }
        if sectors(&predecessor.config) > sectors(&self.config) {
            return Err(JournalError::Device("the disk is smaller than it was"));
        }
        Ok(())
    }

    fn succeed(&mut self) -> io::Result<()> {
        self.backing.lock().map_err(io::Error::other)
    }

    fn prepare(&self) -> io::Result<()> {
        uring::build_beforehand(self.queues).map_err(|error| io::Error::other(BlkError::IoUring(error)))
    }

    fn prepare_thread() -> io::Result<()> {
        uring::prepare().map_err(|error| io::Error::other(BlkError::IoUring(error)))
    }

    fn start(&mut self, _queue: u16, features: u64) -> Result<Work, WorkerError> {
        let disk = request::Disk {
            backing: Arc::clone(&self.backing),
            serial: self.serial,
            // A driver that cannot flush expects every write to be on the disk (virtio 1.2, section 5.2.6.2).
            write_through: features & 1 << spec::VIRTIO_BLK_F_FLUSH == 0,
        };
        Ok(Box::new(move |active| ring::serve(disk, active)))
    }
}

#[cfg(test)]
mod tests;
