//! Report on a crashed vCPU: the first line says what happened, the others give the registers.

use std::fmt::Write as _;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::control::outcome::Outcome;

/// The outcome for a vCPU that cannot go on because of `what`.
pub(super) fn crash(fd: &VcpuFd, what: &str) -> Outcome {
    let mut report = what.to_owned();
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => {
            report.push('\n');
            report.push_str(&registers(&regs, &sregs));
        }
        (Err(error), _) | (_, Err(error)) => {
            let _ = write!(report, "\n(registers cannot be read: {error})");
        }
    }
    Outcome::Crash { report }
}

/// The registers, one group per line.
fn registers(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    let quad = |names: [(&str, u64); 4]| names.map(|(name, value)| format!("{name} {value:016x}")).join("  ");
    let segment = |name, segment: &kvm_segment| {
        format!(
            "{name} {:04x} base {:016x} limit {:08x} type {:x}",
            segment.selector, segment.base, segment.limit, segment.type_
        )
    };
    [
        quad([("rip", regs.rip), ("rsp", regs.rsp), ("rbp", regs.rbp), ("rfl", regs.rflags)]),
        quad([("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx), ("rdx", regs.rdx)]),
        quad([("rsi", regs.rsi), ("rdi", regs.rdi), ("r8 ", regs.r8), ("r9 ", regs.r9)]),
        quad([("r10", regs.r10), ("r11", regs.r11), ("r12", regs.r12), ("r13", regs.r13)]),
        format!("r14 {:016x}  r15 {:016x}", regs.r14, regs.r15),
        format!("cr0 {:016x}  cr2 {:016x}  cr3 {:016x}  cr4 {:016x}", sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4),
        format!("efer {:x}  apic base {:x}", sregs.efer, sregs.apic_base),
        segment("cs", &sregs.cs),
        segment("ss", &sregs.ss),
        format!(
            "gdt {:016x} limit {:04x}  idt {:016x} limit {:04x}",
            sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit
        ),
    ]
    .join("\n")
}
