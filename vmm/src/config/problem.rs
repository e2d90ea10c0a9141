//! Problems of a command line, worded so that "`outrigger: ` + option + `: ` + problem" is the one line a user needs:
//! what is wrong, with what, and what to do.

use std::fmt;

use nix::errno::Errno;
use outrigger_process::options::{NotBetween, NotSwitch, OptionError, one_line};

use super::size::Size;

/// An option that cannot be used. Displays as one line: `--cpus 65: must be between 1 and 64`.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError {
    /// The option as the user wrote it, with its value.
    pub option: String,
    /// The problem with it.
    pub problem: Problem,
}

impl UsageError {
    /// `option` is not usable because of `problem`.
    pub fn new(option: impl fmt::Display, problem: Problem) -> Self {
        UsageError { option: option.to_string(), problem }
    }
}

impl std::error::Error for UsageError {}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&format!("{}: {}", self.option, self.problem)))
    }
}

/// A problem with an option's value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text of the option, or a value in it.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A device that comes from nowhere.
    #[error("needs program=PATH or socket=PATH")]
    NoSource,
    /// A device that comes from two places.
    #[error("takes program=PATH or socket=PATH, not both")]
    ProgramAndSocket,
    /// A user for a program that Outrigger starts itself.
    #[error("user: goes with socket=PATH only; a program that Outrigger starts runs as the same user")]
    UserOfProgram,
    /// A sandbox for a process that Outrigger does not start.
    #[error("sandbox: goes with program=PATH only; Outrigger does not start the server at a socket")]
    SandboxOfSocket,
    /// DMA to other devices, by a process that maps nothing.
    #[error("p2p=on: cannot be had with dma=vmm, which maps guest RAM only")]
    PeerToPeerByVmm,
    /// None of the ways to a device.
    #[error("'{text}' is no path; they are mapped, ioeventfd, ioregionfd, stand-in and message")]
    NotPath {
        /// The word given.
        text: String,
    },
    /// The one path that cannot be forbidden is not there.
    #[error("message cannot be left out, for some accesses have no other path; write {paths},message")]
    WithoutMessages {
        /// The paths given.
        paths: String,
    },
    /// Not a number, or out of its range.
    #[error(transparent)]
    Number(#[from] NotBetween),
    /// Not a number with a binary unit.
    #[error("'{text}' is not a size; write it like 512M or 2G (units K, M, G, T; 1K is 1024 bytes)")]
    NotSize {
        /// The value given.
        text: String,
    },
    /// Neither on nor off.
    #[error(transparent)]
    Switch(#[from] NotSwitch),
    /// A size out of its range.
    #[error("must be between {min} and {max}{}", .meant.map(|size| format!("; did you mean {size}?")).unwrap_or_default())]
    SizeNotBetween {
        /// Least size.
        min: Size,
        /// Greatest size.
        max: Size,
        /// The size that a number without a unit may have meant.
        meant: Option<Size>,
    },
    /// A size that isn't made of whole pages.
    #[error("must be a multiple of {page}{}", if *.huge { " with hugepages=on" } else { "" })]
    NotAligned {
        /// The page size.
        page: Size,
        /// Whether huge pages demand it.
        huge: bool,
    },
    /// More bytes than there is room for.
    #[error("is {length} bytes long, at most {limit} are possible")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not the place of a device.
    #[error("is no slot; the places of devices are written 00:01.0 to 00:1f.0, see 'outrigger ctl PATH status'")]
    NotSlot,
    /// None of the places a console can lead to.
    #[error("must be stdio, file=PATH or none")]
    NotConsole,
    /// More devices than slots.
    #[error("{count} PCI devices given, the bus has room for {limit}")]
    TooManyDevices {
        /// Devices given.
        count: usize,
        /// Devices that fit.
        limit: usize,
    },
    /// The same socket for two devices.
    #[error("is given twice; each device needs its own")]
    GivenTwice,
    /// A file that cannot be opened, or be written.
    #[error("cannot {action}: {}", .errno.desc())]
    File {
        /// "open", "create".
        action: &'static str,
        /// The host's answer.
        errno: Errno,
    },
    /// A file of the wrong kind.
    #[error("is {is}, not {wanted}")]
    FileKind {
        /// The kind of file it is.
        is: &'static str,
        /// The kind that is needed.
        wanted: &'static str,
    },
    /// The command line itself: an unknown option, a missing value. The text is complete.
    #[error("{0}")]
    Syntax(String),
}
