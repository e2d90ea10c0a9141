//! What can be wrong with a command line, worded so that "`outrigger: ` + option + `: ` + problem" is the one line a
//! user needs: what is wrong, with what, and what to do.

use std::fmt;

use nix::errno::Errno;

use super::size::Size;

/// An option that cannot be used. Displays as one line: `--cpus 65: must be between 1 and 64`.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError {
    /// The option as the user wrote it, with its value.
    pub option: String,
    /// What is wrong with it.
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

/// `text` with control characters shown rather than obeyed: a path may hold line breaks and terminal escapes, but a
/// message stays one line.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// What is wrong with an option's value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A problem of one key's value.
    #[error("{key}: {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        problem: Box<Problem>,
    },
    /// A key that the option doesn't have.
    #[error("unknown key '{key}'; it takes {known}")]
    UnknownKey {
        /// The key given.
        key: String,
        /// The keys there are.
        known: String,
    },
    /// The same key twice.
    #[error("key '{key}' is given twice")]
    RepeatedKey {
        /// The key.
        key: &'static str,
    },
    /// A key that the option cannot do without.
    #[error("needs {key}={value}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// Its value's name in the help.
        value: &'static str,
    },
    /// A part between two commas that isn't KEY=VALUE.
    #[error("'{part}' is not KEY=VALUE; it takes {known} (a comma inside a value is written twice)")]
    NotKeyValue {
        /// The part.
        part: String,
        /// The keys there are.
        known: String,
    },
    /// Nothing after the key's equals sign, or nothing at all.
    #[error("is empty")]
    Empty,
    /// Neither on nor off.
    #[error("must be on or off, not '{text}'")]
    NotSwitch {
        /// The value given.
        text: String,
    },
    /// Neither of the ways to reach guest RAM.
    #[error("must be shared or messages, not '{text}'")]
    NotDma {
        /// The value given.
        text: String,
    },
    /// None of the ways to a device.
    #[error("'{text}' is no path; they are mapped, ioeventfd, ioregionfd, stand-in and message")]
    NotPath {
        /// The word given.
        text: String,
    },
    /// The one path that cannot be forbidden is not there.
    #[error("message cannot be left out, for some accesses have no other path; write {paths},message")]
    WithoutMessages {
        /// What was given.
        paths: String,
    },
    /// Not a number, or out of its range.
    #[error("must be between {min} and {max}")]
    NotBetween {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// Not a number with a binary unit.
    #[error("'{text}' is not a size; write it like 512M or 2G (units K, M, G, T; 1K is 1024 bytes)")]
    NotSize {
        /// The value given.
        text: String,
    },
    /// A size out of its range.
    #[error("must be between {min} and {max}{}", .meant.map(|size| format!("; did you mean {size}?")).unwrap_or_default())]
    SizeNotBetween {
        /// Least size.
        min: Size,
        /// Greatest size.
        max: Size,
        /// What a number without a unit may have meant.
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
    /// A character that a disk's serial number cannot have.
    #[error("must be printable ASCII without spaces")]
    NotPrintable,
    /// Not a MAC address.
    #[error("must be six hexadecimal bytes like 52:54:00:12:34:56")]
    NotMac,
    /// A MAC address that no card can have.
    #[error("{address} is {what}; a card needs a unicast address like 52:54:00:12:34:56")]
    MacNotUnicast {
        /// The address.
        address: String,
        /// "a multicast address" or "all zeros".
        what: &'static str,
    },
    /// Not a name that Linux gives to a network interface.
    #[error("not an interface name: 1 to 15 characters, no spaces, '/', ':' or '%'")]
    NotInterface,
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
    /// The same tap or socket for two devices.
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
        /// What it is.
        is: &'static str,
        /// What is needed.
        wanted: &'static str,
    },
    /// A disk image that may not be written.
    #[error("{why}; add readonly=on, or make it writable")]
    ReadOnly {
        /// "the file is read-only (mode 0444)".
        why: String,
    },
    /// The command line itself: an unknown option, a missing value. The text is complete.
    #[error("{0}")]
    Syntax(String),
}

impl Problem {
    /// This problem as one of `key`'s value.
    pub(super) fn of(self, key: &'static str) -> Self {
        Problem::Key { key, problem: Box::new(self) }
    }
}
