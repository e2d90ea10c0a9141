//! Virtio devices and physical ones as vfio-user server processes.
//!
//! - [`transport`]: virtio 1.2 over PCI over vfio-user, for any device that implements
//!   [`transport::VirtioDevice`].
//! - [`blk`], [`net`]: the devices.
//! - [`vfio`]: a physical device of the host.
//! - [`crew`]: the threads of such a process.
//! - [`sandbox`]: the system calls that a sealed process may make.
//! - [`process`]: what their binaries share: arguments, the socket, the way out.

pub mod blk;
pub mod crew;
mod inherited;
mod lock;
pub mod net;
pub mod process;
pub mod sandbox;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod vfio;

/// One of the specification's constants that is a byte on the wire.
const fn byte(value: u32) -> u8 {
    assert!(value < 256, "a byte");
    value.to_le_bytes()[0]
}
