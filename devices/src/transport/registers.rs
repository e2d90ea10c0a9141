//! The common configuration structure (virtio 1.2, section 4.1.4.3, "Common configuration structure layout") as a state
//! machine without side effects: a write changes the registers and says what the transport has to do about it.

mod image;

use super::layout::{LayoutError, MAX_QUEUE_SIZE, QueueLayout};

/// Bytes of the structure, including `queue_reset`.
pub const COMMON_SIZE: usize = 0x3c;
/// The value read back for a vector that the driver cannot have (virtio 1.2, section 4.1.5.1.2.1).
pub const NO_VECTOR: u16 = 0xffff;

/// `ACKNOWLEDGE`, bit 0 of the device status (virtio 1.2, section 2.1).
pub const STATUS_ACKNOWLEDGE: u8 = 1;
/// `DRIVER`.
pub const STATUS_DRIVER: u8 = 2;
/// `DRIVER_OK`: queues are in service.
pub const STATUS_DRIVER_OK: u8 = 4;
/// `FEATURES_OK`: negotiation is over.
pub const STATUS_FEATURES_OK: u8 = 8;
/// `DEVICE_NEEDS_RESET`.
pub const STATUS_NEEDS_RESET: u8 = 64;
/// `FAILED`.
pub const STATUS_FAILED: u8 = 128;

/// `VIRTIO_F_INDIRECT_DESC`.
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: there is no legacy interface.
pub const FEATURE_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: addresses are what the platform translates for this device, by an IOMMU if it has one.
pub const FEATURE_ACCESS_PLATFORM: u64 = 1 << 33;
/// `VIRTIO_F_RING_RESET`.
pub const FEATURE_RING_RESET: u64 = 1 << 40;
/// Features that the transport offers for every device.
pub const TRANSPORT_FEATURES: u64 = FEATURE_INDIRECT | FEATURE_EVENT_IDX | FEATURE_VERSION_1 | FEATURE_RING_RESET;

// Offsets of the fields.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const STATUS: usize = 0x14;
const GENERATION: usize = 0x15;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESCRIPTORS: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;
const QUEUE_RESET: usize = 0x3a;

/// The transport's task after a register was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The driver reset the device. The registers change when it is over ([`CommonRegisters::reset`]).
    Reset,
    /// The driver is ready: start the enabled queues.
    Start,
    /// A queue was enabled while the driver was ready.
    StartQueue(u16),
    /// The driver reset a queue: its worker must stop. The registers change when it has
    /// ([`CommonRegisters::reset_queue`]).
    ResetQueue(u16),
    /// The configuration-change vector is now this one.
    ConfigVector(u16),
    /// A queue's vector is now this one.
    QueueVector(u16, u16),
    /// The driver enabled a queue that cannot be.
    BadQueue(u16, LayoutError),
}

#[derive(Clone, Debug)]
struct QueueRegisters {
    size: u16,
    vector: u16,
    enabled: bool,
    /// A reset of the queue has begun.
    resetting: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
    layout: Option<QueueLayout>,
}

impl QueueRegisters {
    const RESET: Self = Self {
        size: MAX_QUEUE_SIZE,
        vector: NO_VECTOR,
        enabled: false,
        resetting: false,
        descriptors: 0,
        driver: 0,
        device: 0,
        layout: None,
    };
}

/// The registers of one device.
#[derive(Debug)]
pub struct CommonRegisters {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    /// A reset of the device has begun.
    resetting: bool,
    config_vector: u16,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl CommonRegisters {
    /// A device that offers `features` and has `queues` queues.
    pub fn new(features: u64, queues: u16) -> Self {
        Self {
            offered: features,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            resetting: false,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: vec![QueueRegisters::RESET; usize::from(queues)],
        }
    }

    /// A reset begins: until it is over, the status keeps what it has, by which the driver knows (virtio 1.2, section
    /// 4.1.4.3.1, `device_status`), and nothing can be written.
    pub fn begin_reset(&mut self) {
        self.resetting = true;
    }

    /// Whether a reset of the device has begun.
    pub fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// A reset is over: back to the state after power-on.
    pub fn reset(&mut self) {
        *self = Self::new(self.offered, self.num_queues());
    }

    /// The reset of a queue, if one has begun, is over: back to the state after power-on (virtio 1.2, section 2.6.1.1).
    /// Returns whether one had.
    pub fn reset_queue(&mut self, index: u16) -> bool {
        let queue = self.queues.get_mut(usize::from(index)).filter(|queue| queue.resetting);
        queue.map(|queue| *queue = QueueRegisters::RESET).is_some()
    }

    /// The features that driver and device agreed on.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Whether the driver is ready and has not given up.
    pub fn is_running(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_FAILED) == STATUS_DRIVER_OK
    }

