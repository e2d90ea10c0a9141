//! From how to get a device to a link with what serves it, and what that says about itself.
//!
//! This takes as long as the device process lets it, up to a deadline for each message. So each device is opened on a
//! thread of its own, and [`Connections`](crate::control::connections::Connections) ends all waits when the run ends
//! first.

use std::sync::Arc;
use std::time::Duration;

use outrigger_protocol::client::{Client, ClientError, Options};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::wire::VfioTerms;

use super::error::Problem;
use crate::attach::AttachError;
use crate::attach::bus_master::{BusMaster, MessageDma};
use crate::attach::discovery::{Description, discover};
use crate::attach::link::Link;
use crate::config::{DeviceConfig, Dma};
use crate::control::Control;
use crate::control::processes::DeviceProcess;
use crate::machine::kvm_vfio::{Tie, TieError, VfioFiles};
use crate::machine::memory::GuestRam;

/// Resources that all devices of a run share.
pub(super) struct Host {
    pub(super) ram: Arc<GuestRam>,
    pub(super) vfio: Arc<VfioFiles>,
    pub(super) control: Control,
}

/// Parameters for opening a device.
pub(super) struct Opening {
    pub(super) host: Arc<Host>,
    pub(super) dma: Dma,
    /// For the first answer: a process may be slow to begin, on a busy machine or from slow storage.
    starting: Duration,
    /// For each message after it, until the process serves the device.
    pub(super) deadline: Duration,
    /// From then on.
    serving: Duration,
    /// A physical device that a predecessor has opened is open still, and KVM knows of it.
    vfio: bool,
    pub(super) bus_master: Arc<BusMaster>,
}

/// A device that is served, and what it is.
pub(super) struct Opened<T> {
    pub(super) link: Arc<Link>,
    pub(super) description: Description,
    /// The agreement on its journal.
    pub(super) journal: T,
}

impl Opening {
    pub(super) fn new(host: &Arc<Host>, config: &DeviceConfig, bus_master: &Arc<BusMaster>) -> Self {
        let (dma, deadline) = (config.dma, config.deadline);
        let (host, bus_master) = (host.clone(), bus_master.clone());
        Self { host, dma, starting: config.restart_deadline(), deadline, serving: deadline, vfio: true, bus_master }
    }

    /// Of a process that takes the place of another. Once it serves the device, [`Client::set_deadline`] is to be called.
    pub(super) fn of_successor(host: &Arc<Host>, config: &DeviceConfig, bus_master: &Arc<BusMaster>) -> Self {
        Self { deadline: config.restart_deadline(), vfio: false, ..Self::new(host, config, bus_master) }
    }

    /// Negotiates, asks what the device is, agrees on its journal, and makes guest RAM known to it.
    ///
    /// # Errors
    /// If it is no device, or none that the caller agrees to.
    pub(super) fn open<T>(
        self,
        stream: &Arc<ForeignFd>,
        agree: impl FnOnce(&Client, &Description) -> Result<T, Problem>,
    ) -> Result<Opened<T>, Problem> {
        let Self { host, dma, starting, deadline, serving, vfio, bus_master } = self;
        host.control.connections.add_opening(stream);
        let options = Options { deadline: starting, journal: true, vfio, ..Options::default() };
        // Where only the device is to reach guest RAM, its process is not served by message either.
        let for_messages = if dma == Dma::Vmm { Arc::default() } else { bus_master };
        let dma_by_message = MessageDma::new(host.ram.clone(), for_messages);
        let client = Client::on(stream.clone(), Arc::new(dma_by_message), &options).map_err(AttachError::from)?;
        client.set_deadline(deadline);
        let tie = host.open_vfio(&client, dma)?;
        let description = discover(&client)?;
        let journal = agree(&client, &description)?;
        for region in host.ram.regions().filter(|_| dma != Dma::Vmm) {
            let file = (dma == Dma::Shared).then(|| (host.ram.fd(), region.file_offset));
            client.dma_map(region.guest, region.size, file).map_err(AttachError::from)?;
        }
        let link = Arc::new(Link::new(client, serving).tied(tie));
        host.control.connections.add(&link);
        Ok(Opened { link, description, journal })
    }
}

impl Host {
    /// Lets the server open its physical device, if that is what it has, after KVM has been told of it.
    fn open_vfio(&self, client: &Client, dma: Dma) -> Result<Option<Tie>, Problem> {
        let client_maps = dma == Dma::Vmm;
        let Some(file) = client.vfio_file().map_err(AttachError::from)? else {
            return if client_maps { Err(Problem::Tie(TieError::NoFile)) } else { Ok(None) };
        };
        let mut tie = self.vfio.tie(file).map_err(Problem::Tie)?;
        if client_maps {
            tie.map(&self.ram).map_err(Problem::Tie)?;
        }
        client.open_vfio(VfioTerms { known_to_kvm: true, client_maps }).map_err(AttachError::from)?;
        Ok(Some(tie))
    }
}

impl Problem {
    /// The end of the process in place of a connection that it has closed.
    pub(super) fn or_end_of(self, process: Option<&Arc<DeviceProcess>>, patience: Duration) -> Self {
        let disconnected = matches!(&self, Self::Attach(AttachError::Client(ClientError::Disconnected(_))));
        let patience = if disconnected { patience } else { Duration::ZERO };
        process.and_then(|process| process.wait(patience)).map_or(self, Self::Exited)
    }
}
