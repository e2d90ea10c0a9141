//! From the 32-bit PVH entry to Rust in long mode. The page tables are made by the assembler, not at run time: the first 4 GiB in
//! 2 MiB pages, one to one, the last of them (device memory) uncached. [`crate::memory::map`] adds what lies higher.

use core::arch::global_asm;

global_asm!(
    r#"
    # Xen's ELF note 18, XEN_ELFNOTE_PHYS32_ENTRY.
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad entry32

    .section .text.entry, "ax"
    .code32
    .globl entry32
entry32:
    cld
    movl $stack_top, %esp
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax             # physical address extension
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER: long mode
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax       # paging and protection
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $entry64

    .code64
entry64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %ebx, %edi             # physical address of hvm_start_info
    xorl %ebp, %ebp
    call payload_main
    ud2

    .section .data.tables, "aw"
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 8: 64-bit code
    .quad 0x00cf93000000ffff    # 16: data
gdt_pointer:
    .word . - gdt - 1
    .long gdt
    .long 0

    .balign 4096
    .globl pml4, pdpt
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x0003
    .quad page_directories + 0x1003
    .quad page_directories + 0x2003
    .quad page_directories + 0x3003
    .fill 508, 8, 0
page_directories:
    .set frame, 0
    .rept 1536                  # 0 to 3 GiB: present, writable, 2 MiB
    .quad frame + 0x83
    .set frame, frame + 0x200000
    .endr
    .rept 512                   # 3 to 4 GiB: not cached either
    .quad frame + 0x9b
    .set frame, frame + 0x200000
    .endr
    .fill 8192, 4, 0            # the stack
stack_top:
"#,
    options(att_syntax)
);
