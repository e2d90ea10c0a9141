//! The network card (virtio 1.2, section 5.1, "Network Device") on a tap.

mod control;
mod mac;
mod pace;
mod receive;
mod tap;
mod transmit;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use outrigger_process::launch;
use outrigger_process::options::{OptionError, Options, named};
use virtio_bindings::virtio_net as spec;

use crate::process::StartError;
use crate::sandbox::{Kind, Profile};
use crate::transport::journal::{DEVICE_WORDS, JournalError};
use crate::transport::{Identity, Predecessor, VirtioDevice, Work, WorkerError};
use control::Control;
use receive::Receiver;
use tap::offload;
use transmit::Transmitter;

pub use mac::Mac;
pub use tap::{Tap, TapError};

/// The card's part of `--help`.
pub const HELP: &str = "\
Keys of --net:
  tap=NAME   a tap; created if there is none of that name, and gone then with this process, or with outrigger
  mac=MAC    the guest's address, as 02:00:00:00:00:01 (default: derived from the tap's name)
  queues=N   queue pairs, 1 to 64 (default 1; one per virtual CPU is best)
  mtu=N      MTU of tap and guest, 68 to 65535 (default: the tap's)

Examples:
  outrigger-net --net tap=tap0 --socket /run/net.sock      then: ip address add 10.0.0.1/24 dev tap0
  ip tuntap add tap1 mode tap multi_queue && outrigger-net --net tap=tap1,queues=4,mtu=9000 --socket /run/net.sock
  outrigger run --kernel vmlinuz --device socket=/run/net.sock

Log level: RUST_LOG=error|warn|info|debug (default warn), on standard error.
Exit status: 0 when told to end or the client of --fd left, 1 when that client broke the protocol,
2 for bad usage, 3 when the host lacks something (a permission, io_uring).";

const MAX_PAIRS: u16 = 64;

const fn bits(features: &[u32]) -> u64 {
    let (mut mask, mut index) = (0, 0);
    while index < features.len() {
        mask |= 1 << features[index];
        index += 1;
    }
    mask
}

const FEATURES: u64 = bits(&[
    spec::VIRTIO_NET_F_CSUM,
    spec::VIRTIO_NET_F_GUEST_CSUM,
    spec::VIRTIO_NET_F_MTU,
    spec::VIRTIO_NET_F_MAC,
    spec::VIRTIO_NET_F_GUEST_TSO4,
    spec::VIRTIO_NET_F_GUEST_TSO6,
    spec::VIRTIO_NET_F_GUEST_ECN,
    spec::VIRTIO_NET_F_HOST_TSO4,
    spec::VIRTIO_NET_F_HOST_TSO6,
    spec::VIRTIO_NET_F_HOST_ECN,
    spec::VIRTIO_NET_F_MRG_RXBUF,
    spec::VIRTIO_NET_F_STATUS,
    spec::VIRTIO_NET_F_CTRL_VQ,
    spec::VIRTIO_NET_F_CTRL_RX,
]);
const USO_FEATURES: u64 =
    bits(&[spec::VIRTIO_NET_F_GUEST_USO4, spec::VIRTIO_NET_F_GUEST_USO6, spec::VIRTIO_NET_F_HOST_USO]);
const MULTI_QUEUE: u64 = bits(&[spec::VIRTIO_NET_F_MQ]);
const MERGEABLE: u64 = bits(&[spec::VIRTIO_NET_F_MRG_RXBUF]);
/// With any of these, the driver takes packets larger than the MTU.
const LARGE: u64 = bits(&[
    spec::VIRTIO_NET_F_GUEST_TSO4,
    spec::VIRTIO_NET_F_GUEST_TSO6,
    spec::VIRTIO_NET_F_GUEST_USO4,
    spec::VIRTIO_NET_F_GUEST_USO6,
]);

/// A network card.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    pairs: u16,
    /// Whether large UDP is offered.
    has_uso: bool,
    config: Vec<u8>,
}

/// A network card that cannot be had; one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The argument makes no sense.
    #[error("{}: {problem}", named("--net", argument))]
    Option {
        /// As it was given.
        argument: String,
        /// The error in it.
        problem: OptionError,
    },
    /// The tap cannot be used.
    #[error("{}: {source}", named("--net", argument))]
    Tap {
        /// As it was given.
        argument: String,
        /// Why.
        source: TapError,
    },
}

impl StartError for NetError {
    fn is_lack_of_host(&self) -> bool {
        matches!(self, Self::Tap { source: TapError::Permission, .. })
    }
}

impl Net {
    /// Opens the network card that a `--net` argument describes.
    pub fn open(argument: &str) -> Result<Self, NetError> {
        // SAFETY: this is the one device of this process, and the only place that uses what was inherited for it.
        let kept = unsafe { launch::take_kept() };
        let kept = kept.map_err(|source| NetError::Tap {
            argument: argument.to_owned(),
            source: TapError::Io { what: "cannot have what was kept for it", source },
        })?;
        Self::open_with(argument, kept)
    }

    /// With the queues that a predecessor had open, unless there are none.
    fn open_with(argument: &str, kept: Vec<OwnedFd>) -> Result<Self, NetError> {
        let CardOptions { tap, mac, queues, mtu } = CardOptions::parse(argument)
            .map_err(|problem| NetError::Option { argument: argument.to_owned(), problem })?;
        let tap = if kept.is_empty() { Tap::open(&tap, queues, mtu) } else { Tap::adopt(&tap, kept, queues) };
        let tap = tap.map_err(|source| NetError::Tap { argument: argument.to_owned(), source })?;
        let config = config(mac, queues, tap.mtu);
        let has_uso = tap.has_uso.unwrap_or(false);
        Ok(Self { tap: Arc::new(tap), pairs: queues, has_uso, config })
    }

