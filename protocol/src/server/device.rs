//! The trait that a device process implements.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::dma::DmaRange;
use super::interrupts::{Interrupts, Irq};
use super::journal::Journaled;
use super::memory::Memory;
use super::migration::Migration;
use crate::wire::CapType;

/// A PCI device that a client can attach.
///
/// All methods are called from the thread that runs [`super::serve`], one at a time and in the order of the client's
/// messages. Every argument has been checked against [`Device::regions`] and [`Device::irqs`].
pub trait Device {
    /// The regions by index ([`crate::pci`]); an absent region has size 0. Constant.
    fn regions(&self) -> &[Region];

    /// How many interrupts there are of each type, by index ([`crate::pci`]). Constant.
    fn irqs(&self) -> &[Irq];

    /// A client is there: its memory and its interrupts are reached by these handles. Called before any access.
    fn connected(&mut self, interrupts: &Arc<Interrupts>);

    /// The client's memory changed. From when this returns, only `memory` may be used: a range that went away is
    /// unmapped by the caller right after, so whoever holds an older [`Memory`] (in-flight I/O included) must have let
    /// go of it.
    fn memory_changed(&mut self, memory: &Memory);

    /// The client makes a range available for DMA. A device whose hardware reaches memory by itself tells its IOMMU here:
    /// an error is the client's reply, and the range is not made. Called before [`Device::memory_changed`] shows it.
    fn map(&mut self, _range: &DmaRange<'_>) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether the client may make BARs of other physical devices available, too (peer-to-peer): a range then comes with a file
    /// of the kernel's VFIO, and only [`Device::map`] sees it. Otherwise such a range is refused.
    fn reaches_bars(&self) -> bool {
        false
    }

    /// The client takes back a range that [`Device::map`] accepted, or has left: when this returns, nothing reaches the
    /// memory any more. Called after [`Device::memory_changed`], and before the range is unmapped from this process.
    fn unmap(&mut self, _range: &DmaRange<'_>) {}

    /// Reads `data.len()` bytes at `offset` of a region; the range is within the region.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Writes at `offset` of a region; the range is within the region.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// The sub-regions of a region that KVM can signal or hand over without the client. Those that share a descriptor
    /// name the same number, and it is sent once. What needs more descriptors than the client takes is left out from
    /// the end: there, accesses come by messages.
    fn io_fds(&self, _region: u32) -> Vec<IoFd<'_>> {
        Vec::new()
    }

    /// The client connects eventfds to the vectors of an interrupt type from `start` on, or disconnects those that have none
    /// here. A device whose interrupts come from elsewhere than [`Interrupts::trigger`] passes them on: an error is the
    /// client's reply, and the vectors stay as they are. Not called when the client leaves: that is
    /// [`Device::disconnected`].
    fn connect(&mut self, _irq: u32, _start: u32, _eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        Ok(())
    }

    /// The same for eventfds by which the client unmasks vectors, without a message (`VFIO_IRQ_SET_ACTION_UNMASK` with
    /// `VFIO_IRQ_SET_DATA_EVENTFD` of `<linux/vfio.h>`). A device that has nothing that waits for them refuses, and the
    /// client unmasks by messages.
    fn connect_unmask(&mut self, _irq: u32, _start: u32, _eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// The client masks or unmasks a vector by a message; an error is its reply. [`Interrupts::trigger`] knows of the mask.
    fn mask(&mut self, _irq: u32, _vector: u32, _masked: bool) -> Result<(), Errno> {
        Ok(())
    }

    /// The client unmasked an interrupt (INTx after its handler ran) or connected one that can be masked: if the cause
    /// still stands, fire again.
    fn unmasked(&mut self, _irq: u32) {}

    /// The device as one that migrates. `None`: it does not.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }

    /// The device as one that a successor can go on with. `None`: it is lost with its process.
    fn journal(&mut self) -> Option<&mut dyn Journaled> {
        None
    }

    /// Whether the client can have it noted which memory the device writes (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`). A
    /// device that says so marks what it writes by other means than [`Memory::write`] and [`Memory::store_u16`]
    /// ([`Memory::mark_dirty`]); notes begin and end with [`Device::memory_changed`].
    fn logs_dma(&self) -> bool {
        false
    }

    /// The operations on a device feature (`VFIO_DEVICE_FEATURE_*` of `<linux/vfio.h>`) other than migration and DMA
    /// logging. `None`: there is none.
    fn feature(&self, _index: u16) -> Option<Feature> {
        None
    }

    /// The data of a feature that can be read. `request` is what the client sent along.
    fn get_feature(&mut self, _index: u16, _request: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::ENOTTY)
    }

    /// Changes a feature that can be changed.
    fn set_feature(&mut self, _index: u16, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    /// `VFIO_USER_DEVICE_RESET`: back to the state after power-on, with no DMA left in flight.
    fn reset(&mut self);

    /// Waits for what [`Device::reset`] has begun and cannot take back, such as I/O of the kernel's. The client is told
    /// that the device was reset after this; an error is the reply when there is DMA in flight all the same.
    fn finish_reset(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    /// The client is gone, and its memory will be taken back: hardware that reaches memory by itself stops here. Called before
    /// the last [`Device::memory_changed`] and [`Device::unmap`].
    fn stop(&mut self) {}

    /// The client is gone: stop using its memory and interrupts. Guest-visible state is kept
    /// (specification: "Client Disconnection").
    fn disconnected(&mut self);
}

/// One region as the client sees it.
#[derive(Debug, Default)]
pub struct Region {
    /// Bytes; zero: the region does not exist.
    pub size: u64,
    /// Whether the client may read it.
    pub readable: bool,
    /// Whether the client may write it.
    pub writable: bool,
    /// The part that the client may map.
    pub mapping: Option<RegionMapping>,
    /// The purpose of a region beyond the standard ones (`VFIO_REGION_TYPE_*` of `<linux/vfio.h>`).
    pub region_type: Option<CapType>,
}

impl Region {
    /// A region that is reached by messages only.
    pub const fn messages(size: u64) -> Self {
        Self { size, readable: true, writable: true, mapping: None, region_type: None }
    }
}

/// The mappable parts of a region.
#[derive(Debug)]
pub struct RegionMapping {
    /// The file that backs them.
    pub fd: std::os::fd::OwnedFd,
    /// Where the region starts in the file, in bytes.
    pub offset: u64,
    /// The mappable areas as (offset in the region, size), page-aligned; empty: the whole region.
    pub areas: Vec<(u64, u64)>,
}

/// The operations on a device feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feature {
    /// It can be read.
    pub get: bool,
    /// It can be changed.
    pub set: bool,
}

/// A sub-region that KVM can serve without the client.
#[derive(Clone, Copy, Debug)]
pub struct IoFd<'a> {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// Bytes; zero: any access size matches.
    pub size: u64,
    /// How.
    pub kind: IoFdKind,
    /// Whether the region is an I/O-port BAR.
    pub pio: bool,
    /// The eventfd, or the end of a socket that KVM speaks the ioregionfd protocol on.
    pub fd: BorrowedFd<'a>,
}

/// How KVM serves a sub-region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFdKind {
    /// Writes (of this value only, if one is given) signal an eventfd.
    Ioeventfd {
        /// The value.
        datamatch: Option<u64>,
    },
    /// Accesses are handed over as ioregionfd commands.
    Ioregionfd {
        /// Comes back with each access.
        user_data: u64,
        /// Whether a write goes unanswered. It does in any case where the size is zero.
        posted_writes: bool,
    },
}
