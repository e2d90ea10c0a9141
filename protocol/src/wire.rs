//! Every structure that crosses the socket, in host byte order.
//!
//! Each message is a [`Header`] followed by the payload that its command defines (specification: "Header", and the
//! section of each command). All structures are plain data without padding, so reading one from bytes needs no
//! `unsafe`; their sizes are asserted below.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use feature::*;
pub use journal::*;
pub use vfio::*;

macro_rules! wire_struct {
    ($(#[$meta:meta])* $name:ident, $size:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}
pub(crate) use wire_struct;

wire_struct! {
    /// Precedes every message.
    Header, 16 {
        /// Chosen by the sender of a command, echoed in its reply; need not be unique.
        message_id: u16,
        /// A [`crate::command::Command`].
        command: u16,
        /// Size of the whole message including this header, in bytes.
        message_size: u32,
        /// Message type in bits 0 to 3, then [`FLAG_NO_REPLY`] and [`FLAG_ERROR`].
        flags: u32,
        /// An errno value, valid in a reply with [`FLAG_ERROR`].
        error: u32,
    }
}

mod feature;
mod journal;
mod vfio;

/// Size of [`Header`] in bytes.
pub const HEADER_SIZE: usize = size_of::<Header>();
/// The bits of [`Header::flags`] that hold the message type.
pub const FLAG_TYPE_MASK: u32 = 0xf;
/// Message type of a command.
pub const TYPE_COMMAND: u32 = 0;
/// Message type of a reply.
pub const TYPE_REPLY: u32 = 1;
/// On a command: no reply is wanted.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// On a reply: the command failed, [`Header::error`] says why.
pub const FLAG_ERROR: u32 = 1 << 5;

wire_struct! {
    /// `VFIO_USER_VERSION`; followed by NUL-terminated JSON.
    Version, 4 {
        /// Must be equal on both sides.
        major: u16,
        /// The server answers with at most what the client proposed.
        minor: u16,
    }
}

wire_struct! {
    /// `VFIO_USER_DMA_MAP`; at most one fd.
    DmaMap, 32 {
        /// Size of this structure.
        argsz: u32,
        /// `DMA_*`.
        flags: u32,
        /// Offset into the fd, zero without one.
        offset: u64,
        /// First DMA address.
        address: u64,
        /// Bytes.
        size: u64,
    }
}

/// The server may read the range.
pub const DMA_READABLE: u32 = 1 << 0;
/// The server may write the range.
pub const DMA_WRITEABLE: u32 = 1 << 1;
/// The server may map the descriptor; also meant where there is a descriptor and no flag (libvfio-user's
/// `VFIO_USER_F_DMA_REGION_MMAP`, 2026).
pub const DMA_MMAP: u32 = 1 << 2;
/// The server may read and write the descriptor with `pread` and `pwrite` (libvfio-user's
/// `VFIO_USER_F_DMA_REGION_FILE_IO`, 2026).
pub const DMA_FILE_IO: u32 = 1 << 3;

wire_struct! {
    /// `VFIO_USER_DMA_UNMAP`, echoed in the reply.
    DmaUnmap, 24 {
        /// Largest reply payload the client takes.
        argsz: u32,
        /// Zero, or [`DMA_UNMAP_ALL`].
        flags: u32,
        /// First DMA address of a range mapped earlier.
        address: u64,
        /// Its size in bytes.
        size: u64,
    }
}

/// Every range goes away; address and size are zero (`VFIO_DMA_UNMAP_FLAG_ALL` of `<linux/vfio.h>`).
pub const DMA_UNMAP_ALL: u32 = 1 << 1;

wire_struct! {
    /// `VFIO_USER_DEVICE_GET_INFO`.
    DeviceInfo, 16 {
        /// Largest reply payload the client takes; in the reply, the size of the whole.
        argsz: u32,
        /// [`DEVICE_RESET_SUPPORTED`], [`DEVICE_IS_PCI`].
        flags: u32,
        /// Number of regions.
        num_regions: u32,
        /// Number of interrupt types.
        num_irqs: u32,
    }
}

/// The device takes `VFIO_USER_DEVICE_RESET`.
pub const DEVICE_RESET_SUPPORTED: u32 = 1 << 0;
/// The device is a PCI device.
pub const DEVICE_IS_PCI: u32 = 1 << 1;

wire_struct! {
    /// `VFIO_USER_DEVICE_GET_REGION_INFO`; capabilities may follow.
    RegionInfo, 32 {
        /// Largest reply payload the client takes; in the reply, the size of the whole.
        argsz: u32,
        /// `REGION_*`.
        flags: u32,
        /// Which region.
        index: u32,
        /// Where the first capability starts, relative to this structure; zero: none.
        cap_offset: u32,
        /// Bytes; zero: the region does not exist.
        size: u64,
        /// Offset into the fd for `mmap()`.
        offset: u64,
    }
}

/// The region can be read.
pub const REGION_READ: u32 = 1 << 0;
/// The region can be written.
pub const REGION_WRITE: u32 = 1 << 1;
/// The region, or the areas its sparse-mmap capability lists, can be mapped.
pub const REGION_MMAP: u32 = 1 << 2;
/// Capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;

wire_struct! {
    /// Starts each region capability.
    CapHeader, 8 {
        /// `REGION_CAP_*`.
        id: u16,
        /// Of this capability's layout.
        version: u16,
        /// Offset of the next capability, relative to the [`RegionInfo`]; zero: the last.
        next: u32,
    }
}

/// [`CapHeader::id`] of a [`SparseMmap`].
pub const REGION_CAP_SPARSE_MMAP: u16 = 1;
/// [`CapHeader::id`] of a [`CapType`].
pub const REGION_CAP_TYPE: u16 = 2;

wire_struct! {
    /// Follows the [`CapHeader`] of a sparse-mmap capability.
    SparseMmap, 8 {
        /// How many [`SparseMmapArea`]s follow.
        nr_areas: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// One mappable part of a region.
    SparseMmapArea, 16 {
        /// From the start of the region, in bytes.
        offset: u64,
        /// Bytes.
        size: u64,
    }
}

wire_struct! {
    /// Follows the [`CapHeader`] of a region type (`struct vfio_region_info_cap_type`).
    CapType, 8 {
        /// `VFIO_REGION_TYPE_*`.
        region_type: u32,
        /// Its meaning depends on the type.
        subtype: u32,
    }
}

wire_struct! {
    /// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`; the reply has [`IoFd`]s and fds.
    RegionIoFds, 16 {
        /// Largest reply payload the client takes; in the reply, the size of the whole.
        argsz: u32,
        /// Zero.
        flags: u32,
        /// Which region.
        index: u32,
        /// How many [`IoFd`]s follow.
        count: u32,
    }
}

wire_struct! {
    /// One sub-region that KVM can signal or hand over without the client.
    IoFd, 40 {
        /// From the start of the region, in bytes.
        offset: u64,
        /// Bytes; zero: any access size matches.
        size: u64,
        /// Index into the fds of the message.
        fd_index: u32,
        /// [`IO_FD_IOEVENTFD`] or [`IO_FD_IOREGIONFD`].
        kind: u32,
        /// Flags of the KVM ioctl.
        flags: u32,
        /// Zero.
        padding: u32,
        /// `datamatch` of an ioeventfd, `user_data` of an ioregionfd.
        data: u64,
    }
}

/// `VFIO_USER_IO_FD_TYPE_IOEVENTFD`.
pub const IO_FD_IOEVENTFD: u32 = 0;
/// `VFIO_USER_IO_FD_TYPE_IOREGIONFD`.
pub const IO_FD_IOREGIONFD: u32 = 1;
/// `KVM_IOEVENTFD_FLAG_DATAMATCH`: only writes of [`IoFd::data`] count.
pub const IOEVENTFD_DATAMATCH: u32 = 1 << 0;
/// `KVM_IOEVENTFD_FLAG_PIO`: the sub-region is in an I/O-port BAR.
pub const IOEVENTFD_PIO: u32 = 1 << 1;
/// `KVM_IOREGION_PIO`: the sub-region is in an I/O-port BAR.
pub const IOREGION_PIO: u32 = 1 << 0;
/// `KVM_IOREGION_POSTED_WRITES`: writes are not answered.
pub const IOREGION_POSTED_WRITES: u32 = 1 << 1;

wire_struct! {
    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`.
    IrqInfo, 16 {
        /// Largest reply payload the client takes; in the reply, the size of the whole.
        argsz: u32,
        /// `IRQ_*`.
        flags: u32,
        /// Which interrupt type.
        index: u32,
        /// How many interrupts it has.
        count: u32,
    }
}

/// The interrupt can be signalled by eventfd.
pub const IRQ_EVENTFD: u32 = 1 << 0;
/// The interrupt can be masked and unmasked by `VFIO_USER_DEVICE_SET_IRQS`.
pub const IRQ_MASKABLE: u32 = 1 << 1;
/// The interrupt masks itself when it fires.
pub const IRQ_AUTOMASKED: u32 = 1 << 2;
/// All vectors must be set up at once.
pub const IRQ_NORESIZE: u32 = 1 << 3;

wire_struct! {
    /// `VFIO_USER_DEVICE_SET_IRQS`; booleans or fds may follow.
    IrqSet, 20 {
        /// Size of this structure and the booleans that follow.
        argsz: u32,
        /// One of `IRQ_SET_DATA_*` and one of `IRQ_SET_ACTION_*`.
        flags: u32,
        /// Which interrupt type.
        index: u32,
        /// First vector.
        start: u32,
        /// How many vectors.
        count: u32,
    }
}

/// The action applies to every vector of the range.
pub const IRQ_SET_DATA_NONE: u32 = 1 << 0;
/// One byte per vector says whether the action applies to it.
pub const IRQ_SET_DATA_BOOL: u32 = 1 << 1;
/// One eventfd per vector.
pub const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
/// Mask.
pub const IRQ_SET_ACTION_MASK: u32 = 1 << 3;
/// Unmask.
pub const IRQ_SET_ACTION_UNMASK: u32 = 1 << 4;
/// Trigger, or connect an eventfd to the trigger.
pub const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;

wire_struct! {
    /// `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`; data may follow.
    RegionAccess, 16 {
        /// From the start of the region, in bytes.
        offset: u64,
        /// Which region.
        region: u32,
        /// Bytes.
        count: u32,
    }
}

wire_struct! {
    /// `VFIO_USER_REGION_WRITE_MULTI`; in the request, this many [`RegionShortWrite`]s follow, in the reply nothing does.
    RegionWriteMulti, 8 {
        /// How many writes; in the reply, how many of them were completed.
        count: u64,
    }
}

wire_struct! {
    /// One write of at most 8 bytes.
    RegionShortWrite, 24 {
        /// From the start of the region, in bytes.
        offset: u64,
        /// Which region.
        region: u32,
        /// Bytes.
        count: u32,
        /// The first `count` of these are written.
        data: [u8; 8],
    }
}

wire_struct! {
    /// `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`; data may follow.
    DmaAccess, 16 {
        /// DMA address.
        address: u64,
        /// Bytes.
        count: u64,
    }
}

impl Header {
    /// Whether this is a reply rather than a command.
    pub const fn is_reply(&self) -> bool {
        self.flags & FLAG_TYPE_MASK == TYPE_REPLY
    }

    /// Whether this is a command (any other type is illegal).
    pub const fn is_command(&self) -> bool {
        self.flags & FLAG_TYPE_MASK == TYPE_COMMAND
    }

    /// Whether the sender of this command wants no reply.
    pub const fn no_reply(&self) -> bool {
        self.flags & FLAG_NO_REPLY != 0
    }
}
