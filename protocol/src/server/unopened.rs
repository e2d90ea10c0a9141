//! A device that is opened for each client, once the client's KVM has been told of its file (`docs/PROTOCOL.md`, "A device
//! behind VFIO").

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;

use super::channel::ChannelError;
use super::device::Device;
use super::reply::Reply;
use super::session::{Options, ServeError, Session};
use super::version::{Agreed, negotiate};
use crate::capabilities::{Capabilities, VfioTie};
use crate::codec::Message;
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::journal::JournalFormat;
use crate::wire;

/// A device behind VFIO that nobody has opened yet.
pub trait Unopened {
    /// An opened one. Dropping it closes it.
    type Device: Device;

    /// The file that KVM is to know before the device is opened (`KVM_DEV_VFIO_FILE_ADD`, Linux,
    /// Documentation/virt/kvm/devices/vfio.rst).
    fn file(&self) -> BorrowedFd<'_>;

    /// The journal that the device keeps once it is open ([`super::Journaled::format`]). `None`: none.
    fn journal(&self) -> Option<JournalFormat> {
        None
    }

    /// Opens the device for a client that has done this for it.
    fn open(&mut self, terms: wire::VfioTerms) -> Result<Self::Device, Errno>;
}

/// Serves one client until it leaves, as [`super::serve`] does, with a device that is opened for this client, and closed
/// when it leaves. A client that knows nothing of this gets a device that is opened at once.
pub fn serve_unopened<U: Unopened>(unopened: &mut U, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
    let stream = Arc::new(ForeignFd::from(stream));
    let (outrigger_vfio, outrigger_journal) = (Some(VfioTie {}), unopened.journal());
    let ours = Capabilities { outrigger_vfio, outrigger_journal, ..options.capabilities() };
    let Some(Agreed { connection, client }) = negotiate(stream.clone(), &ours, options)? else { return Ok(()) };
    let session = Session { connection: Arc::new(connection), ours, client, deadline: options.deadline };
    let opened = match session.client.outrigger_vfio {
        Some(VfioTie {}) => match open_when_told(unopened, &session) {
            Ok(opened) => opened,
            Err(error) => return ServeError::from_channel(error),
        },
        None => unopened.open(wire::VfioTerms::default()),
    };
    session.serve(&mut opened.map_err(ServeError::NotOpened)?, &stream)
}

/// Answers until the client says that the device may be opened.
fn open_when_told<U: Unopened>(unopened: &mut U, session: &Session) -> Result<Result<U::Device, Errno>, ChannelError> {
    let (mut payload, mut reply) = (Vec::new(), Reply::default());
    let mut opened = None;
    loop {
        session.answer_next(&mut payload, &mut reply, |message, reply| {
            if message.header.command == Command::VfioOpen as u16 {
                let device = unopened.open(terms(&message, reply)?);
                return opened.insert(device).as_ref().map(drop).map_err(|errno| *errno);
            }
            let asks_for_file = message.header.command == Command::VfioFile as u16;
            if !asks_for_file || !message.payload.is_empty() || !message.fds.is_empty() {
                return Err(Errno::EINVAL);
            }
            match session.client.max_msg_fds {
                0 => Err(Errno::EMFILE),
                _ => reply.push_fd(unopened.file()),
            }
        })?;
        if let Some(opened) = opened {
            return Ok(opened);
        }
    }
}

/// The terms in `OUTRIGGER_VFIO_OPEN`, which are echoed.
fn terms(message: &Message<'_>, reply: &mut Reply) -> Result<wire::VfioTerms, Errno> {
    let (request, rest) = message.parse::<wire::VfioOpen>().ok_or(Errno::EINVAL)?;
    let argsz_legal = request.argsz as usize >= size_of::<wire::VfioOpen>();
    let terms = wire::VfioTerms::of_flags(request.flags).ok_or(Errno::EINVAL)?;
    if !rest.is_empty() || !message.fds.is_empty() || !argsz_legal {
        return Err(Errno::EINVAL);
    }
    reply.push(&request);
    Ok(terms)
}
