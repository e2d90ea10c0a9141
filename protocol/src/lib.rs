//! The vfio-user protocol, both sides.
//!
//! A VMM is the *client*, a device process the *server*. They share one `AF_UNIX` stream socket (and optionally a twin
//! for requests in the other direction), over which the client reads and writes the device's regions, hands over guest
//! memory and interrupt eventfds, and receives file descriptors for the regions it may map or let KVM signal.
//!
//! Source: QEMU `docs/interop/vfio-user.rst`, "vfio-user Protocol Specification", version 0.1 of the protocol. What is
//! spoken of it, the limits, and how peers differ: `docs/PROTOCOL.md`.
//!
//! - [`wire`]: every structure on the socket, with its size checked at compile time.
//! - [`command`]: the numbers and names of the messages.
//! - [`capabilities`]: the JSON that both sides exchange in `VFIO_USER_VERSION`.
//! - [`socket`], [`codec`]: bytes, descriptors and deadlines; framed messages.
//! - [`foreign`]: descriptors that came from a peer, and what can be done with them without waiting for it.
//! - [`client`]: what a VMM calls.
//! - [`server`]: what a device process implements.
//! - [`ioregionfd`]: register accesses that KVM hands to a device process itself, both sides.
//! - [`journal`]: memory that outlives a device process, for its successor.
//! - [`migration`]: the states of a device that migrates, and the ways between them.
//! - [`pci`]: the region and interrupt indices of a PCI device.

pub mod capabilities;
pub mod client;
pub mod codec;
pub mod command;
mod dirty_bitmap;
pub mod foreign;
pub mod ioregionfd;
pub mod journal;
pub mod migration;
pub mod pci;
pub mod server;
pub mod socket;
pub mod wire;
