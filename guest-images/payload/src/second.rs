//! A second processor: started when a check needs one, handed one function after another, stopped when the check is over.
//!
//! It is the one with APIC id 1, as Outrigger numbers its vCPUs. It takes no interrupts, so it needs no APIC of its own.

use core::arch::x86_64::_rdtsc;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::memory::{read8, write8};
use crate::{apic, interrupts};

const ID: u8 = 1;
/// Where it starts: free conventional memory, on a page that a start-up message can name.
const START: u64 = 0x8000;
/// Ticks of the time-stamp counter, some twenty seconds, that one processor waits for the other. On a host whose counters are not quite in
/// step a difference can be negative.
const PATIENCE: u64 = 60_000_000_000;

/// Its state. A byte, as everything that the two tell each other: where KVM interprets ring-0 code, a processor can find half
/// of a longer word that the other one is writing.
static STATE: AtomicU8 = AtomicU8::new(STOPPED);
const STOPPED: u8 = 0;
const IDLE: u8 = 1;
const BUSY: u8 = 2;
/// While it is busy: the address of its [`Task`].
static TASK: AtomicU64 = AtomicU64::new(0);

struct Task<'a>(&'a mut (dyn FnMut() + Send));

unsafe extern "C" {
    static second_start: u8;
    static second_end: u8;
}

// Real mode to long mode in one step (Intel SDM volume 3A, section 10.8.5): paging and protection are switched on together.
// Runs at `START`, where it was copied.
global_asm!(
    r#"
    .section .text.second, "ax"
    .code16
    .globl second_start, second_end
second_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + second_gdt - second_start
    movl %cr4, %eax
    orl $0x20, %eax             # physical address extension
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER: long mode
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax      # caches, which INIT switches off
    orl $0x80000001, %eax       # paging and protection
    movl %eax, %cr0
    ljmpl $8, $second64
    .balign 4
second_gdt:
    .word 23
    .long gdt
second_end:

    .code64
second64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $second_stack_top, %esp
    xorl %ebp, %ebp
    call payload_second
    ud2

    .section .data.second, "aw"
    .balign 16
    .fill 4096, 4, 0
second_stack_top:
"#,
    options(att_syntax)
);

/// The second processor, running. Stopped when dropped.
pub struct Second(());

impl Second {
    /// Starts it; `None`: it does not come.
    pub fn start() -> Option<Self> {
        let code = &raw const second_start as u64;
        for at in 0..&raw const second_end as u64 - code {
            write8(START + at, read8(code + at));
        }
        apic::stop(ID);
        apic::start(ID, (START >> 12).to_le_bytes()[0]);
        // One message should do. A second is the custom, and one too many is ignored.
        apic::start(ID, (START >> 12).to_le_bytes()[0]);
        wait_until(|| STATE.load(Ordering::Acquire) == IDLE).then_some(Self(()))
    }

    /// Runs `theirs` on it for as long as `ours` takes here, and stops it then, whatever it is doing.
    pub fn during<T>(self, theirs: &mut (dyn FnMut() + Send), ours: impl FnOnce() -> T) -> T {
        let mut task = Task(theirs);
        TASK.store(&raw mut task as u64, Ordering::Relaxed);
        STATE.store(BUSY, Ordering::Release);
        let result = ours();
        drop(self);
        result
    }

    /// Runs `theirs` on it and `ours` here, at the same time, until both have returned.
    ///
    /// # Panics
    /// When `theirs` does not return.
    pub fn beside<T>(&self, theirs: &mut (dyn FnMut() + Send), ours: impl FnOnce() -> T) -> T {
        let mut task = Task(theirs);
        TASK.store(&raw mut task as u64, Ordering::Relaxed);
        STATE.store(BUSY, Ordering::Release);
        let result = ours();
        assert!(wait_until(|| STATE.load(Ordering::Acquire) == IDLE));
        result
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        apic::stop(ID);
        STATE.store(STOPPED, Ordering::Release);
    }
}

/// Waits for the other processor; false: it takes too long.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    loop {
        if done() {
            return true;
        }
        if ticks().saturating_sub(start) > PATIENCE {
            return false;
        }
        pause();
    }
}

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every processor with long mode has the instruction.
    unsafe { _rdtsc() }
}

fn pause() {
    // SAFETY: it does nothing, a little slower.
    unsafe { asm!("pause", options(nomem, nostack, preserves_flags)) }
}

#[unsafe(no_mangle)]
extern "C" fn payload_second() -> ! {
    interrupts::load();
    STATE.store(IDLE, Ordering::Release);
    loop {
        if STATE.load(Ordering::Acquire) != BUSY {
            pause();
            continue;
        }
        // SAFETY: `Second::beside` put it there for this processor alone, and keeps it until this says that it is done with it.
        let Task(run) = unsafe { &mut *(TASK.load(Ordering::Relaxed) as *mut Task<'_>) };
        run();
        STATE.store(IDLE, Ordering::Release);
    }
}
