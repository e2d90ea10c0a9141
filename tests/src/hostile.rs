//! What a run of the payload's attacks on devices (`checks=hostile`) has to show, wherever it took place.

use std::ops::Range;
use std::path::Path;

use crate::disk;

/// Attacks in the payload's tables, each on every kind of device that it is for. One more or one fewer there is one here: none is left
/// out in silence.
pub const ATTACKS: usize = 404;
/// Lines that a run may leave in the log, however many attacks there are.
pub const MOST_LOG_LINES: usize = 60;
/// Sectors that attacks write to.
pub const SCRATCH: Range<usize> = 8..16;
const SECTOR: usize = 512;

/// What is wrong with the console of a run with one round; nothing: an empty string.
pub fn faults(stdout: &str, stderr: &str) -> String {
    let passed = stdout.lines().filter(|line| line.starts_with("ok hostile-")).count();
    let lines = stderr.lines().count();
    let mut faults: Vec<String> = stdout.lines().filter(|line| line.starts_with("FAIL")).map(str::to_owned).collect();
    if passed != ATTACKS {
        faults.push(format!("{passed} attacks passed instead of {ATTACKS}"));
    }
    if !stdout.contains(&format!("hostile: {ATTACKS} attacks, 0 failed\n")) {
        faults.push(format!("the payload does not say that there were {ATTACKS}"));
    }
    if lines > MOST_LOG_LINES {
        faults.push(format!("{lines} lines in the log, more than {MOST_LOG_LINES}"));
    }
    if stderr.contains("panicked") {
        faults.push("something panicked".to_owned());
    }
    faults.join("\n")
}

/// Fails the test unless the image is as [`disk::for_payload`] made it, but for the sectors that attacks write to.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn expect_unharmed(image: &Path) {
    let content = std::fs::read(image).expect("the test made it");
    assert_eq!(content.len() as u64, disk::PAYLOAD_DISK, "the image has another size");
    let outside = content.chunks_exact(SECTOR).enumerate().skip(1).filter(|(sector, _)| !SCRATCH.contains(sector));
    let changed: Vec<_> = outside.filter(|(_, bytes)| bytes.iter().any(|&byte| byte != 0)).map(|(at, _)| at).collect();
    assert!(changed.is_empty(), "sectors that nobody addressed have changed: {changed:?}");
    assert!(disk::has_pattern(&content), "sector 0 has changed");
}
