//! The first message of a connection (specification: "`VFIO_USER_VERSION`").

use std::time::Instant;

use zerocopy::IntoBytes;

use super::Options;
use super::connection::Connection;
use super::error::ClientError;
use crate::capabilities::{Capabilities, MAJOR, MINOR, SandboxReport, TwinSocket, VfioTie};
use crate::command::Command;
use crate::foreign::ForeignFd;
use crate::ioregionfd::SocketType;
use crate::journal::JournalFormat;
use crate::wire;

/// The outcome of the negotiation.
pub(super) struct Agreed {
    pub(super) server: Capabilities,
    /// The client's end of the socket on which the server's requests come.
    pub(super) twin: Option<ForeignFd>,
}

/// The capabilities of a client.
pub(super) fn ours(options: &Options) -> Capabilities {
    let twin_socket = options.twin_socket.then_some(TwinSocket { supported: true, fd_index: None });
    let outrigger_journal = options.journal.then(JournalFormat::default);
    let outrigger_vfio = options.vfio.then_some(VfioTie {});
    let outrigger_sandbox = Some(SandboxReport::default());
    Capabilities { twin_socket, outrigger_journal, outrigger_vfio, outrigger_sandbox, ..Capabilities::ours() }
}

/// Proposes version and capabilities, and takes what the server makes of them.
pub(super) fn negotiate(main: &mut Connection, ours: &Capabilities, deadline: Instant) -> Result<Agreed, ClientError> {
    let command = Command::Version;
    let proposal = wire::Version { major: MAJOR, minor: MINOR };
    let data = ours.to_version_data();
    let (version, capabilities, mut fds) =
        main.request(deadline, command, [proposal.as_bytes(), &data], &[], |message| {
            let (version, data) = message.parse::<wire::Version>().ok_or("the version is too short")?;
            Ok((version, Capabilities::parse(data), message.fds))
        })?;
    if version.major != MAJOR || version.minor > MINOR {
        return Err(ClientError::Version { major: version.major, minor: version.minor });
    }
    let mut server = capabilities.map_err(ClientError::Capabilities)?;
    let malformed = |problem| ClientError::Malformed { command, problem };
    // A server that echoes what it does not know keeps none.
    let asked = ours.outrigger_journal.is_some();
    server.outrigger_journal.take_if(|journal| !asked || !journal.is_valid());
    server.outrigger_vfio = server.outrigger_vfio.and(ours.outrigger_vfio);
    server.outrigger_sandbox.take_if(|report| !report.is_valid());
    let twin = match &server.twin_socket {
        Some(TwinSocket { supported: true, .. }) if ours.twin_socket.is_none() => {
            return Err(malformed("twin_socket is supported but was not proposed"));
        }
        Some(TwinSocket { supported: true, fd_index }) => {
            let index = fd_index.and_then(|index| usize::try_from(index).ok()).filter(|&index| index < fds.len());
            let index = index.ok_or(malformed("twin_socket is supported but names no fd of the message"))?;
            let stream = fds.swap_remove(index);
            if !matches!(SocketType::of(stream.lend()), Ok(SocketType::Stream)) {
                return Err(malformed("the twin socket is not a connected Unix stream socket"));
            }
            Some(stream)
        }
        _ => None,
    };
    Ok(Agreed { server, twin })
}
