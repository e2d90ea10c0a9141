//! The demo's guest in every variant that is measured: all its checks pass, seen from inside and outside.

use outrigger_tests::process::Ended;
use outrigger_tests::repository;
use outrigger_tests::testbed::Testbed;

/// One guest after the other, each with its own variables for `scripts/lib/demo-on-host`.
fn demo(testbed: Testbed, variants: &[&str]) -> Ended {
    let inside =
        std::fs::read_to_string(repository::file("scripts/lib/demo-in-guest")).expect("it is in the repository");
    let mut testbed = testbed.initramfs(&inside, "/guest/demo");
    for program in ["e2fsck", "debugfs"] {
        testbed = testbed.file(format!("/sbin/{program}"), &format!("/sbin/{program}"));
    }
    testbed =
        testbed.file("/bin/nc.openbsd", "/bin/nc.openbsd").file(repository::file("scripts/lib/demo-on-host"), "/demo");
    let run = "OUTRIGGER=/bin/outrigger KERNEL=/guest/vmlinuz INITRD=/guest/demo sh /demo || fail \"$? checks failed\"";
    let script: String = variants.iter().map(|variant| format!("{variant} {run}\nnothing_left\n")).collect();
    testbed.minutes(12).run(&script)
}

fn without_guest_ram(variant: &str) {
    demo(Testbed::new().cpus(2), &[variant]).expect_stdout("mapped by the VMM alone");
}

#[test]
fn without_guest_ram_in_the_device_processes() {
    without_guest_ram("DMA=messages PARTS=4");
}

#[test]
fn with_messages_of_at_most_a_page() {
    without_guest_ram("DMA=messages PARTS=4 TRANSFER=4096");
}

#[test]
fn with_registers_and_doorbells_by_message() {
    demo(Testbed::new().cpus(2), &["PATHS=message PARTS=1"]).expect_stdout("--paths message");
}

#[test]
fn with_registers_and_doorbells_by_the_stand_in() {
    demo(Testbed::new().cpus(2), &["PATHS=stand-in,message PARTS=1"]).expect_stdout("--paths stand-in,message");
}

#[test]
fn with_one_processor_and_queue() {
    demo(Testbed::new().cpus(2), &["CPUS=1 PARTS=1"]).expect_stdout("1 online");
}

#[test]
fn with_four_processors_and_queues() {
    demo(Testbed::new().cpus(2), &["CPUS=4 PARTS=1"]).expect_stdout("4 online");
}

#[test]
fn with_device_processes_that_are_killed() {
    demo(Testbed::new().cpus(2), &["KILL=1 PARTS=1"]).expect_stdout(" kills: disk ");
}

#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn with_ioregionfd_in_kvm() {
    demo(Testbed::new().kernel("ioregionfd").cpus(2), &["PATHS=ioregionfd,message PARTS=1"])
        .expect_stdout("--paths ioregionfd,message");
}

#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn with_each_other_path_where_kvm_could_use_ioregionfd() {
    let paths = ["mapped,message", "ioeventfd,message", "stand-in,message", "message"];
    let variants = paths.map(|paths| format!("PATHS={paths} PARTS=1"));
    let ended = demo(Testbed::new().kernel("ioregionfd").cpus(2), &variants.each_ref().map(String::as_str));
    for paths in paths {
        ended.expect_stdout(&format!("--paths {paths} --console"));
    }
}
