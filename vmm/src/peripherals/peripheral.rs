//! One device of a run: what the guest sees of it, what serves it now, and the thread that sees to both.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_process::RateLimit;
use outrigger_process::output::tell;

use super::error::Problem;
use super::journal::Kept;
use super::open::{Host, Opened};
use super::replace::Orders;
use super::restart::Restarts;
use super::status::{DeviceStatus, ServiceState, places};
use crate::attach::Backplane;
use crate::attach::bus_master::BusMaster;
use crate::attach::death::Cause;
use crate::attach::device::{Device, Place, region_name};
use crate::attach::generations::Generations;
use crate::attach::link::Link;
use crate::attach::serving::{Interruption, STACK, Service, ServiceError};
use crate::config::{Budget, DeviceConfig, Restart, Source};
use crate::control::processes::{DeviceProcess, ending};
use crate::pci::Slot;
use crate::pci::windows::Windows;

/// How long a process that hung up may take to be gone by itself, so that its own status can be told.
pub(super) const EXIT_WAIT: Duration = Duration::from_millis(500);
/// How long a process that was killed may take.
pub(super) const KILL_WAIT: Duration = Duration::from_millis(500);

/// A device, for as long as its slot exists.
pub(super) struct Peripheral {
    pub(super) slot: Slot,
    pub(super) config: DeviceConfig,
    pub(super) host: Arc<Host>,
    pub(super) device: Arc<Device>,
    pub(super) bus_master: Arc<BusMaster>,
    pub(super) generations: Arc<Generations>,
    /// Its journal; none: a successor begins anew.
    pub(super) kept: Option<Kept>,
    /// None: the device is withdrawn when its process fails.
    budget: Option<Budget>,
    now: Mutex<Now>,
    pub(super) orders: Orders,
    /// Of the lines that restarts cause, and those that fail.
    pub(super) lines: RateLimit,
    pub(super) failures: RateLimit,
}

/// The service of a device now.
pub(super) struct Now {
    /// How it is got again.
    pub(super) source: Source,
    pub(super) link: Arc<Link>,
    pub(super) process: Option<Arc<DeviceProcess>>,
    pub(super) state: ServiceState,
    pub(super) restarts: u64,
    pub(super) replacements: u64,
    pub(super) last_outage: Option<Duration>,
    pub(super) longest_outage: Option<Duration>,
}

/// A device whose first process is there; with the files that it keeps, if any.
pub(super) type FirstOpened = Opened<Option<Kept>>;

/// A device that has been opened, and its place.
pub(super) struct Parts {
    pub(super) slot: Slot,
    pub(super) config: DeviceConfig,
    pub(super) host: Arc<Host>,
    pub(super) bus_master: Arc<BusMaster>,
    pub(super) process: Option<Arc<DeviceProcess>>,
}

impl Peripheral {
    /// Builds the device and gives its BARs their places.
    ///
    /// # Errors
    /// If it cannot be attached.
    pub(super) fn new(
        parts: Parts,
        opened: FirstOpened,
        backplane: &Backplane,
        windows: &mut Windows,
    ) -> Result<Self, Problem> {
        let Parts { slot, config, host, bus_master, process } = parts;
        let Opened { link, description, journal: kept } = opened;
        let budget = match config.restart {
            // A server of somebody else's opens it for each client, and the device cannot be opened while it is still open.
            Restart::Within(_) if link.is_tied() && (kept.is_none() || process.is_none()) => {
                return Err(Problem::NoRestart);
            }
            Restart::Within(budget) => Some(budget),
            Restart::IfUnnoticed => kept.as_ref().map(|_| Budget::default()),
            Restart::Off => None,
        };
        let generations = Arc::<Generations>::default();
        host.control.connections.add_generations(&generations);
        let can_be_succeeded = kept.is_some() || budget.is_some();
        let (bus_master, p2p) = (bus_master.clone(), config.p2p);
        let place =
            Place { slot, bus_master: bus_master.clone(), generations: generations.clone(), can_be_succeeded, p2p };
        let device = Arc::new(Device::new(place, link.clone(), &description, backplane, windows)?);
        let now = Now {
            source: config.source.clone(),
            link,
            process,
            state: ServiceState::Serving,
            restarts: 0,
            replacements: 0,
            last_outage: None,
            longest_outage: None,
        };
        let (now, orders) = (Mutex::new(now), Orders::new()?);
        let (lines, failures) = (RateLimit::new(), RateLimit::new());
        Ok(Self { slot, config, host, device, bus_master, generations, kept, budget, now, orders, lines, failures })
    }

