//! Outrigger's own extension: a device behind VFIO, of which KVM is told (`docs/PROTOCOL.md`, "A device behind VFIO").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

wire_struct! {
    /// `OUTRIGGER_VFIO_OPEN`; echoed in the reply.
    VfioOpen, 8 {
        /// Size of this structure.
        argsz: u32,
        /// Zero, or [`VFIO_KNOWN_TO_KVM`].
        flags: u32,
    }
}

/// KVM has been told of the file.
pub const VFIO_KNOWN_TO_KVM: u32 = 1 << 0;
