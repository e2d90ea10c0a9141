//! The host bridge in slot 0: identity, and nothing else.

use super::{Function, register};

/// Vendor and device of the PCI Express host bridge that Red Hat assigned for virtual machines.
const IDENTITY: u32 = 0x0008_1b36;
/// Class 06 (bridge), subclass 00 (host bridge).
const CLASS: u32 = 0x0600_0000;

/// A host bridge without registers of its own.
#[derive(Debug, Default)]
pub struct HostBridge;

impl Function for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let double_word = match offset & !3 {
            0 => IDENTITY,
            8 => CLASS,
            // No extended configuration space.
            at if at >= register::EXTENDED => u32::MAX,
            _ => 0,
        };
        let lane = usize::from(offset % 4);
        data.copy_from_slice(&double_word.to_le_bytes()[lane..lane + data.len()]);
    }

    fn config_write(&self, _offset: u16, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_is_in_any_access_size() {
        let read = |offset, length| {
            let mut data = [0; 4];
            HostBridge.config_read(offset, &mut data[..length]);
            u32::from_le_bytes(data)
        };
        assert_eq!((read(0, 2), read(2, 2), read(0xb, 1), read(0xa, 2)), (0x1b36, 8, 6, 0x600));
        assert_eq!((read(0x10, 4), read(0x100, 4)), (0, u32::MAX));
    }
}
