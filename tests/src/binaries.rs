//! The programs under test, which `cargo build --workspace --bins` puts beside the test binaries.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The names of all of them.
pub const NAMES: [&str; 4] = ["outrigger", "outrigger-blk", "outrigger-net", "outrigger-vfio"];

/// The directory that holds the programs.
///
/// # Panics
/// When one is missing.
pub fn directory() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let directory = test.parent().and_then(Path::parent).expect("cargo keeps tests in PROFILE/deps").to_owned();
    for name in NAMES {
        let path = directory.join(name);
        assert!(path.exists(), "{} is missing; build it: cargo build --workspace --bins", path.display());
    }
    directory
}

/// One of [`NAMES`].
pub fn path(name: &str) -> PathBuf {
    directory().join(name)
}

/// A program of these tests (`tests/src/bin`).
///
/// # Panics
/// When it is missing.
pub fn of_tests(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(path.exists(), "{} is missing; build it: cargo build -p outrigger-tests --bins", path.display());
    path
}

/// An example of a crate here, which `cargo build --workspace --examples` builds.
///
/// # Panics
/// When it is missing.
pub fn example(name: &str) -> PathBuf {
    let path = directory().join("examples").join(name);
    assert!(path.exists(), "{} is missing; build it: cargo build --workspace --examples", path.display());
    path
}

/// Copies a program without its debug information.
///
/// # Panics
/// When that fails.
pub fn strip(program: &Path, copy: &Path) {
    let status = Command::new("strip").arg("-o").args([copy, program]).status();
    let status = status.unwrap_or_else(|error| panic!("strip: {error}; install it: apt-get install binutils"));
    assert!(status.success(), "strip {}: {status}", program.display());
}

/// Copies all of them to `destination` without debug information, readable for every user: small enough for the test bed's RAM,
/// and usable by who cannot look into the target directory.
pub fn copy_stripped(destination: &Path) {
    let source = directory();
    for name in NAMES {
        let copy = destination.join(name);
        strip(&source.join(name), &copy);
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("the copy is ours");
    }
}
