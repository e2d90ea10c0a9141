//! The control socket: what `outrigger run --control PATH` serves while the guest runs, as HTTP/1.1 with JSON
//! (docs/CONTROL.md).
//!
//! | module | one idea |
//! |---|---|
//! | [`http`] | requests and answers on one connection: bounds, deadlines, framing |
//! | `accept` | who may connect, and how many at a time |
//! | `routes` | which path and method is which operation |
//! | [`status`] | what the status says, as JSON |
//!
//! A thread accepts, and each connection has one of its own. A status takes no lock that a vCPU holds while it waits for a
//! device, so neither a client nor a device can make the other wait; what changes a device waits for that device alone.
//!
//! Features to come have their place: a live view and events are an operation whose answer has no end; hot-plug, pause and
//! snapshots are operations beside those of [`routes`].

mod accept;
pub mod http;
mod routes;
pub mod status;

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use outrigger_protocol::server::{ListenError, Listener};

use self::status::{DeviceStatus, RunState, Status};
use super::Control;
use super::outcome::Outcome;
use crate::config::Config;
use crate::peripherals::Devices;

/// No control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// The path cannot be listened on.
    #[error("--control {}", chain(.0))]
    Listen(ListenError),
    /// No thread.
    #[error("cannot start the thread of the control socket")]
    Thread(#[source] io::Error),
}

/// A control socket that is served. When dropped, it is removed if it is still the one that was bound here.
pub struct ControlSocket {
    run: Arc<ServedRun>,
    listener: Arc<Listener>,
}

/// The run that a control socket tells of.
struct ServedRun {
    control: Control,
    started: Instant,
    vcpus: u8,
    memory_bytes: u64,
    /// None until they are attached.
    devices: OnceLock<Devices>,
}

impl ControlSocket {
    /// Binds `path` and serves it. A stale socket is replaced, a live one refused.
    ///
    /// # Errors
    /// See [`ControlSocketError`].
    pub fn serve(path: &Path, config: &Config, control: &Control) -> Result<Self, ControlSocketError> {
        let listener = Arc::new(Listener::bind_private(path).map_err(ControlSocketError::Listen)?);
        let run = Arc::new(ServedRun {
            control: control.clone(),
            started: Instant::now(),
            vcpus: config.cpus,
            memory_bytes: config.memory.size,
            devices: OnceLock::new(),
        });
        let socket = Self { run: run.clone(), listener: listener.clone() };
        control.set_socket(listener.clone());
        accept::start(listener, run).map_err(ControlSocketError::Thread)?;
        Ok(socket)
    }

    /// From now on there are devices to tell of.
    pub(crate) fn set_devices(&self, devices: Devices) {
        // A run attaches its devices once.
        let _ = self.run.devices.set(devices);
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // The thread that accepts holds the listener until the process ends.
        self.listener.remove();
    }
}

impl ServedRun {
    fn status(&self) -> Status {
        let state = match (self.control.stop.requested(), self.control.does_guest_run()) {
            (true, _) => RunState::Ending,
            (false, true) => RunState::Running,
            (false, false) => RunState::Starting,
        };
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            state,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes,
            devices: self.devices().status().into_iter().map(DeviceStatus::from).collect(),
        }
    }

    /// None until all are attached.
    fn devices(&self) -> Devices {
        self.devices.get().cloned().unwrap_or_default()
    }

    fn stop(&self) {
        self.control.stop.request(Outcome::Stopped);
    }
}

/// An error and all its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
