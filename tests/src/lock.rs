//! Locks between test processes: building something once, and the test bed, of which this machine carries one at a time.

use std::fs::{self, File};

use nix::fcntl::{Flock, FlockArg};

/// A held lock. Dropping it lets the next one in, as does the death of the process.
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

impl Lock {
    /// Waits for the lock called `name`, shared by all tests that were built into the same target directory.
    pub fn take(name: &str) -> Self {
        let directory = std::env::current_exe().expect("a running program has a path");
        let directory = directory.parent().expect("and is in a directory").join("outrigger-locks");
        fs::create_dir_all(&directory).expect("the target directory is writable");
        let file = File::create(directory.join(name)).expect("the target directory is writable");
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
        Self(lock.expect("waiting for a file lock works"))
    }
}
