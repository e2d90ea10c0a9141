//! How the VMM starts a device program: `PROGRAM --options KEY=VALUE,… --fd 0`. docs/DEVICE-PROGRAMS.md is the contract.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::seal::Sandbox;

/// The argument before the options' text, which the VMM passes on without reading it.
pub const OPTIONS: &str = "--options";

/// The argument before the number of the descriptor that is the connected vfio-user socket.
pub const FD: &str = "--fd";

/// The environment variable that tells how many vCPUs the guest has, in decimal.
pub const VCPUS: &str = "OUTRIGGER_VCPUS";

/// The environment variable that is `1` for a program whose predecessor may still run: it takes no lock and no interface
/// before it is told that the predecessor is gone (`OUTRIGGER_JOURNAL_TAKE`).
pub const SUCCESSOR: &str = "OUTRIGGER_SUCCESSOR";

/// The environment variable that has the numbers of the descriptors which a predecessor asked to be kept, in its order, with
/// commas between.
pub const KEPT: &str = "OUTRIGGER_KEPT";

/// The environment variable that says whether the program seals itself: `on`, `require` or `off`, as [`Sandbox`] has them.
pub const SANDBOX: &str = "OUTRIGGER_SANDBOX";

/// Exit status of a program that cannot use its options, or a file they name. One line on standard error says why.
pub const EXIT_USAGE: u8 = 2;

/// Exit status of a program that finds the host lacking: a permission, a kernel feature. One line on standard error says why.
pub const EXIT_HOST: u8 = 3;

/// How many vCPUs the guest has, for a program that the VMM started.
#[must_use]
pub fn vcpus() -> Option<u16> {
    std::env::var(VCPUS).ok()?.parse().ok()
}

/// Whether the program is to seal itself, for one that the VMM started; none: the variable is not set.
///
/// # Errors
/// The variable has another value, in one line.
pub fn sandbox() -> Result<Option<Sandbox>, String> {
    let Ok(text) = std::env::var(SANDBOX) else { return Ok(None) };
    text.parse().map(Some).map_err(|problem| format!("{SANDBOX}: {problem}"))
}

/// Whether a predecessor may still run, for a program that the VMM started.
#[must_use]
pub fn is_successor() -> bool {
    std::env::var(SUCCESSOR).is_ok_and(|value| value == "1")
}

/// Takes the descriptors that a predecessor asked to be kept, for a program that the VMM started. What is behind them is
/// whatever the predecessor has sent.
///
/// # Errors
/// A number that is none, or of no open descriptor; whoever asks a second time gets one that was closed.
///
/// # Safety
/// Nothing else in this process uses these numbers: to be called once, before other descriptors are opened.
pub unsafe fn take_kept() -> io::Result<Vec<OwnedFd>> {
    let Ok(numbers) = std::env::var(KEPT) else { return Ok(Vec::new()) };
    let numbers = numbers.split(',').filter(|number| !number.is_empty());
    let numbers: Vec<RawFd> = numbers
        .map(|number| number.parse().ok().filter(|&number| number > 2))
        .collect::<Option<_>>()
        .ok_or_else(|| io::Error::other(format!("{KEPT} is not a list of descriptors")))?;
    numbers
        .iter()
        .enumerate()
        .map(|(at, &number)| {
            if numbers[..at].contains(&number) {
                return Err(io::Error::other(format!("{KEPT} has a descriptor twice")));
            }
            // SAFETY: takes a number; fails if it is not open.
            if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: it is open, it is in the list once, and the caller promises that nothing else uses it.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}
