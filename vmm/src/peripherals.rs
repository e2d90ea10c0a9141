//! The PCI devices of a run: each one's process started or its socket found, attached, served, succeeded when it fails, and
//! let go at the end.
//!
//! | file | one idea |
//! |---|---|
//! | `source` | how a device is got, at first and again |
//! | `connect` | a connection to a server that somebody else runs |
//! | `open` | from a socket to a link, and what serves it says about itself |
//! | `journal` | what a device writes down for its successors, and who holds it |
//! | `peripheral` | one device and its thread |
//! | `successor` | a process gets ready to serve a device in place of another |
//! | `patience` | how long it is waited for |
//! | `restart` | when a process fails: whether, when and how often another one takes its place |
//! | [`replace`] | the same by the user's wish |
//! | `migration` | what the device is, copied from one server to another |
//! | [`status`] | what people and programs may know |
//! | `error` | why the guest cannot have a device |

mod connect;
mod error;
mod journal;
mod migration;
mod open;
mod peripheral;
mod prepare;
pub mod replace;
mod restart;
mod source;
pub mod status;
mod watchdog;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use outrigger_process::options::one_line;

use crate::attach::Backplane;
use crate::attach::bus_master::BusMaster;
use crate::attach::serving::STACK;
use crate::config::{DeviceConfig, Dma};
use crate::control::Control;
use crate::machine::kvm_vfio::VfioFiles;
use crate::machine::memory::GuestRam;
use crate::machine::stats::DeviceLine;
use crate::pci::Slot;
use crate::pci::bus::PciBus;
use crate::pci::windows::Windows;
pub use error::PeripheralError;
use error::Problem;
use journal::Kept;
use open::{Host, Opening};
use peripheral::{FirstOpened, Parts, Peripheral, socket};
use replace::ReplaceError;
use source::{Reached, reach, start};
use status::DeviceStatus;

/// How long a process that closed its socket when it was first asked may take to be gone, so that its status can be told.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How long devices whose processes stay may take to reset when the machine was.
const RESET_WAIT: Duration = Duration::from_millis(700);

/// All PCI devices of a run, in the order of their slots.
#[derive(Default)]
pub struct Peripherals {
    all: Devices,
    /// Ends when the thread of each device has.
    threads: Option<Receiver<()>>,
}

/// The devices of a run, for those who ask about them or wish something from outside.
#[derive(Clone, Default)]
pub struct Devices(Arc<[Arc<Peripheral>]>);

impl Devices {
    /// The status of each, in the order of their slots.
    #[must_use]
    pub fn status(&self) -> Vec<DeviceStatus> {
        self.0.iter().map(|peripheral| peripheral.status()).collect()
    }

    /// Lets another process of the same program serve the device in `slot`, unnoticed by the guest. Returns how long its
    /// accesses waited. This takes as long as the new process does to get ready, and its deadline at most.
    ///
    /// # Errors
    /// See [`ReplaceError`].
    pub fn restart(&self, slot: Slot) -> Result<Duration, ReplaceError> {
        self.replace(slot, None)
    }

    /// The same with another program, which later restarts will use, too.
    ///
    /// # Errors
    /// See [`ReplaceError`].
    pub fn replace(&self, slot: Slot, program: Option<PathBuf>) -> Result<Duration, ReplaceError> {
        let peripheral = self.0.iter().find(|peripheral| peripheral.slot == slot);
        peripheral.ok_or(ReplaceError::NoDevice)?.replace(program)
    }
}

impl Peripherals {
    /// Starts or finds every device process, puts what it serves on the bus, and serves it.
    ///
    /// # Errors
    /// For the first device that cannot be had. The others are let go by whoever holds `control`.
    pub fn attach(
        configs: &[DeviceConfig],
        backplane: &Backplane,
        ram: &Arc<GuestRam>,
        bus: &PciBus,
        windows: &mut Windows,
        control: &Control,
    ) -> Result<Self, PeripheralError> {
        let vfio = VfioFiles::new(backplane.addresses.vm().clone());
        let host = Arc::new(Host { ram: ram.clone(), vfio, control: control.clone() });
        // All start before the first is asked anything, so that they start at the same time.
        let started = (1..).map(Slot).zip(configs).map(|(slot, config)| First::start(slot, config, &host));
        let started = started.collect::<Result<Vec<_>, _>>()?;
        configs.iter().for_each(|config| config.source.close_inherited());
        let mut parts = Vec::new();
        for (slot, first) in (1..).map(Slot).zip(&started) {
            let process = first.reached.as_ref().and_then(|reached| reached.process.clone());
            let (config, bus_master) = (first.config.clone(), first.bus_master.clone());
            parts.push(Parts { slot, config, host: host.clone(), bus_master, process });
        }
        let opened = open_all(started, &host)?;
        let (running, threads) = channel();
        let mut all: Vec<Arc<Peripheral>> = Vec::new();
        for (parts, opened) in parts.into_iter().zip(opened) {
            let (slot, label) = (parts.slot, parts.config.label.clone());
            let failed = |problem| PeripheralError { label: label.clone(), problem };
            let peripheral = Arc::new(Peripheral::new(parts, opened, backplane, windows).map_err(failed)?);
            let is_free = bus.insert(slot, peripheral.device.clone());
            assert!(is_free, "slots are given out once, and there are at most 31 devices");
            peripheral.serve(running.clone()).map_err(failed)?;
            all.push(peripheral);
        }
        Ok(Self { all: Devices(all.into()), threads: Some(threads) })
    }

