//! The bare-metal payload on this machine's own KVM: what a guest's first few thousand instructions see of PCI, BARs, interrupts
//! and a virtio device, and how the ways in which a guest ends become exit statuses.

use outrigger_tests::disk;
use outrigger_tests::outrigger::{LIMIT, with_disk, with_payload};
use outrigger_tests::process::{Ended, run};
use tempfile::TempDir;

/// Runs `checks` with one disk and expects them to pass.
fn passes(checks: &str) -> (Ended, TempDir) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let ended = run(with_disk(&mut with_payload(checks), &image), LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed");
    assert!(!ended.stdout.contains("FAIL"), "a check failed:\n{ended}");
    (ended, directory)
}

#[test]
fn pci_devices_are_the_same_by_ecam_and_by_ports() {
    let (ended, _directory) = passes("pci");
    ended.expect_stdout("ok pci-same-count").expect_stdout("pci 00:01.0 1af4:1042");
}

#[test]
fn no_device_at_all_leaves_the_host_bridge() {
    let ended = run(&mut with_payload("pci"), LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed").expect_stdout("pci 00:00.0");
    assert!(!ended.stdout.contains("pci 00:01.0"), "a device nobody asked for:\n{ended}");
}

#[test]
fn devices_have_slots_in_the_order_of_the_command_line() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let mut command = with_payload("pci");
    for name in ["one.img", "two.img", "three.img"] {
        let path = directory.path().join(name);
        disk::empty(&path, disk::PAYLOAD_DISK);
        with_disk(&mut command, &path);
    }
    let ended = run(&mut command, LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed");
    for slot in ["00:01.0", "00:02.0", "00:03.0"] {
        ended.expect_stdout(&format!("pci {slot} 1af4:1042"));
    }
}

#[test]
fn every_processor_is_in_the_acpi_tables() {
    for cpus in ["1", "2", "64"] {
        let ended = run(with_payload("pci").args(["--cpus", cpus]), LIMIT);
        ended.expect_code(0).expect_stdout(&format!("processors {cpus}\n"));
    }
}

#[test]
fn a_bar_moves_and_can_be_disabled() {
    passes("bar").0.expect_stdout("ok bar-answers-at-new-place").expect_stdout("ok bar-old-place-empty");
}

#[test]
fn msix_masks_hold_vectors_back_and_pending_bits_show_it() {
    passes("msix").0.expect_stdout("ok msix-vector-mask").expect_stdout("ok msix-function-mask");
}

#[test]
fn a_block_request_is_served_by_doorbell_and_interrupt() {
    let (_, directory) = passes("blk");
    assert!(disk::payload_wrote(&directory.path().join("disk.img")), "sector 1 is not what the guest wrote");
}

#[test]
fn a_device_works_after_its_bars_moved() {
    let (_, directory) = passes("blk,bar,msix,blk,bar,blk");
    assert!(disk::payload_wrote(&directory.path().join("disk.img")), "sector 1 is not what the guest wrote");
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let before = std::fs::read(&image).expect("just made");
    let mut command = with_payload("blk");
    command.arg("--disk").arg(format!("path={},readonly=on", image.display()));
    let ended = run(&mut command, LIMIT);
    ended.expect_code(4).expect_stdout("ok blk-read-data").expect_stdout("FAIL blk-write:");
    assert_eq!(std::fs::read(&image).expect("still there"), before, "a read-only image changed");
}

#[test]
fn a_reset_ends_with_its_own_status() {
    run(&mut with_payload("reboot"), LIMIT).expect_code(4).expect_stdout("rebooting");
}

#[test]
fn a_failed_check_is_not_mistaken_for_a_passed_one() {
    run(&mut with_payload("no-such-check"), LIMIT).expect_code(4).expect_stdout("FAIL known-check");
}

#[test]
fn a_triple_fault_shows_the_registers() {
    let ended = run(&mut with_payload("crash"), LIMIT);
    ended.expect_code(5).expect_stdout("crashing");
    let words = ended.stderr.to_lowercase();
    for register in ["rip", "rsp", "rax", "cr3"] {
        assert!(words.contains(register), "{register} is not among the registers:\n{ended}");
    }
}
