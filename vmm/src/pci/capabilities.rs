//! The capability lists of a device process's configuration space, walked without trusting it.

use super::register;

/// Capability ids (PCI Code and ID Assignment 1.11, section 2).
pub mod id {
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// One that the vendor defines, with its length in the third byte.
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// Advanced features, of which function-level reset is one.
    pub const ADVANCED_FEATURES: u8 = 0x13;
}

/// Extended capabilities that promise what a virtual bus cannot keep (section 3 of the same).
const HIDDEN_EXTENDED: [u16; 7] = [
    0x0d, // ACS
    0x0e, // ARI: there are no further functions
    0x0f, // ATS
    0x10, // SR-IOV
    0x13, // Page Request
    0x15, // Resizable BAR: sizes are fixed when the device is attached
    0x1b, // PASID
];

const STATUS_CAPABILITIES: u16 = 1 << 4;
const FIRST: u16 = 0x40;

/// The capabilities in the first 256 bytes as (id, offset), in the order of the list.
#[must_use]
pub fn standard(config: &[u8]) -> Vec<(u8, u16)> {
    let status = read_u16(config, register::STATUS);
    let mut found = Vec::new();
    if status & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut offset = next(config, register::CAPABILITIES);
    // Each capability takes at least four bytes, so a longer list is a loop.
    while offset >= FIRST && found.len() < usize::from((register::EXTENDED - FIRST) / 4) {
        let id = config.get(usize::from(offset)).copied().unwrap_or(0);
        found.push((id, offset));
        offset = next(config, offset + 1);
    }
    found
}

/// The offsets of the extended capabilities that must not be seen.
#[must_use]
pub fn hidden_extended(config: &[u8]) -> Vec<u16> {
    let mut hidden = Vec::new();
    let mut offset = register::EXTENDED;
    for _ in 0..(register::END - register::EXTENDED) / 4 {
        let header = read_u32(config, offset);
        if header == 0 || header == u32::MAX {
            break;
        }
        if HIDDEN_EXTENDED.contains(&((header & 0xffff) as u16)) {
            hidden.push(offset);
        }
        offset = ((header >> 20) & 0xffc) as u16;
        if offset < register::EXTENDED {
            break;
        }
    }
    hidden
}

/// A little-endian word; zero beyond the end.
#[must_use]
pub fn read_u16(config: &[u8], offset: u16) -> u16 {
    (read_u32(config, offset) & 0xffff) as u16
}

/// A little-endian double word; zero beyond the end.
#[must_use]
pub fn read_u32(config: &[u8], offset: u16) -> u32 {
    let byte = |at: usize| config.get(usize::from(offset) + at).copied().unwrap_or(0);
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

fn next(config: &[u8], pointer: u16) -> u16 {
    u16::from(config.get(usize::from(pointer)).copied().unwrap_or(0) & !3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut config = vec![0; 4096];
        for &(offset, byte) in bytes {
            config[offset] = byte;
        }
        config
    }

    #[test]
    fn the_list_is_walked_in_order() {
        let config = config(&[(6, 0x10), (0x34, 0x98), (0x98, 0x11), (0x99, 0x40), (0x40, 0x10)]);
        assert_eq!(standard(&config), [(id::MSIX, 0x98), (id::EXPRESS, 0x40)]);
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        assert!(standard(&config(&[(0x34, 0x40), (0x40, 0x11)])).is_empty());
        assert!(standard(&[]).is_empty());
    }

    #[test]
    fn a_loop_ends() {
        let config = config(&[(6, 0x10), (0x34, 0x40), (0x40, 0x09), (0x41, 0x40)]);
        assert_eq!(standard(&config).len(), 48);
    }

    #[test]
    fn extended_capabilities_that_cannot_be_kept_are_found() {
        let mut config = config(&[]);
        config[0x100..0x104].copy_from_slice(&0x1401_0001u32.to_le_bytes());
        config[0x140..0x144].copy_from_slice(&0x1801_0010u32.to_le_bytes());
        config[0x180..0x184].copy_from_slice(&0x1001_0015u32.to_le_bytes());
        assert!(hidden_extended(&config).iter().all(|offset| [0x140, 0x180].contains(offset)));
        assert_eq!(hidden_extended(&config)[..2], [0x140, 0x180]);
        assert!(hidden_extended(&config[..256]).is_empty());
    }
}
