//! A reply under construction, in a buffer that is used again for the next one.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::socket::Outgoing;
use crate::wire::{FLAG_ERROR, HEADER_SIZE, Header, TYPE_REPLY};

#[derive(Debug, Default)]
pub(super) struct Reply {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Reply {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(HEADER_SIZE, 0);
        self.fds.clear();
    }

    pub(super) fn push(&mut self, part: &(impl IntoBytes + Immutable)) {
        self.bytes.extend_from_slice(part.as_bytes());
    }

    /// Room for `length` bytes of data.
    pub(super) fn push_zeroed(&mut self, length: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        &mut self.bytes[start..]
    }

    /// Puts `head` in place of what was pushed first, and keeps `length` bytes of what is behind it.
    pub(super) fn shorten(&mut self, head: &(impl IntoBytes + Immutable), length: usize) {
        let head = head.as_bytes();
        self.bytes.truncate(HEADER_SIZE + head.len() + length);
        self.bytes[HEADER_SIZE..][..head.len()].copy_from_slice(head);
    }

    /// Adds a duplicate of a descriptor.
    pub(super) fn push_fd(&mut self, fd: impl AsFd) -> Result<(), Errno> {
        let duplicate = fd.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        self.fds.push(duplicate);
        Ok(())
    }

    /// Hands what was pushed, or the error alone, to `send` as a message.
    pub(super) fn send<E>(
        &mut self,
        command: Header,
        result: Result<(), Errno>,
        send: impl FnOnce(Outgoing<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut header = Header { flags: TYPE_REPLY, ..command };
        if let Err(errno) = result {
            self.clear();
            header.flags |= FLAG_ERROR;
            header.error = (errno as i32).unsigned_abs();
        } else {
            header.error = 0;
        }
        header.message_size = u32::try_from(self.bytes.len()).expect("a reply is bounded by max_data_xfer_size");
        self.bytes[..HEADER_SIZE].copy_from_slice(header.as_bytes());
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        let result = send(Outgoing::new([&self.bytes, &[], &[]], &fds));
        self.fds.clear();
        result
    }
}
