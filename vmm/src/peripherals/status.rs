//! State of a run's devices, for people and programs.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Dma, Source};
use crate::pci::Slot;

/// Whether a device is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// A process answers for it.
    Serving,
    /// Its process has failed, and a successor is on its way; the guest's accesses wait.
    Restarting,
    /// The guest has lost it: it reads as all-ones.
    Withdrawn,
}

/// A device of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Where it is.
    pub slot: Slot,
    /// The option that asked for it: `--disk path=root.img`.
    pub label: String,
    /// The program that is started for it; none: a server that somebody else runs.
    pub program: Option<PathBuf>,
    /// That server's socket.
    pub socket: Option<PathBuf>,
    /// The process that serves it now, if this VMM has started it.
    pub pid: Option<u32>,
    /// How that process reaches guest RAM.
    pub dma: Dma,
    /// The layers of its sandbox that the process does without; none: it is not sealed, or does not say.
    pub sandbox_lacks: Option<Vec<String>>,
    /// Whether it is served.
    pub state: ServiceState,
    /// Whether the process keeps a journal, so that a restart goes unnoticed.
    pub journal: bool,
    /// How often its process failed and another one took its place.
    pub restarts: u64,
    /// How often its process was replaced by the user's wish.
    pub replacements: u64,
    /// How long the guest's accesses waited at the last restart or replacement.
    pub last_outage: Option<Duration>,
    /// The longest of all such times.
    pub longest_outage: Option<Duration>,
    /// How the guest reaches each range of its registers now: the name of the region, its bytes, and the line of its plan.
    pub paths: Vec<(String, Range<u64>, String)>,
}

impl ServiceState {
    /// One word, in small letters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Restarting => "restarting",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// The program and the socket of a source.
pub(super) fn places(source: &Source) -> (Option<PathBuf>, Option<PathBuf>) {
    match source {
        Source::Program { program, .. } => (Some(program.clone()), None),
        Source::Socket { path, .. } => (None, Some(path.clone())),
    }
}
