# shellcheck shell=bash
# Two mends for QEMU's emulation of SVM (7.2 to 11.1 at least), without which the test bed's guests hang or crash now and then. Needs
# common.sh and perl.
#
# An interrupt that is injected twice. When VMRUN is told to inject one (AMD64 Architecture Programmer's Manual, volume 2, section 15.20,
# "Event Injection"), helper_vmrun() (target/i386/tcg/system/svm_helper.c) delivers it and leaves its vector in exception_index. If the
# processor's loop is left before the next VMEXIT, as for any timer, it finds the vector there and delivers the same interrupt once more,
# with interrupts disabled and perhaps in the middle of its own handler: Linux then waits for a lock that it holds itself
# (handle_edge_irq). The mend is to not store the vector. Nothing else reads it, save for a log line.
#
# A processor that loses its state of SVM. Whenever any processor restores its FPU, cpu_clear_ignne() (target/i386/tcg/system/fpu_helper.c)
# clears a bit in the first processor's hflags2, without a lock, while that one may be changing the word itself. What it loses by that
# is whether nested paging is on, and its guest crashes for lack of page tables that were there; or whether interrupts are enabled
# (GIF), and the host's idle task never wakes. The bit is for MS-DOS, which asks for FPU errors by port F0h. The mend is to leave it alone.
#
# In both an instruction becomes a NOP of the same length.

# svm_mended PROGRAM COPY: COPY is PROGRAM without these mistakes. Fails when the places are not found exactly once.
svm_mended() {
  # movzx esi, r12b; mov [rbx+error_code], r13d; *mov [rbx+exception_index], esi*; mov dword [rbx+exception_is_int], 0;
  # mov qword [rbx+exception_next_eip], -1; test byte [qemu_loglevel], 2; jne; mov edx, 1
  # and: mov ecx, a line; lea rdx, a function; lea rsi, a file; call object_dynamic_cast_assert; *and dword [rax+hflags2], ~IGNNE*; add rsp, 8
  perl -0777 -e '
    my $program = <STDIN>;
    my $vectors = $program =~ s/(\x41\x0f\xb6\xf4\x44\x89\xab..\0\0)\x89\xb3..\xff\xff(\xc7\x83..\0{6}\x48\xc7\x83..\0\0\xff{4}\xf6\x05....\x02\x0f\x85....\xba\x01\0\0\0)/$1\x66\x0f\x1f\x44\0\0$2/gs;
    my $bits = $program =~ s/(\xb9.\0\0\0\x48\x8d\x15....\x48\x8d\x35....\xe8....)\x81\xa0..\0\0\x7f\xff\xff\xff(\x48\x83\xc4\x08)/$1\x66\x2e\x0f\x1f\x84\0\0\0\0\0$2/gs;
    exit 1 if $vectors != 1 || $bits != 1;
    print $program;' < "$1" > "$2.new" || { rm -f "$2.new"; return 1; }
  chmod 755 "$2.new"
  mv "$2.new" "$2"
}