    pub(super) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the device's thread, which holds `running` for as long as it runs.
    pub(super) fn serve(self: &Arc<Self>, running: Sender<()>) -> Result<(), Problem> {
        let service = self.service().map_err(Problem::Service)?;
        let peripheral = Arc::clone(self);
        let thread = thread::Builder::new().name(format!("device {}", self.slot)).stack_size(STACK);
        let body = move || {
            let _running = running;
            // However this thread ends, nothing waits for it any more.
            let _end = EndOfThread(&peripheral);
            peripheral.run(service);
        };
        thread.spawn(body).map(drop).map_err(Problem::Thread)
    }

    fn service(&self) -> Result<Service, ServiceError> {
        let (link, process) = {
            let now = self.now();
            (now.link.clone(), now.process.clone())
        };
        let service = Service::new(self.device.clone(), link)?.take_orders(self.orders.bell())?;
        if self.budget.is_some() { service.ping(process) } else { Ok(service) }
    }

    fn run(&self, mut service: Service) {
        let mut restarts = self.budget.map(Restarts::new);
        loop {
            match service.run() {
                Interruption::Lost(Cause::Ended) => return,
                Interruption::Lost(cause) => {
                    if !self.restart(&mut restarts, cause) {
                        return;
                    }
                }
                Interruption::Ordered => match self.follow_order() {
                    None => continue,
                    Some(true) => {}
                    // The predecessor is gone, and the successor as well.
                    Some(false) => {
                        let mut once = restarts.take().or_else(|| Some(Restarts::new(Budget::default())));
                        let is_served = self.restart(&mut once, &Cause::Replaced);
                        restarts = self.budget.and(once);
                        if !is_served {
                            return;
                        }
                    }
                },
            }
            match self.service() {
                Ok(next) => service = next,
                // Met by the next turn: a device that cannot be watched cannot be kept.
                Err(error) => self.now().link.fail(Cause::Broken(format!("watching it: {error}"))),
            }
        }
    }

    /// The device is gone: it is taken from the guest, its process is ended, and the user is told.
    pub(super) fn lose(&self, cause: &Cause, why: Option<&str>) {
        self.now().state = ServiceState::Withdrawn;
        self.device.withdraw();
        let process = self.now().process.clone();
        let status = process.as_ref().and_then(|process| {
            // Of a process that has hung up its own end is told, of any other why it was cut off.
            let status = process.wait(if *cause == Cause::HungUp { EXIT_WAIT } else { Duration::ZERO });
            if status.is_none() {
                process.signal(Signal::SIGKILL);
                process.wait(KILL_WAIT);
            }
            status
        });
        let what = reason(cause, status);
        let why = why.map(|why| format!(", and {why}")).unwrap_or_default();
        let program = self.program_name();
        self.tell(format_args!("{program} {what}{why}; from now on the guest reads all-ones from it"));
    }

    /// Its process's name in messages.
    pub(super) fn program_name(&self) -> String {
        self.now().process.as_ref().map_or("its device process", |process| process.program()).to_owned()
    }

    /// Tells the user something about the device.
    pub(super) fn tell(&self, line: std::fmt::Arguments<'_>) {
        tell(format_args!("{} ({}): {line}", self.slot, self.config.label));
    }

