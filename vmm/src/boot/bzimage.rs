//! Booting a bzImage by the Linux boot protocol's 64-bit entry (Documentation/arch/x86/boot.rst and zero-page.rst).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, Loaded, Payload, memory, memory_map, page_tables, segments};
use crate::machine::layout;
use crate::machine::memory::GuestRam;
use crate::vcpu::Entry;

/// Loader id of one that has none assigned.
const LOADER_UNDEFINED: u8 = 0xFF;
/// `xloadflags`: the initrd may be above what `initrd_addr_max` says.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// The 64-bit entry point, from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
/// Where the setup header is in the zero page, and in the file.
const SETUP_HEADER: usize = 0x1F1;
/// The header's own length counts from here.
const SETUP_HEADER_COUNTED_FROM: usize = 0x202;

pub(super) fn load(mut payload: Payload<'_>, ram: &GuestRam, rsdp: u64) -> Result<Entry, BootError> {
    let kernel = &mut payload.kernel;
    let kernel_end = kernel.memory_end();
    kernel.check_fits(kernel_end, ram.low_end())?;
    let loaded = BzImage::load(ram.mmap(), None, &mut kernel.file, Some(GuestAddress(layout::HIGH_MEMORY)))
        .map_err(|source| kernel.load_error(source))?;
    let header = loaded.setup_header.ok_or_else(|| kernel.unsupported("it has no boot header"))?;

    payload.write_command_line(ram, usize::try_from(header.cmdline_size).unwrap_or(usize::MAX))?;
    let initrd_limit = match header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G {
        0 => ram.low_end().min(u64::from(header.initrd_addr_max) + 1),
        _ => ram.low_end(),
    };
    let initrd = payload.load_initrd(ram, kernel_end, initrd_limit)?;

    let zero_page = zero_page(header, ram.size(), Loaded { initrd, rsdp });
    ram.mmap().write_obj(zero_page, GuestAddress(layout::ZERO_PAGE)).map_err(memory("the boot parameters"))?;
    page_tables::write(ram.mmap()).map_err(memory("page tables"))?;
    segments::write_gdt(ram.mmap(), segments::Mode::Long).map_err(memory("segment descriptors"))?;
    Ok(Entry::Linux64 { address: loaded.kernel_load.0 + ENTRY_64 })
}

fn zero_page(header: setup_header, ram_size: u64, loaded: Loaded) -> boot_params {
    let mut params = boot_params { hdr: trimmed(header), acpi_rsdp_addr: loaded.rsdp, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = halves(layout::COMMAND_LINE);
    if let Some((address, size)) = loaded.initrd {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(address);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(size);
    }
    let map = memory_map::memory_map(ram_size);
    for (entry, (range, kind)) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.start, size: range.size(), r#type: *kind as u32 };
        params.e820_entries += 1;
    }
    params
}

/// The header without what follows it in the file when the kernel is older than the structure: code, which must not be taken for
/// parameters.
fn trimmed(mut header: setup_header) -> setup_header {
    let [_, counted] = header.jump.to_le_bytes();
    let length = SETUP_HEADER_COUNTED_FROM + usize::from(counted) - SETUP_HEADER;
    if let Some(beyond) = header.as_mut_slice().get_mut(length..) {
        beyond.fill(0);
    }
    header
}

/// The lower and the upper 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
