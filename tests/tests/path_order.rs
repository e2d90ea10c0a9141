//! Order between the processors of a Linux guest whose accesses take different paths (`paths-guest`), where KVM has ioregionfd, and where
//! Outrigger stands in. The test bed's host has one processor, on which those who are woken first run first: what only goes wrong
//! when two threads of the device process really race, such as a message that is posted and must not be, the payload's check
//! `paths` finds on a machine with two, and this does not.

use std::path::Path;

use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, guest};

fn holds(testbed: Testbed, asked: &str) {
    let initramfs = testbed.directory().join("litmus.cpio");
    let litmus = (Path::new(env!("CARGO_BIN_EXE_paths-guest")), "/bin/paths-guest");
    guest::initramfs(&initramfs, "paths-guest", &[litmus], &[]);
    let mut testbed = testbed.file(initramfs, "/guest/litmus.cpio");
    for name in ["paths", "copier"] {
        let copy = testbed.directory().join(name);
        binaries::strip(&binaries::example(name), &copy);
        testbed = testbed.file(copy, &format!("/bin/{name}"));
    }
    let ended = testbed.run(
        r#"
for device in paths copier; do
  $device /tmp/$device.sock &
  for second in 0 1 2 3 4 5 6 7 8 9; do [ -S /tmp/$device.sock ] || sleep 1; done
done
boot litmus 0 --kernel /guest/vmlinuz --initrd /guest/litmus.cpio --cpus 2 --memory 256M --cmdline 'console=ttyS0 quiet panic=-1' \
  --device socket=/tmp/paths.sock --device socket=/tmp/copier.sock --show-devices
has litmus 'litmus: passed'
"#,
    );
    ended.expect_stdout(asked);
}

#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn where_kvm_asks_the_device() {
    holds(Testbed::new().kernel("ioregionfd"), "ioregionfd   KVM asks");
}

#[test]
fn where_outrigger_stands_in() {
    holds(Testbed::new(), "stand-in     the VMM asks");
}
