//! Device features and migration data (specification: "`VFIO_USER_DEVICE_FEATURE`", "Device Features",
//! "`VFIO_USER_MIG_DATA_READ`"; `<linux/vfio.h>`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

wire_struct! {
    /// `VFIO_USER_DEVICE_FEATURE`; the feature's data may follow.
    DeviceFeature, 8 {
        /// Largest reply payload the client takes; in the reply, the size of the whole.
        argsz: u32,
        /// The feature's index in the low 16 bits, and `FEATURE_*`.
        flags: u32,
    }
}

/// The bits of [`DeviceFeature::flags`] that hold the index.
pub const FEATURE_INDEX_MASK: u32 = 0xffff;
/// Read the feature's data.
pub const FEATURE_GET: u32 = 1 << 16;
/// Change the feature's data.
pub const FEATURE_SET: u32 = 1 << 17;
/// Only say whether the feature, and reading or changing it if asked for, is there.
pub const FEATURE_PROBE: u32 = 1 << 18;

/// Whether and how the device migrates: a [`Migration`].
pub const FEATURE_MIGRATION: u16 = 1;
/// Where the device is in its migration: a [`MigDeviceState`].
pub const FEATURE_MIG_DEVICE_STATE: u16 = 2;
/// Start to note which memory the device writes: a [`DmaLoggingControl`] and [`DmaLoggingRange`]s.
pub const FEATURE_DMA_LOGGING_START: u16 = 6;
/// Note no more.
pub const FEATURE_DMA_LOGGING_STOP: u16 = 7;
/// Which memory the device has written: a [`DmaLoggingReport`] and, in the reply, a bitmap.
pub const FEATURE_DMA_LOGGING_REPORT: u16 = 8;

wire_struct! {
    /// The data of [`FEATURE_MIGRATION`].
    Migration, 8 {
        /// `MIGRATION_*`.
        flags: u64,
    }
}

/// The device can be stopped, and its state read then: always set.
pub const MIGRATION_STOP_COPY: u64 = 1 << 0;
/// The device knows the states for peer-to-peer DMA, which vfio-user does not use.
pub const MIGRATION_P2P: u64 = 1 << 1;
/// The device's state can be read while it runs.
pub const MIGRATION_PRE_COPY: u64 = 1 << 2;

wire_struct! {
    /// The data of [`FEATURE_MIG_DEVICE_STATE`].
    MigDeviceState, 8 {
        /// A [`crate::migration::DeviceState`].
        device_state: u32,
        /// Unused in vfio-user.
        data_fd: u32,
    }
}

wire_struct! {
    /// The data of [`FEATURE_DMA_LOGGING_START`]; ranges follow.
    DmaLoggingControl, 16 {
        /// A hint; in the reply, what the device settled for, in bytes.
        page_size: u64,
        /// How many [`DmaLoggingRange`]s follow; zero: everything is of interest.
        num_ranges: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// A range of DMA addresses.
    DmaLoggingRange, 16 {
        /// First DMA address.
        iova: u64,
        /// Bytes.
        length: u64,
    }
}

wire_struct! {
    /// The data of [`FEATURE_DMA_LOGGING_REPORT`]; in the reply, 64-bit words follow.
    DmaLoggingReport, 24 {
        /// First DMA address.
        iova: u64,
        /// Bytes.
        length: u64,
        /// How many bytes each bit stands for: a power of two.
        page_size: u64,
    }
}

wire_struct! {
    /// `VFIO_USER_MIG_DATA_READ` and `VFIO_USER_MIG_DATA_WRITE`; data may follow.
    MigData, 8 {
        /// Largest reply payload the client takes; in the reply, the size of the whole.
        argsz: u32,
        /// Bytes of migration data.
        size: u32,
    }
}
