//! ioregionfd: accesses to a device's registers as commands of 32 bytes on a socket of their own, so that KVM (or its
//! stand-in) asks the device process without a vfio-user message.
//!
//! The side that asks sends a [`wire::Command`] and, unless it is a posted write, waits for a [`wire::Response`]; one
//! access is under way at a time. A device offers its end in `VFIO_USER_DEVICE_GET_REGION_IO_FDS`
//! ([`crate::server::IoFdKind::Ioregionfd`]).
//!
//! Source: "MMIO/PIO dispatch file descriptors (ioregionfd) design discussion", Elena Afanasova, kvm mailing list,
//! 2020-11-25, sections "Wire protocol" to "Multi-queue scalability". For what is refused, and for how long each side
//! waits, see `docs/PROTOCOL.md`, "ioregionfd".
//!
//! - [`wire`]: the two structures.
//! - [`Access`]: a command, decoded and checked.
//! - [`Requester`]: the side that asks.
//! - [`serve`], [`Handler`]: the side that answers; [`Endpoint`]: that in a thread, with its socket pair.

mod access;
mod endpoint;
mod requester;
mod responder;
mod socket;
pub mod wire;

pub use access::{Access, Malformed, Operation, Size};
pub use endpoint::Endpoint;
pub use requester::{AccessError, Requester};
pub use responder::{Handler, ServeError, serve};
pub use socket::{SocketError, SocketType};
