//! `--device program=PATH[,KEY=VALUE,…]` and `--device socket=PATH`, and the flags that are shorthand for the first.
//!
//! A device program is the authority on its options: what is not one of [`OWN_KEYS`] is for it, and passed on unread.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Uid, close};
use outrigger_process::inherited::is_callers;
use outrigger_process::options::{OptionError, Options, named};
use outrigger_process::seal::Sandbox;
use outrigger_process::user;

use super::restart::{DEFAULT_DEADLINE, SHORTEST_RESTART, parse_deadline};
use super::{Problem, Restart};

/// Longest path of a Unix socket in bytes: Linux's `sockaddr_un`, less the terminating zero.
pub const MAX_SOCKET_PATH: usize = 107;

const PROGRAM: &str = "program";
const SOCKET: &str = "socket";
const USER: &str = "user";
const DMA: &str = "dma";
const RESTART: &str = "restart";
const DEADLINE: &str = "deadline";
const P2P: &str = "p2p";
const SANDBOX: &str = "sandbox";
/// The keys that Outrigger itself reads.
const OWN_KEYS: &[&str] = &[PROGRAM, SOCKET, USER, DMA, RESTART, DEADLINE, P2P, SANDBOX];
/// All keys there are where Outrigger starts no program.
const SOCKET_KEYS: &[&str] = &[SOCKET, USER, DMA, RESTART, DEADLINE, P2P];
/// Outrigger's own keys where the flag says which program is started.
const KIND_KEYS: &[&str] = &[DMA, RESTART, DEADLINE, SANDBOX];
/// The same for hardware, which reaches memory by itself only.
const HARDWARE_KEYS: &[&str] = &[RESTART, DEADLINE, P2P, SANDBOX];

/// A flag for one kind of device: `--disk X` means `--device program=outrigger-blk,X`.
#[derive(Debug)]
pub struct Kind {
    /// The flag, without its hyphens.
    pub flag: &'static str,
    /// The device program.
    pub program: &'static str,
    /// The flag's value, as the help shows it.
    pub value: &'static str,
    /// The help text.
    pub about: &'static str,
    /// Outrigger's own keys.
    pub own: &'static [&'static str],
    /// Keys that name descriptors of the caller's, which the program gets.
    pub inherited: &'static [&'static str],
    /// The program reads `dma`, too: `vmm` leaves guest RAM to Outrigger.
    pub shares_dma: bool,
}

/// All of them. A new kind of device is a row here.
pub const KINDS: [Kind; 3] = [
    Kind {
        flag: "disk",
        program: "outrigger-blk",
        value: "path=FILE[,KEY=VALUE,…]",
        about: "Disk from an image file or block device",
        own: KIND_KEYS,
        inherited: &[],
        shares_dma: false,
    },
    Kind {
        flag: "net",
        program: "outrigger-net",
        value: "tap=NAME[,KEY=VALUE,…]",
        about: "Network card on a tap interface of the host, which is created if it doesn't exist",
        own: KIND_KEYS,
        inherited: &[],
        shares_dma: false,
    },
    Kind {
        flag: "vfio",
        program: "outrigger-vfio",
        value: "ADDRESS[,KEY=VALUE,…]",
        about: "Physical PCI device of the host that is bound to vfio-pci (outrigger vfio)",
        own: HARDWARE_KEYS,
        inherited: &["fd", "iommufd"],
        shares_dma: true,
    },
];

/// One PCI device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The option as the user wrote it, to name the device in a message: `--disk path=root.img`.
    pub label: String,
    /// Where its device process comes from.
    pub source: Source,
    /// How that process reaches guest RAM.
    pub dma: Dma,
    /// Whether another one comes when it fails.
    pub restart: Restart,
    /// How long it may take for any answer, and its successor to serve the device.
    pub deadline: Duration,
    /// Whether its DMA reaches the BARs of other physical devices.
    pub p2p: bool,
}

/// Where a device process comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A program that Outrigger starts.
    Program {
        /// A bare name is that of a program beside outrigger itself; anything with a slash is a path.
        program: PathBuf,
        /// The text after `--options`.
        options: String,
        /// The caller's descriptors that it gets.
        inherited: Vec<RawFd>,
        /// Whether it gives up all that it does not need.
        sandbox: Sandbox,
    },
    /// A vfio-user server that already listens.
    Socket {
        /// The Unix socket, at most [`MAX_SOCKET_PATH`] bytes.
        path: PathBuf,
        /// Whose server may be given guest RAM.
        server: ServerUser,
    },
}

