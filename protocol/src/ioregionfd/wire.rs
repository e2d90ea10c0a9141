//! The two structures on the socket, in host byte order ("Wire protocol").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::wire_struct;

wire_struct! {
    /// `struct ioregionfd_cmd`: one access.
    Command, 32 {
        /// [`CMD_MASK`], [`SIZE_MASK`], [`RESP`]; all other bits are zero.
        info: u32,
        /// Zero.
        padding: u32,
        /// The `user_data` that the sub-region was registered with.
        user_data: u64,
        /// From the start of the sub-region, in bytes.
        offset: u64,
        /// The value written, whatever the size.
        data: u64,
    }
}

wire_struct! {
    /// `struct ioregionfd_resp`: the answer to a read, and to a write with [`RESP`].
    Response, 32 {
        /// The value read, whatever the size; zero for a write.
        data: u64,
        /// Zero.
        pad: [u64; 3],
    }
}

/// Size of either structure in bytes.
pub const MESSAGE_SIZE: usize = size_of::<Command>();
const _: () = assert!(size_of::<Response>() == MESSAGE_SIZE);

/// The bits of [`Command::info`] that say what to do.
pub const CMD_MASK: u32 = 0xf;
/// `IOREGIONFD_CMD_READ`.
pub const CMD_READ: u32 = 0;
/// `IOREGIONFD_CMD_WRITE`.
pub const CMD_WRITE: u32 = 1;
/// The bits of [`Command::info`] with the size: 1, 2, 4 or 8 bytes, as its logarithm.
pub const SIZE_MASK: u32 = 3 << SIZE_SHIFT;
/// Where the size is in [`Command::info`].
pub const SIZE_SHIFT: u32 = 4;
/// On a write: a [`Response`] is wanted. A read is answered with or without.
pub const RESP: u32 = 1 << 6;
