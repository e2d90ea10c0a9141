//! Outrigger, a minimal VMM in which every PCI device is a process of its own.
//!
//! | folder | what it is |
//! |---|---|
//! | [`cli`], [`config`] | the command line, and what it comes to |
//! | [`run`], [`control`] | a run from start to end; signals, device processes, the control socket, the end |
//! | [`ctl`] | a control socket's client for people |
//! | [`vfio`] | what outrigger-vfio does with the host's PCI devices and their drivers |
//! | `machine`, `vcpu`, `irq`, `boot`, `acpi`, `console` | what the guest runs on |
//! | `pci`, `attach`, `peripherals` | PCI devices: bus and BARs, how each is reached, where each comes from |

mod acpi;
mod attach;
mod boot;
pub mod cli;
pub mod config;
mod console;
pub mod control;
pub mod ctl;
mod irq;
mod machine;
mod pci;
mod peripherals;
pub mod run;
mod vcpu;
pub mod vfio;
