//! Outrigger's own extension: a device behind VFIO, of which KVM is told (`docs/PROTOCOL.md`, "A device behind VFIO").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

wire_struct! {
    /// `OUTRIGGER_VFIO_OPEN`; echoed in the reply.
    VfioOpen, 8 {
        /// Size of this structure.
        argsz: u32,
        /// [`VFIO_KNOWN_TO_KVM`] and [`VFIO_CLIENT_MAPS`].
        flags: u32,
    }
}

/// KVM has been told of the file.
pub const VFIO_KNOWN_TO_KVM: u32 = 1 << 0;
/// The client has bound the device to an iommufd of its own, and maps memory for it.
pub const VFIO_CLIENT_MAPS: u32 = 1 << 1;

/// The preparations of a client that has a device opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VfioTerms {
    /// KVM has been told of the file, and stays so until the device is closed.
    pub known_to_kvm: bool,
    /// The client has bound the device to an iommufd of its own, by which it is open, and maps memory for it. The server maps
    /// nothing.
    pub client_maps: bool,
}

impl VfioTerms {
    pub(crate) fn flags(self) -> u32 {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        flag(self.known_to_kvm, VFIO_KNOWN_TO_KVM) | flag(self.client_maps, VFIO_CLIENT_MAPS)
    }

    /// None: there are flags that mean nothing.
    pub(crate) fn of_flags(flags: u32) -> Option<Self> {
        let terms = Self { known_to_kvm: flags & VFIO_KNOWN_TO_KVM != 0, client_maps: flags & VFIO_CLIENT_MAPS != 0 };
        (terms.flags() == flags).then_some(terms)
    }
}
