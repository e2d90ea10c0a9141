//! Image formats other than raw, told by what their files begin or end with.
//!
//! Such a file served as raw would show the guest a disk of headers and tables, on which it makes a file system: the image
//! is lost before anyone has noticed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are looked at.
const SECTOR: u16 = 512;

/// The bytes that a file of some format has at `at`.
struct Magic {
    format: &'static str,
    at: usize,
    bytes: &'static [u8],
}

const fn magic(format: &'static str, at: usize, bytes: &'static [u8]) -> Magic {
    Magic { format, at, bytes }
}

/// In the first sector.
const FIRST: &[Magic] = &[
    magic("qcow", 0, b"QFI\xfb\0\0\0\x01"),
    magic("qcow2", 0, b"QFI\xfb"),
    magic("QED", 0, b"QED\0"),
    magic("VMDK", 0, b"KDMV"),
    magic("VMDK", 0, b"COWD"),
    magic("VMDK", 0, b"# Disk DescriptorFile"),
    magic("VHDX", 0, b"vhdxfile"),
    magic("VHD", 0, b"conectix"),
    magic("VDI", 0x40, b"\x7f\x10\xda\xbe"),
    magic("Parallels", 0, b"WithoutFreeSpace"),
    magic("Parallels", 0, b"WithouFreSpacExt"),
];
/// In the last sector.
const LAST: &[Magic] = &[magic("VHD", 0, b"conectix")];

/// The format of `file` of `size` bytes, whole sectors, if it is known not to be raw.
pub fn recognize(file: &File, size: u64) -> io::Result<Option<&'static str>> {
    for (at, magics) in [(0, FIRST), (size.saturating_sub(SECTOR.into()), LAST)] {
        let mut sector = [0; SECTOR as usize];
        file.read_exact_at(&mut sector, at)?;
        let found = magics.iter().find(|magic| sector[magic.at..].starts_with(magic.bytes));
        if let Some(Magic { format, .. }) = found {
            return Ok(Some(format));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognize_at(size: u64, at: u64, bytes: &[u8]) -> Option<&'static str> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(bytes, at).unwrap();
        recognize(&file, size).unwrap()
    }

    #[test]
    fn formats_are_told_by_what_their_files_begin_or_end_with() {
        for size in [512, 1 << 20] {
            for (format, at, bytes) in [
                ("qcow", 0, &b"QFI\xfb\0\0\0\x01"[..]),
                ("qcow2", 0, b"QFI\xfb\0\0\0\x02"),
                ("qcow2", 0, b"QFI\xfb\0\0\0\x03"),
                ("VMDK", 0, b"KDMV\x01\0\0\0"),
                ("VMDK", 0, b"# Disk DescriptorFile\nversion=1\n"),
                ("VHDX", 0, b"vhdxfile"),
                ("VHD", 0, b"conectix"),
                ("VHD", size - 512, b"conectix"),
                ("VDI", 64, b"\x7f\x10\xda\xbe"),
                ("QED", 0, b"QED\0"),
            ] {
                assert_eq!(recognize_at(size, at, bytes), Some(format), "{size}");
            }
        }
    }

    #[test]
    fn raw_images_are_not_taken_for_another_format() {
        for (at, bytes) in [
            (0, &b"QFI"[..]),
            (1, b"QFI\xfb\0\0\0\x03"),
            (0, b"LUKS\xba\xbe"),
            (512, b"EFI PART"),
            (510, b"\x55\xaa"),
            (512, b"conectix"),
        ] {
            assert_eq!(recognize_at(4096, at, bytes), None);
        }
    }
}
