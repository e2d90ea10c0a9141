//! A second processor, for checks that need one access to wait while another is made: started by INIT and a start-up interrupt
//! (Intel SDM volume 3, section 8.4), in real mode, from where it goes to long mode on the first one's tables. It has no interrupts.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{apic, memory, port};

/// Where real mode can reach; free in what the VMM and QEMU leave below 1 MiB. The start-up interrupt's vector is its page.
const TRAMPOLINE: u64 = 0x8000;
const START_UP_VECTOR: u8 = 8;

global_asm!(
    r#"
    .section .text.trampoline, "ax"
    .code16
    .globl trampoline, trampoline_end
trampoline:
    jmp 1f
    .byte 0x90, 0x90
    .word 31                    # at 4: the descriptors of the first processor
    .long gdt
1:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl 4
    movl $0x11, %eax            # protection
    movl %eax, %cr0
    ljmpl $24, $second32
trampoline_end:

    .code32
second32:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax             # physical address extension
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER: long mode
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000011, %eax      # paging and protection, caches on
    movl %eax, %cr0
    ljmp $8, $second64

    .code64
second64:
    movl $second_stack_top, %esp
    xorl %ebp, %ebp
    call payload_second
    ud2

    .section .data.second, "aw"
    .balign 4096
    .fill 4096, 4, 0
second_stack_top:
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

static WORK: AtomicU64 = AtomicU64::new(0);
static ARGUMENT: AtomicU64 = AtomicU64::new(0);

/// Has the second processor do `work` with `argument`, once.
pub fn start_second(work: fn(u64), argument: u64) {
    let (start, end) = (&raw const trampoline as u64, &raw const trampoline_end as u64);
    (0..end - start).for_each(|at| memory::write8(TRAMPOLINE + at, memory::read8(start + at)));
    ARGUMENT.store(argument, Ordering::Relaxed);
    WORK.store(work as usize as u64, Ordering::Release);
    apic::start(1, START_UP_VECTOR);
}

#[unsafe(no_mangle)]
extern "C" fn payload_second() -> ! {
    let work = WORK.load(Ordering::Acquire) as usize;
    // SAFETY: `start_second` stored a function of this type, before this processor was started.
    let work = unsafe { core::mem::transmute::<usize, fn(u64)>(work) };
    work(ARGUMENT.load(Ordering::Relaxed));
    loop {
        // Slower than a spin, and no HLT.
        port::read8(0x80);
    }
}