/// How a device process reaches guest RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dma {
    /// It is handed the memory file and maps it: fast, and it can read and write all of the guest.
    #[default]
    Shared,
    /// It asks the VMM for every byte, by `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, and holds no guest memory.
    Messages,
    /// It does not, nor could it: Outrigger maps guest RAM for the physical device that the process has.
    Vmm,
}

/// Whose server may be given guest RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ServerUser {
    /// Root's, and that of the user who runs Outrigger.
    #[default]
    Trusted,
    /// This user's only.
    Only(Uid),
    /// Anybody's.
    Any,
}

impl DeviceConfig {
    /// How long a process that is to serve the device in place of another may take until it does.
    #[must_use]
    pub fn restart_deadline(&self) -> Duration {
        self.deadline.max(SHORTEST_RESTART)
    }

    /// Reads the value of `--device`.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let (own, rest) = Options::take_out(text, OWN_KEYS)?;
        let source = match (own.get(PROGRAM), own.get(SOCKET)) {
            (Some(_), Some(_)) => return Err(Problem::ProgramAndSocket),
            (Some(_), None) if own.get(USER).is_some() => return Err(Problem::UserOfProgram),
            (Some(program), None) => {
                let sandbox = own.parsed(SANDBOX, str::parse)?.unwrap_or_default();
                Source::Program { program: program.into(), options: rest, inherited: Vec::new(), sandbox }
            }
            (None, Some(_)) if own.get(SANDBOX).is_some() => return Err(Problem::SandboxOfSocket),
            (None, Some(_)) => Source::socket(&Options::parse(text, SOCKET_KEYS, None)?)?,
            (None, None) => return Err(Problem::NoSource),
        };
        Self::with(named("--device", text), source, &own)
    }

    /// Reads the value of the flag for one kind of device.
    pub(crate) fn parse_kind(kind: &Kind, text: &str) -> Result<Self, Problem> {
        let (own, rest) = Options::take_out(text, kind.own)?;
        let (named_fds, _) = Options::take_out(&rest, kind.inherited)?;
        // The program refuses what is no number.
        let inherited = kind.inherited.iter().filter_map(|key| named_fds.get(key)?.parse().ok()).collect();
        let (shared, _) = Options::take_out(&rest, &[DMA])?;
        let sandbox = own.parsed(SANDBOX, str::parse)?.unwrap_or_default();
        let source = Source::Program { program: kind.program.into(), options: rest, inherited, sandbox };
        let config = Self::with(named(&format!("--{}", kind.flag), text), source, &own)?;
        // Any other value is for the program to tell.
        let is_vmm = kind.shares_dma && shared.get(DMA) == Some("vmm");
        match (is_vmm, config.p2p) {
            (true, true) => Err(Problem::PeerToPeerByVmm),
            (true, false) => Ok(Self { dma: Dma::Vmm, ..config }),
            (false, _) => Ok(config),
        }
    }

    fn with(label: String, source: Source, own: &Options) -> Result<Self, Problem> {
        let restart = own.parsed(RESTART, Restart::parse)?.unwrap_or(match source {
            Source::Program { .. } => Restart::IfUnnoticed,
            Source::Socket { .. } => Restart::Off,
        });
        let deadline = own.parsed(DEADLINE, parse_deadline)?.unwrap_or(DEFAULT_DEADLINE);
        Ok(Self { label, source, dma: Dma::parse(own)?, restart, deadline, p2p: own.switch(P2P)? })
    }
}

impl Source {
    /// Closes the caller's descriptors, which the program has now: what they hold open ends with it.
    pub(crate) fn close_inherited(&self) {
        let Self::Program { inherited, .. } = self else { return };
        for &number in inherited.iter().filter(|&&number| is_callers(number)) {
            _ = close(number);
        }
    }

    fn socket(options: &Options) -> Result<Self, OptionError> {
        let path = options.parsed(SOCKET, |path| match path.len() {
            length if length > MAX_SOCKET_PATH => Err(Problem::TooLong { length, limit: MAX_SOCKET_PATH }),
            _ => Ok(PathBuf::from(path)),
        })?;
        let server = options.parsed(USER, ServerUser::parse)?;
        Ok(Self::Socket { path: path.unwrap_or_default(), server: server.unwrap_or_default() })
    }
}

impl Dma {
    fn parse(options: &Options) -> Result<Self, OptionError> {
        let dma = options.parsed(DMA, |text| match text {
            "shared" => Ok(Self::Shared),
            "messages" => Ok(Self::Messages),
            _ => Err(format!("must be shared or messages, not '{text}'")),
        })?;
        Ok(dma.unwrap_or_default())
    }
}

impl ServerUser {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::Any);
        }
        user::parse(text).map(Self::Only)
    }
}
