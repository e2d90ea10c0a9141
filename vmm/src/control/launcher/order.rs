//! The messages between the VMM and its launcher. Either is read as one from somebody else's program.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest path of a program in bytes (Linux's `PATH_MAX`).
pub(super) const LONGEST_PROGRAM: usize = 4096;
/// Longest message in bytes: an order; a failure, which has a path and an error's text.
pub(super) const LONGEST: usize = LONGEST_PROGRAM + 512;

const HAS_PREDECESSOR: u8 = 1;

/// The wish for a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// For this device of the command line, from 0.
    pub(super) device: u8,
    /// How many descriptors its predecessor asked to be kept, if it has one; they come with the message.
    pub(super) kept: Option<u8>,
    /// As `program=` has it.
    pub(super) program: PathBuf,
}

impl Order {
    pub(super) fn encode(&self) -> Vec<u8> {
        let flags = if self.kept.is_some() { HAS_PREDECESSOR } else { 0 };
        let head = [self.device, flags, self.kept.unwrap_or(0)];
        [&head, self.program.as_os_str().as_bytes()].concat()
    }

    /// Reads a message; none: it is no order.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let (&[device, flags, kept], program) = message.split_first_chunk()?;
        let kept = match (flags, kept) {
            (0, 0) => None,
            (HAS_PREDECESSOR, kept) => Some(kept),
            _ => return None,
        };
        let is_path = (1..=LONGEST_PROGRAM).contains(&program.len()) && !program.contains(&0);
        is_path.then(|| Self { device, kept, program: PathBuf::from(OsStr::from_bytes(program)) })
    }
}

/// Why there is no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Outrigger's own place is unknown.
    Place,
    /// There is no socket for it.
    Socket,
    /// The program cannot be started.
    Start,
    /// Neither does the command line name the program, nor is it below the directory that it names.
    NotPermitted,
    /// The order is none that can be followed.
    Order,
}

const KINDS: [Kind; 5] = [Kind::Place, Kind::Socket, Kind::Start, Kind::NotPermitted, Kind::Order];

/// A process that was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// The system's answer; 0: `text` has the reason.
    pub(super) errno: i32,
    pub(super) text: String,
    /// The program as it was looked for.
    pub(super) path: PathBuf,
}

impl Failure {
    pub(super) fn new(kind: Kind, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        let text = if errno == 0 { error.to_string() } else { String::new() };
        Self { kind, errno, text, path: path.to_owned() }
    }

    pub(super) fn error(&self) -> io::Error {
        match self.errno {
            0 => io::Error::other(self.text.clone()),
            errno => io::Error::from_raw_os_error(errno),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let kind = KINDS.iter().position(|kind| *kind == self.kind).unwrap_or(0);
        let path = self.path.as_os_str().as_bytes();
        let length = u16::try_from(path.len().min(LONGEST_PROGRAM)).unwrap_or(0);
        let mut message = vec![u8::try_from(kind).unwrap_or(0)];
        message.extend(self.errno.to_le_bytes());
        message.extend(length.to_le_bytes());
        message.extend(&path[..length.into()]);
        message.extend(self.text.as_bytes());
        message.truncate(LONGEST - 1);
        message
    }

    fn decode(message: &[u8]) -> Option<Self> {
        let (&[kind], rest) = message.split_first_chunk()?;
        let (errno, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (path, text) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
        Some(Self {
            kind: *KINDS.get(usize::from(kind))?,
            errno: i32::from_le_bytes(*errno),
            text: String::from_utf8_lossy(text).into_owned(),
            path: PathBuf::from(OsStr::from_bytes(path)),
        })
    }
}

/// The outcome of an order: the number of the process, or a failure.
pub(super) type Outcome = Result<u32, Failure>;

const STARTED: u8 = 0;
const FAILED: u8 = 1;

pub(super) fn encode(outcome: &Outcome) -> Vec<u8> {
    match outcome {
        Ok(id) => [&[STARTED][..], &id.to_le_bytes()].concat(),
        Err(failure) => [vec![FAILED], failure.encode()].concat(),
    }
}

/// Reads a message; none: it is no outcome.
pub(super) fn decode(message: &[u8]) -> Option<Outcome> {
    match message.split_first()? {
        (&STARTED, id) => Some(Ok(u32::from_le_bytes(id.try_into().ok()?))),
        (&FAILED, failure) => Failure::decode(failure).map(Err),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_message_panics(message: Vec<u8>) {
            let order = Order::decode(&message);
            prop_assert!(order.is_none_or(|order| order.encode() == message));
            let _ = decode(&message);
        }
    }

    #[test]
    fn messages_read_back() {
        for kept in [None, Some(0), Some(64)] {
            let order = Order { device: 3, kept, program: "./a program".into() };
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        let told = Failure::new(Kind::Start, Path::new("/a/b"), &io::Error::other("no reason"));
        let error = Failure::new(Kind::Socket, Path::new(""), &Errno::EMFILE.into());
        for outcome in [Ok(77), Err(told), Err(error)] {
            assert_eq!(decode(&encode(&outcome)), Some(outcome));
        }
    }

    #[test]
    fn orders_that_are_none_are_not_read() {
        let long = [&[0, 0, 0][..], &[b'a'; LONGEST_PROGRAM + 1]].concat();
        for message in [&[][..], &[0, 0], &[0, 0, 0], &[0, 0, 1, b'a'], &[0, 2, 0, b'a'], &[0, 0, 0, b'a', 0], &long] {
            assert_eq!(Order::decode(message), None);
        }
    }
}
