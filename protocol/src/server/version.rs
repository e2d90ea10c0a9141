//! The first message of a connection (specification: "`VFIO_USER_VERSION`"), and the sockets that come of it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;

use super::channel::{Channel, Reader};
use super::connection::Connection;
use super::reply::Reply;
use super::session::{Options, ServeError};
use crate::capabilities::{Capabilities, MAJOR, MAX_JSON, MIN_ROOM, MINOR, TwinSocket};
use crate::codec::{Message, ReceiveError, Receiver};
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::socket::{Outgoing, Socket, Wait};
use crate::wire::{self, HEADER_SIZE};

/// The outcome of the negotiation.
pub(super) struct Agreed {
    pub(super) connection: Connection,
    pub(super) client: Capabilities,
}

/// Takes what a client proposes. `None`: it left before it was answered.
pub(super) fn negotiate(
    stream: Arc<ForeignFd>,
    ours: &Capabilities,
    options: &Options,
) -> Result<Option<Agreed>, ServeError> {
    let mut socket = Socket::patient(stream.clone()).map_err(ServeError::Setup)?;
    let mut receiver = Receiver::new(HEADER_SIZE + size_of::<wire::Version>() + MAX_JSON, options.deadline);
    let (client, twin) = match receiver.receive(&mut socket, Wait::Until(Instant::now() + options.deadline)) {
        Err(ReceiveError::Closed) => return Ok(None),
        Err(error) => return Err(ServeError::Receive(error)),
        Ok(None) => return Err(ServeError::NoVersion),
        Ok(Some(message)) => match answer(&message, ours, &stream, options) {
            Err(ServeError::Send(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
            answered => answered?,
        },
    };
    let data = usize::try_from(ours.max_data_xfer_size).unwrap_or(0);
    let limit = HEADER_SIZE + size_of::<wire::RegionAccess>() + data.max(MIN_ROOM);
    receiver.set_limit(limit);
    let main = Channel::new(stream, Reader { socket, receiver }, options.deadline, true);
    let twin = twin.map(|stream| {
        let stream = Arc::new(stream);
        let socket = Socket::new(stream.clone(), options.deadline).map_err(ServeError::Setup)?;
        let reader = Reader { socket, receiver: Receiver::new(limit, options.deadline) };
        Ok(Channel::new(stream, reader, options.deadline, false))
    });
    // The client's limit for one message, and ours: a reply to a read has as much.
    let max_transfer = usize::try_from(client.max_data_xfer_size).unwrap_or(usize::MAX).min(data);
    Ok(Some(Agreed { connection: Connection::new(main, twin.transpose()?, max_transfer), client }))
}

/// Answers the first message; returns what the client is capable of, and our end of the twin socket.
fn answer(
    message: &Message<'_>,
    ours: &Capabilities,
    stream: &ForeignFd,
    options: &Options,
) -> Result<(Capabilities, Option<ForeignFd>), ServeError> {
    let header = message.header;
    let is_version = header.command == Command::Version as u16 && header.is_command();
    let parsed = message.parse::<wire::Version>().filter(|_| is_version && message.fds.is_empty());
    let (version, data) = parsed.ok_or(ServeError::NoVersion)?;
    let deadline = Instant::now() + options.deadline;
    let send = |mut message: Outgoing<'_>| message.send(stream.lend(), deadline);
    let mut reply = Reply::default();
    let refused = match Capabilities::parse(data) {
        _ if version.major != MAJOR => ServeError::Major(version.major),
        Err(error) => ServeError::Capabilities(error),
        Ok(client) if header.no_reply() => return Ok((client, None)),
        Ok(client) => {
            let twin = twin(&client).map_err(ServeError::Setup)?;
            reply.clear();
            reply.push(&wire::Version { major: MAJOR, minor: version.minor.min(MINOR) });
            let agreed = Capabilities {
                // QEMU 11.1 refuses an answer above 16 and proposes 8; nobody refuses the number they proposed.
                max_msg_fds: ours.max_msg_fds.min(client.max_msg_fds.max(1)),
                twin_socket: twin.as_ref().map(|_| TwinSocket { supported: true, fd_index: Some(0) }),
                write_multiple: ours.write_multiple && client.write_multiple,
                outrigger_journal: ours.outrigger_journal.clone().filter(|_| client.outrigger_journal.is_some()),
                outrigger_vfio: ours.outrigger_vfio.and(client.outrigger_vfio),
                outrigger_sandbox: ours.outrigger_sandbox.clone().filter(|_| client.outrigger_sandbox.is_some()),
                ..ours.clone()
            };
            let data = agreed.to_version_data();
            reply.push_zeroed(data.len()).copy_from_slice(&data);
            let (kept, given) = twin.unzip();
            if let Some(given) = given {
                reply.push_fd(given).map_err(|errno| ServeError::Setup(errno.into()))?;
            }
            reply.send(header, Ok(()), send).map_err(ServeError::Send)?;
            return Ok((client, kept));
        }
    };
    // The text asks for closing the connection; a client that is told why before can say so.
    if !header.no_reply() {
        let _ = reply.send(header, Err(Errno::EINVAL), send);
    }
    Err(refused)
}

/// Both ends of a second socket, for a client that can use one: ours, then the client's.
fn twin(client: &Capabilities) -> io::Result<Option<(ForeignFd, UnixStream)>> {
    let wanted = client.twin_socket.as_ref().is_some_and(|twin| twin.supported) && client.max_msg_fds > 0;
    let twin = wanted.then(UnixStream::pair).transpose()?;
    // Ours at once: the client may have sent something by the time that an error closes it.
    Ok(twin.map(|(ours, theirs)| (ForeignFd::from(ours), theirs)))
}
