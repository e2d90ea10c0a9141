//! The PCI devices of a run: each one's process started or its socket found, attached, served, and let go at the end.

mod connect;
mod error;
mod open;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use outrigger_process::output::tell;

use crate::attach::Backplane;
use crate::attach::device::Device;
use crate::attach::link::{Cause, Link};
use crate::attach::serving::{STACK, Service};
use crate::config::{DeviceConfig, Dma, Source};
use crate::control::Control;
use crate::control::processes::{DeviceProcess, ending};
use crate::control::supervisor;
use crate::machine::memory::GuestRam;
use crate::machine::stats::DeviceLine;
use crate::pci::Slot;
use crate::pci::bus::PciBus;
use crate::pci::windows::Windows;
pub use error::PeripheralError;
use error::Problem;
use nix::sys::signal::Signal;
use open::{Opened, Opening, Reachable};

/// How long a process that hung up may take to be gone by itself, so that its own status can be told.
const EXIT_WAIT: Duration = Duration::from_millis(500);
/// How long devices whose processes stay may take to reset when the machine was.
const RESET_WAIT: Duration = Duration::from_millis(700);
/// How long a process that was killed may take.
const KILL_WAIT: Duration = Duration::from_millis(500);

/// All PCI devices of a run, in the order of their slots.
#[derive(Default)]
pub struct Peripherals {
    all: Vec<Arc<Peripheral>>,
    /// Ends when the thread of each device has.
    threads: Option<Receiver<()>>,
}

/// A device and how it was got.
struct Peripheral {
    label: String,
    dma: Dma,
    device: Arc<Device>,
    link: Arc<Link>,
    process: Option<Arc<DeviceProcess>>,
}

/// A device whose process runs or is listening.
struct Started<'a> {
    config: &'a DeviceConfig,
    process: Option<Arc<DeviceProcess>>,
    reachable: Reachable,
}

impl Peripherals {
    /// Starts or finds every device process, puts what it serves on the bus, and serves it.
    ///
    /// # Errors
    /// For the first device that cannot be had. The others are let go by whoever holds `control`.
    pub fn attach(
        configs: &[DeviceConfig],
        cpus: u8,
        backplane: &Backplane,
        ram: &Arc<GuestRam>,
        bus: &PciBus,
        windows: &mut Windows,
        control: &Control,
    ) -> Result<Self, PeripheralError> {
        // All start before the first is asked anything, so that they start at the same time.
        let started = configs.iter().map(|config| start(config, cpus, control)).collect::<Result<Vec<_>, _>>()?;
        let processes: Vec<_> = started.iter().map(|started| started.process.clone()).collect();
        let opened = open_all(started, ram, control)?;
        let (running, threads) = channel();
        let mut all = Vec::new();
        let each = configs.iter().zip(processes).zip(opened);
        for (slot, ((config, process), opened)) in (1..).map(Slot).zip(each) {
            let label = config.label.clone();
            let failed = |problem| PeripheralError { label: config.label.clone(), problem };
            let Opened { link, bus_master, description } = opened;
            let device = Device::new(link.clone(), bus_master, &description, slot, backplane, windows);
            let device = Arc::new(device.map_err(|error| failed(Problem::Attach(error)))?);
            assert!(bus.insert(slot, device.clone()), "slots are given out once, and there are at most 31 devices");
            let peripheral = Arc::new(Peripheral { label, dma: config.dma, device, link, process });
            peripheral.serve(running.clone()).map_err(failed)?;
            all.push(peripheral);
        }
        Ok(Self { all, threads: Some(threads) })
    }

    /// Whether the guest has lost a device. Deaths that nothing has come upon yet are noticed now.
    #[must_use]
    pub fn are_any_lost(&self) -> bool {
        self.all.iter().for_each(|peripheral| peripheral.link.check());
        self.all.iter().any(|peripheral| peripheral.link.lost().is_some_and(|cause| *cause != Cause::Ended))
    }

