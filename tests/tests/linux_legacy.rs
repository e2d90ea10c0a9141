//! Guests that do without what is modern on a PC: without I/O APIC, local APIC or ACPI Linux uses the 8259s and the PIT, and
//! memtest86+ is a kernel that is no Linux.

use outrigger_tests::guest;
use outrigger_tests::testbed::Testbed;

/// User space writes to the console by interrupt, so what it says shows that interrupts arrive. The first line is common with
/// Firecracker.
#[test]
fn linux_without_ioapic_lapic_or_acpi_uses_the_pic() {
    let testbed = Testbed::new()
        .initramfs("grep ttyS0 /proc/interrupts\nsleep 1\n", "/guest/off")
        .initramfs("grep ttyS0 /proc/interrupts\nsleep 1\nreboot -f\n", "/guest/reboot");
    testbed.run(
        r#"
legacy() {
  name=$1 status=$2 initrd=$3; shift 3
  boot $name $status --kernel /guest/vmlinuz --memory 256M --initrd /guest/$initrd --cmdline "$*"
  has $name OUTRIGGER-GUEST-UP
  has $name "$pin.*ttyS0"
}
pin=XT-PIC
legacy noapic 0 off console=ttyS0 noapic reboot=k panic=1 pci=off nomodules
legacy reboot 4 reboot console=ttyS0 noapic reboot=k panic=1 pci=off nomodules
legacy nolapic 0 off console=ttyS0 nolapic panic=1
legacy acpi-off 4 reboot console=ttyS0 acpi=off reboot=k panic=1
legacy all-off 4 reboot console=ttyS0 acpi=off noapic nolapic reboot=k panic=1
# Linux without any of these options still uses the I/O APIC.
pin=IO-APIC
legacy usual 0 off console=ttyS0 panic=1
nothing_left
"#,
    );
}

/// Its file ends within the last 16-byte unit that its header counts.
#[test]
fn memtest_shows_its_screen_on_the_serial_console() {
    Testbed::new().file(guest::memtest(), "/guest/memtest").run(
        r#"
outrigger run --kernel /guest/memtest --memory 64M --cmdline console=ttyS0,115200 < /dev/null > /tmp/memtest.out 2>&1 & vmm=$!
for second in $(seq 200); do grep -q 'Pass:' /tmp/memtest.out && break; sleep 1; done
tr '\033' '\n' < /tmp/memtest.out | grep -a '[A-Za-z]' | head -60
has memtest 'Memtest86'
has memtest 'Pass:'
kill $vmm; wait $vmm; status=$?
[ $status = 143 ] || fail "status $status"
nothing_left
"#,
    );
}
