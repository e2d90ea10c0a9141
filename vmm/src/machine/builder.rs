//! Wires the parts of a machine together, in the order in which they need each other: VM, RAM, buses, platform devices, PCI
//! devices, ACPI tables, kernel, vCPUs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::Cap;

use crate::acpi::{AcpiError, KeyboardReset, Platform, PowerRegisters};
use crate::attach::Backplane;
use crate::attach::address_map::AddressMap;
use crate::boot::{BootError, Payload};
use crate::config::Config;
use crate::console::serial::Serial;
use crate::control::Control;
use crate::control::outcome::{Outcome, STATUS_FAILED, STATUS_HOST, STATUS_USAGE, Stop};
use crate::irq::{IrqError, Routes};
use crate::machine::bus::{Bus, BusDevice, BusError};
use crate::machine::layout::{self, AddressRange};
use crate::machine::memory::{GuestRam, MemoryError};
use crate::machine::memslots::{Memslot, MemslotError, Memslots};
use crate::machine::stats;
use crate::machine::vm::{Vm, VmError, call};
use crate::pci::Slot;
use crate::pci::bus::{ConfigPorts, Ecam, PciBus};
use crate::pci::host_bridge::HostBridge;
use crate::pci::windows::Windows;
use crate::peripherals::{PeripheralError, Peripherals};
use crate::vcpu::run::VcpuContext;
use crate::vcpu::{ExitCounters, Topology, Vcpu, VcpuThreads, cpuid};

/// How long vCPUs may take to leave the guest once the run is to end, before the device processes are cut off.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// How long they may take after that.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The same when the user ends the run, and the control thread has cut off the device processes already.
const STOP_LIMIT_FOR_USER: Duration = Duration::from_millis(200);

/// A machine that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Guest RAM's place in the guest.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// A platform device's place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Interrupt routes.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// A PCI device.
    #[error(transparent)]
    Peripheral(#[from] PeripheralError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// More RAM than the processor can address beside PCI devices.
    #[error(
        "{ram} bytes of memory are too much: this processor addresses {physical_bits} bits, and PCI devices need some of it"
    )]
    TooMuchRam {
        /// Bytes of RAM.
        ram: u64,
        /// Width of a physical address.
        physical_bits: u8,
    },
    /// No thread to run a vCPU in.
    #[error("cannot start the thread of vCPU {id}")]
    Thread {
        /// The vCPU.
        id: u8,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    /// The exit status that says whose fault it is.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Vm(_) | Self::Memory(_) | Self::TooMuchRam { .. } | Self::Thread { .. } => STATUS_HOST,
            Self::Boot(BootError::Memory { .. }) => STATUS_FAILED,
            Self::Boot(_) => STATUS_USAGE,
            Self::Memslot(_) | Self::Bus(_) | Self::Irq(_) | Self::Acpi(_) => STATUS_FAILED,
            Self::Peripheral(error) => error.status(),
        }
    }
}

/// A machine, first with its vCPUs standing still, then running.
///
/// The fields' order is the order in which they are dropped: vCPUs before what they work on, slots before the memory behind them.
pub struct Machine {
    running: VcpuThreads,
    vcpus: Vec<Vcpu>,
    /// Of each vCPU; none where nobody asked.
    exit_counters: Vec<ExitCounters>,
    /// PCI devices.
    pub peripherals: Peripherals,
    stop: Stop,
    /// Devices in memory.
    pub mmio: Arc<Bus>,
    /// Devices at I/O ports.
    pub io: Arc<Bus>,
    /// Where the regions of PCI devices are.
    addresses: Arc<AddressMap>,
    _ram_slots: Vec<Memslot>,
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The VM.
    pub vm: Arc<Vm>,
    /// The 64-bit PCI memory window.
    pub pci_memory_64: AddressRange,
}

impl Machine {
    /// A machine as `config` describes it, ready to start; it asks `control` for the end of the run when the guest powers
    /// off, resets or crashes.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(config: &Config, serial: &Arc<Serial>, control: &Control) -> Result<Self, BuildError> {
        // Checks that cost nothing come first: a kernel that is none should not need KVM to be noticed.
        let payload = Payload::open(&config.kernel, config.initrd.as_deref(), &config.cmdline)?;
        let mut machine = Self::empty(config, control.stop.clone())?;
        machine.add_platform_devices(serial)?;

        machine.add_pci_devices(config, control)?;

