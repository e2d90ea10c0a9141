//! Outrigger, a minimal VMM in which every PCI device is a process of its own.
//!
//! `cli` → validated [`config`] → `builder` wires the parts → threads run.

pub mod events;
pub mod outcome;
