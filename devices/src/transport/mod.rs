//! The virtio 1.2 PCI transport over a vfio-user server.
//!
//! A device implements [`VirtioDevice`]; [`PciFunction`] makes it a PCI function that
//! [`outrigger_protocol::server::serve`] can serve. One thread per enabled queue does the work, the thread that serves
//! the socket, and one for accesses that KVM hands over by ioregionfd, do everything else, one at a time:
//!
//! - [`pci_config`]: configuration space with the virtio, MSI-X and PCI Express capabilities.
//! - [`registers`]: the common configuration structure as a state machine without side effects.
//! - [`signals`]: interrupts, ISR status and "device needs reset", shared by all threads.
//! - [`layout`]: where a virtqueue is; [`queue`]: one in service; [`chain`]: descriptor chains.
//! - `rings`: a queue's memory, `mapped` or in `shadow` copies.
//! - [`worker`]: the threads, and how they are stopped so that no I/O refers to client memory any more.
//! - [`journal`]: all of that as a successor of this process finds it.
//! - [`control`]: what the registers control; [`shared`] by messages and [`register_fd`], their ioregionfd.
//! - [`function`]: the above as a PCI function; `iommu`: whether addresses may be translated.

pub mod chain;
pub mod control;
pub mod device;
pub mod function;
mod iommu;
pub mod journal;
pub mod layout;
mod mapped;
pub mod pci_config;
pub mod queue;
pub mod register_fd;
pub mod registers;
mod rings;
mod shadow;
pub mod shared;
pub mod signals;
pub mod worker;

pub use chain::{Chain, Segment};
pub use device::{Identity, Predecessor, VirtioDevice};
pub use function::PciFunction;
pub use iommu::Iommu;
pub use layout::QueueLayout;
pub use queue::{Queue, QueueError};
pub use worker::{ActiveQueue, Work, WorkerError};

/// The most virtqueues a device may have: with one vector each and one for configuration changes, the MSI-X table and
/// its pending bits fit the region that [`pci_config`] lays out.
pub const MAX_QUEUES: u16 = 255;
