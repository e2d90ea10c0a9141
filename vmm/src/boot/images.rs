//! Kernels for tests, made by hand: small, and wrong in whatever way a test wants.

use std::io::Write as _;

use tempfile::NamedTempFile;

/// Where [`elf`] loads its program.
pub(crate) const LOAD_ADDRESS: u32 = 0x10_0000;

/// A file with `content`.
pub(crate) fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// An ELF executable for x86-64 that consists of `program` at [`LOAD_ADDRESS`], which is its PVH entry point too.
pub(crate) fn elf(program: &[u8]) -> Vec<u8> {
    const NOTE: u64 = 64 + 2 * 56;
    const PROGRAM: u64 = NOTE + 20;
    let mut image = b"\x7FELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    let half = |image: &mut Vec<u8>, values: &[u16]| image.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let word = |image: &mut Vec<u8>, values: &[u32]| image.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let quad = |image: &mut Vec<u8>, values: &[u64]| image.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    half(&mut image, &[2, 62]);
    word(&mut image, &[1]);
    quad(&mut image, &[u64::from(LOAD_ADDRESS), 64, 0]);
    word(&mut image, &[0]);
    half(&mut image, &[64, 56, 2, 0, 0, 0]);
    let length = program.len() as u64;
    for (kind, offset, address, size) in [(1, PROGRAM, u64::from(LOAD_ADDRESS), length), (4, NOTE, 0, 20)] {
        word(&mut image, &[kind, 5]);
        quad(&mut image, &[offset, address, address, size, size, 4]);
    }
    // Name size, description size, type XEN_ELFNOTE_PHYS32_ENTRY, name, description.
    word(&mut image, &[4, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD_ADDRESS]);
    image.extend(program);
    image
}

/// A bzImage whose compressed part is `program`, which needs `init_size` bytes from 1 MiB on. Two setup sectors.
pub(crate) fn bzimage(program: &[u8], init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[2]);
    put(0x1F4, &u32::try_from(program.len().div_ceil(16)).unwrap().to_le_bytes());
    // A jump over the header, which ends at 0x26C; then something that is no header any more.
    put(0x200, &[0xEB, 0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &0x20F_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(0x236, &0b11_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x10_0000_u64.to_le_bytes());
    put(0x260, &init_size.to_le_bytes());
    image.extend(program);
    let padded = image.len().next_multiple_of(16);
    image.resize(padded, 0);
    image
}