    /// Which work a queue is for: receive and transmit queues alternate, the control queue comes after those that
    /// were negotiated (virtio 1.2, section 5.1.2, "Virtqueues").
    fn work(&self, queue: u16, features: u64) -> Work {
        let pairs = if features & MULTI_QUEUE != 0 { self.pairs } else { 1 };
        let tap = Arc::clone(&self.tap);
        if queue == 2 * pairs {
            let control = Control { tap, pairs, multi_queue: features & MULTI_QUEUE != 0 };
            Box::new(move |active| control.serve(active))
        } else if queue > 2 * pairs {
            // Enabled for nothing.
            Box::new(|active| {
                while !active.stopping() {
                    active.wait()?;
                }
                Ok(())
            })
        } else if queue.is_multiple_of(2) {
            let (mergeable, large) = (features & MERGEABLE != 0, features & LARGE != 0);
            Box::new(move |active| Receiver::new(tap, queue / 2, mergeable, large).serve(active))
        } else {
            Box::new(move |active| Transmitter::new(tap, queue / 2).serve(active))
        }
    }
}

/// The keys of a `--net` argument.
struct CardOptions {
    tap: String,
    mac: Mac,
    queues: u16,
    mtu: Option<u16>,
}

impl CardOptions {
    fn parse(argument: &str) -> Result<Self, OptionError> {
        let options = Options::parse(argument, &["tap", "mac", "queues", "mtu"], None)?;
        let tap = options.required("tap", "NAME")?;
        Ok(Self {
            tap: tap.to_owned(),
            mac: options.parsed("mac", str::parse)?.unwrap_or_else(|| Mac::from_name(tap)),
            queues: options.number("queues", 1..=MAX_PAIRS)?.unwrap_or(1),
            mtu: options.number("mtu", 68..=u16::MAX)?,
        })
    }
}

/// `struct virtio_net_config` up to `mtu` (virtio 1.2, section 5.1.4, "Device configuration layout").
fn config(mac: Mac, pairs: u16, mtu: u16) -> Vec<u8> {
    let status = u16::try_from(spec::VIRTIO_NET_S_LINK_UP).expect("a bit of a 16-bit field");
    [&mac.0[..], &status.to_le_bytes(), &pairs.to_le_bytes(), &mtu.to_le_bytes()].concat()
}

/// The tap's offloads that the driver has accepted.
fn offloads(features: u64) -> u32 {
    let has = |feature: u32| features & 1 << feature != 0;
    let mut flags = 0;
    if has(spec::VIRTIO_NET_F_GUEST_CSUM) {
        flags |= offload::CSUM;
        let (tso4, tso6) = (has(spec::VIRTIO_NET_F_GUEST_TSO4), has(spec::VIRTIO_NET_F_GUEST_TSO6));
        flags |= if tso4 { offload::TSO4 } else { 0 };
        flags |= if tso6 { offload::TSO6 } else { 0 };
        flags |= if (tso4 || tso6) && has(spec::VIRTIO_NET_F_GUEST_ECN) { offload::ECN } else { 0 };
        let uso = has(spec::VIRTIO_NET_F_GUEST_USO4) && has(spec::VIRTIO_NET_F_GUEST_USO6);
        flags |= if uso { offload::USO } else { 0 };
    }
    flags
}

impl VirtioDevice for Net {
    fn identity(&self) -> Identity {
        // Network controller, Ethernet.
        Identity { device_type: 1, class: 0x02_00_00 }
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> u64 {
        let uso = if self.has_uso { USO_FEATURES } else { 0 };
        let queues = if self.pairs > 1 { MULTI_QUEUE } else { 0 };
        FEATURES | uso | queues
    }

    fn queues(&self) -> u16 {
        2 * self.pairs + 1
    }

    fn profile(&self) -> Option<Profile> {
        Some(Profile { kind: Kind::Card, file_size: 0 })
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, features: u64) -> io::Result<()> {
        self.tap.take_over()?;
        self.tap.discard_input();
        self.tap.attach(1)?;
        self.tap.set_offload(offloads(features))?;
        Ok(())
    }

    fn kept(&self) -> io::Result<Vec<OwnedFd>> {
        self.tap.kept()
    }

    fn offer(&mut self, predecessor: &Predecessor) -> Result<(), JournalError> {
        if self.tap.has_uso.is_none() {
            // It has found out, on this kernel. If that is not so, the kernel refuses when the driver uses it.
            self.has_uso = predecessor.offered & USO_FEATURES == USO_FEATURES;
        }
        if predecessor.config == self.config { Ok(()) } else { Err(JournalError::Config) }
    }

    fn succeed(&mut self) -> io::Result<()> {
        self.tap.take_over()
    }

    /// Packets that came in meanwhile are for this driver.
    fn reactivate(&mut self, features: u64, words: [u64; DEVICE_WORDS]) -> io::Result<()> {
        let pairs = u16::try_from(words[control::PAIRS_WORD]).unwrap_or(u16::MAX);
        self.tap.attach(pairs.clamp(1, self.pairs))?;
        self.tap.set_offload(offloads(features))?;
        Ok(())
    }

    fn start(&mut self, queue: u16, features: u64) -> Result<Work, WorkerError> {
        Ok(self.work(queue, features))
    }

    fn deactivate(&mut self) -> io::Result<()> {
        Ok(self.tap.attach(1)?)
    }
}

#[cfg(test)]
mod tests;
