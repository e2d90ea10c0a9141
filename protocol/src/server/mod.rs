//! The device's side of vfio-user: a [`Device`], a socket, and [`serve`].
//!
//! ```no_run
//! # fn start(mut device: impl outrigger_protocol::server::Device) -> Result<(), Box<dyn std::error::Error>> {
//! use outrigger_protocol::server::{Listener, Options, serve};
//!
//! let listener = Listener::bind("/run/device.sock".as_ref())?;
//! loop {
//!     let stream = listener.accept()?;
//!     // Returns when the client leaves. A client that misbehaves is its own problem; the next one is welcome.
//!     if let Err(error) = serve(&mut device, stream, &Options::default()) {
//!         eprintln!("the client is gone: {error}");
//!     }
//! }
//! # }
//! ```
//!
//! [`Device`] is the whole protocol. If you need only registers, DMA and an interrupt pin, implement [`Registers`];
//! [`Function`] does the rest. `devices/examples/copier.rs` is such a device.

mod channel;
mod commands;
mod config_space;
mod connection;
mod describe;
mod device;
mod dirty_log;
mod dma;
mod features;
mod function;
mod function_fds;
mod function_migration;
mod interrupts;
mod journal;
mod listener;
mod mappings;
mod memory;
mod migration;
mod presence;
mod reply;
mod session;
mod sigbus;
mod unopened;
mod version;

pub use config_space::ConfigSpace;
pub use device::{Device, Feature, IoFd, IoFdKind, Region, RegionMapping};
pub use dma::DmaRange;
pub use function::{Bus, Function, Registers};
pub use interrupts::{Interrupts, Irq};
pub use journal::Journaled;
pub use listener::{Access, ListenError, Listener, SocketPath};
pub use memory::{Memory, MemoryError};
pub use migration::Migration;
pub use session::{Options, ServeError, serve};
pub use unopened::{Unopened, serve_unopened};
