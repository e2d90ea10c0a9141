//! A driver for a modern virtio block device on PCI (virtio 1.2, 4.1 and 5.2): one queue, one request at a time.

use crate::memory::{map, read8, read16, read32, read64, write8, write16, write32, write64};
use crate::pci::{BUS_MASTER, Function, MEMORY};
use crate::virtio::{
    ACKNOWLEDGE, COMMON, DEVICE, DRIVER, DRIVER_FEATURE_SELECT, DRIVER_FEATURES, DRIVER_OK, FEATURE_SELECT, FEATURES,
    FEATURES_OK, NOTIFY, QUEUE_DESCRIPTORS, QUEUE_ENABLE, QUEUE_NOTIFY_OFFSET, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR,
    STATUS, Structure,
};
use crate::virtqueue;

/// Offset in the common structure of a register that can be written and read back: `device_feature_select`.
pub const SCRATCH: u64 = FEATURE_SELECT;

/// VIRTIO_F_VERSION_1, bit 32, as a bit of the second feature word.
const VERSION_1: u32 = 1;
const RESET_ROUNDS: u32 = 10_000;

/// A reset device, or one that `start` made ready for requests.
pub struct VirtioBlk {
    common: u64,
    device: u64,
    doorbell: u64,
}

/// Why the device cannot be used: what came back from which step.
pub struct Refused(pub &'static str, pub u64);

impl VirtioBlk {
    /// The common configuration structure.
    pub fn common(function: Function) -> Option<Structure> {
        Structure::find(function, COMMON)
    }

    /// Resets the device, accepts only VIRTIO_F_VERSION_1, and sets up queue 0 to interrupt by MSI-X table entry `vector`.
    pub fn start(function: Function, vector: u16) -> Result<Self, Refused> {
        function.command(MEMORY | BUS_MASTER, 0);
        let place = |structure: Structure| {
            let bar = function.bar(structure.bar).filter(|bar| !bar.io)?;
            map(bar.address(), bar.size);
            Some(bar.address() + structure.offset)
        };
        let find = |kind| Structure::find(function, kind).and_then(place).ok_or(Refused("structure", u64::from(kind)));
        let (common, device) = (find(COMMON)?, find(DEVICE)?);
        write8(common + STATUS, 0);
        if !(0..RESET_ROUNDS).any(|_| read8(common + STATUS) == 0) {
            return Err(Refused("reset", u64::from(read8(common + STATUS))));
        }
        virtqueue::clear();
        write8(common + STATUS, ACKNOWLEDGE | DRIVER);
        write32(common + FEATURE_SELECT, 1);
        let offered = read32(common + FEATURES);
        if offered & VERSION_1 == 0 {
            return Err(Refused("features", u64::from(offered)));
        }
        for (word, accepted) in [(0, 0), (1, VERSION_1)] {
            write32(common + DRIVER_FEATURE_SELECT, word);
            write32(common + DRIVER_FEATURES, accepted);
        }
        write8(common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if read8(common + STATUS) & FEATURES_OK == 0 {
            return Err(Refused("features-ok", u64::from(read8(common + STATUS))));
        }
        write16(common + QUEUE_SELECT, 0);
        let largest = read16(common + QUEUE_SIZE);
        if largest < virtqueue::SIZE {
            return Err(Refused("queue-size", u64::from(largest)));
        }
        write16(common + QUEUE_SIZE, virtqueue::SIZE);
        write16(common + QUEUE_VECTOR, vector);
        if read16(common + QUEUE_VECTOR) != vector {
            return Err(Refused("queue-vector", u64::from(read16(common + QUEUE_VECTOR))));
        }
        for (register, address) in (0u64..).zip(virtqueue::addresses()) {
            write64(common + QUEUE_DESCRIPTORS + register * 8, address);
        }
        let notify = Structure::find(function, NOTIFY).ok_or(Refused("structure", u64::from(NOTIFY)))?;
        let base = place(notify).ok_or(Refused("structure", u64::from(NOTIFY)))?;
        let multiplier = u64::from(function.read32(notify.capability + 16));
        let doorbell = base + u64::from(read16(common + QUEUE_NOTIFY_OFFSET)) * multiplier;
        write16(common + QUEUE_ENABLE, 1);
        write8(common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        Ok(Self { common, device, doorbell })
    }

    /// Capacity in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        read64(self.device)
    }

    /// Makes a request available and rings the doorbell. `kind` 0 reads a sector to the buffer, 1 writes it from there.
    pub fn request(&self, kind: u32, sector: u64) {
        virtqueue::submit(kind, sector);
        write16(self.doorbell, 0);
    }

    /// Resets the device: no request, no interrupt after that.
    pub fn reset(&self) -> bool {
        write8(self.common + STATUS, 0);
        (0..RESET_ROUNDS).any(|_| read8(self.common + STATUS) == 0)
    }
}
