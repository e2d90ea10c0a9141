//! Planned replacement of a process that keeps no journal, by vfio-user migration (stop and copy): what the device is goes
//! through the VMM from one server to the other.

use std::sync::Arc;
use std::time::Instant;

use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::migration::DeviceState;

use super::error::Problem;
use super::peripheral::Peripheral;
use super::prepare::Ready;
use super::restart::Takeover;
use crate::attach::AttachError;
use crate::attach::discovery::discover;
use crate::attach::link::Link;

/// Bytes read and written at once.
const CHUNK: usize = 256 << 10;

/// Whether the server's device migrates.
pub(super) fn migrates(client: &Client) -> Result<bool, ClientError> {
    Ok(client.migration()?.is_some())
}

/// Stops the device in one server and puts its state into another, where it stays stopped.
///
/// # Errors
/// If either refuses, or it is not done by `end`.
pub(super) fn copy(from: &Client, to: &Client, end: Instant) -> Result<(), Problem> {
    let problem = |error: ClientError| Problem::from(AttachError::from(error));
    from.set_device_state(DeviceState::StopCopy).map_err(problem)?;
    to.set_device_state(DeviceState::Resuming).map_err(problem)?;
    let mut data = vec![0; CHUNK];
    loop {
        let length = from.read_migration_data(&mut data).map_err(problem)?;
        to.write_migration_data(&data[..length]).map_err(problem)?;
        if length < CHUNK {
            break;
        }
        if Instant::now() >= end {
            return Err(Problem::Other("has more state than can be copied in time".to_owned()));
        }
    }
    // The receiver looks at the state now.
    to.set_device_state(DeviceState::Stop).map_err(problem)
}

impl Peripheral {
    /// Lets the process that has served the device go on, where its successor has not taken over.
    pub(super) fn go_on_with(&self, client: &Arc<Client>, end: Instant) -> Result<(), Problem> {
        let link = Arc::new(Link::on(client.clone(), self.config.deadline));
        self.host.control.connections.add(&link);
        let description = discover(client)?;
        let successor = self.device.prepare(link.clone(), &description)?;
        let (source, process) = {
            let now = self.now();
            (now.source.clone(), now.process.clone())
        };
        self.hand_over(Ready { source, link, process, successor }, Takeover::Migration, end)
    }
}
