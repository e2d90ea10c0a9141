//! The messages by number (specification: "Commands").

/// A message's command number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Command {
    /// `VFIO_USER_VERSION`: the first message, negotiates version and capabilities.
    Version = 1,
    /// `VFIO_USER_DMA_MAP`: a range of client memory becomes valid for DMA.
    DmaMap = 2,
    /// `VFIO_USER_DMA_UNMAP`: a range mapped earlier goes away.
    DmaUnmap = 3,
    /// `VFIO_USER_DEVICE_GET_INFO`: how many regions and interrupt types.
    DeviceGetInfo = 4,
    /// `VFIO_USER_DEVICE_GET_REGION_INFO`: one region.
    DeviceGetRegionInfo = 5,
    /// `VFIO_USER_DEVICE_GET_REGION_IO_FDS`: ioeventfds and ioregionfds of one region.
    DeviceGetRegionIoFds = 6,
    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`: one interrupt type.
    DeviceGetIrqInfo = 7,
    /// `VFIO_USER_DEVICE_SET_IRQS`: connect, mask, unmask or trigger interrupts.
    DeviceSetIrqs = 8,
    /// `VFIO_USER_REGION_READ`.
    RegionRead = 9,
    /// `VFIO_USER_REGION_WRITE`.
    RegionWrite = 10,
    /// `VFIO_USER_DMA_READ`, server to client.
    DmaRead = 11,
    /// `VFIO_USER_DMA_WRITE`, server to client.
    DmaWrite = 12,
    /// `VFIO_USER_DEVICE_RESET`.
    DeviceReset = 13,
    /// `VFIO_USER_REGION_WRITE_MULTI`.
    RegionWriteMulti = 15,
    /// `VFIO_USER_DEVICE_FEATURE`.
    DeviceFeature = 16,
    /// `VFIO_USER_MIG_DATA_READ`.
    MigDataRead = 17,
    /// `VFIO_USER_MIG_DATA_WRITE`.
    MigDataWrite = 18,
    /// Outrigger's own: a journal to keep, or a predecessor's to look at.
    JournalOffer = 0x4f01,
    /// Outrigger's own: the journal that was offered is the server's to go on from.
    JournalTake = 0x4f02,
    /// Outrigger's own: the file of VFIO's that KVM is to know.
    VfioFile = 0x4f03,
    /// Outrigger's own: the device behind VFIO is to be opened.
    VfioOpen = 0x4f04,
}

impl Command {
    /// The command with this number, if the specification knows it or it is Outrigger's own.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::DeviceGetInfo,
            5 => Self::DeviceGetRegionInfo,
            6 => Self::DeviceGetRegionIoFds,
            7 => Self::DeviceGetIrqInfo,
            8 => Self::DeviceSetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            11 => Self::DmaRead,
            12 => Self::DmaWrite,
            13 => Self::DeviceReset,
            15 => Self::RegionWriteMulti,
            16 => Self::DeviceFeature,
            17 => Self::MigDataRead,
            18 => Self::MigDataWrite,
            0x4f01 => Self::JournalOffer,
            0x4f02 => Self::JournalTake,
            0x4f03 => Self::VfioFile,
            0x4f04 => Self::VfioOpen,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Command;

    #[test]
    fn numbers_round_trip_and_unknown_ones_are_refused() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|&n| Command::from_number(n).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 0x4f01, 0x4f02, 0x4f03, 0x4f04]);
        assert!(known.iter().all(|&n| Command::from_number(n).unwrap() as u16 == n));
    }
}
