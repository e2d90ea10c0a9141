//! One client, from its first message to its last.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::channel::ChannelError;
use super::commands::Commands;
use super::connection::Connection;
use super::device::Device;
use super::dma::DmaTable;
use super::interrupts::Interrupts;
use super::journal::Journal;
use super::memory::Memory;
use super::presence::Watch;
use super::reply::Reply;
use super::version::{Agreed, negotiate};
use crate::capabilities::{Capabilities, CapabilitiesError, DEFAULT_MAX_DATA_XFER_SIZE, MAJOR, SandboxReport};
use crate::codec::{Message, ReceiveError};
use crate::command::Command;
use crate::foreign::ForeignFd;

/// How to serve a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for the rest of a message that has begun, for the first message of a connection, for room
    /// to send, and for the answer to a request for client memory. Default: 10 s.
    pub deadline: Duration,
    /// The most data in one message, in bytes: the client is told, larger transfers are refused, and what the device
    /// reads from and writes to client memory by messages is split. At least 1; default and most: 1 MiB.
    pub max_data_xfer_size: u32,
    /// How far this process has sealed itself, for clients that ask. Default: it does not say.
    pub sandbox: Option<SandboxReport>,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), max_data_xfer_size: DEFAULT_MAX_DATA_XFER_SIZE, sandbox: None }
    }
}

impl Options {
    /// The capabilities announced.
    pub(super) fn capabilities(&self) -> Capabilities {
        let max_data_xfer_size = u64::from(self.max_data_xfer_size.clamp(1, DEFAULT_MAX_DATA_XFER_SIZE));
        Capabilities { max_data_xfer_size, outrigger_sandbox: self.sandbox.clone(), ..Capabilities::ours() }
    }
}

