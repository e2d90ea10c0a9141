//! Interrupts: a descriptor table, a counter for each of a few vectors, and windows in which interrupts may arrive. Outside
//! [`window`] they are off, so that a handler never meets half-done work. An exception ends the payload and says where it was.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::apic::{self, SPURIOUS_VECTOR};
use crate::memory::{self, Raw};
use crate::power;
use crate::serial::{hex, line, text};

/// First vector for devices.
pub const FIRST_VECTOR: u8 = 0x40;
/// Vectors for devices.
pub const VECTORS: usize = 8;

const EXCEPTIONS: u64 = 32;
const STUB_SIZE: u64 = 16;
const CODE_SELECTOR: u64 = 8;
const INTERRUPT_GATE: u64 = 0x8e00;

/// The vector below those of devices: it arrives after every other that is pending, since the highest is delivered first (Intel SDM
/// volume 3A, "Interrupt, Task, and Processor Priority").
const LAST_VECTOR: u8 = FIRST_VECTOR - 1;
/// Its counter, behind theirs.
const LAST: usize = VECTORS;
/// Windows until it has arrived; after so many, others keep coming.
const PATIENCE: u32 = 1_000_000;

static FIRED: [AtomicU32; VECTORS + 1] = [const { AtomicU32::new(0) }; VECTORS + 1];
static DESCRIPTORS: Raw<[[u64; 2]; 256]> = Raw::new([[0; 2]; 256]);

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

unsafe extern "C" {
    static exception_stubs: u8;
    static device_stubs: u8;
    static spurious_stub: u8;
}

// The way back is not IRET, which KVM's emulator lacks in protected mode: interrupts arrive only in `window`, at the same
// privilege, so popping flags and returning to the old stack does the same.
global_asm!(
    r#"
    .text
    .balign 16
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    movl $vector, %edi
    movq %rsp, %rsi
    jmp exception_common
    .set vector, vector + 1
    .endr
exception_common:
    andq $-16, %rsp
    call payload_exception
    ud2

    .balign 16
device_stubs:
    .set vector, 0
    .rept 9
    .balign 16
    pushq $vector
    jmp device_common
    .set vector, vector + 1
    .endr
device_common:
    pushq %rdi
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi
    call payload_interrupt
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    popq %rdi
    addq $8, %rsp
spurious_stub:
    pushq %rax
    pushq %rcx
    movq 40(%rsp), %rax         # the stack pointer before the interrupt; below it go
    movq 16(%rsp), %rcx         # the instruction pointer
    movq %rcx, -8(%rax)
    movq 32(%rsp), %rcx         # and the flags, with interrupts off until the next window
    andq $-513, %rcx
    movq %rcx, -16(%rax)
    leaq -16(%rax), %rax
    movq %rax, 24(%rsp)         # the code selector is not needed again
    popq %rcx
    popq %rax
    movq 8(%rsp), %rsp
    popfq
    ret
"#,
    options(att_syntax)
);

/// Fills and loads the descriptor table and enables the local APIC.
pub fn init() {
    for vector in 0..EXCEPTIONS {
        gate(vector, &raw const exception_stubs as u64 + vector * STUB_SIZE);
    }
    for vector in 0..VECTORS as u64 {
        gate(u64::from(FIRST_VECTOR) + vector, &raw const device_stubs as u64 + vector * STUB_SIZE);
    }
    gate(u64::from(LAST_VECTOR), &raw const device_stubs as u64 + LAST as u64 * STUB_SIZE);
    gate(u64::from(SPURIOUS_VECTOR), &raw const spurious_stub as u64);
    load();
    apic::enable();
}

/// Loads the descriptor table on the running processor.
pub fn load() {
    let pointer = Pointer { limit: 256 * 16 - 1, base: DESCRIPTORS.address() };
    // SAFETY: the table is static and complete for every vector that can arrive.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, preserves_flags)) }
}

fn gate(vector: u64, handler: u64) {
    let entry = DESCRIPTORS.address() + vector * 16;
    memory::write64(
        entry,
        handler & 0xffff | CODE_SELECTOR << 16 | INTERRUPT_GATE << 32 | (handler >> 16 & 0xffff) << 48,
    );
    memory::write64(entry + 8, handler >> 32);
}

/// How often device vector `FIRST_VECTOR + index` has arrived.
pub fn fired(index: u8) -> u32 {
    FIRED[usize::from(index)].load(Ordering::Relaxed)
}

/// Lets pending interrupts arrive.
pub fn window() {
    // SAFETY: handlers save what they change. They are only entered here, where the compiler keeps nothing below the stack pointer.
    unsafe { asm!("sti", "nop", "pause", "nop", "cli") }
}

/// Opens up to `rounds` windows until `done`.
pub fn wait(rounds: u32, mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..rounds {
        if done() {
            return true;
        }
        window();
    }
    done()
}

/// Opens `rounds` windows, in which nothing may come, and takes what is pending after that. A KVM that interprets this guest delivers an
/// interrupt when it comes to it, many windows after the local APIC has accepted it.
pub fn settle(rounds: u32) {
    wait(rounds, || false);
    take_pending();
}

/// Lets every interrupt arrive that the local APIC has accepted.
pub fn take_pending() {
    let arrived = || FIRED[LAST].load(Ordering::Relaxed);
    let before = arrived();
    apic::interrupt_self(LAST_VECTOR);
    wait(PATIENCE, || arrived() != before);
}

#[unsafe(no_mangle)]
extern "C" fn payload_interrupt(index: usize) {
    FIRED[index].fetch_add(1, Ordering::Relaxed);
    apic::end_of_interrupt();
}

#[unsafe(no_mangle)]
extern "C" fn payload_exception(vector: u64, frame: u64) -> ! {
    text("FAIL exception ");
    hex(vector, 2);
    text(" stack");
    for word in 0..3 {
        text(" 0x");
        hex(memory::read64(frame + word * 8), 1);
    }
    line("");
    line("payload: failed");
    power::reset_without_tables()
}
