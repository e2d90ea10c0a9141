//! The bare-metal payload on a KVM that runs ring-0 code itself, with nested paging: the same checks as in `payload`, where
//! memory slots, ioeventfds and the in-kernel interrupt controller behave as they do on a user's machine.

use outrigger_tests::testbed::Testbed;
use outrigger_tests::{disk, payload};
use tempfile::TempDir;

#[test]
fn every_check_passes_on_svm() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    Testbed::new().file(payload::path(), "/guest/payload").file(image, "/guest/disk").run(
        r#"
for cpus in 1 4; do
  boot payload$cpus 0 --kernel /guest/payload --memory 64M --cpus $cpus --disk path=/guest/disk --cmdline checks=pci,blk,bar,msix,blk
  has payload$cpus 'payload: passed'
done
boot crash 5 --kernel /guest/payload --memory 64M --cmdline checks=crash
grep -q -i rip /tmp/crash.err || fail 'no registers'
boot reboot 4 --kernel /guest/payload --memory 64M --cmdline checks=reboot
nothing_left
"#,
    );
}
