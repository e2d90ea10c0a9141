//! One process after another serves a device: another one gets ready, and takes over. What the guest sees stays.

use std::sync::Arc;

use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::pci::CONFIG_REGION;

use super::super::AttachError;
use super::super::address_map::Claim;
use super::super::discovery::Description;
use super::super::dispatch::Served;
use super::super::generations::Generations;
use super::super::identity::Identity;
use super::super::interrupts::InterruptError;
use super::super::link::Link;
use super::super::region::{Region, regions};
use super::{Device, Life, State, dispatches};

/// A process that is about to serve a device in place of another.
pub struct Successor {
    link: Arc<Link>,
    regions: Vec<Arc<Region>>,
    generation: u64,
}

impl Successor {
    /// Whether it comes next: nobody has taken over since it got ready.
    #[must_use]
    pub fn is_next(&self, generations: &Generations) -> bool {
        self.generation == generations.next_generation()
    }
}

/// A successor's knowledge of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knows {
    /// Everything: its predecessor has written it down, or has told it.
    Everything,
    /// Nothing: it is reset, and told what the guest wrote to configuration space.
    Nothing,
}

impl Device {
    /// The difference that makes `description` that of another device than the guest knows; none: a driver can go on with it.
    #[must_use]
    pub fn difference(&self, description: &Description) -> Option<String> {
        self.identity.difference(&Identity::of(description))
    }

    /// Makes everything ready for what is behind `link` to serve the device next. Its description must be that of the same
    /// device, and the guest's memory must have been mapped. The guest notices nothing yet.
    ///
    /// # Errors
    /// If the server offers what cannot be used.
    pub fn prepare(&self, link: Arc<Link>, description: &Description) -> Result<Successor, AttachError> {
        let generation = self.generations.next_generation();
        let generations = self.generations.clone();
        let served = Served { generations, generation, can_be_succeeded: self.can_be_succeeded };
        let msix = self.lock().interrupts.msix.clone();
        let regions = regions(&link, description, msix.as_ref(), &served, &self.backplane, &self.warnings)?;
        Ok(Successor { link, regions, generation })
    }

    /// Lets every access of the guest's come to the VMM from now on, where it waits if the link is lost.
    pub fn suspend(&self) {
        if let Life::Attached(attachment) = &self.lock().life {
            attachment.claims.iter().flatten().for_each(Claim::suspend);
        }
    }

    /// The former server may live on: it interrupts the guest no more, nor the next server.
    pub fn renew_interrupts(&self) {
        if let Err(error) = self.lock().interrupts.renew() {
            self.warnings.warn(format_args!("{error}"));
        }
    }

    /// Lets a successor serve the device, whose last link is lost and whose process is gone: accesses that wait are done by
    /// it. `take` is called when the guest can reach the predecessor by no path any more; what it asks of the server, the
    /// server does before anything else.
    ///
    /// # Errors
    /// If the successor fails before it serves the device. Another one may be tried.
    pub fn succeed(
        &self,
        successor: Successor,
        knows: Knows,
        take: impl FnOnce(&Client) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let Successor { link, regions, generation } = successor;
        let mut state = self.lock();
        let State { config, interrupts, life, .. } = &mut *state;
        let Life::Attached(attachment) = life else { return Ok(()) };
        if knows == Knows::Nothing {
            if self.resettable {
                link.call(Client::reset)?;
            }
            for (offset, bytes) in config.replay() {
                match link.call(|client| client.region_write(CONFIG_REGION, offset.into(), &bytes)) {
                    Err(error) if error.is_fatal() => return Err(error),
                    Err(error) => self.warnings.warn_of_refusal(&error, "write", CONFIG_REGION, offset.into()),
                    Ok(()) => {}
                }
            }
        }
        match interrupts.hand_over(&link, config.mode()) {
            Err(InterruptError::Client(error)) => return Err(error),
            Err(error) => self.warnings.warn(format_args!("{error}")),
            Ok(()) => {}
        }
        // From here on every access comes to the VMM and waits. What was signalled before, the server looks for itself.
        attachment.claims.iter().flatten().for_each(Claim::suspend);
        // The BARs of other devices that its predecessor has mapped are taken over with it.
        if self.p2p {
            self.peers().join(self.slot, &link, &self.warnings);
        }
        link.call(take)?;
        if self.p2p {
            self.peers().settle(self.slot);
        }
        for (index, claim) in attachment.claims.iter().enumerate() {
            claim.iter().for_each(|claim| claim.hand_over(&regions[index]));
        }
        for (before, region) in attachment.served_before.iter_mut().zip(&attachment.regions) {
            *before = before.and(region.dispatch.counts());
        }
        let serving = dispatches(&regions);
        link.take_tie(&attachment.link);
        (attachment.link, attachment.regions, attachment.generation) = (link, regions, generation);
        // A copy of the guest's own; what the predecessor was told of it may have been on its way.
        self.forward_bars(&state);
        self.generations.publish(serving);
        Ok(())
    }
}
