//! Linux guests, made by `guest-images/build` from Debian's packages and kept in its cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::run;
use crate::repository;

/// Downloads and packs at most once; two cores and a slow mirror are enough.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// The directory with `vmlinuz`, `vmlinux` and `initramfs.cpio.lz4`.
///
/// # Panics
/// With the recipe's own words when it fails.
pub fn directory() -> PathBuf {
    build(&[])
}

/// The same with `rootfs.ext4` beside them.
pub fn with_rootfs() -> PathBuf {
    build(&["--rootfs"])
}

/// A module of the guests' kernel, by its path below `kernel/`.
///
/// # Panics
/// When there is none.
pub fn module(path: &str) -> PathBuf {
    module_of("cloud", path)
}

/// A module of Debian's stock kernel, which is `stock/vmlinux` in [`directory`].
///
/// # Panics
/// When there is none.
pub fn stock_module(path: &str) -> PathBuf {
    module_of("stock", path)
}

fn module_of(kernel: &str, path: &str) -> PathBuf {
    let releases = directory().join(kernel).join("lib/modules");
    let mut entries = std::fs::read_dir(&releases).unwrap_or_else(|error| panic!("{}: {error}", releases.display()));
    let release = entries.next().expect("a kernel has a release").expect("it was just listed");
    let module = release.path().join("kernel").join(path);
    assert!(module.exists(), "{} is missing", module.display());
    module
}

fn build(arguments: &[&str]) -> PathBuf {
    let ended = run(Command::new(repository::file("guest-images/build")).args(arguments), BUILD_LIMIT);
    assert_eq!(ended.code(), 0, "guest-images/build failed (scripts/install test gets what it needs):\n{ended}");
    PathBuf::from(ended.stdout.trim())
}

/// Makes an initramfs at `destination` that runs `script` and powers off, with `files` (host path, guest path) in it; `archives`
/// such as `tools.cpio` go in front.
pub fn initramfs(destination: &Path, script: &str, files: &[(&Path, &str)], archives: &[PathBuf]) {
    let script_file = destination.with_extension("sh");
    std::fs::write(&script_file, script).expect("the directory is ours");
    let mut command = Command::new(repository::file("guest-images/with-script"));
    command.arg(directory().join("initramfs.cpio.lz4")).arg(&script_file);
    command.args(files.iter().map(|(from, to)| format!("{}:{to}", from.display())));
    let output = command.output().expect("bash is there");
    assert!(output.status.success(), "with-script: {}", String::from_utf8_lossy(&output.stderr));
    let mut image = Vec::new();
    for archive in archives {
        image.extend(std::fs::read(archive).unwrap_or_else(|error| panic!("{}: {error}", archive.display())));
    }
    image.extend(output.stdout);
    std::fs::write(destination, image).expect("the directory is ours");
}

/// Debian's memtest86+, a bzImage that is no Linux.
///
/// # Panics
/// With the recipe's own words when it cannot be fetched.
pub fn memtest() -> PathBuf {
    let ended = run(&mut Command::new(repository::file("guest-images/memtest")), BUILD_LIMIT);
    assert_eq!(ended.code(), 0, "guest-images/memtest failed:\n{ended}");
    PathBuf::from(ended.stdout.trim())
}
