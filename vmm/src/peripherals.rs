//! The PCI devices of a run: each one's process started or its socket found, attached, watched, and let go at the end.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use outrigger_process::launch::{EXIT_HOST, EXIT_USAGE};
use outrigger_process::output::tell;
use outrigger_protocol::client::{Client, Options};

use crate::attach::bus_master::{BusMaster, MessageDma};
use crate::attach::device::Device;
use crate::attach::discovery::discover;
use crate::attach::link::Link;
use crate::attach::watch::{WatchError, watch};
use crate::attach::{AttachError, Backplane};
use crate::config::{DeviceConfig, Dma, Source};
use crate::events::EventLoop;
use crate::memory::GuestRam;
use crate::outcome::{STATUS_HOST, STATUS_USAGE, Stop};
use crate::pci::Slot;
use crate::pci::bus::PciBus;
use crate::pci::windows::Windows;
use crate::stats::DeviceLine;
use crate::supervisor::{DeviceProcess, SpawnError, ending};

/// How long a process that closed its socket may take to be gone, so that its status can be told.
const EXIT_WAIT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// A device that the guest cannot have.
#[derive(Debug, thiserror::Error)]
#[error("{label}: {problem}")]
pub struct PeripheralError {
    label: String,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{}", chain(.0))]
    Spawn(SpawnError),
    #[error("nobody listens on this socket; start the device process first")]
    NobodyListens,
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("nobody accepted a connection within {} s", .0.as_secs())]
    NotAccepted(Duration),
    #[error("{}", chain(.0))]
    Attach(AttachError),
    /// The process has said itself what is wrong.
    #[error("its process {} before it served the device", ending(*.0))]
    Exited(ExitStatus),
}

impl PeripheralError {
    /// The exit status that says whose fault it is.
    #[must_use]
    pub fn status(&self) -> u8 {
        match &self.problem {
            Problem::Spawn(SpawnError::Start { .. }) => STATUS_USAGE,
            Problem::Spawn(_) => STATUS_HOST,
            Problem::NobodyListens | Problem::Connect(_) | Problem::NotAccepted(_) => STATUS_USAGE,
            // What was named on the command line is no device process, or not one that can be used.
            Problem::Attach(AttachError::Client(_) | AttachError::Device(_) | AttachError::Bar(_)) => STATUS_USAGE,
            Problem::Attach(_) => STATUS_HOST,
            // What it says about itself; another status is that of a program that is no device program.
            Problem::Exited(status) if has_told(*status) => {
                status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(STATUS_USAGE)
            }
            Problem::Exited(_) => STATUS_USAGE,
        }
    }

    /// Whether the user has been told already, by the device process itself.
    #[must_use]
    pub fn is_told(&self) -> bool {
        matches!(self.problem, Problem::Exited(status) if has_told(status))
    }
}

/// Whether a device program ends with this status after it has told the user why.
fn has_told(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| [EXIT_USAGE, EXIT_HOST].map(i32::from).contains(&code))
}

/// All PCI devices of a run, in the order of their slots. Dropping this ends those processes that were started for it.
#[derive(Default)]
pub struct Peripherals {
    all: Vec<Rc<Peripheral>>,
}

struct Peripheral {
    label: String,
    dma: Dma,
    device: Arc<Device>,
    link: Arc<Link>,
    process: Option<RefCell<DeviceProcess>>,
}

struct Connected {
    label: String,
    dma: Dma,
    stream: UnixStream,
    process: Option<DeviceProcess>,
}

impl Peripherals {
    /// Starts or finds every device process, and puts what it serves on the bus.
    ///
    /// # Errors
    /// For the first device that cannot be had; processes started for it and for others are ended.
    pub fn attach(
        configs: &[DeviceConfig],
        cpus: u8,
        backplane: &Backplane,
        ram: &Arc<GuestRam>,
        bus: &PciBus,
        windows: &mut Windows,
    ) -> Result<Self, PeripheralError> {
        let options = Options::default();
        // All start before the first is asked anything, so that they start at the same time.
        let connected = configs.iter().map(|config| start(config, cpus, options.deadline));
        let connected = connected.collect::<Result<Vec<_>, _>>()?;
        let mut all = Vec::new();
        for (slot, Connected { label, dma, stream, mut process }) in (1..).map(Slot).zip(connected) {
            let attached = attach(stream, &options, slot, backplane, (ram, dma), windows);
            let (device, link) = attached.map_err(|error| {
                let status = match &error {
                    AttachError::Client(_) => process.as_mut().and_then(|process| process.wait(EXIT_WAIT)),
                    _ => None,
                };
                let problem = status.map_or(Problem::Attach(error), Problem::Exited);
                PeripheralError { label: label.clone(), problem }
            })?;
            let device = Arc::new(device);
            assert!(bus.insert(slot, device.clone()), "slots are given out once, and there are at most 31 devices");
            all.push(Rc::new(Peripheral { label, dma, device, link, process: process.map(RefCell::new) }));
        }
        Ok(Self { all })
    }

