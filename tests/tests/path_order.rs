//! Order between a guest's processors and between its accesses, whichever paths they take: what docs/PROTOCOL.md, "Order", promises. Bare
//! metal with two processors on this machine's own KVM (the payload's checks `litmus` and `litmus-posted`); the same and a Linux guest
//! (`paths-guest`) in the test bed, on two processors, also where KVM has ioregionfd.

use std::path::Path;
use std::process::Command;

use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::run;
use outrigger_tests::qemu::Server;
use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, guest, payload};
use tempfile::TempDir;

fn holds_here(check: &str, paths: &str) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let socket = directory.path().join("paths.sock");
    let server = Server::spawn(Command::new(binaries::example("paths")).arg(&socket), &socket);
    let mut command = with_payload(check);
    command.arg("--device").arg(format!("socket={}", server.socket().display()));
    let ended = run(command.args(["--cpus", "2", "--paths", paths]), LIMIT);
    ended.expect_code(0).expect_stdout("ok litmus-rings-none-lost-none-twice").expect_stdout("payload: passed");
}

#[test]
fn by_every_path() {
    holds_here("litmus", "mapped,ioeventfd,ioregionfd,stand-in,message");
}

#[test]
fn where_mapped_memory_and_doorbells_are_messages_too() {
    holds_here("litmus", "stand-in,message");
}

#[test]
fn where_messages_are_posted_and_all_there_is() {
    holds_here("litmus", "message");
}

#[test]
fn where_messages_are_posted_beside_mapped_memory_and_doorbells() {
    holds_here("litmus-posted", "mapped,ioeventfd,message");
}

fn holds(testbed: Testbed, asked: &str) {
    let initramfs = testbed.directory().join("litmus.cpio");
    let litmus = (Path::new(env!("CARGO_BIN_EXE_paths-guest")), "/bin/paths-guest");
    guest::initramfs(&initramfs, "paths-guest", &[litmus], &[]);
    let mut testbed = testbed.file(initramfs, "/guest/litmus.cpio").file(payload::path(), "/guest/payload");
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
for check in litmus,mapped,ioeventfd,ioregionfd,stand-in,message litmus-posted,mapped,ioeventfd,message; do
  boot $check 0 --kernel /guest/payload --memory 64M --cpus 2 --device socket=/tmp/paths.sock --show-devices \
    --paths ${check#*,} --cmdline checks=${check%%,*}
  has $check 'payload: passed'
done
"#,
    );
    ended.expect_stdout(asked);
}

#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn where_kvm_asks_the_device() {
    holds(Testbed::new().kernel("ioregionfd").cpus(2), "ioregionfd   KVM asks");
}

#[test]
fn where_outrigger_stands_in() {
    holds(Testbed::new().cpus(2), "stand-in     the VMM asks");
}
