//! Outrigger, a minimal VMM in which every PCI device is a process of its own.
//!
//! `cli` → validated [`config`] → `builder` wires the parts → threads run.

mod acpi;
mod attach;
mod boot;
mod builder;
mod bus;
pub mod cli;
pub mod config;
mod connections;
mod console;
pub mod control;
mod irq;
mod layout;
mod memory;
mod memslots;
pub mod outcome;
mod pci;
mod peripherals;
mod processes;
pub mod run;
mod serial;
mod signals;
mod stats;
mod supervisor;
mod terminal;
mod vcpu;
mod vm;
