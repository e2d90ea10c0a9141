//! The required results of a run of the payload's attacks on devices (`checks=hostile`), wherever it took place.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use crate::disk;

/// The address that the payload's network card asks for, and the host answers for (RFC 5737, TEST-NET-2).
pub const HOST: &str = "198.51.100.1";
/// Attacks in the payload's tables, each on every kind of device that it is for. One more or one fewer there is one here: none is left
/// out in silence.
pub const ATTACKS: usize = 554;
/// Lines that a run may leave in the log, however many attacks there are: a burst of ten for each of three devices, in its own process and in
/// the VMM, and one now and then.
pub const MOST_LOG_LINES: usize = 120;
/// Sectors that attacks write to.
pub const SCRATCH: Range<usize> = 8..16;
const SECTOR: usize = 512;

/// `command` in a network namespace of its own, where [`HOST`] is the host's: neither the address nor a tap shows
/// outside of it, and both go with the last process.
#[must_use]
pub fn in_own_network(command: &Command) -> Command {
    let script = format!("ip address add {HOST}/32 dev lo && ip link set lo up && exec \"$@\"");
    let mut isolated = Command::new("unshare");
    isolated.args(["--net", "sh", "-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    isolated
}

/// The faults in the console of a run with one round; none: an empty string.
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

/// How many attacks a payload's output has that passed, and how many that failed.
#[must_use]
pub fn counts(stdout: &str) -> (usize, usize) {
    let begin = |word: &str| stdout.lines().filter(|line| line.starts_with(word)).count();
    (begin("ok hostile-"), begin("FAIL"))
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
