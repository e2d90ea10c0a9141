# shellcheck shell=bash
# A mend for QEMU's emulation of SVM, without which the test bed's guests hang now and then. Needs common.sh and perl.
#
# When VMRUN is told to inject an interrupt (AMD64 Architecture Programmer's Manual, volume 2, section 15.20, "Event Injection"), QEMU's
# helper_vmrun() (target/i386/tcg/system/svm_helper.c; 7.2 to 11.1 at least) delivers it and leaves its vector in exception_index. If the processor's loop is
# left before the next VMEXIT, as for any timer, it finds the vector there and delivers the same interrupt once more, with interrupts
# disabled and perhaps in the middle of its own handler: Linux then waits for a lock that it holds itself (handle_edge_irq). The mend
# is to not store the vector: the instruction becomes a NOP of the same length. Nothing else reads it, save for a log line.

# svm_mended PROGRAM COPY: COPY is PROGRAM without the mistake. Fails when the place is not found exactly once.
svm_mended() {
  # movzx esi, r12b; mov [rbx+error_code], r13d; *mov [rbx+exception_index], esi*; mov dword [rbx+exception_is_int], 0;
  # mov qword [rbx+exception_next_eip], -1; test byte [qemu_loglevel], 2; jne; mov edx, 1
  perl -0777 -e '
    my $program = <STDIN>;
    my $places = $program =~ s/(\x41\x0f\xb6\xf4\x44\x89\xab..\0\0)\x89\xb3..\xff\xff(\xc7\x83..\0{6}\x48\xc7\x83..\0\0\xff{4}\xf6\x05....\x02\x0f\x85....\xba\x01\0\0\0)/$1\x66\x0f\x1f\x44\0\0$2/gs;
    exit 1 if $places != 1;
    print $program;' < "$1" > "$2.new" || { rm -f "$2.new"; return 1; }
  chmod 755 "$2.new"
  mv "$2.new" "$2"
}
