//! Accesses of any width at any address, which the compiler's own are not, and string instructions: where KVM interprets ring-0 code, one of
//! them does in one step what a loop does in thousands.

use core::arch::asm;

/// Reads `width` bytes: 1, 2, 4 or 8.
pub fn load(address: u64, width: u64) -> u64 {
    let value: u64;
    // SAFETY: as for the functions in `crate::memory`; the instruction does not mind alignment.
    unsafe {
        match width {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags))
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags))
            }
            4 => asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)),
            _ => asm!("mov {0}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)),
        }
    }
    value
}

/// Writes the lowest `width` bytes of `value`: 1, 2, 4 or 8.
pub fn store(address: u64, width: u64, value: u64) {
    // SAFETY: as for the read.
    unsafe {
        match width {
            1 => {
                asm!("mov [{1}], {0}", in(reg_byte) value.to_le_bytes()[0], in(reg) address, options(nostack, preserves_flags))
            }
            2 => asm!("mov [{1}], {0:x}", in(reg) value, in(reg) address, options(nostack, preserves_flags)),
            4 => asm!("mov [{1}], {0:e}", in(reg) value, in(reg) address, options(nostack, preserves_flags)),
            _ => asm!("mov [{1}], {0}", in(reg) value, in(reg) address, options(nostack, preserves_flags)),
        }
    }
}

/// Fills `words` words of eight bytes.
pub fn fill(address: u64, words: u64, value: u64) {
    // SAFETY: callers fill memory that nothing but `super::arena` uses.
    unsafe {
        asm!("rep stosq", inout("rcx") words => _, inout("rdi") address => _, in("rax") value, options(nostack, preserves_flags))
    }
}

/// The number of the first word of eight bytes in which two ranges differ.
pub fn first_difference(left: u64, right: u64, words: u64) -> Option<u64> {
    if words == 0 {
        return None;
    }
    let (rest, differ): (u64, u8);
    // SAFETY: memory is only read.
    unsafe {
        asm!(
            "repe cmpsq",
            "setne {differ}",
            differ = out(reg_byte) differ,
            inout("rcx") words => rest,
            inout("rsi") left => _,
            inout("rdi") right => _,
            options(nostack)
        )
    }
    (differ != 0).then(|| words - rest - 1)
}
