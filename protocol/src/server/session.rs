//! One client, from its first message to its last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::commands::Commands;
use super::device::Device;
use super::dma::DmaTable;
use super::interrupts::Interrupts;
use super::memory::Memory;
use super::reply::Reply;
use crate::capabilities::{Capabilities, CapabilitiesError, MAJOR, MAX_JSON, MINOR};
use crate::codec::{Message, ReceiveError, Receiver};
use crate::command::Command;
use crate::socket::{Socket, Wait};
use crate::wire::{self, HEADER_SIZE};

/// How to serve a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for the rest of a message that has begun, for the first message of a connection, and for room
    /// to send a reply. Default: 10 s.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}

/// Why serving a client ended other than by the client leaving between two messages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// What came is no message.
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
    /// The socket could not be set up.
    #[error("setting up the connection")]
    Setup(#[source] io::Error),
}

/// Serves one client until it leaves: then its memory is unmapped, its interrupts are closed, and the device is ready
/// for the next one.
pub fn serve(device: &mut dyn Device, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
    let interrupts = Arc::new(Interrupts::new(device.irqs()));
    device.connected(&interrupts);
    let result = run(device, stream, options, &interrupts);
    device.disconnected();
    interrupts.disconnect_all();
    result
}

fn run(
    device: &mut dyn Device,
    stream: UnixStream,
    options: &Options,
    interrupts: &Arc<Interrupts>,
) -> Result<(), ServeError> {
    let mut socket = Socket::new(stream, options.deadline).map_err(ServeError::Setup)?;
    let ours = Capabilities::ours();
    let mut receiver = Receiver::new(HEADER_SIZE + size_of::<wire::Version>() + MAX_JSON, options.deadline);
    let mut reply = Reply::default();

    let first = receiver.receive(&mut socket, Wait::Until(Instant::now() + options.deadline));
    let client = match first {
        Err(ReceiveError::Closed) => return Ok(()),
        Err(error) => return Err(ServeError::Receive(error)),
        Ok(None) => return Err(ServeError::NoVersion),
        Ok(Some(message)) => negotiate(&message, &ours, &mut reply, socket.as_fd(), options)?,
    };
    let data = usize::try_from(ours.max_data_xfer_size).unwrap_or(0);
    receiver.set_limit(HEADER_SIZE + size_of::<wire::RegionAccess>() + data);

    let dma_limit = usize::try_from(ours.max_dma_maps).unwrap_or(usize::MAX);
    let mut commands = Commands { device, interrupts, dma: DmaTable::new(dma_limit), ours: &ours, client: &client };
    let result = loop {
        let message = match receiver.receive(&mut socket, Wait::Forever) {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(ReceiveError::Closed) => break Ok(()),
            Err(error) => break Err(ServeError::Receive(error)),
        };
        let header = message.header;
        if !header.is_command() {
            break Err(ServeError::NotACommand { flags: header.flags });
        }
        reply.clear();
        let result = commands.execute(message, &mut reply);
        if let Err(errno) = result {
            log::debug!("command {}: {errno}", header.command);
        }
        if !header.no_reply() {
            let deadline = Instant::now() + options.deadline;
            match reply.send(&socket, header, result, deadline) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break Ok(()),
                Err(error) => break Err(ServeError::Send(error)),
            }
        }
    };
    // The device lets go of the client's memory before it is unmapped.
    commands.device.memory_changed(&Memory::default());
    result
}

fn negotiate(
    message: &Message<'_>,
    ours: &Capabilities,
    reply: &mut Reply,
    outgoing: BorrowedFd<'_>,
    options: &Options,
) -> Result<Capabilities, ServeError> {
    let header = message.header;
    let is_version = header.command == Command::Version as u16 && header.is_command();
    let parsed = message.parse::<wire::Version>().filter(|_| is_version && message.fds.is_empty());
    let (version, data) = parsed.ok_or(ServeError::NoVersion)?;
    let deadline = Instant::now() + options.deadline;
    let refused = match Capabilities::parse(data) {
        _ if version.major != MAJOR => ServeError::Major(version.major),
        Err(error) => ServeError::Capabilities(error),
        Ok(client) => {
            if !header.no_reply() {
                reply.clear();
                reply.push(&wire::Version { major: MAJOR, minor: version.minor.min(MINOR) });
                // QEMU 11.1 refuses an answer above 16 and proposes 8; nobody refuses the number they proposed.
                let max_msg_fds = ours.max_msg_fds.min(client.max_msg_fds.max(1));
                let data = Capabilities { max_msg_fds, ..ours.clone() }.to_version_data();
                reply.push_zeroed(data.len()).copy_from_slice(&data);
                reply.send(outgoing, header, Ok(()), deadline).map_err(ServeError::Send)?;
            }
            return Ok(client);
        }
    };
    // The text asks for closing the connection; a client that is told why before can say so.
    if !header.no_reply() {
        let _ = reply.send(outgoing, header, Err(Errno::EINVAL), deadline);
    }
    Err(refused)
}
