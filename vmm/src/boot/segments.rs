//! The flat segments that the first vCPU starts with, once as descriptors in guest memory and once as the registers loaded from
//! them. Their selectors are those of the Linux boot protocol.

use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::machine::layout;
use crate::machine::memory::GuestMemoryMmap;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Null, unused, code, data, and a task state segment of two descriptors' size.
const GDT_ENTRIES: u16 = 6;
/// Offset of the table's last byte.
pub const GDT_LIMIT: u16 = GDT_ENTRIES * 8 - 1;

const CODE_EXECUTE_READ_ACCESSED: u8 = 0xB;
const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
const TASK_BUSY: u8 = 0xB;

/// Which kind of code segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 64 bits.
    Long,
    /// 32 bits.
    Protected,
}

/// The contents of the segment registers.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    /// For CS.
    pub code: kvm_segment,
    /// For all data segment registers.
    pub data: kvm_segment,
    /// For TR, which may not be empty.
    pub task: kvm_segment,
}

/// The segments for `mode`.
#[must_use]
pub fn for_mode(mode: Mode) -> Segments {
    let flat = kvm_segment { limit: 0xFFFF_FFFF, present: 1, s: 1, g: 1, ..Default::default() };
    let (l, db) = match mode {
        Mode::Long => (1, 0),
        Mode::Protected => (0, 1),
    };
    let code = kvm_segment { selector: CODE_SELECTOR, type_: CODE_EXECUTE_READ_ACCESSED, l, db, ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: DATA_READ_WRITE_ACCESSED, db: 1, ..flat };
    let task = kvm_segment { selector: TASK_SELECTOR, limit: 0x67, type_: TASK_BUSY, present: 1, ..Default::default() };
    Segments { code, data, task }
}

/// Write the descriptors of `mode`'s segments to [`layout::BOOT_GDT`].
///
/// # Errors
/// If there is no memory.
pub fn write_gdt(memory: &GuestMemoryMmap, mode: Mode) -> Result<(), GuestMemoryError> {
    let Segments { code, data, task } = for_mode(mode);
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task), 0];
    for (entry, address) in table.into_iter().zip((layout::BOOT_GDT..).step_by(8)) {
        memory.write_obj(u64::to_le(entry), GuestAddress(address))?;
    }
    Ok(())
}

/// A segment descriptor (Intel SDM volume 3A, section 3.4.5). All bases here are 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    limit & 0xFFFF | access << 40 | (limit >> 16 & 0xF) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_usual_flat_ones() {
        let long = for_mode(Mode::Long);
        assert_eq!(descriptor(&long.code), 0x00AF_9B00_0000_FFFF);
        assert_eq!(descriptor(&long.data), 0x00CF_9300_0000_FFFF);
        assert_eq!(descriptor(&for_mode(Mode::Protected).code), 0x00CF_9B00_0000_FFFF);
        assert_eq!(descriptor(&long.task), 0x0000_8B00_0000_0067);
    }

    #[test]
    fn selectors_lead_to_their_descriptors() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        write_gdt(&memory, Mode::Long).unwrap();
        for segment in [for_mode(Mode::Long).code, for_mode(Mode::Long).data, for_mode(Mode::Long).task] {
            let entry: u64 = memory.read_obj(GuestAddress(layout::BOOT_GDT + u64::from(segment.selector))).unwrap();
            assert_eq!(entry, descriptor(&segment));
            assert!(segment.selector + 7 <= GDT_LIMIT);
        }
    }
}
