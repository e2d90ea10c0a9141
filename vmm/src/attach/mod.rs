//! Attaching a device process to the guest: what it offers is checked, every part of its regions gets the cheapest path
//! on which a guest access can reach it, and interrupts are wired from its eventfds to KVM.
//!
//! | file | one idea |
//! |---|---|
//! | [`discovery`] | what the server says about itself, checked |
//! | [`plan`] | which path each part of each region takes, and why: the list that everything here goes by |
//! | [`dispatch`] | who answers an access that comes to the VMM |
//! | `region` | the regions of a device, each at the address where the guest put it |
//! | [`address_map`] | which region of which device is decoded where |
//! | `mapped` | the path without any exit |
//! | `peer_to_peer` | which BARs of others a physical device reaches by DMA |
//! | `ioeventfd` | the path from KVM straight to the device process, for writes that only say "look" |
//! | `ioregionfd` | the path from KVM straight to the device process, for any access; the VMM as KVM's stand-in |
//! | [`bus_master`] | whether the device may reach memory on its own |
//! | `config_space` | which bytes of configuration space are the VMM's |
//! | `interrupts` | INTx, MSI and MSI-X of one device |
//! | [`link`] | the connection to the device process |
//! | [`death`] | how it is decided that the process is dead to us |
//! | [`identity`] | what the guest relies on, and a successor must not change |
//! | [`generations`] | who serves the device after a link was lost, and where accesses wait for it |
//! | [`device`] | the function on the PCI bus, made of the above |
//! | `ping` | whether the process still answers |
//! | [`serving`] | the thread that serves one device: its own requests, its hang-up, the end of an INTx interrupt |

pub mod address_map;
pub mod bus_master;
mod config_space;
pub mod death;
pub mod device;
pub mod discovery;
pub mod dispatch;
pub mod generations;
pub mod identity;
mod interrupts;
mod ioeventfd;
mod ioregionfd;
pub mod link;
mod mapped;
mod peer_to_peer;
mod ping;
pub mod plan;
mod region;
pub mod serving;
#[cfg(test)]
mod testing;
mod warnings;

use std::sync::Arc;

use outrigger_protocol::client::ClientError;

use address_map::AddressMap;

use crate::config::AllowedPaths;
use crate::irq::{IrqError, Routes};
use crate::pci::bar::BarError;
use crate::pci::windows::WindowFull;

/// The machine, as a device is attached to it.
#[derive(Clone)]
pub struct Backplane {
    /// Where its regions are decoded.
    pub addresses: Arc<AddressMap>,
    /// Interrupt messages.
    pub routes: Arc<Routes>,
    /// How accesses may reach devices.
    pub allowed: AllowedPaths,
}

/// A device that cannot be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The connection failed, or the server refused something it must not.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server describes no PCI device.
    #[error("the server's device is not one that can be attached: {0}")]
    Device(String),
    /// A BAR that cannot be.
    #[error("the server's device is not one that can be attached")]
    Bar(#[from] BarError),
    /// No room for a BAR.
    #[error("no room for the device")]
    Window(#[from] WindowFull),
    /// Interrupts could not be wired up.
    #[error("wiring up the device's interrupts")]
    Irq(#[from] IrqError),
}
