//! A client's sockets, and what a device asks of the client by them.

use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::channel::{Channel, ChannelError, RequestError};
use crate::command::Command;
use crate::wire;

/// The main socket, and the twin for our requests if there is one.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) main: Channel,
    twin: Option<Channel>,
    /// The most bytes of client memory in one message.
    max_transfer: usize,
    /// The first failure.
    failure: Mutex<Option<ChannelError>>,
}

/// Why the client's memory was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreached {
    /// The client answered with an error.
    Refused(Errno),
    /// The connection has ended.
    Disconnected,
}

impl Connection {
    pub(super) fn new(main: Channel, twin: Option<Channel>, max_transfer: usize) -> Self {
        Self { main, twin, max_transfer, failure: Mutex::new(None) }
    }

    /// `VFIO_USER_DMA_READ`, in as many messages as the client's `max_data_xfer_size` asks for.
    pub(super) fn dma_read(&self, address: u64, data: &mut [u8]) -> Result<(), Unreached> {
        let mut address = address;
        for chunk in data.chunks_mut(self.max_transfer) {
            let access = wire::DmaAccess { address, count: chunk.len() as u64 };
            self.request(Command::DmaRead, [access.as_bytes(), &[]], |payload| {
                let (reply, data) =
                    wire::DmaAccess::read_from_prefix(payload).map_err(|_| "a DMA read is too short")?;
                if reply != access || data.len() != chunk.len() {
                    return Err("a DMA read brings other data");
                }
                chunk.copy_from_slice(data);
                Ok(())
            })?;
            address = address.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// `VFIO_USER_DMA_WRITE`, likewise.
    pub(super) fn dma_write(&self, address: u64, data: &[u8]) -> Result<(), Unreached> {
        let mut address = address;
        for chunk in data.chunks(self.max_transfer) {
            let access = wire::DmaAccess { address, count: chunk.len() as u64 };
            self.request(Command::DmaWrite, [access.as_bytes(), chunk], |payload| {
                // The text's table gives `count` four bytes, its request and everybody's replies eight.
                let echoed = payload.len() >= 12 && access.as_bytes().starts_with(&payload[..payload.len().min(16)]);
                if echoed { Ok(()) } else { Err("a DMA write is not echoed") }
            })?;
            address = address.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Ends the connection, if it has not ended already.
    pub(super) fn fail(&self, error: ChannelError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.close();
    }

    pub(super) fn close(&self) {
        self.main.close();
        if let Some(twin) = &self.twin {
            twin.close();
        }
    }

    /// Why the connection ended.
    pub(super) fn take_failure(&self) -> Option<ChannelError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn request<T>(
        &self,
        command: Command,
        parts: [&[u8]; 2],
        read: impl FnOnce(&[u8]) -> Result<T, &'static str>,
    ) -> Result<T, Unreached> {
        let channel = self.twin.as_ref().unwrap_or(&self.main);
        channel.request(command, parts, read).map_err(|error| match error {
            RequestError::Refused(errno) => Unreached::Refused(errno),
            RequestError::Fatal(error) => {
                self.fail(error);
                Unreached::Disconnected
            }
        })
    }
}
