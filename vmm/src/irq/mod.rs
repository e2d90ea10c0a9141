//! Interrupts from device processes to the guest, without a trip through the VMM where the mechanism allows it.
//!
//! A device process signals an eventfd; KVM, by irqfd, turns that into a message (MSI, MSI-X) or a level on an I/O APIC
//! pin (INTx). While a vector is masked its eventfd is not connected to KVM, and so the eventfd itself is the pending
//! bit: readable means pending.

pub mod intx;
pub mod msi;
pub mod msix;
pub mod routing;
mod vector;

pub use routing::{Message, Routes};

use std::io;

/// An interrupt that could not be wired up.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// No eventfd can be made.
    #[error("cannot make an eventfd for an interrupt")]
    EventFd(#[source] io::Error),
    /// KVM has no GSI left.
    #[error("all {0} of KVM's interrupt routes are in use")]
    RoutesFull(u32),
    /// KVM refused.
    #[error("KVM call {call} failed for GSI {gsi}")]
    Kvm {
        /// The ioctl.
        call: &'static str,
        /// The interrupt.
        gsi: u32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
