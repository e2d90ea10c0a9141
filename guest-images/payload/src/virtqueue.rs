//! One split virtqueue with one request in flight (virtio 1.2, 2.7), and the buffers that requests use.

use core::mem::offset_of;

use crate::memory::{Raw, read8, read16, read32, write8, write16, write32, write64};

/// Descriptors in the queue. A request takes three.
pub const SIZE: u16 = 8;
/// Bytes in a sector.
pub const SECTOR: u32 = 512;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

#[repr(C, align(16))]
struct Rings {
    descriptors: [[u64; 2]; SIZE as usize],
    available: [u16; 4 + SIZE as usize],
    used: [u64; 2 + SIZE as usize],
}

#[repr(C, align(16))]
struct Buffers {
    sector: [u8; SECTOR as usize],
    header: [u8; 16],
    status: u8,
}

static RINGS: Raw<Rings> = Raw::new(Rings {
    descriptors: [[0; 2]; SIZE as usize],
    available: [0; 4 + SIZE as usize],
    used: [0; 2 + SIZE as usize],
});
static BUFFERS: Raw<Buffers> = Raw::new(Buffers { sector: [0; SECTOR as usize], header: [0; 16], status: 0 });

/// Physical addresses of the descriptor table, the available ring and the used ring.
pub fn addresses() -> [u64; 3] {
    [offset_of!(Rings, descriptors), offset_of!(Rings, available), offset_of!(Rings, used)]
        .map(|offset| RINGS.address() + offset as u64)
}

/// Forgets all requests, for a device that was reset.
pub fn clear() {
    let [_, available, used] = addresses();
    write32(available, 0);
    write32(used, 0);
}

/// Makes one block request available: its header, the sector buffer, a status byte. The device is not told.
pub fn submit(kind: u32, sector: u64) {
    let [descriptors, available, _] = addresses();
    let header = BUFFERS.address() + offset_of!(Buffers, header) as u64;
    write32(header, kind);
    write32(header + 4, 0);
    write64(header + 8, sector);
    write8(status_address(), 0xff);
    let data = if kind == 0 { NEXT | DEVICE_WRITES } else { NEXT };
    let chain = [(header, 16, NEXT), (sector_buffer(), SECTOR, data), (status_address(), 1, DEVICE_WRITES)];
    for (index, (address, length, flags)) in (0u16..).zip(chain) {
        let descriptor = descriptors + u64::from(index) * 16;
        write64(descriptor, address);
        write32(descriptor + 8, length);
        write16(descriptor + 12, flags);
        write16(descriptor + 14, index + 1);
    }
    let next = read16(available + 2);
    write16(available + 4 + u64::from(next % SIZE) * 2, 0);
    // x86 keeps stores in order, and volatile accesses stay in program order: the index is seen after what it stands for.
    write16(available + 2, next.wrapping_add(1));
}

/// Whether the device has used every request.
pub fn idle() -> bool {
    let [_, available, used] = addresses();
    read16(used + 2) == read16(available + 2)
}

/// The status byte of the last request: 0 when it succeeded.
pub fn status() -> u8 {
    read8(status_address())
}

/// Bytes that the device says it wrote for the last request.
pub fn written() -> u32 {
    let [_, available, used] = addresses();
    let last = read16(available + 2).wrapping_sub(1) % SIZE;
    read32(used + 4 + u64::from(last) * 8 + 4)
}

/// Physical address of the 512 bytes that requests read to and write from.
pub fn sector_buffer() -> u64 {
    BUFFERS.address() + offset_of!(Buffers, sector) as u64
}

fn status_address() -> u64 {
    BUFFERS.address() + offset_of!(Buffers, status) as u64
}
