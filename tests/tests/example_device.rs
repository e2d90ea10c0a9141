//! The device in `devices/examples/copier.rs`, which knows nothing but the protocol's library: registers, DMA and a level-triggered
//! interrupt, as Linux sees them under our VMM and under QEMU, and as bare metal does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use outrigger_tests::outrigger::{LIMIT, with_disk, with_payload};
use outrigger_tests::process::run;
use outrigger_tests::qemu::{Server, boot};
use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, disk, guest, lock::Lock};
use tempfile::TempDir;

/// Binds the device to the driver that hands interrupts to user space.
const GUEST: &str = r#"
set -e
insmod /uio.ko
insmod /uio_pci_generic.ko
echo 1af4 10f0 > /sys/bus/pci/drivers/uio_pci_generic/new_id
copier-guest
grep uio_pci_generic /proc/interrupts
"#;

/// The most lines that a device author has to read.
const LINES: usize = 75;

fn initramfs(directory: &Path) -> PathBuf {
    let path = directory.join("copier.cpio");
    let modules = ["uio", "uio_pci_generic"].map(|name| guest::module(&format!("drivers/uio/{name}.ko")));
    let files = [
        (Path::new(env!("CARGO_BIN_EXE_copier-guest")), "/bin/copier-guest"),
        (modules[0].as_path(), "/uio.ko"),
        (modules[1].as_path(), "/uio_pci_generic.ko"),
    ];
    guest::initramfs(&path, GUEST, &files, &[]);
    path
}

fn start(socket: &Path) -> Server {
    Server::spawn(Command::new(binaries::example("copier")).arg(socket), socket)
}

#[test]
fn the_example_is_short() {
    let source = outrigger_tests::repository::file("devices/examples/copier.rs");
    let lines = fs::read_to_string(&source).expect("it is in the repository").lines().count();
    assert!(lines <= LINES, "{} has {lines} lines", source.display());
}

#[test]
fn linux_drives_it_under_outrigger() {
    let testbed = Testbed::new();
    let initramfs = initramfs(testbed.directory());
    testbed.file(binaries::example("copier"), "/bin/copier").file(initramfs, "/guest/copier.cpio").run(
        r#"
copier /tmp/copier.sock & server=$!
for second in 0 1 2 3 4 5 6 7 8 9; do [ -S /tmp/copier.sock ] || sleep 1; done
for run in first second; do
  boot $run 0 --kernel /guest/vmlinuz --initrd /guest/copier.cpio --cmdline 'console=ttyS0 quiet' --memory 256M \
    --device socket=/tmp/copier.sock
  has $run 'copier: passed'
  has $run 'GUEST-EXIT 0'
done
kill $server
"#,
    );
}

/// Boots the guest in QEMU, with more arguments for it; whether the device process had guest memory mapped meanwhile.
fn maps_under_qemu(arguments: &[&str]) -> bool {
    let _one_at_a_time = Lock::take("testbed");
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = start(&directory.path().join("copier.sock"));
    let maps = format!("/proc/{}/maps", server.process().pid());
    let watcher = thread::spawn(move || {
        loop {
            // Nothing at all: it has ended.
            match fs::read_to_string(&maps).unwrap_or_default() {
                maps if maps.is_empty() => return false,
                maps if maps.contains("memfd:") => return true,
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    });
    let ended = boot(&guest::directory().join("vmlinuz"), &initramfs(directory.path()), &[&server], arguments);
    ended.expect_code(0).expect_stdout("copier: passed").expect_stdout("GUEST-EXIT 0");
    server.stop();
    watcher.join().expect("it only reads")
}

#[test]
fn linux_drives_it_under_qemu() {
    assert!(maps_under_qemu(&[]), "guest memory was never mapped");
}

#[test]
fn linux_drives_it_under_qemu_by_messages_alone() {
    // Memory that has no descriptor to give away.
    let private = ["--", "-object", "memory-backend-ram,id=private,size=512M", "-machine", "memory-backend=private"];
    assert!(!maps_under_qemu(&private), "guest memory was mapped");
}

#[test]
fn bare_metal_drives_it_on_this_machines_kvm() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = start(&directory.path().join("copier.sock"));
    for _ in 0..2 {
        let mut command = with_payload("pci,copier");
        let ended = run(command.arg("--device").arg(format!("socket={}", server.socket().display())), LIMIT);
        ended.expect_code(0).expect_stdout("ok copier-interrupt").expect_stdout("payload: passed");
    }
}

#[test]
fn two_devices_share_a_pin() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let servers = ["one.sock", "two.sock"].map(|name| start(&directory.path().join(name)));
    let [one, two] = servers.each_ref().map(|server| format!("socket={}", server.socket().display()));
    let mut command = with_payload("pci,shared-pin");
    command.args(["--device", &one]);
    // Pins repeat after eight slots.
    for number in 0..7 {
        let path = directory.path().join(format!("{number}.img"));
        disk::empty(&path, disk::PAYLOAD_DISK);
        with_disk(&mut command, &path);
    }
    let ended = run(command.args(["--device", &two]), LIMIT);
    ended.expect_code(0).expect_stdout("ok shared-pin-none").expect_stdout("payload: passed");
}