    /// The layout of a queue, if it is enabled and not about to be reset.
    pub fn queue(&self, index: u16) -> Option<QueueLayout> {
        let event_idx = self.accepted & FEATURE_EVENT_IDX != 0;
        let indirect = self.accepted & FEATURE_INDIRECT != 0;
        let queue = self.queues.get(usize::from(index)).filter(|queue| !queue.resetting)?;
        queue.layout.map(|layout| layout.with_features(event_idx, indirect))
    }

    fn num_queues(&self) -> u16 {
        u16::try_from(self.queues.len()).expect("constructed from a u16")
    }

    fn vectors(&self) -> u16 {
        self.num_queues() + 1
    }

    /// Reads at `offset`. `needs_reset` and `generation` are those of [`super::signals::Signals`].
    pub fn read(&self, offset: usize, data: &mut [u8], needs_reset: bool, generation: u8) {
        let mut image = [0; COMMON_SIZE];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(DRIVER_FEATURE, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(NUM_QUEUES, &self.num_queues().to_le_bytes());
        put(STATUS, &[self.status | if needs_reset { STATUS_NEEDS_RESET } else { 0 }]);
        put(GENERATION, &[generation]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist reads as size 0 (virtio 1.2, section 4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(QUEUE_DESCRIPTORS, &queue.descriptors.to_le_bytes());
            put(QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(QUEUE_DEVICE, &queue.device.to_le_bytes());
            put(QUEUE_RESET, &u16::from(queue.resetting).to_le_bytes());
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes at `offset`. Accesses of a width that the field does not have are ignored (virtio 1.2, section 4.1.3.1), and
    /// so is all that a driver writes without waiting for its reset.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Action {
        if self.resetting {
            return Action::None;
        }
        match (offset, data) {
            (STATUS, &[value]) => self.write_status(value),
            (_, &[a, b]) => self.write_u16(offset, u16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                Action::None
            }
            (QUEUE_DESCRIPTORS | QUEUE_DRIVER | QUEUE_DEVICE, &[a, b, c, d, e, f, g, h]) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
                Action::None
            }
            _ => Action::None,
        }
    }

    fn write_status(&mut self, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let was_running = self.is_running();
        let mut status = self.status | value & !STATUS_NEEDS_RESET;
        let refused = self.accepted & !self.offered != 0 || self.accepted & FEATURE_VERSION_1 == 0;
        if self.status & STATUS_FEATURES_OK == 0 && refused {
            // The driver reads the bit back to learn of it (virtio 1.2, section 3.1.1, step 6).
            status &= !STATUS_FEATURES_OK;
        }
        if status & STATUS_FEATURES_OK == 0 {
            status &= !STATUS_DRIVER_OK;
        }
        self.status = status;
        if self.is_running() && !was_running { Action::Start } else { Action::None }
    }

    fn write_u16(&mut self, offset: usize, value: u16) -> Action {
        let (vectors, running, index) = (self.vectors(), self.is_running(), self.queue_select);
        let vector = if value < vectors { value } else { NO_VECTOR };
        match offset {
            CONFIG_VECTOR => {
                self.config_vector = vector;
                return Action::ConfigVector(vector);
            }
            QUEUE_SELECT => self.queue_select = value,
            _ => {}
        }
        let queue = self.queues.get_mut(usize::from(index)).filter(|queue| !queue.resetting);
        let Some(queue) = queue else { return Action::None };
        match (offset, value) {
            (QUEUE_SIZE, _) if !queue.enabled => queue.size = value,
            (QUEUE_VECTOR, _) => {
                queue.vector = vector;
                return Action::QueueVector(index, vector);
            }
            (QUEUE_ENABLE, 1) if !queue.enabled => {
                match QueueLayout::new(queue.size, queue.descriptors, queue.driver, queue.device) {
                    Ok(layout) => queue.layout = Some(layout),
                    Err(error) => return Action::BadQueue(index, error),
                }
                queue.enabled = true;
                if running {
                    return Action::StartQueue(index);
                }
            }
            (QUEUE_RESET, 1) if self.accepted & FEATURE_RING_RESET != 0 => {
                queue.resetting = true;
                return Action::ResetQueue(index);
            }
            _ => {}
        }
        Action::None
    }

    fn write_u32(&mut self, offset: usize, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE if self.status & STATUS_FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.driver_feature_select, value);
            }
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled || queue.resetting {
            return;
        }
        let (field, half) = match offset & !4 {
            QUEUE_DESCRIPTORS => (&mut queue.descriptors, offset & 4),
            QUEUE_DRIVER => (&mut queue.driver, offset & 4),
            QUEUE_DEVICE => (&mut queue.device, offset & 4),
            _ => return,
        };
        set_half(field, u32::from(half != 0), value);
    }
}

fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn set_half(field: &mut u64, select: u32, value: u32) {
    match select {
        0 => *field = *field & !0xffff_ffff | u64::from(value),
        1 => *field = *field & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
