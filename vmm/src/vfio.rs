//! `outrigger vfio`: the device program of physical devices knows them and their drivers.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const PROGRAM: &str = "outrigger-vfio";

/// Becomes `outrigger-vfio` with these arguments.
///
/// # Errors
/// It returns only if that program cannot be started.
pub fn become_program(arguments: &[OsString]) -> String {
    let place = std::env::current_exe().map(|this| this.with_file_name(PROGRAM));
    let error: io::Error = place.map_or_else(|error| error, |path| Command::new(path).args(arguments).exec());
    format!("cannot start {PROGRAM}, which is looked for beside outrigger itself: {error}")
}