    /// Serves the devices from the event loop; the death of one is told, and noted in `stop`.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn watch(&self, events: &mut EventLoop, stop: &Stop) -> Result<(), WatchError> {
        for peripheral in &self.all {
            let (dead, stop) = (Rc::clone(peripheral), stop.clone());
            watch(&peripheral.device, &peripheral.link, events, move || dead.announce_death(&stop))?;
        }
        Ok(())
    }

    /// Notices deaths that the event loop did not come to: a guest may see one, and end the run, before the main thread
    /// is told.
    pub fn notice_deaths(&self, stop: &Stop) {
        for peripheral in &self.all {
            peripheral.link.check();
            if peripheral.link.lost().is_some() && peripheral.device.withdraw() {
                peripheral.announce_death(stop);
            }
        }
    }

    /// How each part of each device is reached, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let line = |peripheral: &Rc<Peripheral>| {
            let process = peripheral.process.as_ref().map(|process| {
                let process = process.borrow();
                format!("  {} (process {})", process.program(), process.id())
            });
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

    /// The machine was reset: every device forgets what it knew, also those whose process stays for the next guest.
    pub fn reset(&self) {
        self.all.iter().for_each(|peripheral| peripheral.device.reset());
    }

    /// Ends all connections, and with them every wait for an answer.
    pub fn disconnect(&self) {
        self.all.iter().for_each(|peripheral| peripheral.link.end());
    }
}

impl Peripheral {
    fn announce_death(&self, stop: &Stop) {
        stop.device_died();
        let Self { label, device, link, process, .. } = self;
        let status = process.as_ref().and_then(|process| process.borrow_mut().wait(EXIT_WAIT));
        let who = process
            .as_ref()
            .map_or_else(|| "its device process".to_owned(), |process| process.borrow().program().to_owned());
        let cause = || link.lost().map_or_else(String::new, ToString::to_string);
        let what = status.map_or_else(cause, ending);
        let consequence = "from now on the guest reads all-ones from it";
        tell(format_args!("{} ({label}): {who} {what}; {consequence}", device.slot()));
    }
}

impl Drop for Peripherals {
    fn drop(&mut self) {
        // All at once, before the first is waited for.
        self.disconnect();
    }
}

fn start(config: &DeviceConfig, cpus: u8, deadline: Duration) -> Result<Connected, PeripheralError> {
    let label = config.label.clone();
    let connected = match &config.source {
        Source::Program { program, options } => DeviceProcess::start(program, options, cpus)
            .map(|(process, stream)| (Some(process), stream))
            .map_err(Problem::Spawn),
        Source::Socket { path, .. } => connect_to(path, deadline).map(|stream| (None, stream)),
    };
    match connected {
        Ok((process, stream)) => Ok(Connected { label, dma: config.dma, stream, process }),
        Err(problem) => Err(PeripheralError { label, problem }),
    }
}

/// Connects without waiting longer than `deadline` for a server whose queue of connections is full.
fn connect_to(path: &Path, deadline: Duration) -> Result<UnixStream, Problem> {
    let failed = |errno: Errno| match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => Problem::NobodyListens,
        errno => Problem::Connect(errno.into()),
    };
    let address = UnixAddr::new(path).map_err(failed)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    let stream = UnixStream::from(stream);
    let end = Instant::now() + deadline;
    loop {
        match connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::EAGAIN) if Instant::now() < end => thread::sleep(RETRY),
            Err(Errno::EAGAIN) => return Err(Problem::NotAccepted(deadline)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

fn attach(
    stream: UnixStream,
    options: &Options,
    slot: Slot,
    backplane: &Backplane,
    (ram, dma): (&Arc<GuestRam>, Dma),
    windows: &mut Windows,
) -> Result<(Device, Arc<Link>), AttachError> {
    let bus_master = Arc::<BusMaster>::default();
    let dma_by_message = MessageDma::new(ram.clone(), bus_master.clone());
    let client = Client::new(stream, Arc::new(dma_by_message), options)?;
    let description = discover(&client)?;
    for region in ram.regions() {
        let file = (dma == Dma::Shared).then(|| (ram.fd(), region.file_offset));
        client.dma_map(region.guest, region.size, file)?;
    }
    let link = Arc::new(Link::new(client));
    Ok((Device::new(link.clone(), bus_master, &description, slot, backplane, windows)?, link))
}

/// An error and all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
