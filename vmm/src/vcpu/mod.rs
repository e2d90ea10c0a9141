//! A vCPU: what it tells the guest about itself ([`cpuid`]), the state it starts in ([`registers`]), the thread that runs it
//! ([`run`]), and how often it left the guest ([`ExitCounters`]).

mod counters;
pub mod cpuid;
mod exit;
mod foreign_memory;
pub mod registers;
mod report;
pub mod run;

use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::machine::vm::{Vm, VmError, call};
use counters::ExitCounts;

pub use counters::{ExitCounters, Exits};
pub use cpuid::Topology;
pub use foreign_memory::ForeignMemory;
pub use registers::Entry;
pub use run::VcpuThreads;

/// A vCPU that doesn't run yet.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    exit_counts: Arc<ExitCounts>,
}

impl Vcpu {
    /// Create the vCPU with the APIC id `id`. It stays as KVM makes it, waiting for a start-up interrupt, unless
    /// [`Vcpu::set_entry`] gives it somewhere to start.
    ///
    /// # Errors
    /// If KVM refuses one of the calls.
    pub fn new(vm: &Vm, id: u8) -> Result<Self, VmError> {
        Ok(Self { id, fd: vm.create_vcpu(id)?, exit_counts: Arc::default() })
    }

    /// Rate of the time-stamp counter in kHz.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn tsc_khz(&self) -> Result<u32, VmError> {
        self.fd.get_tsc_khz().map_err(call("KVM_GET_TSC_KHZ"))
    }

    /// Set what CPUID answers, and the state that firmware would leave behind on every processor.
    ///
    /// # Errors
    /// If KVM refuses one of the calls.
    pub fn configure(&self, cpuid: &CpuId) -> Result<(), VmError> {
        self.fd.set_cpuid2(cpuid).map_err(call("KVM_SET_CPUID2"))?;
        registers::set_fpu(&self.fd)?;
        registers::set_msrs(&self.fd)?;
        registers::set_lapic(&self.fd)
    }

    /// Where its exits are counted.
    #[must_use]
    pub fn exit_counters(&self) -> ExitCounters {
        ExitCounters::new(&self.fd, Arc::clone(&self.exit_counts))
    }

    /// Let this vCPU be the one that starts the guest.
    ///
    /// # Errors
    /// If KVM refuses one of the calls.
    pub fn set_entry(&self, entry: Entry) -> Result<(), VmError> {
        registers::set_entry(&self.fd, entry)
    }
}
