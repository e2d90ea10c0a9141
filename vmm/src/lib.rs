//! Outrigger, a minimal VMM in which every PCI device is a process of its own.
//!
//! `cli` → validated [`config`] → `builder` wires the parts → threads run.

pub mod config;
pub mod events;
pub mod outcome;
pub mod bus;
pub mod layout;
pub mod memory;
pub mod memslots;
pub mod vm;
