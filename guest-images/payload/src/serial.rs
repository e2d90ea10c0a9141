//! Words and numbers on COM1 (16550, polled). Formatting is done here: `core::fmt` was compiled with SSE instructions.

use crate::port;

const COM1: u16 = 0x3f8;
const LINE_CONTROL: u16 = COM1 + 3;
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// 8 data bits, no parity, no interrupts.
pub fn init() {
    port::write8(LINE_CONTROL, 3);
    port::write8(COM1 + 1, 0);
}

fn byte(value: u8) {
    // Bounded: output that is not taken is lost rather than waited for.
    for _ in 0..1000 {
        if port::read8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    port::write8(COM1, value);
}

/// The byte that arrived, if one did.
pub fn received() -> Option<u8> {
    (port::read8(LINE_STATUS) & DATA_READY != 0).then(|| port::read8(COM1))
}

/// Writes `words` as they are.
pub fn text(words: &str) {
    for value in words.bytes() {
        byte(value);
    }
}

/// Writes `words` and a line feed.
pub fn line(words: &str) {
    text(words);
    byte(b'\n');
}

/// Writes `value` in hexadecimal with `digits` digits at least.
pub fn hex(value: u64, digits: u32) {
    let significant = (67 - value.leading_zeros()) / 4;
    for digit in (0..significant.max(digits).max(1)).rev() {
        byte(DIGITS[(value >> (digit * 4) & 0xf) as usize]);
    }
}

/// Writes `value` in decimal.
pub fn decimal(value: u64) {
    if value >= 10 {
        decimal(value / 10);
    }
    byte(DIGITS[(value % 10) as usize]);
}