    /// Whether the guest has lost the device, or nothing will come in place of its process. A death that nothing has come
    /// upon yet is noticed now.
    pub(super) fn is_lost(&self) -> bool {
        let (link, state) = {
            let now = self.now();
            (now.link.clone(), now.state)
        };
        link.check();
        let is_link_lost = link.lost().is_some_and(|cause| *cause != Cause::Ended);
        state == ServiceState::Withdrawn || (self.budget.is_none() && is_link_lost)
    }

    /// Ends the connection, and every wait for one.
    pub(super) fn disconnect(&self) {
        self.generations.end();
        self.now().link.end();
    }

    /// Takes note of what serves the device from now on, or has failed to.
    pub(super) fn is_served_by(
        &self,
        source: Source,
        link: &Arc<Link>,
        process: Option<Arc<DeviceProcess>>,
        state: ServiceState,
    ) {
        let mut now = self.now();
        (now.source, now.link, now.process, now.state) = (source, link.clone(), process, state);
        drop(now);
        // The run may have ended meanwhile.
        if self.generations.has_ended() {
            link.end();
        }
    }

    /// Takes note of how long accesses waited.
    pub(super) fn note_outage(&self, since: Instant) -> Duration {
        let outage = since.elapsed();
        let mut now = self.now();
        now.last_outage = Some(outage);
        now.longest_outage = now.longest_outage.max(Some(outage));
        outage
    }

    /// Waits for no device process, nor for a vCPU that does.
    pub(super) fn status(&self) -> DeviceStatus {
        let regions = self.generations.paths().into_iter().enumerate();
        let named = |(index, lines): (usize, Vec<(Range<u64>, String)>)| {
            lines.into_iter().map(move |(range, line)| (region_name(index), range, line))
        };
        let paths = regions.flat_map(named).collect();
        let now = self.now();
        let (program, socket) = places(&now.source);
        DeviceStatus {
            slot: self.slot,
            label: self.config.label.clone(),
            program,
            socket,
            pid: now.process.as_ref().map(|process| process.id()).filter(|_| now.state == ServiceState::Serving),
            dma: self.config.dma,
            sandbox_lacks: now.link.sandbox().map(|report| report.missing.clone()),
            state: now.state,
            journal: self.kept.is_some(),
            restarts: now.restarts,
            replacements: now.replacements,
            last_outage: now.last_outage,
            longest_outage: now.longest_outage,
            paths,
        }
    }
}

/// Why a device is lost: what its process did, or how it ended.
fn reason(cause: &Cause, status: Option<ExitStatus>) -> String {
    match (cause, status) {
        (Cause::HungUp, Some(status)) => ending(status),
        // It may have ended since then, as its connection is closed; if it ended well, that was all there was to it.
        (Cause::TookMemory(_), _) | (_, None) => cause.to_string(),
        (_, Some(status)) if status.success() => cause.to_string(),
        (_, Some(status)) => ending(status),
    }
}

struct EndOfThread<'a>(&'a Peripheral);

impl Drop for EndOfThread<'_> {
    fn drop(&mut self) {
        self.0.orders.close();
        self.0.kept.iter().for_each(Kept::release);
        self.0.generations.end();
    }
}

/// Without a connection there is nothing to hang up.
pub(super) fn socket(stream: UnixStream) -> Arc<outrigger_protocol::foreign::ForeignFd> {
    Arc::new(stream.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_process_that_ended_well_is_no_reason_unless_it_hung_up() {
        let status = |raw| Some(ExitStatus::from_raw(raw));
        let (well, badly, killed) = (status(0), status(3 << 8), status(9));
        let broken = Cause::Broken("it says nothing".to_owned());
        for (cause, status, line) in [
            (&Cause::HungUp, well, "ended with status 0"),
            (&Cause::HungUp, None, "closed the connection"),
            (&Cause::Silent, well, "stopped answering"),
            (&Cause::GivenUpByKvm, killed, "was killed by SIGKILL"),
            (&broken, well, "broke the protocol: it says nothing"),
            (&broken, badly, "ended with status 3"),
            (&Cause::TookMemory("all".to_owned()), killed, "took memory away that the guest sees: all"),
        ] {
            assert_eq!(reason(cause, status), line);
        }
    }
}
