//! `outrigger run` with the bare-metal payload as guest, on this machine's own KVM.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{binaries, payload};

/// Generous: the payload takes a second or two, on a machine that may be busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The command with nothing but `run`.
pub fn command() -> Command {
    let mut command = Command::new(binaries::path("outrigger"));
    command.arg("run");
    command
}

/// The command with the payload as kernel, told to make `checks`, and 64 MiB of RAM.
///
/// # Panics
/// When this machine has no KVM that this user may use.
pub fn with_payload(checks: &str) -> Command {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    assert!(
        kvm.is_ok(),
        "/dev/kvm: {}; load kvm_intel or kvm_amd, and be root or in its group",
        kvm.expect_err("just seen")
    );
    let mut command = command();
    command.arg("--kernel").arg(payload::path());
    command.args(["--cmdline", &format!("checks={checks}"), "--memory", "64M"]);
    command
}

/// Adds `--disk` with the file at `path`.
pub fn with_disk<'a>(command: &'a mut Command, path: &Path) -> &'a mut Command {
    with_disk_and(command, path, "")
}

/// Adds `--disk` with the file at `path` and `options`, each with a comma before it.
pub fn with_disk_and<'a>(command: &'a mut Command, path: &Path, options: &str) -> &'a mut Command {
    command.arg("--disk").arg(format!("path={}{options}", path.display()))
}
