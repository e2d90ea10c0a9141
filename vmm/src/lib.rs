//! Outrigger, a minimal VMM in which every PCI device is a process of its own.
//!
//! `cli` → validated [`config`] → `builder` wires the parts → threads run.

pub mod acpi;
pub mod attach;
pub mod boot;
pub mod builder;
pub mod bus;
pub mod cli;
pub mod config;
pub mod connections;
pub mod console;
pub mod control;
pub mod irq;
pub mod layout;
pub mod memory;
pub mod memslots;
pub mod outcome;
pub mod pci;
pub mod peripherals;
pub mod processes;
pub mod run;
pub mod serial;
pub mod signals;
pub mod stats;
pub mod supervisor;
pub mod terminal;
pub mod vcpu;
pub mod vm;