    /// The devices, for those who ask about them or wish something from outside.
    #[must_use]
    pub fn devices(&self) -> Devices {
        self.all.clone()
    }

    /// Whether the guest has lost a device. Deaths that nothing has come upon yet are noticed now.
    #[must_use]
    pub fn are_any_lost(&self) -> bool {
        self.all.0.iter().any(|peripheral| peripheral.is_lost())
    }

    /// How each part of each device is reached, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let line = |peripheral: &Arc<Peripheral>| {
            let (process, link) = {
                let now = peripheral.now();
                (now.process.clone(), now.link.clone())
            };
            let process = process.map(|process| format!("  {} (process {})", process.program(), process.id()));
            let sandbox = match link.sandbox() {
                Some(report) if report.missing.is_empty() => "  sealed".to_owned(),
                Some(report) => format!("  sealed without {}", one_line(&report.missing.join(", "))),
                None if process.is_some() => "  not sealed".to_owned(),
                None => String::new(),
            };
            let text = peripheral.device.describe();
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let dma = match peripheral.config.dma {
                Dma::Shared => "",
                Dma::Messages => "  guest RAM by messages",
                Dma::Vmm => "  guest RAM mapped by outrigger, not in the process",
            };
            format!("{first}  {}{}{sandbox}{dma}\n{rest}\n", peripheral.config.label, process.unwrap_or_default())
        };
        self.all.0.iter().map(line).collect()
    }

    /// How many accesses the VMM answered, for people.
    #[must_use]
    pub fn served(&self) -> Vec<DeviceLine> {
        self.all.0.iter().flat_map(|peripheral| peripheral.device.served()).collect()
    }

    /// The machine was reset: every device forgets what it knew whose process stays for the next guest. All at once, and
    /// for no longer than [`RESET_WAIT`]: what a device has not done by then its process does when the connection ends.
    pub fn reset(&self) {
        let (running, threads) = channel::<()>();
        for peripheral in self.all.0.iter().filter(|peripheral| peripheral.now().process.is_none()) {
            let (peripheral, running) = (Arc::clone(peripheral), running.clone());
            let body = move || {
                let _running = running;
                peripheral.device.reset();
            };
            let thread = thread::Builder::new().name("reset".into()).stack_size(STACK);
            if let Err(error) = thread.spawn(body) {
                log::warn!("a device is not reset: no thread: {error}");
            }
        }
        drop(running);
        // Nothing is ever sent: it is the senders that go.
        let _ = threads.recv_timeout(RESET_WAIT);
    }

    /// Ends all connections, and with them every wait for an answer.
    pub fn disconnect(&self) {
        self.all.0.iter().for_each(|peripheral| peripheral.disconnect());
    }

    /// Waits, for `limit` at most, until the threads of all devices have ended and have told what they had to tell. The
    /// connections must have been ended.
    pub fn join(&self, limit: Duration) {
        if let Some(threads) = &self.threads {
            // Nothing is ever sent: it is the senders that go.
            let _ = threads.recv_timeout(limit);
        }
    }
}

impl Drop for Peripherals {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// A device whose process has been started, or whose server is listening.
struct First {
    config: DeviceConfig,
    bus_master: Arc<BusMaster>,
    /// None: to be connected to.
    reached: Option<Reached>,
}

impl First {
    fn start(slot: Slot, config: &DeviceConfig, host: &Host) -> Result<Self, PeripheralError> {
        let reached = start(slot, &config.source, host, None, None);
        let reached = reached.map_err(|problem| PeripheralError { label: config.label.clone(), problem })?;
        Ok(Self { config: config.clone(), bus_master: Arc::default(), reached })
    }

    /// Connects, negotiates, asks what the device is, lends it a journal, and makes guest RAM known to it.
    fn open(self, host: &Arc<Host>) -> Result<FirstOpened, Problem> {
        let Self { config, bus_master, reached } = self;
        let reached = reached.map_or_else(|| reach(&config.source, host, config.deadline), Ok)?;
        let Reached { stream, process } = reached;
        let opening = Opening::new(host, &config, &bus_master);
        let opened = opening.open(&socket(stream), |client, _| Kept::begin(client, process.is_some()));
        opened.map_err(|problem| problem.or_end_of(process.as_ref(), EXIT_WAIT))
    }
}

/// Opens all devices at the same time. The first that fails is the one that is told of.
fn open_all(all: Vec<First>, host: &Arc<Host>) -> Result<Vec<FirstOpened>, PeripheralError> {
    let (send, receive) = channel();
    let labels: Vec<_> = all.iter().map(|first| first.config.label.clone()).collect();
    let failed = |index: usize, problem| PeripheralError { label: labels[index].clone(), problem };
    for (index, first) in all.into_iter().enumerate() {
        let (send, host) = (send.clone(), host.clone());
        let thread = thread::Builder::new().name(format!("open {}", index + 1)).stack_size(STACK);
        // A caller that gives up on the first failure receives no more.
        let body = move || _ = send.send((index, first.open(&host)));
        thread.spawn(body).map_err(|error| failed(index, Problem::Thread(error)))?;
    }
    drop(send);
    let mut opened: Vec<_> = labels.iter().map(|_| None).collect();
    for (index, result) in receive {
        opened[index] = Some(result.map_err(|problem| failed(index, problem))?);
    }
    Ok(opened.into_iter().map(|opened| opened.expect("each thread sends once")).collect())
}
