//! Memory of a device that the guest is shown: only what cannot stall, and taken away it costs its own device.

use std::path::Path;
use std::process::Command;

use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::{Ended, run};
use outrigger_tests::qemu::Server;
use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, payload};
use tempfile::TempDir;

const DEVICE: &str = env!("CARGO_BIN_EXE_shrinking-memory");

/// Runs a guest that uses the device until it is gone.
fn guest_sees_it_go(how: &str) -> Ended {
    let directory = TempDir::new().expect("there is room for temporary files");
    let socket = directory.path().join("memory.sock");
    let server = Server::spawn(Command::new(DEVICE).arg(&socket).arg(how), &socket);
    let mut command = with_payload("gone");
    command.arg("--device").arg(format!("socket={}", server.socket().display())).arg("--show-devices");
    let ended = run(&mut command, LIMIT);
    ended.expect_code(6).expect_stdout("payload: passed");
    ended
}

#[test]
fn a_file_on_a_disk_goes_by_message() {
    guest_sees_it_go("disk").expect_stderr("the file for mapped is not memory").expect_stderr("goes by message");
}

#[test]
fn an_area_beyond_its_file_goes_by_message() {
    guest_sees_it_go("short").expect_stderr("the file for mapped ends before");
}

/// KVM_RUN fails, and does not say where. (This machine's KVM, if it interprets ring-0 code, makes an exit of such an access.)
#[test]
fn on_a_kvm_with_nested_paging_the_guest_goes_on() {
    let testbed = Testbed::new();
    let device = testbed.directory().join("shrinking-memory");
    binaries::strip(Path::new(DEVICE), &device);
    testbed.file(payload::path(), "/guest/payload").file(device, "/bin/shrinking-memory").run(
        r#"
for how in shortens toggles; do
  shrinking-memory /tmp/$how.sock $how &
  for try in $(seq 50); do [ -S /tmp/$how.sock ] && break; sleep 0.2; done
  boot $how 6 --kernel /guest/payload --memory 64M --device socket=/tmp/$how.sock --show-devices --cmdline checks=gone
  has $how 'payload: passed'
  grep -q 'mapped       no exit' /tmp/$how.err || fail 'it was not mapped'
  grep 'took memory away that the guest sees' /tmp/$how.err || fail 'the device was not blamed'
  kill %%
done
"#,
    );
}
