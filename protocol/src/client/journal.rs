//! Keeping a journal for a device (`docs/PROTOCOL.md`, "Journal").

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zerocopy::IntoBytes;

use super::{Client, ClientError, size_u32};
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::journal::{JournalFormat, MAX_KEPT};
use crate::wire;

/// A journal that this process holds: zeros at first.
#[derive(Debug)]
pub struct Journal {
    fd: OwnedFd,
    format: JournalFormat,
}

impl Journal {
    /// Makes one.
    ///
    /// # Errors
    /// The format is not valid, or the system has no descriptors left.
    pub fn create(format: &JournalFormat) -> io::Result<Self> {
        if !format.is_valid() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no journal can have this format and size"));
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("journal", flags)?);
        file.set_len(format.size)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self { fd: file.into(), format: format.clone() })
    }

    /// Its format, as the server said that asked for it.
    #[must_use]
    pub fn format(&self) -> &JournalFormat {
        &self.format
    }

    /// The file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The file, opened once more: locks of the server that it is lent to are of its own, and go with it.
    fn open_for_a_server(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

impl Client {
    /// The journal that the server would keep, if it does and was asked ([`super::Options::journal`]).
    pub fn journal_format(&self) -> Option<&JournalFormat> {
        self.server.outrigger_journal.as_ref()
    }

    /// Lends the server a journal that nobody has written: it keeps it from now on. Returns the descriptors that a
    /// successor is to have, [`MAX_KEPT`] at most.
    pub fn begin_journal(&self, journal: &Journal) -> Result<Vec<ForeignFd>, ClientError> {
        self.offer(journal, 0, |fds| {
            if fds.len() <= MAX_KEPT { Ok(fds) } else { Err("more descriptors than a client keeps") }
        })
    }

    /// Shows the server its predecessor's journal. The server says by an error if it could not go on from it, and does
    /// nothing else yet: the predecessor may still be at work.
    pub fn offer_journal(&self, journal: &Journal) -> Result<(), ClientError> {
        let none = |fds: Vec<ForeignFd>| if fds.is_empty() { Ok(()) } else { Err("descriptors that nobody asked for") };
        self.offer(journal, wire::JOURNAL_SUCCEED, none)
    }

    fn offer<T>(
        &self,
        journal: &Journal,
        flags: u32,
        take: impl FnOnce(Vec<ForeignFd>) -> Result<T, &'static str>,
    ) -> Result<T, ClientError> {
        let command = Command::JournalOffer;
        let file = journal.open_for_a_server().map_err(|source| ClientError::Unsent { command, source })?;
        let request = wire::JournalOffer { argsz: size_u32::<wire::JournalOffer>(), flags, size: journal.format.size };
        self.request(command, [request.as_bytes(), &[]], &[file.as_fd()], |message| {
            let (reply, _) = message.parse::<wire::JournalOffer>().ok_or("the answer to a journal is too short")?;
            if reply != request {
                return Err("the answer is for another journal");
            }
            take(message.fds)
        })
    }

    /// The predecessor is gone for good: from now on the server is the device, and goes on where the journal it was
    /// shown says.
    pub fn take_journal(&self) -> Result<(), ClientError> {
        self.request(Command::JournalTake, [&[], &[]], &[], |_| Ok(()))
    }
}
