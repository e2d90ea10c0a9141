//! The control socket's answers as JSON. The names of the fields are the interface that docs/CONTROL.md
//! describes: fields may be added; none changes its name or meaning.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Dma;
use crate::peripherals::{self, status::ServiceState};

/// The answer to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Outrigger's version.
    pub version: String,
    /// Outrigger's process.
    pub pid: u32,
    /// Where the run is.
    pub state: RunState,
    /// Milliseconds since the control socket was made.
    pub uptime_ms: u64,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest RAM.
    pub memory_bytes: u64,
    /// PCI devices in the order of their slots; none until all are attached.
    pub devices: Vec<DeviceStatus>,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Devices are being attached; there is no guest yet.
    Starting,
    /// The guest runs.
    Running,
    /// The guest has ended, or is about to.
    Ending,
}

/// One PCI device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its address on the guest's bus: `0000:00:01.0`.
    pub slot: String,
    /// As the user wrote it: `--disk path=root.img`.
    pub label: String,
    /// The program that Outrigger starts for it.
    pub program: Option<String>,
    /// The socket of the server that somebody else runs.
    pub socket: Option<String>,
    /// The process that serves it now, where Outrigger has started it.
    pub pid: Option<u32>,
    /// How the process reaches guest RAM: `shared` or `messages`.
    pub dma: String,
    /// How far the process has sealed itself; null: it has not, or does not say.
    pub sandbox: Option<SandboxStatus>,
    /// Whether the process keeps a journal, so that the guest does not notice when another takes over.
    pub journal: bool,
    /// Whether something serves it.
    pub state: DeviceState,
    /// How often its process failed, and another took its place.
    pub restarts: u64,
    /// How often its process was replaced by the user's wish.
    pub replacements: u64,
    /// Milliseconds for which accesses waited at the last restart or replacement.
    pub last_outage_ms: Option<f64>,
    /// The most of all these.
    pub longest_outage_ms: Option<f64>,
    /// How the guest reaches each range of its registers now.
    pub paths: Vec<PathStatus>,
}

/// The sandbox of a process that has sealed itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The layers that the host does not permit.
    pub missing: Vec<String>,
}

/// Whether something serves a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// A process does.
    Serving,
    /// Its process has failed, and another is on its way. Accesses wait.
    Restarting,
    /// Nothing serves it any more. It reads as all-ones.
    Withdrawn,
}

impl From<peripherals::status::DeviceStatus> for DeviceStatus {
    fn from(status: peripherals::status::DeviceStatus) -> Self {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let paths = status.paths.iter().map(|(region, range, line)| PathStatus::new(region, range, line));
        Self {
            slot: status.slot.to_string(),
            label: status.label,
            program: status.program.map(text),
            socket: status.socket.map(text),
            pid: status.pid,
            dma: match status.dma {
                Dma::Shared => "shared".to_owned(),
                Dma::Messages => "messages".to_owned(),
                Dma::Vmm => "vmm".to_owned(),
            },
            sandbox: status.sandbox_lacks.map(|missing| SandboxStatus { missing }),
            journal: status.journal,
            state: match status.state {
                ServiceState::Serving => DeviceState::Serving,
                ServiceState::Restarting => DeviceState::Restarting,
                ServiceState::Withdrawn => DeviceState::Withdrawn,
            },
            restarts: status.restarts,
            replacements: status.replacements,
            last_outage_ms: status.last_outage.map(milliseconds),
            longest_outage_ms: status.longest_outage.map(milliseconds),
            paths: paths.collect(),
        }
    }
}

/// A time in milliseconds, to the microsecond.
pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The answer to a restart or a replacement that took place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replaced {
    /// Milliseconds for which the guest's accesses to the device waited.
    pub pause_ms: f64,
}

/// The body of a request to replace a device process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// The program to start, as `program=` of `--device` has it; none: the same again.
    pub program: Option<String>,
}

/// A range of registers of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// The region: `BAR0` to `BAR5`, or `ROM`.
    pub region: String,
    /// First byte, from the start of the region.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// The path: `mapped`, `ioeventfd`, `ioregionfd`, `stand-in`, `message` or `vmm`.
    pub path: String,
    /// Its meaning, and why it is not a better one.
    pub why: String,
}

impl PathStatus {
    /// A line of a region's plan: its first word is the path.
    fn new(region: &str, range: &Range<u64>, line: &str) -> Self {
        let (path, why) = line.split_once(' ').unwrap_or((line, ""));
        let region = region.to_owned();
        Self { region, start: range.start, end: range.end - 1, path: path.to_owned(), why: why.trim().to_owned() }
    }
}

/// The answer to a request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The problem, in one line.
    pub error: String,
}
