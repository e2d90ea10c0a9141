//! Keeping a journal for a successor, and going on from a predecessor's (`docs/PROTOCOL.md`, "Journal").

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::commands::Commands;
use super::reply::Reply;
use crate::codec::Message;
use crate::journal::{JournalFormat, JournalMemory, MAX_KEPT};
use crate::wire;

/// A device that another process can go on with when this one has died.
///
/// A client begins a journal, or offers a predecessor's and has it taken; each at most once on a connection. It promises
/// nothing about what is in a journal: the predecessor may have been somebody's puppet.
pub trait Journaled {
    /// The format that this device writes. Constant.
    fn format(&self) -> JournalFormat;

    /// From now on, keeps `memory`, which is all zeros, up to date. Returns the descriptors that the client is to hand to
    /// a successor's process.
    fn begin(&mut self, memory: JournalMemory) -> Result<Vec<OwnedFd>, Errno>;

    /// Whether this device can go on from what a predecessor wrote. Nothing changes: the predecessor may be at work.
    /// `EPROTO`: it is not what such a device writes; `EOPNOTSUPP`: this device lacks what the driver has negotiated.
    fn offer(&mut self, memory: &JournalMemory) -> Result<(), Errno>;

    /// The predecessor is gone: goes on from the journal that was offered last, and keeps it. The client's memory and
    /// interrupts are there. What the predecessor had begun and not finished is done; each queue is looked at, and the
    /// driver is interrupted once for each.
    fn take(&mut self, memory: JournalMemory) -> Result<(), Errno>;
}

/// Where the journal of a connection is.
#[derive(Debug, Default)]
pub(super) enum Journal {
    #[default]
    None,
    Offered(JournalMemory),
    /// The device has it.
    Kept,
}

impl Commands<'_> {
    /// `ENOTSUP`: not negotiated; `EINVAL`: there is one already, or the file is not such memory; others are the device's.
    pub(super) fn journal_offer(&mut self, message: Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, rest) = message.parse::<wire::JournalOffer>().ok_or(Errno::EINVAL)?;
        let device = if self.client.outrigger_journal.is_some() { self.device.journal() } else { None };
        let device = device.ok_or(Errno::ENOTSUP)?;
        let [fd]: [_; 1] = message.fds.try_into().map_err(|_| Errno::EINVAL)?;
        let is_first = !matches!(self.journal, Journal::Kept);
        let known = request.flags & !wire::JOURNAL_SUCCEED == 0;
        if !rest.is_empty() || !is_first || !known || request.size != device.format().size {
            return Err(Errno::EINVAL);
        }
        let memory = JournalMemory::map(fd, request.size).map_err(|error| {
            log::warn!("a journal is refused: {error}");
            Errno::EINVAL
        })?;
        reply.push(&request);
        if request.flags & wire::JOURNAL_SUCCEED != 0 {
            device.offer(&memory)?;
            self.journal = Journal::Offered(memory);
            return Ok(());
        }
        let kept = device.begin(memory)?;
        self.journal = Journal::Kept;
        let room = usize::try_from(self.client.max_msg_fds).unwrap_or(MAX_KEPT).min(MAX_KEPT);
        if kept.len() > room {
            log::warn!("the client keeps {room} descriptors, and a successor would need {}", kept.len());
            return Err(Errno::EMFILE);
        }
        kept.into_iter().try_for_each(|fd| reply.push_fd(fd))
    }

    /// `EINVAL`: none was offered.
    pub(super) fn journal_take(&mut self, message: &Message<'_>) -> Result<(), Errno> {
        if !message.payload.is_empty() {
            return Err(Errno::EINVAL);
        }
        match std::mem::take(&mut self.journal) {
            Journal::Offered(memory) => {
                self.device.journal().ok_or(Errno::ENOTSUP)?.take(memory)?;
                self.journal = Journal::Kept;
                Ok(())
            }
            before => {
                self.journal = before;
                Err(Errno::EINVAL)
            }
        }
    }
}
