//! The device's side of vfio-user: a [`Device`], a socket, and [`serve`].
//!
//! ```no_run
//! # fn start(mut device: impl outrigger_protocol::server::Device) -> Result<(), Box<dyn std::error::Error>> {
//! use outrigger_protocol::server::{Listener, Options, serve};
//!
//! let listener = Listener::bind("/run/device.sock".as_ref())?;
//! loop {
//!     let stream = listener.accept()?;
//!     // Returns when the client leaves; the next one is welcome.
//!     serve(&mut device, stream, &Options::default())?;
//! }
//! # }
//! ```

mod device;
mod interrupts;
mod memory;

pub use device::{Device, IoFd, Irq, Region, RegionMapping};
pub use interrupts::Interrupts;
pub use memory::{Memory, MemoryError};

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to serve a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for the rest of a message that has begun, or for room to send a reply. Default: 10 s.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}

/// Why serving a client ended other than by the client leaving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// To be written.
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: std::io::Error },
}

/// Serves one client until it leaves.
pub fn serve<D: Device>(device: &mut D, stream: UnixStream, options: &Options) -> Result<(), ServeError> {
    let _ = (device, stream, options);
    unimplemented!("being written")
}

/// A socket path on which clients are accepted, one at a time; removed when dropped.
#[derive(Debug)]
pub struct Listener {}

impl Listener {
    /// Listens on `path`. A stale socket that nobody listens on is replaced; a live one, or another kind of file, is an error.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let _ = path;
        unimplemented!("being written")
    }

    /// Waits for a client.
    pub fn accept(&self) -> Result<UnixStream, ServeError> {
        unimplemented!("being written")
    }
}
