//! The demo's guest with device processes that are not given guest RAM: all its checks pass, among them that none of it is mapped in
//! those processes.

use outrigger_tests::repository;
use outrigger_tests::testbed::Testbed;

fn demo(prelude: &str) {
    let inside =
        std::fs::read_to_string(repository::file("scripts/lib/demo-in-guest")).expect("it is in the repository");
    let mut testbed = Testbed::new().initramfs(&inside, "/guest/demo");
    for program in ["e2fsck", "debugfs"] {
        testbed = testbed.file(format!("/sbin/{program}"), &format!("/sbin/{program}"));
    }
    testbed =
        testbed.file("/bin/nc.openbsd", "/bin/nc.openbsd").file(repository::file("scripts/lib/demo-on-host"), "/demo");
    let run = "OUTRIGGER=/bin/outrigger KERNEL=/guest/vmlinuz INITRD=/guest/demo sh /demo || fail \"$? checks failed\"";
    let ended = testbed.minutes(12).run(&format!("{prelude} {run}\nnothing_left\n"));
    ended.expect_stdout("mapped by the VMM alone");
}

#[test]
fn the_demo_passes_without_guest_ram_in_the_device_processes() {
    demo("DMA=messages PARTS=4");
}

#[test]
fn the_demo_passes_with_messages_of_at_most_a_page() {
    demo("DMA=messages PARTS=4 TRANSFER=4096");
}