/// Why serving a client ended other than by the client leaving between two messages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No message could be received.
    #[error("receiving from the client")]
    Receive(#[source] ReceiveError),
    /// The client takes no replies.
    #[error("replying to the client")]
    Send(#[source] io::Error),
    /// The first message is not `VFIO_USER_VERSION`, or is malformed.
    #[error("the client did not start with a version")]
    NoVersion,
    /// The client speaks another major version of the protocol.
    #[error("the client speaks protocol version {0}, this server {MAJOR}")]
    Major(u16),
    /// The client's capabilities make no sense.
    #[error("the client's capabilities")]
    Capabilities(#[source] CapabilitiesError),
    /// A reply that answers nothing, or a message of a type that does not exist.
    #[error("the client sent a message with flags {flags:#x}, which is no command")]
    NotACommand {
        /// The flags.
        flags: u32,
    },
    /// A device's request for client memory was not answered within the deadline.
    #[error("{0:?}: the client does not answer")]
    Unanswered(Command),
    /// The client's answer to a request makes no sense.
    #[error("{command:?}: the client's answer is malformed: {problem}")]
    Malformed {
        /// The command.
        command: Command,
        /// The problem with the answer.
        problem: &'static str,
    },
    /// The client has made a file shorter that it let the device map, and the device has noticed.
    #[error("the client took memory away that it had made available: a file is shorter than its mapping")]
    MemoryLost,
    /// The device could not be opened for this client ([`super::Unopened::open`]).
    #[error("opening the device")]
    NotOpened(#[source] Errno),
    /// The socket could not be set up.
    #[error("setting up the connection")]
    Setup(#[source] io::Error),
}

impl ServeError {
    /// A client that leaves is no error.
    pub(super) fn from_channel(error: ChannelError) -> Result<(), Self> {
        match error {
            ChannelError::Receive(ReceiveError::Closed) => Ok(()),
            ChannelError::Send(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            ChannelError::Receive(error) => Err(Self::Receive(error)),
            ChannelError::Send(error) => Err(Self::Send(error)),
            ChannelError::Unsent(errno) => Err(Self::Send(errno.into())),
            ChannelError::Unexpected { flags } => Err(Self::NotACommand { flags }),
            ChannelError::Unanswered(command) => Err(Self::Unanswered(command)),
            ChannelError::Malformed { command, problem } => Err(Self::Malformed { command, problem }),
        }
    }
}

/// Serves one client until it leaves: then its memory is unmapped, its interrupts are closed, and the device is ready
/// for the next one.
pub fn serve(device: &mut dyn Device, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
    let stream = Arc::new(ForeignFd::from(stream));
    let journal = device.journal().map(|device| device.format());
    let ours = Capabilities { outrigger_journal: journal, ..options.capabilities() };
    match negotiate(stream.clone(), &ours, options)? {
        Some(Agreed { connection, client }) => {
            let session = Session { connection: Arc::new(connection), ours, client, deadline: options.deadline };
            session.serve(device, &stream)
        }
        None => Ok(()),
    }
}

/// A connection whose two sides have agreed on what they can do.
pub(super) struct Session {
    pub(super) connection: Arc<Connection>,
    pub(super) ours: Capabilities,
    pub(super) client: Capabilities,
    pub(super) deadline: Duration,
}

impl Session {
    /// Lets the client have the device until it leaves. `stream` is that of the connection.
    pub(super) fn serve(self, device: &mut dyn Device, stream: &Arc<ForeignFd>) -> Result<(), ServeError> {
        let interrupts = Arc::new(Interrupts::new(device.irqs()));
        let watch = Watch::start(stream, interrupts.presence()).map_err(ServeError::Setup)?;
        device.connected(&interrupts);
        let result = self.execute_all(device, &interrupts);
        device.disconnected();
        interrupts.disconnect_all();
        drop(watch);
        result
    }

    fn execute_all(self, device: &mut dyn Device, interrupts: &Arc<Interrupts>) -> Result<(), ServeError> {
        let Self { connection, ours, client, .. } = &self;
        let max_dma_maps = usize::try_from(ours.max_dma_maps).unwrap_or(usize::MAX);
        let dma = DmaTable::new(max_dma_maps, connection.main.number());
        let journal = Journal::default();
        let mut commands = Commands { device, interrupts, dma, connection, ours, client, journal };
        let (mut payload, mut reply) = (Vec::new(), Reply::default());
        let ended = loop {
            let step = self.answer_next(&mut payload, &mut reply, |message, reply| commands.execute(message, reply));
            if let Err(error) = step {
                break error;
            }
        };
        // Threads that wait for the client give up first.
        connection.fail(ended);
        commands.device.stop();
        // The device lets go of the client's memory before it is unmapped.
        commands.device.memory_changed(&Memory::default());
        let unmapped = commands.dma.unmap_all();
        unmapped.iter().for_each(|range| commands.device.unmap(&range.dma()));
        drop(unmapped);
        if commands.dma.has_lost_memory() {
            return Err(ServeError::MemoryLost);
        }
        connection.take_failure().map_or(Ok(()), ServeError::from_channel)
    }

    /// Receives one command, has it executed, and answers. The two buffers are used again each time.
    pub(super) fn answer_next(
        &self,
        payload: &mut Vec<u8>,
        reply: &mut Reply,
        execute: impl FnOnce(Message<'_>, &mut Reply) -> Result<(), Errno>,
    ) -> Result<(), ChannelError> {
        let main = &self.connection.main;
        let (header, fds) = main.next_command(payload)?;
        reply.clear();
        let result = execute(Message { header, payload, fds }, reply);
        if let Err(errno) = result {
            log::debug!("command {}: {errno}", header.command);
        }
        if header.no_reply() {
            return Ok(());
        }
        let deadline = Instant::now() + self.deadline;
        let sent = reply.send(header, result, |message| main.send(message, deadline));
        match sent {
            // More descriptors are in flight than this user may have, in whoever's sockets.
            Err(ChannelError::Unsent(errno)) => reply.send(header, Err(errno), |message| main.send(message, deadline)),
            sent => sent,
        }
    }
}
