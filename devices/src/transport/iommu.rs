//! Whether a guest's addresses may be translated on their way to the device.

use super::registers::FEATURE_ACCESS_PLATFORM;

/// The presence of an IOMMU between guest and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// There is none, as in a guest of Outrigger's: addresses are those of guest memory.
    Absent,
    /// There may be one, so `VIRTIO_F_ACCESS_PLATFORM` is offered (virtio 1.2, section 6.1): a driver that accepts it gives
    /// the addresses that the client maps, and one behind an IOMMU that does not gives others.
    ///
    /// A Linux guest pays for it without an IOMMU, too, since it maps each segment of each request for DMA: 0.57 µs of a
    /// 4 KiB read and 4.4 of one of 128 KiB in the lab, some 4 and 5 %.
    Possible,
}

impl Iommu {
    /// The features offered for it.
    pub(super) fn features(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Possible => FEATURE_ACCESS_PLATFORM,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translated_addresses_are_offered_where_there_may_be_an_iommu_only() {
        assert_eq!((Iommu::Absent.features(), Iommu::Possible.features()), (0, 1 << 33));
    }
}
