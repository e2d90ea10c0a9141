use vm_memory::{Bytes, GuestAddress};

use super::images::{bzimage, elf, file};
use super::*;

const MIB: u64 = 1 << 20;

/// Load `kernel`, with an initrd of that many bytes, into a guest of `ram` bytes.
fn load(kernel: &[u8], initrd: Option<&[u8]>, command_line: &str, ram: u64) -> Result<(Entry, GuestRam), BootError> {
    let (kernel, initrd) = (file(kernel), initrd.map(file));
    let payload = Payload::open(kernel.path(), initrd.as_ref().map(|file| file.path()), command_line)?;
    let ram = GuestRam::new(ram, false).unwrap();
    let entry = payload.load(&ram, 0xE_0000)?;
    Ok((entry, ram))
}

fn read<const N: usize>(ram: &GuestRam, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.mmap().read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn u32_at(ram: &GuestRam, address: u64) -> u32 {
    u32::from_le_bytes(read(ram, address))
}

fn u64_at(ram: &GuestRam, address: u64) -> u64 {
    u64::from_le_bytes(read(ram, address))
}

/// The error that `kernel` is refused with.
fn refusal(kernel: &[u8]) -> KernelError {
    match load(kernel, None, "", 16 * MIB) {
        Err(BootError::Kernel(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bzimage_gets_a_zero_page() {
    let (entry, ram) = load(&bzimage(b"kernel", 0x1000), Some(&[0xAB; 5000]), "root=/dev/vda", 16 * MIB).unwrap();
    assert_eq!(entry, Entry::Linux64 { address: 0x10_0200 });
    assert_eq!(&read::<6>(&ram, 0x10_0000), b"kernel");
    let zero_page = layout::ZERO_PAGE;
    assert_eq!(&read::<4>(&ram, zero_page + 0x202), b"HdrS");
    assert_eq!(read(&ram, zero_page + 0x210), [0xFF], "type_of_loader");
    assert_eq!(u64_at(&ram, zero_page + 0x70), 0xE_0000, "acpi_rsdp_addr");
    let command_line = u64::from(u32_at(&ram, zero_page + 0x228));
    assert_eq!(&read::<14>(&ram, command_line), b"root=/dev/vda\0");
    let (initrd, size) = (u64::from(u32_at(&ram, zero_page + 0x218)), u32_at(&ram, zero_page + 0x21C));
    assert_eq!((initrd, size), (16 * MIB - 0x2000, 5000));
    assert_eq!(read(&ram, initrd + 4999), [0xAB]);
    assert_eq!(read(&ram, zero_page + 0x1E8), [6], "e820_entries");
    let fifth = zero_page + 0x2D0 + 4 * 20;
    assert_eq!((u64_at(&ram, fifth), u64_at(&ram, fifth + 8)), (MIB, 15 * MIB));
    // Bytes behind the header in the file, here by its own word at 0x26C, are not copied.
    assert_eq!(read::<8>(&ram, zero_page + 0x26C), [0; 8]);
}

#[test]
fn an_older_headers_missing_fields_are_zero() {
    let mut kernel = bzimage(b"", 0x1000);
    kernel[0x201] = 0x62; // ends at 0x264, after init_size
    kernel[0x264..0x26C].fill(0xCC);
    let (_, ram) = load(&kernel, None, "", 16 * MIB).unwrap();
    assert_eq!(u32_at(&ram, layout::ZERO_PAGE + 0x260), 0x1000);
    assert_eq!(read::<8>(&ram, layout::ZERO_PAGE + 0x264), [0; 8]);
}

#[test]
fn an_elf_kernel_gets_a_start_info() {
    let (entry, ram) = load(&elf(b"program"), Some(b"initrd"), "quiet", 16 * MIB).unwrap();
    assert_eq!(entry, Entry::Pvh { address: 0x10_0000 });
    assert_eq!(&read::<7>(&ram, 0x10_0000), b"program");
    let info = layout::PVH_START_INFO;
    assert_eq!((u32_at(&ram, info), u32_at(&ram, info + 4), u32_at(&ram, info + 12)), (0x336E_C578, 1, 1));
    assert_eq!(&read::<6>(&ram, u64_at(&ram, info + 24)), b"quiet\0");
    assert_eq!(u64_at(&ram, info + 32), 0xE_0000);
    let module = u64_at(&ram, info + 16);
    assert_eq!((u64_at(&ram, module), u64_at(&ram, module + 8)), (16 * MIB - 0x1000, 6));
    assert_eq!(&read::<6>(&ram, 16 * MIB - 0x1000), b"initrd");
    assert_eq!((u64_at(&ram, info + 40), u32_at(&ram, info + 48)), (info + 0x100, 6));
}

#[test]
fn files_that_are_no_kernels_are_told_apart() {
    for (content, hint) in [
        (b"Hello, I am a text.\n".as_slice(), "looks like text"),
        (b"", "is empty"),
        (b"\x1F\x8B\x08\0\0\0", "gzip"),
        (b"070701000", "initrd"),
        (&[0; 4096], "has none of their marks"),
    ] {
        let error = refusal(content);
        assert!(matches!(error, KernelError::Unrecognized { .. }), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    }
}

#[test]
fn missing_files_and_directories_are_told_apart() {
    let open = |path: &str| Kernel::open(Path::new(path)).unwrap_err();
    assert!(matches!(open("/nonexistent/vmlinuz"), KernelError::Open { .. }));
    assert!(matches!(open("/"), KernelError::NotAFile { .. }));
    assert!(matches!(Initrd::open(Path::new("/nonexistent")), Err(InitrdError::Open { .. })));
    assert!(matches!(Initrd::open(Path::new("/")), Err(InitrdError::NotAFile { .. })));
}

#[test]
fn truncated_kernels_are_refused_wherever_they_end() {
    let (bzimage, elf) = (bzimage(&[1; 100], 0x1000), elf(&[1; 100]));
    // The header of a bzImage counts 16-byte units, rounded up: what is missing of the last one cannot be told.
    for (kernel, from, end) in [(&bzimage, 0x206, bzimage.len() - 15), (&elf, 4, elf.len())] {
        for length in from..end {
            let error = refusal(&kernel[..length]);
            let expected = matches!(error, KernelError::Truncated { .. })
                // A boot header that ends early reads as an old one.
                || length < 0x264 && matches!(error, KernelError::Unsupported { .. });
            assert!(expected, "{length} bytes: {error:?}");
        }
    }
}

#[test]
fn the_last_unit_of_a_bzimage_need_not_be_whole() {
    let mut kernel = bzimage(&[1; 97], 0x1000);
    kernel.truncate(3 * 512 + 97);
    let (_, ram) = load(&kernel, None, "", 16 * MIB).unwrap();
    assert_eq!(read::<98>(&ram, 0x10_0000)[95..], [1, 1, 0]);
}

#[test]
fn kernels_for_other_machines_are_refused() {
    let mut arm = elf(b"");
    arm[18] = 183;
    assert!(refusal(&arm).to_string().contains("another kind of machine"));
    let mut bits_32 = elf(b"");
    bits_32[4] = 1;
    assert!(refusal(&bits_32).to_string().contains("another kind of machine"));
    let mut old = bzimage(b"", 0x1000);
    old[0x206] = 0x0B;
    assert!(refusal(&old).to_string().contains("64-bit entry"));
}

#[test]
fn an_elf_file_without_pvh_note_is_refused() {
    let mut kernel = elf(b"");
    kernel[64 + 2 * 56 + 8] = 0x11;
    assert!(refusal(&kernel).to_string().contains("CONFIG_PVH"));
}

#[test]
fn damaged_program_headers_are_refused() {
    for (offset, value) in [(8, u64::MAX), (32, u64::MAX), (40, u64::MAX)] {
        let mut kernel = elf(b"");
        kernel[64 + offset..64 + offset + 8].copy_from_slice(&value.to_le_bytes());
        let error = refusal(&kernel);
        assert!(
            matches!(error, KernelError::Unsupported { .. } | KernelError::Truncated { .. }),
            "{offset}: {error:?}"
        );
    }
    let mut low = elf(b"");
    low[64 + 24..64 + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
    assert!(refusal(&low).to_string().contains("below 1 MiB"));
}

#[test]
fn a_kernel_that_needs_more_than_ram_is_refused_with_how_much() {
    let error = refusal(&bzimage(b"", 32 << 20));
    assert!(
        error.to_string().contains("needs 33 MiB of memory below 4 GiB to start, but the guest has 16 MiB"),
        "{error}"
    );
    let mut kernel = elf(b"");
    kernel[64 + 40..64 + 48].copy_from_slice(&(16 * MIB).to_le_bytes());
    assert!(matches!(refusal(&kernel), KernelError::TooLarge { .. }));
}

#[test]
fn an_initrd_goes_up_to_the_kernels_end_and_not_further() {
    // The kernel takes 1 to 2 MiB, RAM ends at 4 MiB.
    let kernel = bzimage(b"", 1 << 20);
    let fits = vec![1; 2 << 20];
    load(&kernel, Some(&fits), "", 4 * MIB).unwrap();
    let too_large = vec![1; (2 << 20) + 1];
    let error = load(&kernel, Some(&too_large), "", 4 * MIB).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, BootError::Initrd(InitrdError::TooLarge { size: 2_097_153, room: 2_097_152, .. })),
        "{error:?}"
    );
    let error = load(&elf(b""), Some(&vec![1; 8 << 20]), "", 4 * MIB).map(|_| ()).unwrap_err();
    assert!(matches!(error, BootError::Initrd(InitrdError::TooLarge { .. })), "{error:?}");
}

#[test]
fn a_command_line_that_the_kernel_has_no_room_for_is_refused() {
    for kernel in [bzimage(b"", 0x1000), elf(b"")] {
        load(&kernel, None, &"x".repeat(2047), 16 * MIB).unwrap();
        let error = load(&kernel, None, &"x".repeat(2048), 16 * MIB).map(|_| ()).unwrap_err();
        assert!(matches!(error, BootError::CommandLineTooLong { length: 2048, limit: 2047 }), "{error:?}");
        let error = load(&kernel, None, "a\0b", 16 * MIB).map(|_| ()).unwrap_err();
        assert!(matches!(error, BootError::CommandLineZero { offset: 1 }), "{error:?}");
    }
}