        let platform = Platform { cpus: config.cpus, pci_memory_64: machine.pci_memory_64 };
        let rsdp = platform.write_tables(machine.ram.mmap())?;
        let entry = payload.load(&machine.ram, rsdp)?;
        machine.add_vcpus(config.cpus, config.nested)?;
        if config.stats {
            machine.exit_counters = machine.vcpus.iter().map(Vcpu::exit_counters).collect();
        }
        if let Some(first) = machine.vcpus.first() {
            first.set_entry(entry)?;
        }
        Ok(machine)
    }

    /// VM, RAM and buses.
    fn empty(config: &Config, stop: Stop) -> Result<Self, BuildError> {
        let vm = Vm::new(usize::from(config.cpus))?;
        if config.needs_pit() {
            vm.add_pit()?;
        }
        let physical_bits = cpuid::physical_bits(&vm.supported_cpuid()?);
        let ram_size = config.memory.size;
        let pci_memory_64 = layout::pci_memory_64(ram_size, physical_bits)
            .ok_or(BuildError::TooMuchRam { ram: ram_size, physical_bits })?;
        let ram = Arc::new(GuestRam::new(ram_size, config.memory.hugepages)?);
        let memslots = Memslots::new(Arc::clone(&vm));
        let mut ram_slots = Vec::new();
        for region in ram.regions() {
            let host = ram.host_address(region.guest, region.size).expect("a region of RAM is RAM");
            // SAFETY: the memory stays mapped as long as `ram` lives, and `Machine` drops the slots before `ram`. Nobody makes
            // references of guest memory.
            ram_slots.push(unsafe { memslots.map(region.guest, host, region.size, false) }?);
        }
        let (mmio, io) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let addresses = AddressMap::new(Arc::clone(&vm), Arc::clone(&memslots), Arc::clone(&mmio), Arc::clone(&io));
        Ok(Self {
            running: VcpuThreads::default(),
            vcpus: Vec::new(),
            exit_counters: Vec::new(),
            peripherals: Peripherals::default(),
            stop,
            mmio,
            io,
            addresses,
            _ram_slots: ram_slots,
            ram,
            vm,
            pci_memory_64,
        })
    }

    fn add_platform_devices(&self, serial: &Arc<Serial>) -> Result<(), BuildError> {
        let add = |range: AddressRange, device: Arc<dyn BusDevice>| self.io.insert(range.start, range.size(), device);
        add(layout::COM1, Arc::clone(serial) as Arc<dyn BusDevice>)?;
        add(layout::POWER, Arc::new(PowerRegisters::new(self.stop.clone())))?;
        add(layout::KEYBOARD_CONTROLLER, Arc::new(KeyboardReset::new(self.stop.clone())))?;
        self.vm.fd().register_irqfd(serial.interrupt(), layout::COM1_GSI).map_err(call("KVM_IRQFD"))?;
        Ok(())
    }

    fn add_pci_devices(&mut self, config: &Config, control: &Control) -> Result<(), BuildError> {
        let bus = Arc::new(PciBus::default());
        assert!(bus.insert(Slot(0), Arc::new(HostBridge)), "nobody else is on the bus yet");
        let (ecam, ports) = (layout::ECAM, layout::PCI_CONFIG_PORTS);
        self.mmio.insert(ecam.start, ecam.size(), Arc::new(Ecam(Arc::clone(&bus))))?;
        self.io.insert(ports.start, ports.size(), Arc::new(ConfigPorts::new(Arc::clone(&bus))))?;
        let backplane = Backplane {
            addresses: Arc::clone(&self.addresses),
            routes: Routes::new(Arc::clone(&self.vm))?,
            allowed: config.paths,
        };
        let mut windows = Windows::new(layout::PCI_MEMORY_32, self.pci_memory_64, layout::PCI_IO);
        let configs = &config.pci_devices;
        self.peripherals = Peripherals::attach(configs, &backplane, &self.ram, &bus, &mut windows, control)?;
        Ok(())
    }

    fn add_vcpus(&mut self, cpus: u8, nested: bool) -> Result<(), BuildError> {
        let supported = self.vm.supported_cpuid()?;
        let tsc_deadline = self.vm.has(Cap::TscDeadlineTimer);
        for id in 0..cpus {
            let vcpu = Vcpu::new(&self.vm, id)?;
            let topology = Topology { cpus, tsc_khz: vcpu.tsc_khz()?, tsc_deadline, nested };
            vcpu.configure(&topology.cpuid(&supported, id)?)?;
            self.vcpus.push(vcpu);
        }
        Ok(())
    }

    /// Let the vCPUs run, each in a thread of its own.
    ///
    /// # Errors
    /// If a thread can't be had; those that run already are stopped again.
    pub fn start(&mut self) -> Result<(), BuildError> {
        let context = VcpuContext {
            mmio: Arc::clone(&self.mmio),
            io: Arc::clone(&self.io),
            memory: self.addresses.clone(),
            stop: self.stop.clone(),
        };
        for (id, vcpu) in (0..).zip(self.vcpus.drain(..)) {
            let thread = vcpu.spawn(context.clone()).map_err(|source| BuildError::Thread { id, source })?;
            self.running.push(thread);
        }
        Ok(())
    }

    /// Counts of the guest's accesses to devices by who answered, for people; exits only if the configuration asked for it.
    #[must_use]
    pub fn stats(&self) -> String {
        stats::report(&self.peripherals.served(), &self.exit_counters)
    }

    /// Wait for the vCPUs' end, which must have been requested; a few seconds at most. After a reboot the devices are reset.
    pub fn stop(&mut self) {
        let limit = if self.stop.is_users() { STOP_LIMIT_FOR_USER } else { STOP_LIMIT };
        if !self.running.join(STOP_GRACE.min(limit)).is_empty() {
            // A vCPU waits for a device process that doesn't answer.
            self.peripherals.disconnect();
        }
        let stuck = self.running.join(limit);
        if !stuck.is_empty() {
            let level = if self.stop.is_users() { log::Level::Debug } else { log::Level::Error };
            log::log!(level, "vCPUs {stuck:?} did not stop within {limit:?}");
        } else if self.stop.outcome() == Some(Outcome::Reboot) {
            self.peripherals.reset();
        }
    }
}

/// A machine that is given up while it runs, for example because not all vCPUs started.
impl Drop for Machine {
    fn drop(&mut self) {
        if !self.running.is_empty() {
            self.stop.request(Outcome::Failed { report: "the machine was given up".to_owned() });
            self.stop();
        }
    }
}

#[cfg(test)]
mod tests;