    /// How each part of each device is reached, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let line = |peripheral: &Arc<Peripheral>| {
            let process = peripheral.process.as_ref();
            let process = process.map(|process| format!("  {} (process {})", process.program(), process.id()));
            let text = peripheral.device.describe();
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let dma = if peripheral.dma == Dma::Messages { "  guest RAM by messages" } else { "" };
            format!("{first}  {}{}{dma}\n{rest}\n", peripheral.label, process.unwrap_or_default())
        };
        self.all.iter().map(line).collect()
    }

    /// How many accesses the VMM answered, for people.
    #[must_use]
    pub fn served(&self) -> Vec<DeviceLine> {
        self.all.iter().flat_map(|peripheral| peripheral.device.served()).collect()
    }

    /// The machine was reset: every device forgets what it knew whose process stays for the next guest. All at once, and
    /// for no longer than [`RESET_WAIT`]: what a device has not done by then its process does when the connection ends.
    pub fn reset(&self) {
        let (running, threads) = channel::<()>();
        for peripheral in self.all.iter().filter(|peripheral| peripheral.process.is_none()) {
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
        self.all.iter().for_each(|peripheral| peripheral.link.end());
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

impl Peripheral {
    /// Starts the device's thread, which holds `running` for as long as it runs.
    fn serve(self: &Arc<Self>, running: Sender<()>) -> Result<(), Problem> {
        let service = Service::new(self.device.clone(), self.link.clone()).map_err(Problem::Service)?;
        let peripheral = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("device {}", self.device.slot())).stack_size(STACK);
        let body = move || {
            let _running = running;
            let cause = service.run();
            if *cause != Cause::Ended {
                peripheral.lose(cause);
            }
        };
        thread.spawn(body).map(drop).map_err(Problem::Thread)
    }

    /// The device is gone: it is taken from the guest, its process is ended, and the user is told. A restart would begin
    /// here.
    fn lose(&self, cause: &Cause) {
        self.device.withdraw();
        let status = self.process.as_ref().and_then(|process| {
            // Of a process that has hung up its own end is told, of any other why it was cut off.
            let status = process.wait(if *cause == Cause::HungUp { EXIT_WAIT } else { Duration::ZERO });
            if status.is_none() {
                process.signal(Signal::SIGKILL);
                process.wait(KILL_WAIT);
            }
            status
        });
        let program = self.process.as_ref().map_or("its device process", |process| process.program());
        let what = status.map_or_else(|| cause.to_string(), ending);
        let consequence = "from now on the guest reads all-ones from it";
        tell(format_args!("{} ({}): {program} {what}; {consequence}", self.device.slot(), self.label));
    }
}

fn start<'a>(config: &'a DeviceConfig, cpus: u8, control: &Control) -> Result<Started<'a>, PeripheralError> {
    let (process, reachable) = match &config.source {
        Source::Program { program, options } => {
            let started = supervisor::start(program, options, cpus);
            let (process, stream) = started
                .map_err(|error| PeripheralError { label: config.label.clone(), problem: Problem::Spawn(error) })?;
            let process = Arc::new(process);
            control.processes.add(&process);
            (Some(process.clone()), Reachable::Started(process, stream))
        }
        Source::Socket { path, server } => (None, Reachable::Listening(path.clone(), *server)),
    };
    Ok(Started { config, process, reachable })
}

/// Opens all devices at the same time. The first that fails is the one that is told of.
fn open_all(all: Vec<Started<'_>>, ram: &Arc<GuestRam>, control: &Control) -> Result<Vec<Opened>, PeripheralError> {
    let (send, receive) = channel();
    let labels: Vec<_> = all.iter().map(|started| started.config.label.clone()).collect();
    let failed = |index: usize, problem| PeripheralError { label: labels[index].clone(), problem };
    for (index, Started { config, reachable, .. }) in all.into_iter().enumerate() {
        let (ram, connections) = (Arc::clone(ram), control.connections.clone());
        let opening = Opening { reachable, ram, dma: config.dma, connections };
        let send = send.clone();
        let thread = thread::Builder::new().name(format!("open {}", index + 1)).stack_size(STACK);
        // Whoever gives up on the first failure receives no more.
        let body = move || _ = send.send((index, opening.open()));
        thread.spawn(body).map_err(|error| failed(index, Problem::Thread(error)))?;
    }
    drop(send);
    let mut opened: Vec<_> = labels.iter().map(|_| None).collect();
    for (index, result) in receive {
        opened[index] = Some(result.map_err(|problem| failed(index, problem))?);
    }
    Ok(opened.into_iter().map(|opened| opened.expect("each thread sends once")).collect())
}
