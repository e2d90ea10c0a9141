//! Booting an ELF executable by its PVH entry point (Xen's docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{BootError, Loaded, Payload, memory, memory_map, segments};
use crate::machine::layout;
use crate::machine::memory::{GuestMemoryMmap, GuestRam};
use crate::vcpu::Entry;

const START_INFO_MAGIC: u32 = 0x336E_C578;
/// The first version that has a memory map.
const START_INFO_VERSION: u32 = 1;
/// The module list and the memory map follow the structure.
const MODULE_LIST: u64 = layout::PVH_START_INFO + 0x80;
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x100;
/// Linux's `COMMAND_LINE_SIZE` on x86, less the terminating zero. PVH itself has no limit.
const COMMAND_LINE_LIMIT: usize = 2047;

pub(super) fn load(mut payload: Payload<'_>, ram: &GuestRam, rsdp: u64) -> Result<Entry, BootError> {
    let kernel = &mut payload.kernel;
    let kernel_end = kernel.memory_end();
    kernel.check_fits(kernel_end, ram.low_end())?;
    let loaded = Elf::load(ram.mmap(), None, &mut kernel.file, None).map_err(|source| kernel.load_error(source))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(kernel.unsupported("it has no PVH entry point (build Linux with CONFIG_PVH=y)").into());
    };
    let address = u32::try_from(entry.0).map_err(|_| kernel.unsupported("its PVH entry point is above 4 GiB"))?;

    payload.write_command_line(ram, COMMAND_LINE_LIMIT)?;
    let initrd = payload.load_initrd(ram, kernel_end, ram.low_end())?;
    write_start_info(ram.mmap(), ram.size(), Loaded { initrd, rsdp }).map_err(memory("the start info"))?;
    segments::write_gdt(ram.mmap(), segments::Mode::Protected).map_err(memory("segment descriptors"))?;
    Ok(Entry::Pvh { address })
}

fn write_start_info(memory: &GuestMemoryMmap, ram_size: u64, loaded: Loaded) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: loaded.rsdp,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some((paddr, size)) = loaded.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULE_LIST;
        memory.write_obj(hvm_modlist_entry { paddr, size, ..Default::default() }, GuestAddress(MODULE_LIST))?;
    }
    let mut address = MEMORY_MAP;
    for (range, kind) in memory_map::memory_map(ram_size) {
        let entry = hvm_memmap_table_entry { addr: range.start, size: range.size(), type_: kind as u32, reserved: 0 };
        memory.write_obj(entry, GuestAddress(address))?;
        address += size_of::<hvm_memmap_table_entry>() as u64;
        info.memmap_entries += 1;
    }
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))
}
