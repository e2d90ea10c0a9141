//! From how to get a device to a link with what serves it, and what that says about itself.
//!
//! This takes as long as the device process lets it, up to a deadline for each message. So each device is opened on a
//! thread of its own, and [`Connections`] ends all waits when the run ends first.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_protocol::client::{Client, ClientError, Options};
use outrigger_protocol::foreign::ForeignFd;

use super::connect::connect;
use super::error::Problem;
use crate::attach::AttachError;
use crate::attach::bus_master::{BusMaster, MessageDma};
use crate::attach::discovery::{Description, discover};
use crate::attach::link::Link;
use crate::config::{Dma, ServerUser};
use crate::control::connections::Connections;
use crate::control::processes::DeviceProcess;
use crate::machine::memory::GuestRam;

/// How long a process that closed its socket may take to be gone, so that its status can be told.
const EXIT_WAIT: Duration = Duration::from_secs(2);

/// A device process that is about to be asked what it is.
pub(super) enum Reachable {
    /// This VMM has started it and holds its socket.
    Started(Arc<DeviceProcess>, UnixStream),
    /// It listens here, and has to be run by such a user.
    Listening(PathBuf, ServerUser),
}

/// What opening a device needs to know.
pub(super) struct Opening {
    pub(super) reachable: Reachable,
    pub(super) ram: Arc<GuestRam>,
    pub(super) dma: Dma,
    pub(super) connections: Connections,
}

/// A device that is served, and what it is.
pub(super) struct Opened {
    pub(super) link: Arc<Link>,
    pub(super) bus_master: Arc<BusMaster>,
    pub(super) description: Description,
}

impl Opening {
    /// Connects, negotiates, asks what the device is, and makes guest RAM known to it.
    pub(super) fn open(self) -> Result<Opened, Problem> {
        let options = Options::default();
        let Self { reachable, ram, dma, connections } = self;
        let (stream, process) = match reachable {
            Reachable::Started(process, stream) => (stream, Some(process)),
            Reachable::Listening(path, server) => {
                let stream = connect(&path, server, options.deadline, || connections.are_ended());
                (stream.map_err(Problem::Connect)?, None)
            }
        };
        attach(stream, &options, &ram, dma, &connections).map_err(|error| {
            let disconnected = matches!(error, AttachError::Client(ClientError::Disconnected(_)));
            let patience = if disconnected { EXIT_WAIT } else { Duration::ZERO };
            let status = process.and_then(|process| process.wait(patience));
            status.map_or(Problem::Attach(error), Problem::Exited)
        })
    }
}

fn attach(
    stream: UnixStream,
    options: &Options,
    ram: &Arc<GuestRam>,
    dma: Dma,
    connections: &Connections,
) -> Result<Opened, AttachError> {
    let stream = Arc::new(ForeignFd::from(stream));
    connections.add_opening(&stream);
    let bus_master = Arc::<BusMaster>::default();
    let dma_by_message = MessageDma::new(ram.clone(), bus_master.clone());
    let client = Client::on(stream, Arc::new(dma_by_message), options)?;
    let description = discover(&client)?;
    for region in ram.regions() {
        let file = (dma == Dma::Shared).then(|| (ram.fd(), region.file_offset));
        client.dma_map(region.guest, region.size, file)?;
    }
    let link = Arc::new(Link::new(client));
    connections.add(&link);
    Ok(Opened { link, bus_master, description })
}
