//! The bare-metal guest in `guest-images/payload`, built by cargo when a test first needs it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::lock::Lock;
use crate::repository;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the payload is on a machine that cannot build it: in a test bed.
pub const VARIABLE: &str = "OUTRIGGER_PAYLOAD";

/// The payload's ELF file.
///
/// # Panics
/// When it does not build.
pub fn path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os(VARIABLE).map_or_else(build, PathBuf::from)).clone()
}

fn build() -> PathBuf {
    let _lock = Lock::take("payload");
    let source = repository::file("guest-images/payload");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Its own flags and target directory, whatever the surrounding cargo was told; .cargo/config.toml is found from its folder.
    cargo.current_dir(&source).args(["build", "--release", "--locked", "--target-dir", "target"]);
    for variable in ["CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(variable);
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "the payload does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    source.join("target").join(TARGET).join("release/payload")
}
