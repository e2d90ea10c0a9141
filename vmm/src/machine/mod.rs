//! The machine that the guest runs on, without its devices: KVM's VM, RAM, buses, and what wires all parts together.

pub mod builder;
pub mod bus;
pub mod kvm_vfio;
pub mod layout;
pub mod memory;
pub mod memslots;
pub mod stats;
pub mod vm;
