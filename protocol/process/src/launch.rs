//! How the VMM starts a device program: `PROGRAM --options KEY=VALUE,… --fd 0`. docs/DEVICE-PROGRAMS.md is the contract.

/// The argument before the options' text, which the VMM passes on without reading it.
pub const OPTIONS: &str = "--options";

/// The argument before the number of the descriptor that is the connected vfio-user socket.
pub const FD: &str = "--fd";

/// The environment variable that tells how many vCPUs the guest has, in decimal.
pub const VCPUS: &str = "OUTRIGGER_VCPUS";

/// Exit status of a program that cannot use its options, or a file they name. One line on standard error says why.
pub const EXIT_USAGE: u8 = 2;

/// Exit status of a program that finds the host lacking: a permission, a kernel feature. One line on standard error says why.
pub const EXIT_HOST: u8 = 3;

/// How many vCPUs the guest has, for a program that the VMM started.
#[must_use]
pub fn vcpus() -> Option<u16> {
    std::env::var(VCPUS).ok()?.parse().ok()
}
