//! The state that a vCPU starts in: what firmware leaves behind on every processor, and for the first one what the boot protocol
//! asks for.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::segments::{self, Mode};
use crate::machine::layout;
use crate::machine::vm::{VmError, call};

/// How the first vCPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The Linux boot protocol's 64-bit entry: long mode on identity-mapping page tables, `rsi` to the zero page
    /// (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64 {
        /// Guest-physical address of the first instruction.
        address: u64,
    },
    /// PVH: 32-bit protected mode without paging, `ebx` to `hvm_start_info` (Xen's docs/misc/pvh.pandoc).
    Pvh {
        /// Guest-physical address of the first instruction.
        address: u32,
    },
}

/// Bit 1 of RFLAGS is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MISC_ENABLE: u32 = 0x1A0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2FF;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Offsets of the local vector table's entries for the two interrupt pins (Intel SDM volume 3A, section 11.4.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// x87 and SSE state after FNINIT, with all exceptions masked.
pub(super) fn set_fpu(fd: &VcpuFd) -> Result<(), VmError> {
    let fpu = kvm_fpu { fcw: 0x37F, mxcsr: 0x1F80, ..Default::default() };
    fd.set_fpu(&fpu).map_err(call("KVM_SET_FPU"))
}

/// Fast string instructions, and memory that is cached unless page tables say otherwise.
pub(super) fn set_msrs(fd: &VcpuFd) -> Result<(), VmError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries =
        [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).expect("two entries fit");
    let refused = || vmm_sys_util::errno::Error::new(nix::libc::EINVAL);
    match fd.set_msrs(&msrs) {
        // KVM stops at the first one that it refuses, and calls that success.
        Ok(count) if count == entries.len() => Ok(()),
        Ok(_) => Err(call("KVM_SET_MSRS")(refused())),
        Err(error) => Err(call("KVM_SET_MSRS")(error)),
    }
}

/// The interrupt pins wired as on a PC: LINT0 to a legacy interrupt controller, LINT1 to NMI.
pub(super) fn set_lapic(fd: &VcpuFd) -> Result<(), VmError> {
    let mut lapic = fd.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    fd.set_lapic(&lapic).map_err(call("KVM_SET_LAPIC"))
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    const DELIVERY_MASK: u32 = 7 << 8;
    let register = &mut lapic.regs[offset..offset + 4];
    let bytes: Vec<u8> = register.iter().map(|byte| byte.cast_unsigned()).collect();
    let value = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let value = (value & !DELIVERY_MASK | mode).to_le_bytes();
    for (byte, value) in register.iter_mut().zip(value) {
        *byte = value.cast_signed();
    }
}

pub(super) fn set_entry(fd: &VcpuFd, entry: Entry) -> Result<(), VmError> {
    let mut sregs = fd.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let mut regs = kvm_regs { rflags: RFLAGS_RESERVED, ..Default::default() };
    match entry {
        Entry::Linux64 { address } => {
            (regs.rip, regs.rsi) = (address, layout::ZERO_PAGE);
            // The kernel sets up its own stack; this one, below the zero page, is for whatever comes before.
            regs.rsp = layout::ZERO_PAGE;
            set_segments(&mut sregs, Mode::Long);
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::BOOT_PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
        Entry::Pvh { address } => {
            (regs.rip, regs.rbx) = (u64::from(address), layout::PVH_START_INFO);
            set_segments(&mut sregs, Mode::Protected);
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
        }
    }
    fd.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    fd.set_regs(&regs).map_err(call("KVM_SET_REGS"))
}

fn set_segments(sregs: &mut kvm_sregs, mode: Mode) {
    let segments::Segments { code, data, task } = segments::for_mode(mode);
    sregs.cs = code;
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = data;
    }
    sregs.tr = task;
    sregs.ldt = kvm_segment { unusable: 1, ..sregs.ldt };
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = segments::GDT_LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}
